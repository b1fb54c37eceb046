"""ONNX's operators that are layers: convolutions, dense layers, normalisations, pooling, resizing."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import numpy as np

from imagenet_pipeline.interchange.layer_graph import LOWEST, Flow, Stored
from imagenet_pipeline.interchange.onnx_node import Operator, Rule
from imagenet_pipeline.interchange.onnx_operators import shaped
from imagenet_pipeline.interchange.params import AnyArray
from imagenet_pipeline.networks.layers import (
    BatchNorm,
    Constant,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    GlobalAveragePool,
    InstanceNorm,
    L2Norm,
    Layer,
    LayerNorm,
    LocalResponseNorm,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Slice,
    Transpose,
    Upsample,
)
from imagenet_pipeline.networks.shapes import Shape, windows

TINY = 1e-24
_PADS = ("constant", "edge", "reflect")
Pair = tuple[int, int]
Margins = tuple[int, int, int, int]
"""Top, left, bottom, right: ONNX's order."""


def convolution(operator: Operator) -> Flow:
    """Conv over images; unequal padding becomes a layer of its own."""
    flow, name, weight = _weighted(operator)
    kernel, stride, dilation = weight.shape[2:], operator.pair("strides", (1, 1)), operator.pair("dilations", (1, 1))
    reach = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True))
    top, left, bottom, right = _margins(operator, flow.shape, reach, stride)
    pad = (top, left)
    if (top, left) != (bottom, right):
        flow, pad = operator.add(Pad(top, bottom, left, right), flow, suffix="pad"), (0, 0)
    bias = _bias(operator, (weight.shape[0], 1, 1))
    layer = Conv(weight.shape[0], _short(kernel), _short(stride), _short(pad), operator.integer("group", 1),
                 bool(bias), _short(dilation))  # fmt: skip
    return operator.add(layer, flow, arrays={"weight": (name, weight), **bias})


def deconvolution(operator: Operator) -> Flow:
    """ConvTranspose; what unequal padding takes away more at an end is cut off behind it."""
    flow, name, weight = _weighted(operator)
    kernel, stride, dilation = weight.shape[2:], operator.pair("strides", (1, 1)), operator.pair("dilations", (1, 1))
    extra, groups = operator.pair("output_padding", (0, 0), 0), operator.integer("group", 1)
    if operator.word("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or operator.integers("output_shape"):
        raise operator.bad("a transposed convolution whose padding follows from its output", expected="pads")
    top, left, bottom, right = _pads(operator)
    if any(more >= max(step, reach) for more, step, reach in zip(extra, stride, dilation, strict=True)):
        raise operator.bad("output_padding is not below the stride", found=f"{extra}, stride {stride}")
    bias = _bias(operator, (weight.shape[1] * groups, 1, 1))
    pad = min(top, bottom), min(left, right)
    layer = ConvTranspose(weight.shape[1] * groups, _short(kernel), _short(stride), _short(pad), _short(extra),
                          groups, bool(bias), _short(dilation))  # fmt: skip
    flow = operator.add(layer, flow, arrays={"weight": (name, weight), **bias})
    for axis, (begin, end, both) in enumerate(((top, bottom, pad[0]), (left, right, pad[1])), start=1):
        if (begin, end) != (both, both):
            last = flow.shape[axis] - (end - both)
            flow = operator.add(Slice(axis, begin - both, last), flow, suffix=f"cut{axis}")
    return flow


def _weighted(operator: Operator) -> tuple[Flow, str, AnyArray]:
    flow = operator.image()
    name, weight = operator.stored(1, "weight")
    if weight.ndim != 4 or (operator.integers("kernel_shape") or list(weight.shape[2:])) != list(weight.shape[2:]):
        raise operator.bad("its weight is not of two-dimensional windows", found=weight.shape)
    if operator.integer("group", 1) < 1:
        raise operator.bad("invalid attribute 'group'", expected="1 or above")
    return flow, name, weight


def _bias(operator: Operator, shape: Shape) -> Stored:
    """The bias of a layer with weights: its third input, or what the only node that reads it adds."""
    conversion = operator.conversion
    if operator.has(2):
        return {"bias": operator.stored(2, "bias")}
    readers = conversion.readers.get(operator.node.output[0], [])
    if len(readers) != 1 or readers[0].op_type != "Add" or len(readers[0].input) != 2:
        return {}
    other = next((name for name in readers[0].input if name != operator.node.output[0]), None)
    array = conversion.value(other or "")
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or readers[0].attribute:
        return {}
    kept = array[0] if array.ndim > len(shape) and array.shape[0] == 1 else array
    if (1,) * (len(shape) - kept.ndim) + kept.shape != shape:
        return {}
    conversion.absorbed[id(readers[0])] = operator.node.output[0]
    return {"bias": (other or "", kept.reshape(-1))}


def _short(size: Any) -> int | Pair:
    return int(size[0]) if size[0] == size[1] else (int(size[0]), int(size[1]))


def _pads(operator: Operator) -> Margins:
    pads = operator.integers("pads") or [0, 0, 0, 0]
    if len(pads) != 4 or min(pads) < 0:
        raise operator.bad("invalid attribute 'pads'", expected="top, left, bottom, right", found=pads[:8])
    return pads[0], pads[1], pads[2], pads[3]


def _margins(operator: Operator, shape: Shape, reach: Shape, stride: Pair) -> Margins:
    """The padding, also where it follows from the size of the image."""
    kind = operator.word("auto_pad", "NOTSET")
    if kind in ("NOTSET", "VALID"):
        return _pads(operator) if kind == "NOTSET" else (0, 0, 0, 0)
    if kind not in ("SAME_UPPER", "SAME_LOWER"):
        raise operator.bad("invalid attribute 'auto_pad'", found=kind[:40])
    begins, ends = [], []
    for length, size, step in zip(shape[1:], reach, stride, strict=True):
        whole = max(0, (-(-length // step) - 1) * step + size - length)
        less = whole // 2
        begins.append(less if kind == "SAME_UPPER" else whole - less)
        ends.append(whole - begins[-1])
    return begins[0], begins[1], ends[0], ends[1]


def dense(operator: Operator) -> Flow:
    """Gemm on vectors: alpha and beta become part of weight and bias."""
    flow = operator.flow()
    if operator.integer("transA", 0) or len(flow.shape) != 1:
        raise operator.unfit("a Gemm that does not read a vector an image", found=flow.shape)
    name, weight = operator.stored(1, "weight")
    if weight.ndim != 2:
        raise operator.bad("its weight is no matrix", found=weight.shape)
    weight = (weight if operator.integer("transB", 0) else weight.T) * _factor(operator, "alpha", weight)
    bias: Stored = _bias(operator, weight.shape[:1])
    if operator.has(2):
        source, array = operator.stored(2, "bias")
        if array.size not in (1, weight.shape[0]):
            raise operator.bad("its bias is not a number for each unit", found=array.shape)
        array = np.broadcast_to(array.reshape(-1), weight.shape[:1]) * _factor(operator, "beta", array)
        bias = {"bias": (source, array)}
    return operator.add(Dense(weight.shape[0], bool(bias)), flow, arrays={"weight": (name, weight), **bias})


def _factor(operator: Operator, name: str, array: AnyArray) -> Any:
    return array.dtype.type(operator.real(name, 1.0))


def product(operator: Operator) -> Flow:
    """MatMul by a constant matrix: a dense layer, on vectors or along the last axis."""
    flow = operator.flow()
    name, weight = operator.stored(1, "second factor")
    while weight.ndim > 2 and weight.shape[0] == 1:
        weight = weight[0]
    if weight.ndim != 2:
        raise operator.bad("multiplies by something else than a matrix", found=weight.shape)
    axes, units = len(flow.shape), weight.shape[1]
    bias = _bias(operator, (*(1,) * (axes - 1), units))
    layer = Dense(units, bool(bias), last_axis=axes > 1)
    return operator.add(layer, flow, arrays={"weight": (name, weight.T), **bias})


def batch_norm(operator: Operator) -> Flow:
    """BatchNormalization, as it scores."""
    if operator.integer("training_mode", 0) or not operator.integer("spatial", 1):
        raise operator.bad("the normalisation computes its statistics when it scores, or has them for each position")
    flow = operator.flow()
    names = ("weight", "bias", "running_mean", "running_var")
    arrays = {name: operator.stored(which, name) for which, name in enumerate(names, start=1)}
    layer = BatchNorm(operator.real("epsilon", 1e-5), operator.real("momentum", 0.9))
    if len(flow.shape) in (1, 3):
        return operator.add(layer, flow, arrays=arrays)
    shape = flow.shape
    flow = operator.add(Reshape((shape[0], math.prod(shape[1:]), 1)), flow, suffix="in")
    return operator.add(Reshape(shape), operator.add(layer, flow, arrays=arrays), suffix="out")


def instance_norm(operator: Operator) -> Flow:
    """InstanceNormalization."""
    arrays = {"weight": operator.stored(1, "scale"), "bias": operator.stored(2, "bias")}
    return operator.add(InstanceNorm(operator.real("epsilon", 1e-5)), operator.flow(), arrays=arrays)


def group_norm(operator: Operator) -> Flow:
    """GroupNormalization, with a scale for each channel (up to set 20: for each group)."""
    flow, groups = operator.flow(), operator.integer("num_groups", 1)
    shape = flow.shape
    if groups < 1 or shape[0] % groups or len(shape) < 2:
        raise operator.unfit("the groups do not divide the channels", found=f"{groups} groups of {shape}")
    ones = {"weight": ("ones", np.ones(groups)), "bias": ("zeros", np.zeros(groups))}
    flow = operator.add(Reshape((groups, -1)), flow, suffix="groups")
    flow = operator.add(InstanceNorm(operator.real("epsilon", 1e-5)), flow, suffix="norm", arrays=ones)
    flow = operator.add(Reshape(shape), flow, suffix="channels")
    for which, kind in ((1, "multiply"), (2, "add")):
        name, array = operator.stored(which, "scale or bias")
        if array.size == groups != shape[0]:
            array = np.repeat(array, shape[0] // groups)
        value = array.reshape(-1, *(1,) * (len(shape) - 1))
        constant = operator.conversion.graph.add(
            name, Constant(value.shape), (), {"value": (name, value)}, operator.where
        )
        flow = operator.add(Elementwise(kind), flow, constant, suffix=kind)  # type: ignore[arg-type]
    return flow


def layer_norm(operator: Operator) -> Flow:
    """LayerNormalization along the last axis."""
    flow, axis = operator.flow(), operator.integer("axis", -1)
    if operator.axis(axis, len(flow.shape)) != len(flow.shape) - 1:
        raise operator.bad("a normalisation over several axes", expected="the last alone", found=f"axis {axis}")
    name, scale = operator.stored(1, "scale")
    bias = operator.stored(2, "bias") if operator.has(2) else ("zeros", np.zeros(flow.shape[-1]))
    layer = LayerNorm(-1, operator.real("epsilon", 1e-5))
    return operator.add(layer, flow, arrays={"weight": (name, scale), "bias": bias})


def length_norm(operator: Operator) -> Flow:
    """LpNormalization by the root of summed squares."""
    flow = operator.flow()
    if operator.integer("p", 2) != 2:
        raise operator.bad("a normalisation by another sum than that of squares", expected="p 2")
    return operator.add(L2Norm((operator.axis(operator.integer("axis", -1), len(flow.shape)),), TINY), flow)


def response_norm(operator: Operator) -> Flow:
    """LRN."""
    size = operator.integer("size", 0)
    if size < 1 or size % 2 == 0:
        raise operator.bad("invalid attribute 'size'", expected="an odd number", found=size)
    numbers = operator.real("alpha", 1e-4), operator.real("beta", 0.75), operator.real("bias", 1.0)
    return operator.add(LocalResponseNorm(size, *numbers), operator.image())


def whole_pooling(operator: Operator) -> Flow:
    """GlobalAveragePool and GlobalMaxPool."""
    flow = operator.flow()
    if operator.node.op_type == "GlobalAveragePool" and len(flow.shape) == 3:
        return operator.add(GlobalAveragePool(), flow)
    kind: Literal["mean", "max"] = "mean" if operator.node.op_type == "GlobalAveragePool" else "max"
    return operator.add(Reduce(kind, tuple(range(1, len(flow.shape))), True), flow)


def pooling(operator: Operator) -> Flow:
    """MaxPool and AveragePool: with a layer of padding in front where ours has no such windows."""
    sizes = operator.integers("kernel_shape") or []
    if len(sizes) == 3 and sizes[1:] == [1, 1] and len(operator.flow().shape) == 4:
        return _pooled_along(operator, sizes[0])
    flow, kind = operator.image(), "max" if operator.node.op_type == "MaxPool" else "average"
    size, stride = operator.pair("kernel_shape", (0, 0)), operator.pair("strides", (1, 1))
    if min(size) < 1 or operator.pair("dilations", (1, 1)) != (1, 1) or operator.integer("storage_order", 0):
        raise operator.bad("our layers have no pooling with holes in its windows")
    margins = _margins(operator, flow.shape, size, stride)
    if (size, stride, margins) == ((1, 1), (1, 1), (0, 0, 0, 0)):
        return flow
    counted = kind == "average" and bool(operator.integer("count_include_pad", 0)) and any(margins)
    wanted = _counts(operator, flow.shape, size, stride, margins)
    pad, is_even = margins[:2], margins[:2] == margins[2:]
    for ceil in (False, True):
        axes = zip(flow.shape[1:], size, stride, pad, strict=True)
        layer = _pool(kind, size, stride, pad, ceil, counted)
        # The pixels that a window reaches beyond the image change nothing, unless they are counted.
        if layer and tuple(windows(*axis, ceil) for axis in axes) == wanted and (is_even or not counted):
            return operator.add(layer, flow)
    if kind == "average" and not counted and any(margins):
        raise operator.bad("our average pooling has no such padding", found=f"pads {margins}, windows {size}")
    top, left, bottom, right = margins
    value = LOWEST if kind == "max" else 0.0
    flow = operator.add(Pad(top, bottom, left, right, value=value), flow, suffix="pad")
    for ceil in (False, True):
        axes = zip(flow.shape[1:], size, stride, (0, 0), strict=True)
        layer = _pool(kind, size, stride, (0, 0), ceil, False)
        if layer and tuple(windows(*axis, ceil) for axis in axes) == wanted:
            return operator.add(layer, flow)
    raise operator.bad("our layers have no such pooling", found=f"windows {size}, strides {stride}, pads {margins}")


def _pooled_along(operator: Operator, size: int) -> Flow:
    """Windows along the first of three axes: PyTorch's response normalisation pools over channels so."""
    plain = {"strides": [1, 1, 1], "pads": [0] * 6, "dilations": [1, 1, 1]}
    if any((operator.integers(name) or number) != number for name, number in plain.items()):
        raise operator.bad("our layers have no pooling over three axes", expected=plain)
    kind: Literal["max", "average"] = "max" if operator.node.op_type == "MaxPool" else "average"
    flow = operator.flow()
    if flow.shape[1] < size:
        raise operator.unfit("the array is too small for its windows", found=flow.shape)
    return _along(operator, flow, 1, Pool(kind, (size, 1), 1), "windows")


def _pool(kind: Any, size: Pair, stride: Pair, pad: Pair, ceil: bool, counted: bool) -> Pool | None:
    count_pad = counted or kind == "max" or not any(pad)
    try:
        return Pool(kind, _short(size), _short(stride), _short(pad), ceil, count_pad)
    except ValueError:
        return None


def _counts(operator: Operator, shape: Shape, size: Pair, stride: Pair, margins: Margins) -> tuple[int, ...]:
    """Windows in height and width; with `ceil_mode` partial ones too, which begin before the padding's end."""
    counts = []
    for length, reach, step, begin, end in zip(shape[1:], size, stride, margins[:2], margins[2:], strict=True):
        room = length + begin + end - reach
        if room < 0:
            problem = operator.unfit("the image is too small for its windows", found=shape)
            problem.larger = True
            raise problem
        count = room // step + 1
        if operator.integer("ceil_mode", 0):
            count = -(-room // step) + 1
            count -= (count - 1) * step >= length + begin
        counts.append(count)
    return tuple(counts)


def padding(operator: Operator) -> Flow:
    """Pad around images, its amounts attributes up to set 10 and inputs since."""
    flow, mode = operator.flow(), operator.word("mode", "constant")
    amounts = operator.listed("pads", 1) or operator.integers("paddings") or []
    count = len(flow.shape) + 1
    if operator.has(3):
        axes = [axis % count for axis in operator.numbers(3, "axes")]
        begins = dict(zip(axes, amounts, strict=False))
        ends = dict(zip(axes, amounts[len(axes) :], strict=False))
        amounts = [begins.get(axis, 0) for axis in range(count)] + [ends.get(axis, 0) for axis in range(count)]
    value = operator.number(2, "value") if operator.has(2) else operator.real("value", 0.0)
    if len(amounts) != 2 * count or min(amounts, default=0) < 0 or amounts[0] or amounts[count] or mode not in _PADS:
        expected = f"{', '.join(_PADS)}, not of the batch, nothing taken away"
        raise operator.bad("our layers have no such padding", expected, f"{mode[:40]} {amounts[:10]}")
    margins = list(zip(amounts[1:count], amounts[count + 1 :], strict=True))
    kind = cast(Literal["constant", "edge", "reflect"], mode)
    if count == 4 and not any(margins[0]):
        (top, bottom), (left, right) = margins[1:]
        layer = Pad(top, bottom, left, right, kind, max(value, LOWEST))
        return operator.add(layer, flow) if any(map(any, margins)) else flow
    for axis, (begin, end) in enumerate(margins):
        if begin or end:
            flow = _along(operator, flow, axis, Pad(begin, end, 0, 0, kind, max(value, LOWEST)), f"pad{axis}")
    return flow


def _along(operator: Operator, flow: Flow, axis: int, layer: Layer, suffix: str) -> Flow:
    """A layer of images that works on their height alone, along any axis of an array."""
    before, behind = flow.shape[:axis], flow.shape[axis + 1 :]
    flow = shaped(operator, flow, (math.prod(before), flow.shape[axis], math.prod(behind)), f"{suffix}_in")
    flow = operator.add(layer, flow, suffix=suffix)
    return shaped(operator, flow, (*before, flow.shape[1], *behind), f"{suffix}_out")


def resize(operator: Operator) -> Flow:
    """Upsample and Resize, where they repeat every pixel a whole number of times."""
    flow, op = operator.image(), operator.node.op_type
    scales: list[float] = []
    place = 1 if op == "Upsample" or operator.opset < 11 else 2
    if operator.has(place) and operator.array(place, "scales").size:
        scales = [float(number) for number in operator.array(place, "scales").ravel()[:8]]
    elif operator.has(3):
        lengths = operator.numbers(3, "sizes")
        scales = [1.0, *(length / own for length, own in zip(lengths[1:], flow.shape, strict=False))]
    elif isinstance(operator.attributes.get("scales"), list):
        scales = [float(number) for number in operator.attributes["scales"][:8]]
    axes = operator.integers("axes")
    if axes and len(axes) == len(scales):
        named = {axis % 4: scale for axis, scale in zip(axes, scales, strict=True)}
        scales = [named.get(axis, 1.0) for axis in range(4)]
    whole = round(scales[2]) if len(scales) == 4 and math.isfinite(scales[2]) else 0
    if scales != [1.0, 1.0, float(whole), float(whole)] or whole < 1 or not _repeats(operator, whole, flow.shape[1]):
        found = f"{operator.word('mode', 'nearest')[:40]} {scales}"
        raise operator.bad("resizes otherwise than by repeating pixels", "nearest, by one whole number", found)
    return flow if whole == 1 else operator.add(Upsample(whole), flow)


def _repeats(operator: Operator, scale: int, length: int) -> bool:
    """True where the pixel taken for each of the output is the one that repeating gives."""
    if operator.word("mode", "nearest") != "nearest":
        return False
    if operator.node.op_type == "Upsample" or operator.opset < 11:
        return True
    places = np.arange(scale * min(length, 64))
    match operator.word("coordinate_transformation_mode", "half_pixel"):
        case "half_pixel" | "pytorch_half_pixel" | "half_pixel_symmetric":
            sources = (places + 0.5) / scale - 0.5
        case "asymmetric":
            sources = places / scale
        case _:
            return scale == 1
    match operator.word("nearest_mode", "round_prefer_floor"):
        case "floor":
            taken = np.floor(sources)
        case "ceil":
            taken = np.ceil(sources)
        case "round_prefer_ceil":
            taken = np.floor(sources + 0.5)
        case _:
            taken = np.ceil(sources - 0.5)
    last = min(length, 64) - 1
    return bool((np.clip(taken, 0, last) == places // scale).all())


def depth_to_space(operator: Operator) -> Flow:
    """DepthToSpace and SpaceToDepth."""
    flow, block = operator.image(), operator.integer("blocksize", 0)
    channels, height, width = flow.shape
    is_back = operator.node.op_type == "SpaceToDepth"
    fits = block > 0 and not ((height % block or width % block) if is_back else channels % block**2)
    if not fits:
        raise operator.unfit("the blocks do not divide the array", found=f"{block} of {flow.shape}")
    if is_back:
        apart: Shape = (channels, height // block, block, width // block, block)
        order, shape = (2, 4, 0, 1, 3), (channels * block**2, height // block, width // block)
    elif operator.word("mode", "DCR") == "DCR":
        apart, order = (block, block, channels // block**2, height, width), (2, 3, 0, 4, 1)
        shape = (channels // block**2, height * block, width * block)
    else:
        apart, order = (channels // block**2, block, block, height, width), (0, 3, 1, 4, 2)
        shape = (channels // block**2, height * block, width * block)
    turned = operator.add(Transpose(order), operator.add(Reshape(apart), flow, suffix="apart"), suffix="turned")
    return shaped(operator, turned, shape)


LAYER_RULES: dict[str, Rule] = {
    "Conv": convolution, "ConvTranspose": deconvolution, "Gemm": dense,
    "BatchNormalization": batch_norm, "InstanceNormalization": instance_norm, "GroupNormalization": group_norm,
    "LayerNormalization": layer_norm, "LpNormalization": length_norm, "LRN": response_norm,
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), whole_pooling),
    **dict.fromkeys(("MaxPool", "AveragePool"), pooling),
    "Pad": padding,
    **dict.fromkeys(("Upsample", "Resize"), resize),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), depth_to_space),
}  # fmt: skip
