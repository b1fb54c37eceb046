"""Shapes, parameters and costs of a network, worked out from its description alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import (
    Activation,
    Attention,
    BatchNorm,
    BlurPool,
    Concat,
    Constant,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Flatten,
    GlobalAveragePool,
    Greyscale,
    InstanceNorm,
    Join,
    L2Norm,
    Layer,
    LayerNorm,
    LocalResponseNorm,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Residual,
    Scale,
    Sequential,
    Slice,
    Softmax,
    Tap,
    Transpose,
    Upsample,
    follow,
    pair,
    walk,
)

Shape = tuple[int, ...]  # [channels, height, width] or [features], in a Graph any other too
Role = Literal["weight", "bias", "scale", "shift", "mean", "variance", "slope", "constant"]
LARGEST_OUTPUT = 2**31 - 1
"""Numbers in the output of a layer: more fit into no memory."""

LARGEST_SIZE_SUGGESTED = 1024  # pixels


@dataclass(frozen=True)
class Parameter:
    """One array of a network. `role`: weight and bias of Conv, ConvTranspose and Dense; scale, shift, mean and variance
    of normalisations (named weight, bias, running_mean, running_var); scale of a Scale (weight); slope of a PReLU; a
    Constant (named value).
    """

    name: str
    shape: Shape
    trainable: bool
    role: Role


@dataclass(frozen=True)
class LayerReport:
    """Shapes, parameters and cost of a single layer (never a group of layers) for one image.

    `multiply_adds` counts those of Conv, ConvTranspose and Dense without their biases, as published FLOPs tables do,
    and those of Attention's two products.
    `auxiliary` layers stand under a Tap: they work in training only.
    """

    path: str
    layer: Layer
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    parameters: tuple[Parameter, ...]
    multiply_adds: int
    auxiliary: bool = False

    @property
    def input_shape(self) -> Shape:
        """The shape of the first input; that of the output for a Constant."""
        return self.input_shapes[0] if self.input_shapes else self.output_shape

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


class TooSmall(Exception):
    """An image smaller than a layer's window; the caller turns it into advice, or into another size."""

    def __init__(self, path: str, layer: Conv | Pool | BlurPool, shape: Shape) -> None:
        self.path = path
        size = _reach(layer) if isinstance(layer, Conv) else pair(layer.size)
        super().__init__(f"{_pixels(shape)} reach its windows of {size[0]}x{size[1]}")


def _pixels(shape: Shape) -> str:
    return "x".join(str(length) for length in shape[1:])


def _passage(network: Sequential, input_shape: Shape) -> _Passage:
    try:
        return _Passage(network, input_shape)
    except TooSmall as problem:
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
        except TooSmall:
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
                self.reports.append(layer_report(layer, path, inputs, path.startswith(self._heads)))
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


def layer_report(layer: Layer, path: str, shapes: list[Shape], auxiliary: bool = False) -> LayerReport:
    """The report of a single layer for inputs of these shapes.

    Raises BadRecipe where the layer does not fit them, and TooSmall where a window is larger than the image.
    """
    output = _joint_shape(layer, path, shapes)
    if math.prod(output) > LARGEST_OUTPUT or min(output, default=0) < 1:
        raise _unfit("the layer's output is larger than any memory, or empty", path, output)
    owned = tuple(_owned(layer, path, shapes[0] if shapes else output))
    weight = sum(math.prod(parameter.shape) for parameter in owned if parameter.role == "weight")
    # A ConvTranspose spreads every position of its input, the others gather for every one of their output.
    positions = shapes[0][1:] if isinstance(layer, ConvTranspose) else output[1:]
    if isinstance(layer, Dense):
        positions = output[:-1]
    products = 2 * output[0] * math.prod(output) if isinstance(layer, Attention) else weight * math.prod(positions)
    return LayerReport(path, layer, tuple(shapes), output, owned, products, auxiliary)


def _unfit(what: str, path: str, found: object, expected: object = None) -> BadRecipe:
    return BadRecipe(what, where=f"layer {path}", expected=expected, found=found)


def _joint_shape(layer: Layer, path: str, shapes: list[Shape]) -> Shape:
    """The output shape of a layer of any number of inputs."""
    match layer:
        case Constant(shape=shape):
            return shape
        case Join(axis=axis):
            return _joined_shape(path, axis, shapes)
        case Elementwise():
            return _broadcast(path, shapes)
    _check_fit(layer, path, shapes[0])
    return _output_shape(layer, path, shapes[0])


def _joined_shape(path: str, axis: int, shapes: list[Shape]) -> Shape:
    first = shapes[0]
    others = [shape[:axis] + shape[axis + 1 :] for shape in shapes]
    if not 0 <= axis < len(first) or any(len(shape) != len(first) or other != others[0]
                                         for shape, other in zip(shapes, others, strict=True)):  # fmt: skip
        raise _unfit(f"inputs of unequal size cannot be joined along axis {axis}", path, shapes)
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _broadcast(path: str, shapes: list[Shape]) -> Shape:
    axes = [set(lengths) - {1} for lengths in zip(*shapes, strict=False)]
    if len({len(shape) for shape in shapes}) > 1 or any(len(lengths) > 1 for lengths in axes):
        advice = (
            "trained positions, as a ViT's, fit images of one size alone: set input.size to what `networks NAME` says"
        )
        raise BadRecipe("inputs of unequal size", where=f"layer {path}", found=shapes, advice=advice)
    return tuple(max(lengths, default=1) for lengths in axes)


def _check_fit(layer: Layer, path: str, shape: Shape) -> None:
    spatial = (
        Conv | ConvTranspose | Pool | BlurPool | GlobalAveragePool | LocalResponseNorm | Pad | Upsample | Greyscale
    )
    if isinstance(layer, spatial) and len(shape) != 3:
        found = f"a vector of {shape[0]}" if len(shape) == 1 else f"an array of {shape}"
        raise _unfit("the layer needs an image", path, found)
    if isinstance(layer, Dense) and len(shape) != 1 and not layer.last_axis:
        raise _unfit("the layer needs a vector; put a Flatten before it", path, shape)
    if isinstance(layer, Attention) and (len(shape) != 2 or shape[1] % (3 * layer.heads)):
        expected = f"[tokens, 3 * width], a width for {layer.heads} heads"
        raise _unfit("the layer needs queries, keys and values side by side", path, shape, expected)
    if isinstance(layer, Greyscale) and shape[0] != 3:
        raise _unfit("the layer needs the channels R, G, B", path, shape)
    if isinstance(layer, InstanceNorm) and len(shape) < 2:
        raise _unfit("the layer needs several values a channel", path, shape)
    if isinstance(layer, Conv | ConvTranspose) and (shape[0] % layer.groups or layer.channels % layer.groups):
        found = f"{shape[0]} channels in, {layer.channels} out"
        raise _unfit(f"{layer.groups} groups do not divide the channels", path, found)
    axes = _axes(layer)
    if isinstance(layer, L2Norm | Reduce) and not axes:
        raise _unfit("the layer names no axis to work along", path, axes)
    if any(not -len(shape) <= axis < len(shape) for axis in axes):
        raise _unfit("the layer works along an axis that is not there", path, shape, f"axes {axes}")


def _axes(layer: Layer) -> tuple[int, ...]:
    match layer:
        case LayerNorm(axis=axis) | Scale(axis=axis) | Softmax(axis=axis) | Slice(axis=axis):
            return (axis,)
        case L2Norm(axes=axes) | Reduce(axes=axes):
            return axes
    return ()


def _output_shape(layer: Layer, path: str, shape: Shape) -> Shape:
    match layer:
        case Conv(channels=channels):
            return (channels, *_image_size(layer, path, shape))
        case ConvTranspose(channels=channels):
            return (channels, *_spread_size(layer, shape))
        case Pool():
            return (shape[0], *_image_size(layer, path, shape))
        case BlurPool(stride=stride):
            if min(shape[1:]) <= max(layer.margins):
                raise TooSmall(path, layer, shape)
            return (shape[0], *((length - 1) // step + 1 for length, step in zip(shape[1:], pair(stride), strict=True)))
        case Attention():
            return (shape[0], shape[1] // 3)
        case GlobalAveragePool():
            return (shape[0], 1, 1)
        case Flatten():
            return (math.prod(shape),)
        case Dense(units=units):
            return (*shape[:-1], units)
        case Greyscale():
            return (1, *shape[1:])
        case Upsample(scale=scale):
            return (shape[0], scale * shape[1], scale * shape[2])
        case Pad():
            _require_mirrored(layer, path, shape)
            return (shape[0], shape[1] + layer.top + layer.bottom, shape[2] + layer.left + layer.right)
        case _:
            return _rearranged(layer, path, shape)


def _spread_size(layer: ConvTranspose, shape: Shape) -> Shape:
    sizes = zip(shape[1:], *map(pair, (layer.kernel, layer.stride, layer.pad, layer.extra, layer.dilation)),
                strict=True)  # fmt: skip
    return tuple(
        (length - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1 + extra
        for length, kernel, stride, pad, extra, dilation in sizes
    )


def _require_mirrored(layer: Pad, path: str, shape: Shape) -> None:
    margins = (layer.top, layer.bottom, layer.left, layer.right)
    beyond = max(*margins[:2]) >= shape[1] or max(*margins[2:]) >= shape[2]
    if min(margins) < 0 or (layer.kind == "reflect" and beyond):
        raise _unfit("the margins are negative, or wider than the image they mirror", path, shape)


def _rearranged(layer: Layer, path: str, shape: Shape) -> Shape:
    match layer:
        case Reshape(shape=wanted):
            known = math.prod(length for length in wanted if length != -1)
            if wanted.count(-1) > 1 or known < 1 or math.prod(shape) % known:
                raise _unfit("the layer cannot bring its input into this shape", path, shape, wanted)
            result = tuple(math.prod(shape) // known if length == -1 else length for length in wanted)
            if math.prod(result) != math.prod(shape):
                raise _unfit("the layer cannot bring its input into this shape", path, shape, wanted)
            return result
        case Transpose(axes=axes):
            if sorted(axes) != list(range(len(shape))):
                raise _unfit("the layer does not name every axis once", path, shape, axes)
            return tuple(shape[axis] for axis in axes)
        case Slice(axis=axis, begin=begin, end=end, step=step):
            axis %= len(shape)
            count = len(range(shape[axis])[begin : end if end is None else max(end, 0) : max(step, 1)])
            return (*shape[:axis], count, *shape[axis + 1 :])
        case Reduce(axes=axes, keep=keep):
            gone = {axis % len(shape) for axis in axes}
            return tuple(1 if axis in gone else length for axis, length in enumerate(shape) if keep or axis not in gone)
        case _:
            return shape


def _image_size(layer: Conv | Pool, path: str, shape: Shape) -> Shape:
    size = pair(layer.size) if isinstance(layer, Pool) else _reach(layer)
    ceil = isinstance(layer, Pool) and layer.ceil
    axes = zip(shape[1:], size, pair(layer.stride), pair(layer.pad), strict=True)
    counts = tuple(windows(*axis, ceil) for axis in axes)
    if min(counts) < 1:
        raise TooSmall(path, layer, shape)
    return counts


def _reach(layer: Conv) -> tuple[int, int]:
    """The pixels that a kernel spans, (height, width)."""
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(pair(layer.kernel), pair(layer.dilation), strict=True)]
    return spans[0], spans[1]


def _owned(layer: Layer, path: str, shape: Shape) -> Iterator[Parameter]:
    channels = shape[0]
    match layer:
        case Conv():
            weight = (layer.channels, channels // layer.groups, *pair(layer.kernel))
            yield from _weight_and_bias(path, weight, layer.bias, layer.channels)
        case ConvTranspose():
            weight = (channels, layer.channels // layer.groups, *pair(layer.kernel))
            yield from _weight_and_bias(path, weight, layer.bias, layer.channels)
        case Dense():
            yield from _weight_and_bias(path, (layer.units, shape[-1]), layer.bias, layer.units, layer.trained)
        case InstanceNorm():
            yield Parameter(f"{path}.weight", (channels,), True, "scale")
            yield Parameter(f"{path}.bias", (channels,), True, "shift")
        case LayerNorm(axis=axis):
            yield Parameter(f"{path}.weight", (shape[axis],), True, "scale")
            yield Parameter(f"{path}.bias", (shape[axis],), True, "shift")
        case Scale(axis=axis):
            yield Parameter(f"{path}.weight", (shape[axis],), True, "scale")
        case Constant():
            yield Parameter(f"{path}.value", shape, layer.trained, "constant")
        case BatchNorm():
            yield Parameter(f"{path}.weight", (channels,), layer.scale, "scale")
            yield Parameter(f"{path}.bias", (channels,), True, "shift")
            yield Parameter(f"{path}.running_mean", (channels,), False, "mean")
            yield Parameter(f"{path}.running_var", (channels,), False, "variance")
        case Activation(kind="prelu"):
            yield Parameter(f"{path}.slope", (channels,), True, "slope")


def _weight_and_bias(path: str, shape: Shape, bias: bool, outputs: int, trained: bool = True) -> Iterator[Parameter]:
    yield Parameter(f"{path}.weight", shape, trained, "weight")
    if bias:
        yield Parameter(f"{path}.bias", (outputs,), trained, "bias")
