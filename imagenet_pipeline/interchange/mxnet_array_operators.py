"""MXNet's operators on arrays: arithmetic, reductions, shapes, slices, joins.

MXNet's axis 0 is the batch, which none of our layers sees: what works along it mixes images, and is refused.
"""

from __future__ import annotations

import math
from itertools import pairwise

from imagenet_pipeline.interchange.layer_graph import Flow
from imagenet_pipeline.interchange.mxnet_operator import Operator
from imagenet_pipeline.networks.layers import (
    Activation,
    Arithmetic,
    Elementwise,
    Flatten,
    Join,
    Reduce,
    Reshape,
    Scalar,
    Slice,
    Transpose,
)
from imagenet_pipeline.networks.shapes import Shape

BATCHES = (1_000_003, 1_000_033)
"""Two batch sizes, primes that no axis of an image has: what changes from the one to the other is the batch."""

MOST_AXES = 8

_WORDS: dict[str, Arithmetic] = {
    "plus": "add", "minus": "subtract", "mul": "multiply", "div": "divide", "power": "power", "maximum": "maximum",
    "minimum": "minimum",
}  # fmt: skip
_SHORT: dict[str, Arithmetic] = {"add": "add", "sub": "subtract", "mul": "multiply", "div": "divide"}
ARITHMETIC: dict[str, Arithmetic] = {
    **{f"_{word}": kind for word, kind in (_WORDS | _SHORT).items()},
    **{f"broadcast_{word}": kind for word, kind in (_WORDS | _SHORT).items()},
    **{f"elemwise_{word}": kind for word, kind in _SHORT.items()},
    **{f"_{word.capitalize()}": kind for word, kind in _WORDS.items()},
    "add_n": "add", "ElementWiseSum": "add", "_grad_add": "add",
}  # fmt: skip
"""Operators on several arrays."""
_TURNED = ("minus", "div", "power")
SCALAR_ARITHMETIC: dict[str, tuple[Arithmetic, bool]] = {
    **{f"_{word}_scalar": (kind, False) for word, kind in _WORDS.items()},
    **{f"_{word.capitalize()}Scalar": (kind, False) for word, kind in _WORDS.items()},
    **{f"_r{word}_scalar": (_WORDS[word], True) for word in _TURNED},
    **{f"_R{word.capitalize()}Scalar": (_WORDS[word], True) for word in _TURNED},
}
"""Operators on an array and a number: what they do, and True where the number comes first."""
REDUCTIONS = {
    "mean": "mean", "sum": "sum", "sum_axis": "sum", "max": "max", "max_axis": "max", "min": "min", "min_axis": "min",
}  # fmt: skip


def bare(op: str) -> str:
    """The name of an operator without its sparse form's prefix."""
    return op.removeprefix("_sparse_")


def arithmetic(operator: Operator) -> Flow:
    """Arithmetic of arrays made of the image, and of variables as constants."""
    places = range(len(operator.node.inputs))
    variables = [operator.conversion.variable(index) for index, _ in operator.node.inputs]
    flows = [operator.flow(place) for place in places if variables[place] is None]
    if not flows:
        raise operator.bad(f"{operator.node.op} computes with parameters alone")
    axes = len(flows[0].shape)
    if any(len(flow.shape) != axes for flow in flows):
        raise operator.unfit(
            "arithmetic of arrays with different numbers of axes", found=[flow.shape for flow in flows]
        )
    operands = tuple(operator.operand(place, axes) for place in places)
    if len(operands) == 1:
        return operands[0]
    return operator.add(Elementwise(ARITHMETIC[bare(operator.node.op)]), *operands)


def scalar(operator: Operator) -> Flow:
    """Arithmetic with a number."""
    kind, reverse = SCALAR_ARITHMETIC[bare(operator.node.op)]
    layer = Scalar(kind, operator.attributes.real("scalar"), reverse)
    return operator.add(layer, operator.flow(), arrays=operator.arrays())


def negative(operator: Operator) -> Flow:
    """-x."""
    return operator.add(Scalar("multiply", -1.0), operator.flow(), arrays=operator.arrays())


def reciprocal(operator: Operator) -> Flow:
    """1 / x, or of its square root."""
    flow = operator.flow()
    if bare(operator.node.op) == "rsqrt":
        flow = operator.add(Activation("sqrt"), flow, suffix="sqrt")
    return operator.add(Scalar("divide", 1.0, True), flow)


def filled(operator: Operator) -> Flow:
    """ones_like or zeros_like: as many of them as the array has numbers."""
    zeros = operator.add(Scalar("multiply", 0.0), operator.flow(), suffix="zeros")
    return zeros if bare(operator.node.op) == "zeros_like" else operator.add(Scalar("add", 1.0), zeros)


def broadcast_like(operator: Operator) -> Flow:
    """An array repeated to the size of another, of which nothing else counts."""
    if operator.attributes.integers("lhs_axes"):
        raise operator.bad("axes of different places are repeated", expected="no lhs_axes, rhs_axes")
    zeros = operator.add(Scalar("multiply", 0.0), operator.flow(1), suffix="zeros")
    return operator.add(Elementwise("add"), operator.flow(), zeros)


def norm(operator: Operator) -> Flow:
    """Length of vectors along axes: the square root of summed squares, or the sum of sizes."""
    order = operator.attributes.integer("ord", 2)
    if order not in (1, 2):
        raise operator.bad("no length of vectors of this order", expected="ord 1 or 2", found=order)
    sizes = operator.add(Activation("square" if order == 2 else "abs"), operator.flow(), suffix="sizes")
    if order == 1:
        return _reduced(operator, sizes, "sum")
    return operator.add(Activation("sqrt"), _reduced(operator, sizes, "sum", "sum"))


def reduction(operator: Operator) -> Flow:
    """Mean, sum, maximum or minimum over axes."""
    return _reduced(operator, operator.flow(), REDUCTIONS[bare(operator.node.op)])


def _reduced(operator: Operator, flow: Flow, kind: str, suffix: str = "") -> Flow:
    attributes = operator.attributes
    asked = attributes.integers("axis")
    count = len(flow.shape)
    if attributes.flag("exclude", False):
        kept = {number % (count + 1) for number in asked}
        asked = tuple(number for number in range(count + 1) if number not in kept)
    elif not asked:
        raise operator.bad(f"{operator.node.op} over everything mixes images", expected="an axis")
    axes = tuple(sorted({operator.axis(number, count) for number in asked}))
    keep = attributes.flag("keepdims", False)
    if not axes:
        return flow
    if len(axes) == count and not keep:
        raise operator.bad(f"{operator.node.op} leaves a single number of an image", expected="keepdims, or fewer axes")
    return operator.add(Reduce(kind, axes, keep), flow, suffix=suffix)  # type: ignore[arg-type]


def reshape(operator: Operator) -> Flow:
    """Reshape by MXNet's codes."""
    attributes, flow = operator.attributes, operator.flow()
    codes, reverse = attributes.integers("shape"), attributes.flag("reverse", False)
    if not codes:
        # Before MXNet 0.9: 0 is what is left.
        codes = tuple(number or -1 for number in attributes.integers("target_shape"))
        codes = (0, *codes[1:]) if attributes.flag("keep_highest", False) else codes
    results = [_reshaped(operator, (batch, *flow.shape), codes, reverse) for batch in BATCHES]
    if [result[0] for result in results] != list(BATCHES) or results[0][1:] != results[1][1:]:
        found = f"{codes} of {('n', *flow.shape)}"
        raise operator.unfit("the reshape mixes images, or fixes how many there are", found=found)
    return shaped(operator, flow, results[0][1:])


def _reshaped(operator: Operator, shape: Shape, codes: Shape, reverse: bool) -> Shape:
    """The shape that MXNet's codes make of `shape`, batch included; () where they do not fit it."""
    turn = slice(None, None, -1 if reverse else 1)
    try:
        made = _by_codes(list(shape[turn]), list(codes[turn]))
    except (IndexError, ZeroDivisionError):
        made = []
    if not made or math.prod(made) != math.prod(shape):
        raise operator.unfit("the reshape does not fit", found=f"{codes} of {('n', *shape[1:])}")
    return tuple(made[turn])


def _by_codes(lengths: list[int], codes: list[int]) -> list[int]:
    made: list[int] = []
    source, place, open_place = 0, 0, None
    while place < len(codes):
        code = codes[place]
        match code:
            case 0:
                made.append(lengths[source])
            case -1:
                open_place = len(made)
                made.append(1)
            case -2:
                made += lengths[source:]
                source = len(lengths)
            case -3:
                made.append(lengths[source] * lengths[source + 1])
                source += 1
            case -4:
                first, second = codes[place + 1], codes[place + 2]
                first = lengths[source] // second if first == -1 else first
                made += [first, lengths[source] // first if second == -1 else second]
                place += 2
            case _:
                made.append(code)
        source += code != -2
        place += 1
    if open_place is not None:
        whole = math.prod(made)
        made[open_place] = math.prod(lengths) // whole
    return made


def shaped(operator: Operator, flow: Flow, shape: Shape, suffix: str = "") -> Flow:
    """The same numbers as an array of `shape`."""
    if shape == flow.shape:
        return flow
    if not 1 <= len(shape) <= MOST_AXES:
        raise operator.unfit("leaves no axis of an image, or too many", f"1 to {MOST_AXES}", len(shape))
    is_flat = shape == (math.prod(flow.shape),)
    return operator.add(Flatten() if is_flat else Reshape(shape), flow, suffix=suffix)


def flatten(operator: Operator) -> Flow:
    """Flatten."""
    flow = operator.flow()
    return shaped(operator, flow, (math.prod(flow.shape),))


def transpose(operator: Operator) -> Flow:
    """transpose."""
    flow = operator.flow()
    asked = operator.attributes.integers("axes") or tuple(range(len(flow.shape), -1, -1))
    if len(asked) != len(flow.shape) + 1:
        raise operator.unfit("the transpose does not name every axis once", found=asked[:8])
    if asked[0] != 0:
        raise operator.bad("the transpose moves the axis of the batch", found=asked[:8])
    return _ordered(operator, flow, tuple(operator.axis(number, len(flow.shape)) for number in asked[1:]))


def swap_axes(operator: Operator) -> Flow:
    """SwapAxis."""
    flow, attributes = operator.flow(), operator.attributes
    count = len(flow.shape)
    first, second = (operator.axis(attributes.integer(name, 0), count) for name in ("dim1", "dim2"))
    order = list(range(count))
    order[first], order[second] = second, first
    return _ordered(operator, flow, tuple(order))


def _ordered(operator: Operator, flow: Flow, axes: Shape) -> Flow:
    return flow if axes == tuple(range(len(axes))) else operator.add(Transpose(axes), flow)


def expand_dims(operator: Operator) -> Flow:
    """expand_dims."""
    flow = operator.flow()
    place = operator.axis(operator.attributes.integer("axis"), len(flow.shape) + 1)
    return shaped(operator, flow, (*flow.shape[:place], 1, *flow.shape[place:]))


def squeeze(operator: Operator) -> Flow:
    """squeeze of the axes named, or of all of length 1."""
    flow, count = operator.flow(), len(operator.flow().shape)
    asked = {operator.axis(number, count) for number in operator.attributes.integers("axis")}
    gone = asked or {axis for axis, length in enumerate(flow.shape) if length == 1}
    if any(flow.shape[axis] != 1 for axis in gone):
        raise operator.unfit("squeezes an axis that is longer than 1", found=flow.shape)
    return shaped(operator, flow, tuple(length for axis, length in enumerate(flow.shape) if axis not in gone))


def split(operator: Operator) -> Flow:
    """One of the equal parts of SliceChannel."""
    flow, attributes = operator.flow(), operator.attributes
    axis, parts = operator.axis(attributes.integer("axis", 1), len(flow.shape)), attributes.integer("num_outputs")
    if parts < 1 or flow.shape[axis] % parts:
        raise operator.unfit(f"{parts} parts do not divide the axis", found=flow.shape)
    length = flow.shape[axis] // parts
    return _part(operator, flow, axis, (operator.which * length, (operator.which + 1) * length), parts)


def split_at(operator: Operator) -> Flow:
    """One of the parts of _split_v2, cut at given indices or into equal ones."""
    flow, attributes = operator.flow(), operator.attributes
    axis = operator.axis(attributes.integer("axis", 1), len(flow.shape))
    sections, starts = attributes.integer("sections", 0), attributes.integers("indices")
    if sections > 0:
        if flow.shape[axis] % sections:
            raise operator.unfit(f"{sections} parts do not divide the axis", found=flow.shape)
        starts = tuple(range(0, flow.shape[axis], flow.shape[axis] // sections))
    bounds = list(pairwise((*starts, flow.shape[axis])))
    if operator.which >= len(bounds):
        raise operator.bad("reads a part that the split has not", found=f"output {operator.which}")
    return _part(operator, flow, axis, bounds[operator.which], len(bounds))


def _part(operator: Operator, flow: Flow, axis: int, bounds: tuple[int, int], parts: int) -> Flow:
    if operator.which >= parts:
        raise operator.bad("reads a part that the split has not", expected=f"0 to {parts - 1}", found=operator.which)
    squeezed = operator.attributes.flag("squeeze_axis", False)
    part = _cut(operator, flow, axis, bounds, f"part{operator.which}")
    if not squeezed:
        return part
    if part.shape[axis] != 1:
        raise operator.unfit("squeezes an axis that is longer than 1", found=part.shape)
    return shaped(operator, part, (*part.shape[:axis], *part.shape[axis + 1 :]), f"squeezed{operator.which}")


def _cut(operator: Operator, flow: Flow, axis: int, bounds: tuple[int, int], suffix: str = "", step: int = 1) -> Flow:
    begin, end = bounds
    length = flow.shape[axis]
    if not 0 <= begin < end <= length:
        raise operator.unfit("slices outside the axis", expected=f"0 to {length}", found=f"{begin} to {end}")
    if (begin, end, step) == (0, length, 1):
        return flow
    return operator.add(Slice(axis, begin, end, step), flow, suffix=suffix)


def _bounds(begin: int | None, end: int | None, length: int) -> tuple[int, int]:
    """A slice's ends as numbers from 0."""
    first = 0 if begin is None else begin + length if begin < 0 else begin
    last = length if end is None else end + length if end < 0 else min(end, length)
    return first, last


def slice_axis(operator: Operator) -> Flow:
    """slice_axis."""
    flow, attributes = operator.flow(), operator.attributes
    axis = operator.axis(attributes.integer("axis"), len(flow.shape))
    ends = attributes.bounds("begin")[:1], attributes.bounds("end")[:1]
    begin, end = (found[0] if found else None for found in ends)
    return _cut(operator, flow, axis, _bounds(begin, end, flow.shape[axis]))


def slice_all(operator: Operator) -> Flow:
    """slice, along several axes."""
    flow, attributes = operator.flow(), operator.attributes
    lists = [attributes.bounds(name) for name in ("begin", "end", "step")]
    count = max(map(len, lists))
    if count > len(flow.shape) + 1:
        raise operator.unfit("slices along an axis that is not there", found=f"{count} axes")
    begins, ends, steps = ([*found, *[None] * (count - len(found))] for found in lists)
    if begins[:1] not in ([], [None], [0]) or ends[:1] not in ([], [None]) or steps[:1] not in ([], [None], [1]):
        raise operator.bad("the slice takes some of the images", found=f"{begins[0]} to {ends[0]}")
    for axis in range(count - 1):
        step = 1 if steps[axis + 1] is None else steps[axis + 1] or 0
        if step < 1:
            raise operator.bad("the slice runs backwards", found=f"step {step}")
        bounds = _bounds(begins[axis + 1], ends[axis + 1], flow.shape[axis])
        flow = _cut(operator, flow, axis, bounds, "" if axis == count - 2 else f"axis{axis + 1}", step)
    return flow


def slice_like(operator: Operator) -> Flow:
    """slice_like: the start of each axis, as long as another array's."""
    flow, like, count = operator.flow(), operator.flow(1), len(operator.flow().shape)
    asked = operator.attributes.integers("axes")
    axes = [operator.axis(number, count) for number in asked] if asked else range(count)
    for axis in axes:
        if axis >= len(like.shape):
            raise operator.unfit("slices along an axis that is not there", found=like.shape)
        flow = _cut(operator, flow, axis, (0, like.shape[axis]), f"axis{axis + 1}")
    return flow


def concat(operator: Operator) -> Flow:
    """Concat."""
    flows = operator.flows()
    axis = operator.axis(operator.attributes.integer("dim", 1), len(operator.flow().shape))
    return flows[0] if len(flows) == 1 else operator.add(Join(axis), *flows)


def stack(operator: Operator) -> Flow:
    """stack: joined along a new axis."""
    place = operator.axis(operator.attributes.integer("axis", 0), len(operator.flow().shape) + 1)
    flows = tuple(
        shaped(operator, flow, (*flow.shape[:place], 1, *flow.shape[place:]), f"input{number}")
        for number, flow in enumerate(operator.flows())
    )
    return operator.add(Join(place), *flows)
