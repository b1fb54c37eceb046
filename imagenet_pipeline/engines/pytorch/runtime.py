"""PyTorch itself, imported here alone, and the device, precision and compiler the engine computes with."""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np

from imagenet_pipeline.engines.devices import CPU_CONTEXTS, parse_devices, require_gpus, require_there, tell_automatic
from imagenet_pipeline.errors import BadRecipe, is_out_of_memory
from imagenet_pipeline.processes import (
    ALONE,
    RankedProcess,
    available_processors,
    processor_name,
    this_process,
    without_collecting,
)

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def import_torch() -> Any:
    """Import PyTorch, to use its share of the processors this process and its neighbours may use."""
    here = this_process()
    if here.launched:
        # The network layer's many lines on a lost rank are replaced by our single line.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with waiting_briefly(os.environ), without_collecting():
        import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_processors() // here.local_ranks))
    return torch


@contextmanager
def waiting_briefly(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Let computing threads without work wait 0.5 ms in a loop before they sleep, where the user has not said how.

    GNU's OpenMP, which reads this when it is loaded, in the block, waits 300,000 rounds, 10 ms of a processor that
    loading threads and other programs could use; waking a thread costs 0.02 ms (`benchmarks/README.md`). Programs
    that are started later do not inherit it.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        yield
        return
    environment["GOMP_SPINCOUNT"] = "10000"
    try:
        yield
    finally:
        del environment["GOMP_SPINCOUNT"]


torch: Any = import_torch()


def allow_tf32(allowed: bool) -> None:
    """Let GPUs round the factors of float32 products to TF32's 10 bits from now on, or not."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


allow_tf32(False)


def choose_algorithms(deterministic: bool) -> None:
    """Let GPUs take from now on algorithms that give equal bytes for equal numbers, or the fastest, found by trial."""
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        # Read when cuBLAS is first used; PyTorch refuses to call it deterministic without.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Memory that an operator is to write to need not be filled before: none here reads what it did not write.
        torch.utils.deterministic.fill_uninitialized_memory = False
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)


def naming_algorithms(call: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """The same function, but BadRecipe where an operator has no deterministic algorithm on this device."""

    @functools.wraps(call)
    def guarded(*arguments: _Given.args, **named: _Given.kwargs) -> _Result:
        try:
            return call(*arguments, **named)
        except RuntimeError as error:
            operator, found, _ = str(error).partition(" does not have a deterministic implementation")
            if not found:
                raise
            raise BadRecipe(
                f"PyTorch has no deterministic algorithm for {_short(operator)} on this device",
                where="deterministic = true",
                advice="train with deterministic=false, or a network without it",
            ) from error

    return guarded


def parse_device(devices: str, here: RankedProcess = ALONE) -> Any:
    """Find the torch.device of a process for a `devices` word: of several the one at its local rank.

    "auto" is a GPU a process, or else the CPU. Raises BadRecipe for a device that is not there, or where there are
    not as many processes as listed devices.
    """
    kind, words = listed_devices(devices)
    if not here.launched and len(words) > 1:
        raise BadRecipe(
            "the pytorch engine needs a process for each device, and only one process runs",
            where=f"devices = {devices!r}",
            advice=f"take devices={kind}:{words[0]}, or engine=gluon",
        )
    if ":" in devices and len(words) != here.local_ranks:
        raise BadRecipe(
            "the number of devices differs from the number of processes on this machine",
            where=f"devices = {devices!r}",
            expected=f"{here.local_ranks}, as many as --nproc-per-node says",
            found=len(words),
            advice="devices=auto gives each process its own",
        )
    if devices == "auto" and not here.launched:
        tell_automatic("pytorch", gpu_count(), why_no_gpu)
    if kind == "cpu":
        return torch.device("cpu")
    number = words[here.local_rank] if ":" in devices else str(here.local_rank)
    require_gpus(devices, [number], "pytorch", gpu_count(), why_no_gpu)
    return torch.device("cuda", int(number))


def gpu_count() -> int:
    """Number of GPUs that PyTorch can use."""
    with warnings.catch_warnings():
        # Of a driver that is too old: `why_no_gpu` says it where it matters.
        warnings.simplefilter("ignore", UserWarning)
        return int(torch.cuda.device_count())


def why_no_gpu() -> str:
    """Say why PyTorch can use no GPU: its build, the environment, or the driver."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} is built without CUDA; docs/install.md has the build with it"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides them"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        if "no NVIDIA driver" in str(error):
            return "the NVIDIA driver is missing"
        if "too old" in str(error):
            return f"the NVIDIA driver is too old for CUDA {torch.version.cuda}"
        return f"the driver says: {_short(error)}"
    return "there is none"


def listed_devices(devices: str) -> tuple[str, list[str]]:
    """Read the recipe's `devices`: "cpu" or "gpu", and all numbers. Raises BadRecipe for a device that is not there."""
    gpus = gpu_count()
    kind, words = parse_devices(devices, gpus, expected="auto, cpu, gpu, gpu:all, cpu:0,1 or gpu:0,1,2,3")
    if kind == "gpu":
        require_gpus(devices, words, "pytorch", gpus, why_no_gpu)
    elif len(words) == 1:
        require_there(devices, words, 1, "the one device cpu:0")
    else:
        require_there(devices, words, CPU_CONTEXTS, f"cpu:0 to cpu:{CPU_CONTEXTS - 1}, a process each")
    return kind, words


def choose_precision(precision: str, device: Any) -> str:
    """Choose what to compute in on a device; "auto" is bfloat16 where the hardware multiplies it fast, or else float32.

    Raises BadRecipe for a precision the device lacks.
    """
    if device.type == "cuda":
        # NVIDIA's GPUs have bfloat16 and TF32 since Ampere, AMD's bfloat16 alone.
        amd = torch.version.hip is not None
        fast = amd or torch.cuda.get_device_capability(device) >= (8, 0)
        lacking = ({"tf32"} if amd else set()) if fast else {"bfloat16", "tf32"}
    else:
        # A step of ResNet-18 took 0.3 of its float32 time with AMX; with AVX-512's dot products alone 0.6 to 0.7 on an
        # AMD processor, and 1.1 to 1.2 on an Intel one, which multiplies bfloat16 no faster by them.
        fast = torch.cpu._is_amx_tile_supported() or (
            torch.cpu._is_avx512_bf16_supported() and "Intel" not in processor_name()
        )
        # Without AMX for it, oneDNN has no fast float16 gradient: a step of ResNet-18 took 80 times as long.
        lacking = set() if torch.cpu._is_amx_fp16_supported() else {"float16"}
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            lacking.add("bfloat16")
    if precision == "tf32" and device.type == "cpu":
        what, advice = "tf32 is for NVIDIA GPUs since Ampere", "precision=auto takes the fastest there is"
        raise BadRecipe(what, where="precision = 'tf32'", found="a CPU", advice=advice)
    if precision in lacking:
        raise BadRecipe(
            f"no fast {precision} on {'this CPU' if device.type == 'cpu' else device_name(device)}",
            where=f"precision = {precision!r}",
            advice="precision=auto takes the fastest there is",
        )
    if precision == "auto":
        return "bfloat16" if fast else "float32"
    return precision


def device_name(device: Any) -> str:
    """Name a device as runs and reports show it."""
    return "cpu" if device.type == "cpu" else f"gpu:{device.index} ({torch.cuda.get_device_name(device)})"


def versions_of(device: Any) -> dict[str, str]:
    """Library versions, CUDA included on a GPU."""
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    return versions if device.type == "cpu" else {**versions, "cuda": torch.version.cuda}


def require_compiler() -> None:
    """Raise BadRecipe where there is none."""
    if shutil.which(_compiler()) is None:
        raise BadRecipe(
            f"compile = true needs the compiler {_compiler()}", advice="install it, or train with compile=false"
        )


def compiled(network: Any, graphs: bool) -> Any:
    """The network compiled at its first step, which raises BadRecipe where the compiler does not work.

    With `graphs` a GPU is given all kernels of a step at once, as a CUDA graph: what a step returns, and the gradients
    it leaves, hold until the next.
    """
    # Symbolic sizes fail on some networks, and would give a restarted run other kernels than an unbroken run.
    inner = torch.compile(network, dynamic=False, mode="reduce-overhead" if graphs else None)

    def step(images: Any) -> Any:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return inner(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            if is_out_of_memory(error):
                raise
            raise BadRecipe(
                f"compile = true: the step cannot be compiled ({_short(error)})",
                advice=f"mend the compiler {_compiler()}, or train with compile=false",
            ) from error

    return step


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _short(error: Exception | str) -> str:
    return ascii(" ".join(str(error).split()))[1:-1][:200]
