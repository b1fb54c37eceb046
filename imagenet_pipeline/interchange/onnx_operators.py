"""ONNX's operators on arrays, as layers: arithmetic, shapes, reductions, elementwise functions.

Attributes that became inputs, and defaults that changed, are read by the set of operators the file names.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from imagenet_pipeline.interchange.layer_graph import Flow
from imagenet_pipeline.interchange.onnx_node import BATCH, Erf, Image, Operator, Rule, Value
from imagenet_pipeline.interchange.params import AnyArray
from imagenet_pipeline.networks.layers import (
    Activation,
    Arithmetic,
    Clip,
    Dropout,
    Elementwise,
    Flatten,
    GlobalAveragePool,
    Join,
    Reduce,
    Reshape,
    Scalar,
    Slice,
    Softmax,
)
from imagenet_pipeline.networks.shapes import Shape

ARITHMETIC: dict[str, Arithmetic] = {
    "Add": "add", "Sub": "subtract", "Mul": "multiply", "Div": "divide", "Pow": "power", "Max": "maximum",
    "Min": "minimum", "Sum": "add", "Mean": "add",
}  # fmt: skip
_NEUTRAL = {"add": 0.0, "subtract": 0.0, "multiply": 1.0, "divide": 1.0, "power": 1.0}
FUNCTIONS = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softplus": "softplus", "Softsign": "softsign", "Exp": "exp",
    "Log": "log", "Sqrt": "sqrt", "Abs": "abs", "Mish": "mish", "HardSwish": "hard_swish",
}  # fmt: skip
REDUCTIONS = {
    "ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "max", "ReduceMin": "min", "ReduceSumSquare": "sum",
    "ReduceL2": "sum",
}  # fmt: skip
_SELU = (1.67326319217681884765625, 1.05070102214813232421875)
_FLOATS = (1, 10, 11, 16)  # ONNX's numbers of the types of real numbers
MOST_PARTS = 64
_ROOT = math.sqrt(2)


def arithmetic(operator: Operator) -> Value:
    """Arithmetic of two arrays or more, of which one at least is made of the image."""
    kind = ARITHMETIC[operator.node.op_type]
    if any(isinstance(value, Erf) for value in operator.inputs):
        return _with_erf(operator)
    if len(operator.inputs) == 1:
        return operator.flow()
    constants = [isinstance(value, np.ndarray) for value in operator.inputs]
    flows = {which: operator.flow(which) for which, is_constant in enumerate(constants) if not is_constant}
    axes = len(next(iter(flows.values())).shape)
    if any(len(flow.shape) != axes for flow in flows.values()):
        found = [flow.shape for flow in flows.values()]
        raise operator.unfit("arithmetic of arrays with different numbers of axes", found=found)
    if len(constants) == 2 and any(constants) and operator.array(constants.index(True), "operand").size == 1:
        number = operator.number(constants.index(True), "operand")
        return _scalar(operator, kind, next(iter(flows.values())), number, reverse=constants[0])
    operands = [flows[which] if which in flows else operator.constant(which, axes) for which in range(len(constants))]
    flow = operator.add(Elementwise(kind), *operands)
    if operator.node.op_type == "Mean":
        return operator.add(Scalar("divide", float(len(operands))), flow, suffix="mean")
    return flow


def _scalar(operator: Operator, kind: Arithmetic, flow: Flow, value: float, reverse: bool) -> Flow:
    if not math.isfinite(value):
        raise operator.bad("computes with a number that is not finite", found=value)
    if not reverse and _NEUTRAL.get(kind) == value:
        return flow
    if kind == "power" and not reverse and value in (2.0, 0.5):
        return operator.add(Activation("square" if value == 2 else "sqrt"), flow)
    if kind == "maximum" and value == 0:
        return operator.add(Activation("relu"), flow)
    made = operator.add(Scalar(kind, value, reverse and kind in ("subtract", "divide", "power")), flow)
    if not reverse and kind in ("divide", "multiply"):
        operator.conversion.divided[made.name] = flow, value if kind == "divide" else 1 / (value or math.inf)
    return made


def erf(operator: Operator) -> Value:
    """Erf of x / sqrt 2, the inner part of a GELU."""
    source, divisor = operator.conversion.divided.get(operator.flow().name, (operator.flow(), 1.0))
    if not math.isclose(divisor, _ROOT, rel_tol=1e-3):
        raise operator.bad("erf is known as a part of GELU alone, of x / sqrt 2", found=f"x / {divisor:g}")
    return Erf(source)


def _with_erf(operator: Operator) -> Value:
    """One more step of 0.5 * x * (1 + erf(x / sqrt 2)), in whichever order it is written."""
    first, second = operator.inputs[:2]
    part, other = (first, second) if isinstance(first, Erf) else (second, first)
    op, divided = operator.node.op_type, operator.conversion.divided
    if isinstance(part, Erf) and isinstance(other, np.ndarray) and other.size == 1:
        number = float(other.reshape(()))
        if op == "Add" and part.factor == 1 and not part.times_x:
            return _gelu(operator, Erf(part.flow, part.plus + number))
        if op == "Mul" or (op == "Div" and part is first and number):
            factor = part.factor * (number if op == "Mul" else 1 / number)
            return _gelu(operator, Erf(part.flow, part.plus, factor, part.times_x))
    elif isinstance(part, Erf) and isinstance(other, Flow) and op == "Mul" and not part.times_x:
        source, divisor = divided.get(other.name, (other, 1.0))
        if part.flow in (source, other):
            factor = part.factor / divisor if part.flow == source else part.factor
            return _gelu(operator, Erf(part.flow, part.plus, factor, True))
    raise operator.bad("computes with erf(x), which our layers know as a part of GELU alone")


def _gelu(operator: Operator, part: Erf) -> Value:
    """A GELU, once it is whole."""
    is_whole = part.times_x and math.isclose(part.plus, 1) and math.isclose(part.factor, 0.5, rel_tol=1e-3)
    return operator.add(Activation("gelu"), part.flow) if is_whole else part


def function(operator: Operator) -> Flow:
    """An elementwise function of FUNCTIONS."""
    return operator.add(Activation(FUNCTIONS[operator.node.op_type]), operator.flow())  # type: ignore[arg-type]


def leaky(operator: Operator) -> Flow:
    """LeakyRelu, Elu, and Celu as an ELU of x / alpha."""
    flow, op = operator.flow(), operator.node.op_type
    if op == "LeakyRelu":
        return operator.add(Activation("leaky", operator.real("alpha", 0.01)), flow)
    alpha = operator.real("alpha", 1.0)
    if op == "Elu":
        return operator.add(Activation("elu", alpha), flow)
    flow = operator.add(Activation("elu", 1.0), operator.add(Scalar("divide", alpha), flow, suffix="in"))
    return operator.add(Scalar("multiply", alpha), flow, suffix="out")


def selu(operator: Operator) -> Flow:
    """Selu, with its paper's numbers alone."""
    numbers = operator.real("alpha", _SELU[0]), operator.real("gamma", _SELU[1])
    if not np.allclose(numbers, _SELU, rtol=1e-4):
        raise operator.bad("a Selu with other numbers than its paper's", expected=_SELU, found=numbers)
    return operator.add(Activation("selu"), operator.flow())


def prelu(operator: Operator) -> Flow:
    """PRelu, a slope for each channel or for all."""
    flow = operator.flow()
    name, slope = operator.stored(1, "slope")
    per_image = slope if operator.opset < 7 and slope.ndim == 1 else operator.per_image(slope, len(flow.shape))
    if slope.size > 1 and slope.size != per_image.shape[0]:
        raise operator.bad("a slope that is not of a channel", found=slope.shape)
    return operator.add(Activation("prelu"), flow, arrays={"slope": (name, slope.reshape(-1))})


def hard_sigmoid(operator: Operator) -> Flow:
    """HardSigmoid, of another slope than PyTorch's 1/6 in three layers."""
    alpha, beta, flow = operator.real("alpha", 0.2), operator.real("beta", 0.5), operator.flow()
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return operator.add(Activation("hard_sigmoid"), flow)
    bent = operator.add(Scalar("multiply", alpha), flow, suffix="alpha")
    bent = operator.add(Scalar("add", beta), bent, suffix="beta")
    return operator.add(Clip(0.0, 1.0), bent, suffix="clip")


def swish(operator: Operator) -> Flow:
    """Swish, x * sigmoid(alpha x)."""
    flow = operator.flow()
    gate = _scalar(operator, "multiply", flow, operator.real("alpha", 1.0), reverse=False)
    gate = operator.add(Activation("sigmoid"), gate, suffix="sigmoid")
    return operator.add(Elementwise("multiply"), flow, gate)


def gelu(operator: Operator) -> Flow:
    """Gelu, exact or by the hyperbolic tangent."""
    flow = operator.flow()
    if operator.word("approximate", "none") != "tanh":
        return operator.add(Activation("gelu"), flow)
    cubed = operator.add(Scalar("power", 3.0), flow, suffix="cube")
    inner = operator.add(Scalar("multiply", 0.044715), cubed, suffix="share")
    inner = operator.add(Elementwise("add"), flow, inner, suffix="inner")
    inner = operator.add(Scalar("multiply", math.sqrt(2 / math.pi)), inner, suffix="scale")
    inner = operator.add(Scalar("add", 1.0), operator.add(Activation("tanh"), inner, suffix="tanh"), suffix="plus")
    return operator.add(Scalar("multiply", 0.5), operator.add(Elementwise("multiply"), flow, inner), suffix="half")


def negated(operator: Operator) -> Flow:
    """Neg and Reciprocal."""
    flow = operator.flow()
    if operator.node.op_type == "Neg":
        return operator.add(Scalar("multiply", -1.0), flow)
    return operator.add(Scalar("divide", 1.0, True), flow)


def clip(operator: Operator) -> Flow:
    """Clip, its bounds attributes up to set 10 and inputs since."""
    bounds = []
    for which, (name, default) in enumerate((("min", -math.inf), ("max", math.inf)), start=1):
        bound = operator.number(which, name) if operator.has(which) else operator.attributes.get(name, default)
        bounds.append(float(bound))
    low, high = bounds
    flow = operator.flow()
    limit = float(np.finfo(np.float32).max)
    if low <= -limit and high >= limit:
        return flow
    if high >= limit:
        return _scalar(operator, "maximum", flow, low, reverse=False)
    return operator.add(Scalar("minimum", high) if low <= -limit else Clip(low, high), flow)


def dropout(operator: Operator) -> Flow:
    """Dropout, left out where it drops nothing."""
    rate = operator.number(1, "ratio") if operator.has(1) else operator.real("ratio", 0.5)
    if not 0 <= rate < 1:
        raise operator.bad("invalid rate of dropout", expected="0 to below 1", found=rate)
    return operator.add(Dropout(rate), operator.flow()) if rate else operator.flow()


def same(operator: Operator) -> Value:
    """Copies, and casts between kinds of real numbers."""
    if operator.node.op_type == "Cast" and operator.integer("to", 1) not in _FLOATS:
        raise operator.bad("rounds what is made of the image to another kind of numbers")
    value = operator.inputs[0] if operator.has(0) else None
    return operator.flow() if value is None else value


def softmax(operator: Operator) -> Flow:
    """Softmax or LogSoftmax; up to set 12 over all axes from the one named."""
    flow, is_log = operator.flow(), operator.node.op_type == "LogSoftmax"
    axis = operator.axis(operator.integer("axis", -1 if operator.opset >= 13 else 1), len(flow.shape))
    if operator.opset >= 13 or math.prod(flow.shape[axis + 1 :]) == 1:
        return operator.add(Softmax(axis, is_log), flow)
    if axis:
        raise operator.bad("a softmax over several axes, but not over all", found=f"axis {axis + 1}")
    shape = flow.shape
    flow = operator.add(Softmax(0, is_log), operator.add(Flatten(), flow, suffix="flatten"))
    return operator.add(Reshape(shape), flow, suffix="shape")


def reduction(operator: Operator) -> Flow:
    """Mean, sum, maximum, minimum, and sums of squares, over axes."""
    flow, op = operator.flow(), operator.node.op_type
    numbers, count = operator.listed("axes", 1), len(flow.shape)
    if not numbers:
        if operator.integer("noop_with_empty_axes", 0):
            return flow
        raise operator.bad("a reduction over everything mixes images", expected="axes")
    axes = tuple(sorted({operator.axis(number, count) for number in numbers}))
    keep = bool(operator.integer("keepdims", 1))
    if op in ("ReduceSumSquare", "ReduceL2"):
        flow = operator.add(Activation("square"), flow, suffix="square")
    if op == "ReduceMean" and count == 3 and axes == (1, 2):
        flow = operator.add(GlobalAveragePool(), flow)
        return flow if keep else operator.add(Flatten(), flow, suffix="flatten")
    if len(axes) == count and not keep:
        raise operator.bad("leaves a single number of an image", expected="keepdims, or fewer axes")
    flow = operator.add(Reduce(REDUCTIONS[op], axes, keep), flow)  # type: ignore[arg-type]
    return operator.add(Activation("sqrt"), flow, suffix="root") if op == "ReduceL2" else flow


def shaped(operator: Operator, flow: Flow, shape: Shape, suffix: str = "") -> Flow:
    """The same numbers as an array of `shape`."""
    if shape == flow.shape:
        return flow
    if not shape:
        raise operator.unfit("leaves a single number of an image")
    is_flat = shape == (math.prod(flow.shape),)
    return operator.add(Flatten() if is_flat else Reshape(shape), flow, suffix=suffix)


def flatten(operator: Operator) -> Flow:
    """Flatten from an axis, behind which there are to be all that are longer than 1."""
    flow, axis = operator.flow(), operator.integer("axis", 1)
    if axis != 1 and (axis < 1 or math.prod(flow.shape[: axis - 1]) > 1):
        raise operator.bad("flattens images together", expected="axis 1", found=f"axis {axis}")
    return shaped(operator, flow, (math.prod(flow.shape),))


def reshape(operator: Operator) -> Flow:
    """Reshape, which has to leave the images apart."""
    flow = operator.flow()
    asked = operator.listed("shape", 1) or []
    whole = math.prod(flow.shape)
    lengths = [
        (BATCH, *flow.shape)[place] if length == 0 and place <= len(flow.shape) and not operator.integer("allowzero", 0)
        else length
        for place, length in enumerate(asked)
    ]  # fmt: skip
    first, rest = (lengths[0], lengths[1:]) if lengths else (0, [])
    known = math.prod(length for length in rest if length != -1)
    if -1 in rest and known > 0:
        rest = [whole // known if length == -1 else length for length in rest]
    is_batch = first in (BATCH, operator.conversion.batch) or first == -1
    if not is_batch or min(rest, default=0) < 1 or math.prod(rest) != whole:
        shown = ["n" if length == BATCH else length for length in asked[:8]]
        found = f"{shown} of {('n', *flow.shape)}"
        raise operator.unfit("the reshape mixes images, fixes how many there are, or does not fit", found=found)
    return shaped(operator, flow, tuple(rest))


def expand(operator: Operator) -> Flow:
    """Expand, where it changes nothing, or what reads it repeats short axes itself."""
    flow, lengths = operator.flow(), operator.numbers(1, "shape")
    readers = operator.conversion.readers.get(operator.node.output[0], [])
    per_image = tuple(lengths[-len(flow.shape) :])
    is_read_alone = all(reader.op_type in ARITHMETIC and len(set(reader.input)) == 2 for reader in readers)
    is_same = all(new in (1, own) for new, own in zip(per_image, flow.shape, strict=False))
    if len(lengths) > len(flow.shape) + 1 or not (is_same or (readers and is_read_alone)):
        raise operator.bad("our layers have no repeating along axes", found=f"{flow.shape} to {per_image}")
    return flow


def squeeze(operator: Operator) -> Flow:
    """Squeeze of the axes named, or of all of length 1."""
    flow = operator.flow()
    asked = {operator.axis(number, len(flow.shape)) for number in operator.listed("axes", 1) or []}
    gone = asked or {axis for axis, length in enumerate(flow.shape) if length == 1}
    if any(flow.shape[axis] != 1 for axis in gone):
        raise operator.unfit("squeezes an axis that is longer than 1", found=flow.shape)
    return shaped(operator, flow, tuple(length for axis, length in enumerate(flow.shape) if axis not in gone))


def unsqueeze(operator: Operator) -> Flow:
    """Unsqueeze."""
    flow, asked = operator.flow(), operator.listed("axes", 1) or []
    count = len(flow.shape) + len(asked)
    places = {operator.axis(number, count) for number in asked}
    lengths = iter(flow.shape)
    return shaped(operator, flow, tuple(1 if axis in places else next(lengths) for axis in range(count)))


def transpose(operator: Operator) -> Value:
    """Transpose; of an image with its channels last, the image."""
    image = operator.inputs[0]
    if isinstance(image, Image) and image.is_last and operator.integers("perm") == [0, 3, 1, 2]:
        return Image(image.scale, is_last=False)
    flow = operator.flow()
    order = operator.integers("perm") or list(range(len(flow.shape), -1, -1))
    if sorted(order) != list(range(len(flow.shape) + 1)) or order[0] != 0:
        raise operator.unfit("the transpose moves the axis of the batch, or names not every axis once", found=order[:8])
    axes = tuple(axis - 1 for axis in order[1:])
    return operator.conversion.transposed(operator.name(), flow, axes, operator.where)


def concat(operator: Operator) -> Flow:
    """Concat, of constants too."""
    count = next((len(operator.flow(which).shape) for which, value in enumerate(operator.inputs)
                  if not isinstance(value, np.ndarray)), 1)  # fmt: skip
    axis = operator.axis(operator.integer("axis", 1), count)
    flows = [
        operator.constant(which, count) if isinstance(value, np.ndarray) else operator.flow(which)
        for which, value in enumerate(operator.inputs)
    ]
    return flows[0] if len(flows) == 1 else operator.add(Join(axis), *flows)


def split(operator: Operator) -> tuple[Value, ...]:
    """Split into parts of given lengths, or equal ones."""
    flow, count = operator.flow(), len(operator.node.output)
    axis = operator.axis(operator.integer("axis", 0), len(flow.shape))
    length = flow.shape[axis]
    each = -(-length // count)
    lengths = operator.listed("split", 1) or [min(each, length - part * each) for part in range(count)]
    if len(lengths) != count or min(lengths) < 1 or sum(lengths) != length:
        raise operator.unfit("the parts do not make up the axis", expected=length, found=lengths[:8])
    ends = np.cumsum(lengths)
    return tuple(
        cut(operator, flow, axis, int(end) - part, int(end), f"part{number}")
        for number, (part, end) in enumerate(zip(lengths, ends, strict=True))
    )


def cut(operator: Operator, flow: Flow, axis: int, begin: int, end: int, suffix: str = "", step: int = 1) -> Flow:
    """The indices from `begin` to before `end` along an axis."""
    if not 0 <= begin < end <= flow.shape[axis]:
        raise operator.unfit("slices nothing, or outside the axis", found=f"{begin} to {end} of {flow.shape[axis]}")
    if (begin, end, step) == (0, flow.shape[axis], 1):
        return flow
    return operator.add(Slice(axis, begin, end, step), flow, suffix=suffix)


def slices(operator: Operator) -> Flow:
    """Slice, its ends attributes up to set 9 and inputs since."""
    flow = operator.flow()
    starts, ends = operator.listed("starts", 1) or [], operator.listed("ends", 2) or []
    axes = operator.listed("axes", 3) or list(range(len(starts)))
    steps = operator.listed("steps", 4) or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise operator.bad("the slice's lists are of unequal length")
    for number, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if number in (0, -len(flow.shape) - 1) and start == 0 and end >= BATCH:
            continue
        axis = operator.axis(number, len(flow.shape))
        if step < 1:
            raise operator.bad("the slice runs backwards", found=f"step {step}")
        begin, stop, _ = slice(start, end).indices(flow.shape[axis])
        flow = cut(operator, flow, axis, begin, stop, "" if number == axes[-1] else f"axis{axis}", step)
    return flow


def gather(operator: Operator) -> Flow:
    """Gather by constant indices: a slice, or slices joined."""
    flow, indices = operator.flow(), operator.array(1, "indices")
    axis = operator.axis(operator.integer("axis", 0), len(flow.shape))
    length = flow.shape[axis]
    places: AnyArray = indices.ravel()
    if indices.ndim > 1 or not 0 < places.size <= MOST_PARTS or indices.dtype.kind not in "iu":
        raise operator.bad("gathers more than slices are", expected=f"up to {MOST_PARTS}", found=indices.shape)
    numbers = [int(place) + length if place < 0 else int(place) for place in places]
    steps = {second - first for first, second in pairwise(numbers)}
    if not steps or (len(steps) == 1 and min(steps) > 0):
        flow = cut(operator, flow, axis, numbers[0], numbers[-1] + 1, step=min(steps, default=1))
    else:
        parts = [cut(operator, flow, axis, place, place + 1, f"part{number}") for number, place in enumerate(numbers)]
        flow = operator.add(Join(axis), *parts)
    return flow if indices.ndim else shaped(operator, flow, (*flow.shape[:axis], *flow.shape[axis + 1 :]), "squeezed")


ARRAY_RULES: dict[str, Rule] = {
    **dict.fromkeys(ARITHMETIC, arithmetic),
    **dict.fromkeys(FUNCTIONS, function),
    **dict.fromkeys(("LeakyRelu", "Elu", "Celu"), leaky),
    **dict.fromkeys(("Neg", "Reciprocal"), negated),
    **dict.fromkeys(("Identity", "Cast", "CastLike"), same),
    **dict.fromkeys(("Softmax", "LogSoftmax"), softmax),
    **dict.fromkeys(REDUCTIONS, reduction),
    "HardSigmoid": hard_sigmoid, "Swish": swish, "Erf": erf, "Selu": selu, "PRelu": prelu, "Gelu": gelu, "Clip": clip,
    "Dropout": dropout, "Flatten": flatten,
    "Reshape": reshape, "Expand": expand, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Transpose": transpose,
    "Concat": concat, "Split": split, "Slice": slices, "Gather": gather,
}  # fmt: skip
