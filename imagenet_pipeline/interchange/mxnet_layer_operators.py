"""MXNet's operators that are layers: convolutions, dense layers, normalisations, activations.

Defaults of attributes are those of apache/mxnet 1.9.1.
"""

from __future__ import annotations

import math

from imagenet_pipeline.interchange.layer_graph import Flow, Stored
from imagenet_pipeline.interchange.mxnet_operator import Operator, ones_like
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Clip,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Flatten,
    InstanceNorm,
    L2Norm,
    Layer,
    LayerNorm,
    LocalResponseNorm,
    Reshape,
    Scalar,
    Softmax,
    Transpose,
)
from imagenet_pipeline.networks.shapes import Shape

Pair = tuple[int, int]


def convolution(operator: Operator) -> Flow:
    """Convolution."""
    attributes, flow = operator.attributes, operator.image()
    kernel, stride, dilation, pad = window(operator)
    groups, bias = attributes.integer("num_group", 1), not attributes.flag("no_bias", False)
    layer = Conv(count(operator, "num_filter"), kernel, stride, pad, max(groups, 1), bias, dilation)
    return operator.add(layer, flow, arrays=operator.arrays("weight", *["bias"] * bias))


def deconvolution(operator: Operator) -> Flow:
    """Deconvolution; a `target_shape` says its padding."""
    attributes, flow = operator.attributes, operator.image()
    kernel, stride, dilation, pad = window(operator)
    extra = attributes.pair("adj", (0, 0), 0)
    target = attributes.integers("target_shape")
    if any(target):
        pad, extra = _padding_for(operator, flow.shape, (kernel, stride, dilation), target)
    if any(more >= max(step, reach) for more, step, reach in zip(extra, stride, dilation, strict=True)):
        raise operator.bad("adj is not below the stride", found=f"adj {extra}, stride {stride}")
    groups, bias = attributes.integer("num_group", 1), not attributes.flag("no_bias", True)
    layer = ConvTranspose(count(operator, "num_filter"), kernel, stride, pad, extra, max(groups, 1), bias, dilation)
    return operator.add(layer, flow, arrays=operator.arrays("weight", *["bias"] * bias))


def _padding_for(operator: Operator, shape: Shape, window: tuple[Pair, Pair, Pair], target: Shape) -> tuple[Pair, Pair]:
    if len(target) != 2:
        raise operator.bad("invalid attribute 'target_shape'", expected="(height, width)", found=target[:4])
    whole = [
        step * (length - 1) + reach * (size - 1) + 1
        for length, size, step, reach in zip(shape[1:], *window, strict=True)
    ]
    over = [length - wanted for length, wanted in zip(whole, target, strict=True)]
    if min(over) < 0:
        raise operator.unfit("the target shape is larger than the deconvolution reaches", found=target)
    return ((over[0] + 1) // 2, (over[1] + 1) // 2), (over[0] % 2, over[1] % 2)


def window(operator: Operator) -> tuple[Pair, Pair, Pair, Pair]:
    """Kernel, stride, dilation and padding, each (height, width)."""
    attributes = operator.attributes
    axes = len(attributes.integers("kernel"))
    if axes in (1, 3):
        raise operator.bad(f"{operator.node.op} over {axes} axes ({axes}-D)", expected="2 axes, as our layers have")
    if attributes.word("layout", "NCHW") != "NCHW":
        raise operator.bad(f"{operator.node.op} is laid out in another way", "NCHW", attributes.word("layout", ""))
    return (
        attributes.pair("kernel", None, 1),
        attributes.pair("stride", (1, 1), 1),
        attributes.pair("dilate", (1, 1), 1),
        attributes.pair("pad", (0, 0), 0),
    )


def count(operator: Operator, name: str, default: int | None = None) -> int:
    """An attribute that is 1 or above."""
    found = operator.attributes.integer(name, default)
    if found < 1:
        raise operator.bad(f"invalid attribute {name!r}", expected="1 or above", found=found)
    return found


def dense(operator: Operator) -> Flow:
    """FullyConnected, which flattens what it reads unless it is told not to."""
    attributes, flow = operator.attributes, operator.flow()
    last_axis = not attributes.flag("flatten", True) and len(flow.shape) > 1
    if len(flow.shape) > 1 and not last_axis:
        flow = operator.add(Flatten(), flow, suffix="flatten")
    bias = not attributes.flag("no_bias", False)
    layer = Dense(count(operator, "num_hidden"), bias, last_axis)
    return operator.add(layer, flow, arrays=operator.arrays("weight", *["bias"] * bias))


def batch_norm(operator: Operator) -> Flow:
    """BatchNorm; MXNet takes gamma as 1 under `fix_gamma`, whatever the file says."""
    attributes, flow = operator.attributes, operator.flow()
    arrays = operator.arrays("weight", "bias", "running_mean", "running_var")
    fixed = attributes.flag("fix_gamma", True)
    if fixed:
        name, gamma = arrays["weight"]
        arrays["weight"] = (name, ones_like(gamma))
    layer = BatchNorm(
        attributes.real("eps", 1e-3),
        attributes.real("momentum", 0.9),
        not fixed,
        attributes.flag("use_global_stats", False),
    )
    axis = operator.axis(attributes.integer("axis", 1), len(flow.shape))
    return _per_channel(operator, layer, flow, axis, arrays)


def _per_channel(operator: Operator, layer: Layer, flow: Flow, axis: int, arrays: Stored) -> Flow:
    """A normalisation along an axis, and of arrays that are neither vectors nor images, which it is brought before."""
    order = (axis, *(place for place in range(len(flow.shape)) if place != axis))
    if axis:
        flow = operator.add(Transpose(order), flow, suffix="before")
    shape = flow.shape
    is_odd = len(shape) not in (1, 3)
    if is_odd:
        flow = operator.add(Reshape((shape[0], math.prod(shape[1:]), 1)), flow, suffix="in")
    flow = operator.add(layer, flow, arrays=arrays)
    if is_odd:
        flow = operator.add(Reshape(shape), flow, suffix="out")
    back = tuple(order.index(place) for place in range(len(order)))
    return operator.add(Transpose(back), flow, suffix="after") if axis else flow


def instance_norm(operator: Operator) -> Flow:
    """InstanceNorm."""
    flow = operator.flow()
    if len(flow.shape) < 2:
        raise operator.unfit("InstanceNorm needs several values a channel", found=flow.shape)
    layer = InstanceNorm(operator.attributes.real("eps", 1e-3))
    return _per_channel(operator, layer, flow, 0, operator.arrays("weight", "bias"))


def group_norm(operator: Operator) -> Flow:
    """GroupNorm, whose scale and shift are a number for each group in MXNet 1: an InstanceNorm of the groups."""
    flow, groups = operator.flow(), count(operator, "num_groups", 1)
    shape = flow.shape
    if len(shape) < 2 or shape[0] % groups:
        raise operator.unfit(f"{groups} groups do not divide the channels", found=shape)
    flow = operator.add(Reshape((groups, math.prod(shape) // groups, 1)), flow, suffix="groups")
    layer = InstanceNorm(operator.attributes.real("eps", 1e-5))
    return operator.add(
        Reshape(shape), operator.add(layer, flow, arrays=operator.arrays("weight", "bias")), suffix="out"
    )


def layer_norm(operator: Operator) -> Flow:
    """LayerNorm."""
    flow = operator.flow()
    axis = operator.axis(operator.attributes.integer("axis", -1), len(flow.shape))
    layer = LayerNorm(axis, operator.attributes.real("eps", 1e-5))
    return operator.add(layer, flow, arrays=operator.arrays("weight", "bias"))


def response_norm(operator: Operator) -> Flow:
    """LRN."""
    attributes = operator.attributes
    size = count(operator, "nsize")
    layer = LocalResponseNorm(
        size, attributes.real("alpha", 1e-4), attributes.real("beta", 0.75), attributes.real("knorm", 2.0)
    )
    if size % 2 == 0:
        raise operator.bad("invalid attribute 'nsize'", expected="an odd number", found=size)
    return operator.add(layer, operator.image(), arrays=operator.arrays())


def l2_norm(operator: Operator) -> Flow:
    """L2Normalization in its three modes."""
    flow, mode = operator.flow(), operator.attributes.word("mode", "instance")
    everything = tuple(range(len(flow.shape)))
    axes = {"instance": everything, "channel": everything[:1], "spatial": everything[1:]}.get(mode, ())
    if not axes:
        raise operator.bad("L2Normalization over no axes", expected="instance, channel or spatial", found=mode[:40])
    return operator.add(L2Norm(axes, operator.attributes.real("eps", 1e-10)), flow, arrays=operator.arrays())


_NAMES = {
    "softrelu": "softplus", "relu": "relu", "sigmoid": "sigmoid", "tanh": "tanh", "softsign": "softsign", "exp": "exp",
    "log": "log", "sqrt": "sqrt", "square": "square", "abs": "abs",
}  # fmt: skip
FUNCTIONS = tuple(name for name in _NAMES if name != "softrelu")
"""Operators that are an elementwise function of that name."""


def activation(operator: Operator) -> Flow:
    """Activation of any kind, or an operator of FUNCTIONS."""
    kind = operator.attributes.word("act_type", "") if operator.node.op == "Activation" else operator.node.op
    kind = kind.removeprefix("_sparse_")
    if kind not in _NAMES:
        raise operator.bad(f"our layers have no activation {kind[:80]!r}", expected=", ".join(_NAMES))
    return operator.add(Activation(_NAMES[kind]), operator.flow(), arrays=operator.arrays())  # type: ignore[arg-type]


def leaky(operator: Operator) -> Flow:
    """LeakyReLU of any kind."""
    attributes, flow = operator.attributes, operator.flow()
    kind = attributes.word("act_type", "leaky")
    match kind:
        case "prelu":
            return operator.add(Activation("prelu"), flow, arrays=_slope(operator, flow))
        case "leaky" | "elu":
            layer = Activation(kind, attributes.real("slope", 0.25))
        case "selu" | "gelu":
            layer = Activation(kind)
        case "rrelu":
            slopes = attributes.real("lower_bound", 0.125), attributes.real("upper_bound", 0.334)
            operator.note("a random slope in training; here always its mean, as MXNet scores")
            layer = Activation("leaky", sum(slopes) / 2)
        case _:
            raise operator.bad(f"our layers have no LeakyReLU {kind[:80]!r}")
    # A rrelu may read a parameter that it has no use for.
    return operator.add(layer, flow, arrays=None if kind == "rrelu" else operator.arrays())


def _slope(operator: Operator, flow: Flow) -> Stored:
    arrays = operator.arrays("slope")
    if arrays["slope"][1].size == 1 != flow.shape[0]:
        operator.note("one slope for all channels; here one each")
    return arrays


def hard_sigmoid(operator: Operator) -> Flow:
    """hard_sigmoid: alpha x + beta between 0 and 1, of PyTorch's numbers a layer."""
    alpha, beta = operator.attributes.real("alpha", 0.2), operator.attributes.real("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return operator.add(Activation("hard_sigmoid"), operator.flow())
    flow = operator.add(Scalar("multiply", alpha), operator.flow(), suffix="alpha")
    flow = operator.add(Scalar("add", beta), flow, suffix="beta")
    return operator.add(Clip(0.0, 1.0), flow)


def clip(operator: Operator) -> Flow:
    """clip."""
    low, high = operator.attributes.real("a_min"), operator.attributes.real("a_max")
    return operator.add(Clip(low, high), operator.flow(), arrays=operator.arrays())


def dropout(operator: Operator) -> Flow:
    """Dropout, left out where it drops nothing."""
    attributes = operator.attributes
    rate = attributes.real("p", 0.5)
    if not 0 <= rate < 1:
        raise operator.bad("invalid attribute 'p'", expected="0 to below 1", found=rate)
    if attributes.word("mode", "training") == "always":
        raise operator.bad("the dropout drops values when it scores too", found="mode always")
    if attributes.integers("axes"):
        operator.note("dropped whole axes at once; here single values")
    return operator.add(Dropout(rate), operator.flow()) if rate else operator.flow()


def softmax(operator: Operator) -> Flow:
    """Softmax or log_softmax, along an axis."""
    attributes, flow = operator.attributes, operator.flow()
    if attributes.flag("use_length", False):
        raise operator.bad("the softmax reads the lengths of sequences")
    axis = operator.axis(attributes.integer("axis", -1), len(flow.shape))
    temperature = attributes.real("temperature", 1.0)
    if temperature <= 0:
        raise operator.bad("invalid attribute 'temperature'", expected="above 0", found=temperature)
    return operator.add(Softmax(axis, operator.node.op == "log_softmax", temperature), flow)


def softmax_output(operator: Operator) -> Flow:
    """SoftmaxOutput or SoftmaxActivation inside a graph: over the channels, or over all values of an image."""
    attributes, flow = operator.attributes, operator.flow()
    per_position = attributes.flag("multi_output", False) or attributes.word("mode", "instance") == "channel"
    if per_position or len(flow.shape) == 1:
        return operator.add(Softmax(0), flow)
    if attributes.flag("preserve_shape", False):
        return operator.add(Softmax(len(flow.shape) - 1), flow)
    if operator.node.op == "SoftmaxActivation":
        # MXNet's own kernels differ: that of CPUs goes along the last axis.
        raise operator.bad("SoftmaxActivation over more than a vector", expected="mode channel", found=flow.shape)
    shape, flow = flow.shape, operator.add(Flatten(), flow, suffix="flatten")
    return operator.add(Reshape(shape), operator.add(Softmax(0), flow), suffix="shape")


def logistic_output(operator: Operator) -> Flow:
    """LogisticRegressionOutput: a sigmoid."""
    return operator.add(Activation("sigmoid"), operator.flow())


def same(operator: Operator) -> Flow:
    """Outputs that only carry a loss, and copies."""
    return operator.flow()
