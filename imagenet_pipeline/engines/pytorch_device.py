"""Where the PyTorch engine computes, in what precision, and with what compiler."""

from __future__ import annotations

import os
import shutil
from typing import Any

import numpy as np

from imagenet_pipeline.engines.devices import parse_devices, require_there
from imagenet_pipeline.engines.pytorch_import import torch
from imagenet_pipeline.errors import BadRecipe


def parse_device(devices: str) -> Any:
    """The torch.device for a `devices` word. Raises BadRecipe for one that is not there, or for several.

    "auto" is the first GPU, or else the CPU.
    """
    gpus = torch.cuda.device_count()
    kind, words = parse_devices(devices, gpus, expected="auto, cpu, gpu or gpu:1")
    if len(words) > 1:
        raise BadRecipe(
            "the pytorch engine takes one device",
            where=f"devices = {devices!r}",
            advice=f"take devices={kind}:{words[0]}, or engine=gluon",
        )
    if kind == "cpu":
        require_there(devices, words, 1, "the one device cpu:0")
        return torch.device("cpu")
    require_there(devices, words, gpus, f"{gpus} GPUs that PyTorch can use")
    return torch.device("cuda", int(words[0]))


def choose_precision(precision: str, device: Any) -> str:
    """What to compute in on a device; "auto" is bfloat16 where the hardware multiplies it fast, or else float32.

    Raises BadRecipe for one the device lacks.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        lacking = set() if fast else {"bfloat16"}
    else:
        fast = torch.cpu._is_amx_tile_supported()
        # Without AMX for it, oneDNN has no fast float16 gradient: a step of ResNet-18 took 80 times as long.
        lacking = set() if torch.cpu._is_amx_fp16_supported() else {"float16"}
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            lacking.add("bfloat16")
    if precision in lacking:
        raise BadRecipe(
            f"no fast {precision} on this {'CPU' if device.type == 'cpu' else 'GPU'}",
            where=f"precision = {precision!r}",
            advice="precision=auto takes the fastest there is",
        )
    if precision == "auto":
        return "bfloat16" if fast else "float32"
    return precision


def device_name(device: Any) -> str:
    """As runs and reports show it."""
    return "cpu" if device.type == "cpu" else f"gpu:{device.index} ({torch.cuda.get_device_name(device)})"


def versions_of(device: Any) -> dict[str, str]:
    """Of what computes on a device."""
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    return versions if device.type == "cpu" else {**versions, "cuda": torch.version.cuda}


def compiled(network: Any) -> Any:
    """The network compiled at its first step. Raises BadRecipe, now or then, where there is no compiler that works."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise BadRecipe(
            f"compile = true needs the compiler {compiler}", advice="install it, or train with compile=false"
        )
    inner = torch.compile(network)

    def step(images: Any) -> Any:
        try:
            return inner(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise BadRecipe(
                f"compile = true: the step cannot be compiled ({_short(error)})",
                advice=f"mend the compiler {compiler}, or train with compile=false",
            ) from error

    return step


def _short(error: Exception) -> str:
    return ascii(" ".join(str(error).split()))[1:-1][:200]
