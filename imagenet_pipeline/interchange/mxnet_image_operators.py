"""MXNet's operators that make images of another size: pooling, padding, upsampling.

Defaults of attributes are those of apache/mxnet 1.9.1.
"""

from __future__ import annotations

import numpy as np

from imagenet_pipeline.interchange.layer_graph import LOWEST, Flow
from imagenet_pipeline.interchange.mxnet_layer_operators import Pair, count, window
from imagenet_pipeline.interchange.mxnet_operator import Operator
from imagenet_pipeline.interchange.params import AnyArray
from imagenet_pipeline.networks.layers import (
    Activation,
    ConvTranspose,
    Dense,
    GlobalAveragePool,
    Pad,
    Pool,
    Reduce,
    Transpose,
    Upsample,
)
from imagenet_pipeline.networks.shapes import Shape, windows

LARGEST_SIDE = 4096


def pooling(operator: Operator) -> Flow:
    """Pooling of every type; the square root of summed squares ("lp") is three layers."""
    attributes, flow = operator.attributes, operator.image()
    kind = attributes.word("pool_type", "max")
    power = attributes.integer("p_value", 2) if kind == "lp" else 1
    if kind not in ("max", "avg", "sum", "lp") or power not in (1, 2):
        raise operator.bad(f"our layers have no pooling {kind[:40]!r}", expected="max, avg, sum, lp with p_value 1, 2")
    if power == 2:
        flow = operator.add(Activation("square"), flow, suffix="square")
    kind = "sum" if kind == "lp" else kind
    suffix = "sum" if power == 2 else ""
    is_global = attributes.flag("global_pool", False)
    flow = _whole(operator, flow, kind, suffix) if is_global else _windowed(operator, flow, kind, suffix)
    return operator.add(Activation("sqrt"), flow) if power == 2 else flow


def _whole(operator: Operator, flow: Flow, kind: str, suffix: str) -> Flow:
    if kind == "avg":
        return operator.add(GlobalAveragePool(), flow)
    return operator.add(Reduce(kind, (1, 2), True), flow, suffix=suffix)  # type: ignore[arg-type]


def _windowed(operator: Operator, flow: Flow, kind: str, suffix: str) -> Flow:
    attributes = operator.attributes
    size, stride, _, pad = window(operator)
    convention = attributes.word("pooling_convention", "valid")
    if convention not in ("valid", "full"):
        # MXNet itself has "same" for sequences alone.
        raise operator.bad(f"no pooling of images has the convention {convention[:40]!r}", expected="valid or full")
    if (size, stride, pad) == ((1, 1), (1, 1), (0, 0)):
        return flow
    ceil = convention == "full"
    counts = _counts(operator, flow.shape, (size, stride, pad), ceil)
    ceil = ceil and counts != _counts(operator, flow.shape, (size, stride, pad), False)
    count_pad = attributes.flag("count_include_pad", True)
    axes = list(zip(size, stride, pad, strict=True))
    is_beyond = any(2 * around > length or (ceil and around + step > length) for length, step, around in axes)
    counts_margin = any(pad) or (ceil and kind != "max")
    if is_beyond or (operator.node.op == "Pooling_v1" and counts_margin):
        flow, ceil = _margined(operator, flow, kind, axes, counts if ceil else None)
        pad = (0, 0)
    names = {"max": "max", "avg": "average", "sum": "sum"}
    layer = Pool(names[kind], size, stride, pad, ceil, count_pad)  # type: ignore[arg-type]
    return operator.add(layer, flow, suffix=suffix)


def _counts(operator: Operator, shape: Shape, window: tuple[Pair, Pair, Pair], ceil: bool) -> Shape:
    counts = tuple(windows(*axis, ceil) for axis in zip(shape[1:], *window, strict=True))
    if min(counts) < 1:
        problem = operator.unfit("the image is too small for the pooling", found=f"{shape[1]}x{shape[2]}")
        problem.larger = True
        raise problem
    return counts


def _margined(
    operator: Operator, flow: Flow, kind: str, axes: list[tuple[int, int, int]], counts: Shape | None
) -> tuple[Flow, bool]:
    """The image with a margin that MXNet's windows reach into and our Pool has no words for; True if some still do.

    `axes` are size, stride and padding of the windows; `counts` is their number where the last reach beyond. In
    Pooling_v1 the margin is zeros, for a maximum too, and an average divides by the whole window.
    """
    is_old = operator.node.op == "Pooling_v1"
    zeros = kind != "max" or (is_old and any(around for _, _, around in axes))
    fills = kind == "sum" or (is_old if kind == "avg" else not zeros)
    past = [0, 0]
    for axis, (length, (size, step, around)) in enumerate(zip(flow.shape[1:], axes, strict=True)):
        last = 0 if counts is None else (counts[axis] - 1) * step - around
        if kind == "max" and (last >= length or (around >= size and not is_old)):
            raise operator.unfit(
                "the maximum of a window that no pixel is in", found=f"{size} pixels by steps of {step}"
            )
        past[axis] = max(0, last + size - length - around) if fills and counts else 0
        if counts and not fills and step > size:
            raise operator.bad("the last windows of an average reach beyond the image", found=f"stride {step}")
    if kind == "avg" and not (is_old or operator.attributes.flag("count_include_pad", True)):
        raise operator.bad("our average pooling needs a padding of at most half its window", found=axes)
    (above, left), (below, right) = (axes[0][2], axes[1][2]), past
    layer = Pad(above, above + below, left, left + right, value=0.0 if zeros else LOWEST)
    return operator.add(layer, flow, suffix="pad"), counts is not None and not any(past)


def adaptive_pooling(operator: Operator) -> Flow:
    """_contrib_AdaptiveAvgPooling2D to a single position, or to sizes that divide the image's."""
    flow, asked = operator.image(), operator.attributes.integers("output_size") or (1,)
    counts = asked * 2 if len(asked) == 1 else asked
    if (
        len(counts) != 2
        or min(counts) < 1
        or any(length % count for length, count in zip(flow.shape[1:], counts, strict=True))
    ):
        raise operator.unfit("adaptive pooling to a size that does not divide the image's", found=asked[:4])
    if counts == (1, 1):
        return operator.add(GlobalAveragePool(), flow)
    size = (flow.shape[1] // counts[0], flow.shape[2] // counts[1])
    return flow if size == (1, 1) else operator.add(Pool("average", size, size), flow)


def upsampling(operator: Operator) -> Flow:
    """UpSampling: nearest, or bilinear by the weights it brings, which is a transposed convolution."""
    attributes, flow = operator.attributes, operator.image()
    scale, kind = count(operator, "scale"), attributes.word("sample_type", "nearest")
    if kind == "nearest":
        if len(operator.node.inputs) != 1:
            raise operator.bad("UpSampling of several inputs", found=f"{len(operator.node.inputs)} inputs")
        return operator.add(Upsample(scale), flow)
    if kind != "bilinear":
        raise operator.bad(f"our layers have no UpSampling {kind[:40]!r}", expected="nearest or bilinear")
    channels = flow.shape[0]
    layer = ConvTranspose(channels, 2 * scale - scale % 2, scale, scale // 2, 0, channels, bias=False)
    return operator.add(layer, flow, arrays=operator.arrays("weight"))


def resize(operator: Operator) -> Flow:
    """_contrib_BilinearResize2D: every row, then every column, times a matrix of interpolation."""
    attributes, flow = operator.attributes, operator.image()
    mode = attributes.word("mode", "size")
    if mode not in ("size", "like"):
        raise operator.bad(f"our layers have no resizing {mode[:40]!r}", expected="mode size or like")
    sizes = operator.flow(1).shape[1:] if mode == "like" else _resized(operator, flow.shape)
    if max(*flow.shape[1:], *sizes) > LARGEST_SIDE:
        raise operator.unfit("resizes a larger image than ours are", expected=f"at most {LARGEST_SIDE}", found=sizes)
    corners = attributes.flag("align_corners", True)
    operator.note("interpolates by matrices here, which training would change")
    for axis, suffix in ((1, "columns"), (0, "rows")):
        matrix = interpolation(flow.shape[2], sizes[axis], corners)
        arrays = {"weight": (f"{operator.node.name} {suffix}", matrix)}
        flow = operator.add(Dense(sizes[axis], bias=False, last_axis=True), flow, suffix=suffix, arrays=arrays)
        flow = operator.add(Transpose((0, 2, 1)), flow, suffix=f"{suffix}_turned")
    return flow


def _resized(operator: Operator, shape: Shape) -> Pair:
    attributes = operator.attributes
    scales = [attributes.real(f"scale_{name}", 0.0) for name in ("height", "width")]
    if not any(scales):
        sizes = attributes.integer("height", 1), attributes.integer("width", 1)
    else:
        sizes = int(shape[1] * scales[0]), int(shape[2] * scales[1])
    if min(sizes) < 1:
        raise operator.bad("resizes to an impossible size", expected="1 or above", found=sizes)
    return sizes


def interpolation(length: int, wanted: int, corners: bool) -> AnyArray:
    """The matrix [wanted, length] that interpolates linearly; with `corners` both ends stay where they are.

    Computed in float32, as MXNet does in every precision.
    """
    places = np.arange(wanted, dtype=np.float32)
    if corners:
        sources = places * (np.float32(length - 1) / np.float32(max(wanted - 1, 1)))
    else:
        sources = np.maximum(
            0, (places + np.float32(0.5)) * (np.float32(length) / np.float32(wanted)) - np.float32(0.5)
        )
    below = np.minimum(sources.astype(int), length - 1)
    matrix, rows = np.zeros((wanted, length), np.float32), np.arange(wanted)
    matrix[rows, below] += 1 - (sources - below)
    matrix[rows, np.minimum(below + 1, length - 1)] += sources - below
    return matrix


def padding(operator: Operator) -> Flow:
    """Pad of images."""
    attributes, flow = operator.attributes, operator.image()
    kind, widths = attributes.word("mode", "constant"), attributes.integers("pad_width")
    if kind not in ("constant", "edge", "reflect") or len(widths) != 8 or any(widths[:4]):
        what = "our padding is that of rows and columns: constant, edge or reflect"
        raise operator.bad(what, found=f"{kind[:40]}, pad_width {widths[:8]}")
    layer = Pad(*widths[4:], kind, attributes.real("constant_value", 0.0))  # type: ignore[arg-type]
    return operator.add(layer, flow)
