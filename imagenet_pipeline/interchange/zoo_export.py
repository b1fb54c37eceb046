"""A zoo's network in the forms its own framework has: MXNet for GluonCV, PyTorch and ONNX for timm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from imagenet_pipeline import __version__, files
from imagenet_pipeline.engines import Values
from imagenet_pipeline.engines.zoos import ZooNetwork
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.frozen import Normalisation, in_float32
from imagenet_pipeline.interchange.network_symbol import DEVIATION, MEAN
from imagenet_pipeline.interchange.params import write_params
from imagenet_pipeline.interchange.torch_export import require_module_name
from imagenet_pipeline.interchange.torch_layers import NORMALISE
from imagenet_pipeline.networks.shapes import Shape

TEMPLATE = '''\
"""{network}: images, float32 [n, {shape}], {reads}, to logits [n, {classes}].

    from {name} import load

    network = load()  # with the weights of {name}.safetensors beside this file, ready to score
    logits = network(images)

Written by imagenet-pipeline {version}. Needs timm, torch and safetensors. The weights have timm's own names.
"""

from pathlib import Path

import timm
import torch
from torch import nn


{definitions}


def network():
    """timm's network, with values of timm's choice."""
    return timm.create_model({options})


def load(path=Path(__file__).with_suffix(".safetensors")):
    """The network with the weights of a file, ready to score."""
    from safetensors.torch import load_file

    loaded = network()
    loaded.load_state_dict(load_file(path))
    return {loaded}.eval()
'''


Writer = Callable[[ZooNetwork, Values, Shape, Path, Normalisation | None], list[Path]]


def export_zoo(
    network: ZooNetwork,
    values: Values,
    input_shape: Shape,
    out: Path,
    normalisation: Normalisation | None,
    form: str,
) -> list[Path]:
    """Write the files of `form`, as `export_mxnet`, `export_onnx` and `export_pytorch` do for our own networks.

    Raises BadRecipe where the zoo's networks have no such form, or its library is not installed; BadInput where a value
    is not finite in float32.
    """
    possible = WRITERS[network.library]
    if form not in possible:
        raise BadRecipe(
            f"{network} cannot be written as {form}", where="--format", expected=" or ".join(possible), found=form
        )
    plain = {name: in_float32(name, value) for name, value in values.items()}
    return possible[form](network, plain, input_shape, out, normalisation)


def _export_mxnet(
    network: ZooNetwork, values: Values, input_shape: Shape, out: Path, normalisation: Normalisation | None
) -> list[Path]:
    from imagenet_pipeline.engines.gluon import zoo as gluon_zoo

    constants = (MEAN, DEVIATION) if normalisation else None
    text, names = gluon_zoo.symbol(network, input_shape, constants)
    arrays = {names[name]: value for name, value in values.items()}
    for name, numbers in zip(constants or (), normalisation or (), strict=True):
        arrays[f"arg:{name}"] = np.array(numbers, np.float32).reshape(1, -1, 1, 1)
    symbol, params = out.with_name(f"{out.name}-symbol.json"), out.with_name(f"{out.name}-0000.params")
    write_params(params, arrays)
    files.write_whole(symbol, text)
    return [symbol, params]


def _export_onnx(
    network: ZooNetwork, values: Values, input_shape: Shape, out: Path, normalisation: Normalisation | None
) -> list[Path]:
    from imagenet_pipeline.engines.pytorch import zoo as pytorch_zoo

    module = pytorch_zoo.scoring_module(network, values, input_shape, normalisation)
    target = out.with_name(f"{out.name}.onnx")
    files.write_whole(target, pytorch_zoo.onnx_bytes(network, module, input_shape))
    return [target]


def _export_program(
    network: ZooNetwork,
    values: Values,
    input_shape: Shape,
    out: Path,
    normalisation: Normalisation | None,
    ending: str,
) -> list[Path]:
    from imagenet_pipeline.engines.pytorch import programs
    from imagenet_pipeline.engines.pytorch import zoo as pytorch_zoo

    module = pytorch_zoo.scoring_module(network, values, input_shape, normalisation)
    return programs.write_program(module, input_shape, out, ending)


def _export_pytorch(
    network: ZooNetwork, values: Values, input_shape: Shape, out: Path, normalisation: Normalisation | None
) -> list[Path]:
    from imagenet_pipeline.engines.pytorch import zoo as pytorch_zoo

    require_module_name(out.name)
    options = pytorch_zoo.options(network, input_shape)
    loaded = "loaded"
    if normalisation:
        mean, std = (tuple(map(float, numbers)) for numbers in normalisation)
        loaded = f"nn.Sequential(Normalise(mean={mean!r}, std={std!r}), loaded)"
    text = TEMPLATE.format(
        network=network,
        name=out.name,
        version=__version__,
        shape=", ".join(map(str, input_shape)),
        reads="RGB, 0..255" if normalisation else "(RGB - mean) / std",
        classes=network.classes,
        options=", ".join([repr(network.name), *(f"{key}={value!r}" for key, value in options.items())]),
        definitions=NORMALISE,
        loaded=loaded,
    )
    weights, code = out.with_name(f"{out.name}.safetensors"), out.with_name(f"{out.name}.py")
    files.write_whole(weights, save(dict(values), metadata={"format": "pt"}))
    files.write_whole(code, text)
    return [weights, code]


WRITERS: dict[str, dict[str, Writer]] = {
    "gluoncv": {"mxnet": _export_mxnet},
    "timm": {
        "pytorch": _export_pytorch,
        "onnx": _export_onnx,
        "torchscript": partial(_export_program, ending=".pt"),
        "torch-export": partial(_export_program, ending=".pt2"),
    },
}
"""Formats a zoo's networks can be written in, and what writes them."""
