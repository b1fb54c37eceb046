"""Shapes, parameters and costs of a network, worked out from its description alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Layer,
    LocalResponseNorm,
    Pool,
    Residual,
    Sequential,
    Tap,
    follow,
    pair,
    walk,
)

Shape = tuple[int, ...]  # [channels, height, width] or [features]
Role = Literal["weight", "bias", "scale", "shift", "mean", "variance", "slope"]

LARGEST_SIZE_SUGGESTED = 1024  # pixels


@dataclass(frozen=True)
class Parameter:
    """One array of a network. `role`: weight and bias of Conv and Dense; scale, shift, mean and variance
    of BatchNorm (named weight, bias, running_mean, running_var); slope of a PReLU.
    """

    name: str
    shape: Shape
    trainable: bool
    role: Role


@dataclass(frozen=True)
class LayerReport:
    """Shapes, parameters and cost of a single layer (never a Sequential, Residual, Concat or Tap) for one image.

    `multiply_adds` counts those of Conv and Dense without their biases, as published FLOPs tables do.
    `auxiliary` layers stand under a Tap: they work in training only.
    """

    path: str
    layer: Layer
    input_shape: Shape
    output_shape: Shape
    parameters: tuple[Parameter, ...]
    multiply_adds: int
    auxiliary: bool = False

    @property
    def parameter_count(self) -> int:
        """Trained numbers of this layer."""
        return sum(math.prod(parameter.shape) for parameter in self.parameters if parameter.trainable)


def describe(network: Sequential, input_shape: Shape) -> tuple[LayerReport, ...]:
    """One report per layer, in order of computation, for an input of [channels, height, width].

    Raises BadRecipe where a layer does not fit what reaches it; where the image is too small for a layer,
    the message names the smallest size that works.
    """
    return tuple(_passage(network, input_shape).reports)


def output_shapes(network: Sequential, input_shape: Shape) -> dict[str, Shape]:
    """The output shape of every layer, Residual and Concat by path; that of the network itself under "".

    Raises BadRecipe as `describe` does.
    """
    return _passage(network, input_shape).shapes


def output_shape(network: Sequential, input_shape: Shape) -> Shape:
    """The network's output shape. Raises BadRecipe as `describe` does."""
    return output_shapes(network, input_shape)[""]


def parameters(network: Sequential, input_shape: Shape) -> dict[str, Parameter]:
    """Every parameter by name, in order of computation. Raises BadRecipe as `describe` does."""
    return {parameter.name: parameter for report in describe(network, input_shape) for parameter in report.parameters}


def parameter_count(reports: tuple[LayerReport, ...]) -> int:
    """Trained numbers in all, auxiliary classifiers left out as in published counts."""
    return sum(report.parameter_count for report in reports if not report.auxiliary)


def multiply_adds(reports: tuple[LayerReport, ...]) -> int:
    """Multiply-adds for a scored image."""
    return sum(report.multiply_adds for report in reports if not report.auxiliary)


def windows(length: int, size: int, stride: int, pad: int, ceil: bool = False) -> int:
    """Number of windows of `size` in `length` + 2 * `pad` pixels; with `ceil` a last partial window counts."""
    room = length + 2 * pad - size
    if room < 0:
        return 0
    return (-(-room // stride) if ceil else room // stride) + 1


class _TooSmall(Exception):
    """An image smaller than a layer's window; the caller turns it into advice."""

    def __init__(self, path: str, layer: Conv | Pool, shape: Shape) -> None:
        self.path = path
        size = pair(layer.kernel if isinstance(layer, Conv) else layer.size)
        super().__init__(f"{_pixels(shape)} reach its windows of {size[0]}x{size[1]}")


def _pixels(shape: Shape) -> str:
    return "x".join(str(length) for length in shape[1:])


def _passage(network: Sequential, input_shape: Shape) -> _Passage:
    try:
        return _Passage(network, input_shape)
    except _TooSmall as problem:
        smallest = _smallest_size(network, input_shape)
        raise BadRecipe(
            f"an input of {_pixels(input_shape)} is too small: {problem}",
            where=f"layer {problem.path}",
            expected=None if smallest is None else f"an input of at least {smallest}x{smallest}",
            advice="set a larger input.size or choose another network",
        ) from None


def _smallest_size(network: Sequential, input_shape: Shape) -> int | None:
    for size in range(min(input_shape[1:]) + 1, LARGEST_SIZE_SUGGESTED + 1):
        try:
            _Passage(network, (input_shape[0], size, size))
        except _TooSmall:
            continue
        return size
    return None


class _Passage:
    """One image's way through a network: reports of the layers, and output shapes by path."""

    def __init__(self, network: Sequential, input_shape: Shape) -> None:
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise BadRecipe("not an image shape", expected="channels, height, width", found=input_shape)
        layers = list(walk(network))
        self._heads = tuple(f"{path}." for path, layer in layers if isinstance(layer, Tap))
        _require_paths([path for path, _ in layers], self._heads)
        self.reports: list[LayerReport] = []
        self.shapes: dict[str, Shape] = {}
        self.shapes[""] = follow(network, "", input_shape, self._leaving)

    def _leaving(self, layer: Layer, path: str, inputs: list[Shape]) -> Shape:
        match layer:
            case Residual():
                shape = _added(path, *inputs)
            case Concat():
                shape = _concatenated(path, inputs)
            case _:
                self.reports.append(_report(layer, path, inputs[0], path.startswith(self._heads)))
                shape = self.reports[-1].output_shape
        self.shapes[path] = shape
        return shape


def _require_paths(paths: list[str], heads: tuple[str, ...]) -> None:
    """Raise BadRecipe for two layers of the same path, and for a Tap that is not an item of the network itself."""
    if len(set(paths)) < len(paths):
        raise BadRecipe("two layers have the same path", found=next(path for path in paths if paths.count(path) > 1))
    for head in heads:
        if head.count(".") > 1:
            raise BadRecipe("a Tap must be an item of the network itself", where=f"layer {head[:-1]}")


def _added(path: str, body: Shape, around: Shape) -> Shape:
    if body != around:
        raise BadRecipe("the shortcut does not fit the body", where=path, expected=body, found=around)
    return body


def _concatenated(path: str, branches: list[Shape]) -> Shape:
    first = branches[0]
    if any(len(branch) != len(first) or branch[1:] != first[1:] for branch in branches):
        raise BadRecipe("branches of unequal size cannot be joined", where=path, found=branches)
    return (sum(branch[0] for branch in branches), *first[1:])


def _report(layer: Layer, path: str, shape: Shape, auxiliary: bool) -> LayerReport:
    _check_fit(layer, path, shape)
    output = _output_shape(layer, path, shape)
    owned = tuple(_owned(layer, path, shape))
    weight = sum(math.prod(parameter.shape) for parameter in owned if parameter.role == "weight")
    return LayerReport(path, layer, shape, output, owned, weight * math.prod(output[1:]), auxiliary)


def _check_fit(layer: Layer, path: str, shape: Shape) -> None:
    if isinstance(layer, Conv | Pool | GlobalAveragePool | LocalResponseNorm) and len(shape) != 3:
        raise BadRecipe("the layer needs an image", where=f"layer {path}", found=f"a vector of {shape[0]}")
    if isinstance(layer, Dense) and len(shape) != 1:
        raise BadRecipe("the layer needs a vector; put a Flatten before it", where=f"layer {path}", found=shape)
    if isinstance(layer, Conv) and (shape[0] % layer.groups or layer.channels % layer.groups):
        raise BadRecipe(
            f"{layer.groups} groups do not divide the channels",
            where=f"layer {path}",
            found=f"{shape[0]} channels in, {layer.channels} out",
        )


def _output_shape(layer: Layer, path: str, shape: Shape) -> Shape:
    match layer:
        case Conv(channels=channels):
            return (channels, *_image_size(layer, path, shape))
        case Pool():
            return (shape[0], *_image_size(layer, path, shape))
        case GlobalAveragePool():
            return (shape[0], 1, 1)
        case Flatten():
            return (math.prod(shape),)
        case Dense(units=units):
            return (units,)
        case _:
            return shape


def _image_size(layer: Conv | Pool, path: str, shape: Shape) -> Shape:
    size = pair(layer.kernel if isinstance(layer, Conv) else layer.size)
    ceil = isinstance(layer, Pool) and layer.ceil
    axes = zip(shape[1:], size, pair(layer.stride), pair(layer.pad), strict=True)
    counts = tuple(windows(*axis, ceil) for axis in axes)
    if min(counts) < 1:
        raise _TooSmall(path, layer, shape)
    return counts


def _owned(layer: Layer, path: str, shape: Shape) -> Iterator[Parameter]:
    channels = shape[0]
    match layer:
        case Conv():
            weight = (layer.channels, channels // layer.groups, *pair(layer.kernel))
            yield from _weight_and_bias(path, weight, layer.bias)
        case Dense():
            yield from _weight_and_bias(path, (layer.units, channels), layer.bias)
        case BatchNorm():
            yield Parameter(f"{path}.weight", (channels,), layer.scale, "scale")
            yield Parameter(f"{path}.bias", (channels,), True, "shift")
            yield Parameter(f"{path}.running_mean", (channels,), False, "mean")
            yield Parameter(f"{path}.running_var", (channels,), False, "variance")
        case Activation(kind="prelu"):
            yield Parameter(f"{path}.slope", (channels,), True, "slope")


def _weight_and_bias(path: str, shape: Shape, bias: bool) -> Iterator[Parameter]:
    yield Parameter(f"{path}.weight", shape, True, "weight")
    if bias:
        yield Parameter(f"{path}.bias", shape[:1], True, "bias")
