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
    pair,
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
    """What one layer (never a Sequential, Residual, Concat or Tap) does to one image.

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
        """How many numbers are trained in this layer."""
        return sum(math.prod(parameter.shape) for parameter in self.parameters if parameter.trainable)


def describe(network: Sequential, input_shape: Shape) -> tuple[LayerReport, ...]:
    """One report per layer, in order of computation, for an input of [channels, height, width].

    Raises BadRecipe where a layer does not fit what reaches it; where the image is too small for a layer,
    the message names the smallest size that works.
    """
    try:
        return _reports(network, input_shape)
    except _TooSmall as problem:
        smallest = _smallest_size(network, input_shape)
        raise BadRecipe(
            f"an input of {_pixels(input_shape)} is too small: {problem}",
            where=f"layer {problem.path}",
            expected=None if smallest is None else f"an input of at least {smallest}x{smallest}",
            advice="set a larger input.size or choose another network",
        ) from None


def output_shape(network: Sequential, input_shape: Shape) -> Shape:
    """What leaves the network; not always what leaves its last layer, which may be that of a branch.

    Raises BadRecipe as `describe` does.
    """
    describe(network, input_shape)
    return _Walk().through(network, "", input_shape)


def parameters(network: Sequential, input_shape: Shape) -> dict[str, Parameter]:
    """Every parameter by name, in order of computation. Raises BadRecipe as `describe` does."""
    return {parameter.name: parameter for report in describe(network, input_shape) for parameter in report.parameters}


def parameter_count(reports: tuple[LayerReport, ...]) -> int:
    """How many numbers are trained in all, auxiliary classifiers left out as in published counts."""
    return sum(report.parameter_count for report in reports if not report.auxiliary)


def multiply_adds(reports: tuple[LayerReport, ...]) -> int:
    """Multiply-adds for one scored image."""
    return sum(report.multiply_adds for report in reports if not report.auxiliary)


def windows(length: int, size: int, stride: int, pad: int, ceil: bool = False) -> int:
    """How many windows of `size` fit `length` + 2 * `pad` pixels; with `ceil` a last partial one counts."""
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


def _smallest_size(network: Sequential, input_shape: Shape) -> int | None:
    for size in range(min(input_shape[1:]) + 1, LARGEST_SIZE_SUGGESTED + 1):
        try:
            _reports(network, (input_shape[0], size, size))
        except _TooSmall:
            continue
        return size
    return None


def _reports(network: Sequential, input_shape: Shape) -> tuple[LayerReport, ...]:
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise BadRecipe("not an image shape", expected="channels, height, width", found=input_shape)
    walk = _Walk()
    walk.through(network, "", input_shape)
    paths = [report.path for report in walk.reports]
    if len(set(paths)) < len(paths):
        raise BadRecipe("two layers of one path", found=next(path for path in paths if paths.count(path) > 1))
    return tuple(walk.reports)


class _Walk:
    """Follows an image through a network and notes a report for every layer on the way."""

    def __init__(self) -> None:
        self.reports: list[LayerReport] = []
        self.auxiliary = False

    def through(self, layer: Layer, path: str, shape: Shape) -> Shape:
        """The shape that leaves `layer` when `shape` enters it."""
        match layer:
            case Sequential():
                for name, item in layer.items:
                    shape = self.through(item, _joined(path, name), shape)
                return shape
            case Residual():
                return self._residual(layer, path, shape)
            case Concat():
                return self._concat(layer, path, shape)
            case Tap():
                return self._tap(layer, path, shape)
            case _:
                return self._leaf(layer, path, shape)

    def _residual(self, layer: Residual, path: str, shape: Shape) -> Shape:
        body = self.through(layer.body, path, shape)
        around = shape
        if layer.shortcut is not None:
            around = self.through(layer.shortcut, _joined(path, "shortcut"), shape)
        if body != around:
            raise BadRecipe("the shortcut does not fit the body", where=path, expected=body, found=around)
        return body

    def _concat(self, layer: Concat, path: str, shape: Shape) -> Shape:
        outputs = [self.through(branch, _joined(path, name), shape) for name, branch in layer.branches]
        first = outputs[0]
        if any(len(output) != len(first) or output[1:] != first[1:] for output in outputs):
            raise BadRecipe("branches of unequal size cannot be joined", where=path, found=outputs)
        return (sum(output[0] for output in outputs), *first[1:])

    def _tap(self, tap: Tap, path: str, shape: Shape) -> Shape:
        if "." in path or self.auxiliary:
            raise BadRecipe("a tap stands among the items of the network itself", where=f"layer {path}")
        self.auxiliary = True
        self.through(tap.head, path, shape)
        self.auxiliary = False
        return shape

    def _leaf(self, layer: Layer, path: str, shape: Shape) -> Shape:
        _check_fit(layer, path, shape)
        output = _output_shape(layer, path, shape)
        owned = tuple(_owned(layer, path, shape))
        weight = sum(math.prod(parameter.shape) for parameter in owned if parameter.role == "weight")
        cost = weight * math.prod(output[1:])
        self.reports.append(LayerReport(path, layer, shape, output, owned, cost, self.auxiliary))
        return output


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _check_fit(layer: Layer, path: str, shape: Shape) -> None:
    if isinstance(layer, Conv | Pool | GlobalAveragePool | LocalResponseNorm) and len(shape) != 3:
        raise BadRecipe("needs an image", where=f"layer {path}", found=f"a vector of {shape[0]}")
    if isinstance(layer, Dense) and len(shape) != 1:
        raise BadRecipe("needs a vector; put a Flatten before it", where=f"layer {path}", found=shape)
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
