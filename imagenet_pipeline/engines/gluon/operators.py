"""Rules for the layers that networks from elsewhere are made of; `engines/pytorch/operators.py` has PyTorch's.

MXNet's own operators are passed over where they compute in float32 whatever the precision (LeakyReLU's "gelu" and
"selu", the gradient of erf, every parameter that is no double), know no float64 (InstanceNorm), or are wrong
(Deconvolution with a dilation).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.networks import layers
from imagenet_pipeline.networks.layers import pair


def block(layer: layers.Layer, length: int) -> Any:
    """The block of a layer, its parameters as attributes; `length` is that of its one-dimensional parameters."""
    match layer:
        case layers.ConvTranspose():
            return _ConvTranspose(layer)
        case layers.InstanceNorm() | layers.LayerNorm():
            return _Normalisation(layer, length)
        case layers.Scale():
            return _Scale(layer.axis, length)
        case layers.Constant():
            return _Constant(layer.shape)
        case layers.Activation(kind=kind) if kind in ACTIVATIONS:
            return _Function(ACTIVATIONS[kind])
    if type(layer) not in RULES:
        raise NotImplementedError(f"the Gluon engine has no rule for {type(layer).__name__}")
    return _Function(partial(RULES[type(layer)], layer))


class _Function(mx.gluon.HybridBlock):  # type: ignore[misc]
    """A function of F, `mx.nd` or `mx.sym`, and the inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def hybrid_forward(self, F: Any, x: Any, *others: Any) -> Any:
        return self._function(F, x, *others)


def batched(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of an image as those of a batch of images; negative ones count from the end."""
    return tuple(axis + 1 if axis >= 0 else axis for axis in axes)


class _ConvTranspose(mx.gluon.HybridBlock):  # type: ignore[misc]
    """Its kernel spread out where it is dilated: MXNet's own on a CPU is another function in float64."""

    def __init__(self, layer: layers.ConvTranspose) -> None:
        super().__init__()
        self.layer = layer
        shape = (0, layer.channels // layer.groups, *pair(layer.kernel))
        self.weight = self.params.get("weight", shape=shape, init="zeros", allow_deferred_init=True)
        self.bias = self.params.get("bias", shape=(layer.channels,), init="zeros") if layer.bias else None

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any = None) -> Any:
        layer, kernel, dilation = self.layer, pair(self.layer.kernel), pair(self.layer.dilation)
        reach = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True))
        return F.Deconvolution(
            x, *([_spread(F, weight, dilation, reach)] + ([] if bias is None else [bias])), kernel=reach,
            stride=pair(layer.stride), pad=pair(layer.pad), adj=pair(layer.extra), num_filter=layer.channels,
            num_group=layer.groups, no_bias=bias is None,
        )  # fmt: skip


def _spread(F: Any, weight: Any, dilation: tuple[int, int], reach: tuple[int, ...]) -> Any:
    """A kernel with dilation - 1 zeros between its numbers."""
    down, across = dilation
    nothing = (0,) * 6
    if down > 1:
        rows = F.pad(F.expand_dims(weight, axis=3), mode="constant", pad_width=(*nothing, 0, down - 1, 0, 0))
        weight = F.slice_axis(F.reshape(rows, shape=(0, 0, -3, 0)), axis=2, begin=0, end=reach[0])
    if across > 1:
        columns = F.pad(F.expand_dims(weight, axis=4), mode="constant", pad_width=(*nothing, 0, 0, 0, across - 1))
        weight = F.slice_axis(F.reshape(columns, shape=(0, 0, 0, -3)), axis=3, begin=0, end=reach[1])
    return weight


class _Normalisation(mx.gluon.HybridBlock):  # type: ignore[misc]
    """InstanceNorm or LayerNorm."""

    def __init__(self, layer: layers.InstanceNorm | layers.LayerNorm, length: int) -> None:
        super().__init__()
        self.layer = layer
        self.weight = self.params.get("weight", shape=(length,), init="ones")
        self.bias = self.params.get("bias", shape=(length,), init="zeros")

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any) -> Any:
        if isinstance(self.layer, layers.InstanceNorm):
            rows = _standardised(F, F.reshape(x, shape=(0, 0, -1)), self.layer.epsilon)
            weight, bias = (F.reshape(numbers, shape=(1, -1, 1)) for numbers in (weight, bias))
            return F.reshape_like(F.broadcast_add(F.broadcast_mul(rows, weight), bias), x)
        (axis,) = batched((self.layer.axis,))
        last = _standardised(F, F.swapaxes(x, dim1=axis, dim2=-1), self.layer.epsilon)
        return F.swapaxes(F.broadcast_add(F.broadcast_mul(last, weight), bias), dim1=axis, dim2=-1)


class _Scale(mx.gluon.HybridBlock):  # type: ignore[misc]
    def __init__(self, axis: int, length: int) -> None:
        super().__init__()
        (self.axis,) = batched((axis,))
        self.weight = self.params.get("weight", shape=(length,), init="ones")

    def hybrid_forward(self, F: Any, x: Any, weight: Any) -> Any:
        scaled = F.broadcast_mul(F.swapaxes(x, dim1=self.axis, dim2=-1), weight)
        return F.swapaxes(scaled, dim1=self.axis, dim2=-1)


def _standardised(F: Any, x: Any, epsilon: float) -> Any:
    """Less its mean along the last axis, divided by its standard deviation."""
    centred = F.broadcast_sub(x, F.mean(x, axis=-1, keepdims=True))
    variance = F.mean(F.square(centred), axis=-1, keepdims=True)
    return F.broadcast_div(centred, F.sqrt(variance + epsilon))


class _Constant(mx.gluon.HybridBlock):  # type: ignore[misc]
    """Its value once for every image of what enters the graph."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.value = self.params.get("value", shape=shape, init="zeros")

    def hybrid_forward(self, F: Any, x: Any, value: Any) -> Any:
        return F.broadcast_like(F.expand_dims(value, axis=0), x, lhs_axes=(0,), rhs_axes=(0,))


def _gelu(F: Any, x: Any) -> Any:
    share = 0.5 * (1 + F.erf(x * math.sqrt(0.5)))
    slope = F.BlockGrad(share + x * F.exp(-0.5 * F.square(x)) * math.sqrt(0.5 / math.pi))
    # The value, with this slope: the gradient of erf is one of float32.
    return F.BlockGrad(x * share) + slope * (x - F.BlockGrad(x))


SELU_FACTOR, SELU_SLOPE = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _selu(F: Any, x: Any) -> Any:
    falling = SELU_SLOPE * F.LeakyReLU(x, act_type="elu", slope=1.0)
    return SELU_FACTOR * F.where(x > 0, x, falling)


def _named(name: str, F: Any, x: Any) -> Any:
    return getattr(F, name)(x)


def _hard_sigmoid(F: Any, x: Any) -> Any:
    return F.minimum(F.maximum(x + 3, 0), 6) / 6


ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "gelu": _gelu,
    "selu": _selu,
    "mish": lambda F, x: x * F.tanh(F.Activation(x, act_type="softrelu")),
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": lambda F, x: x * _hard_sigmoid(F, x),
    "swish": lambda F, x: x * F.sigmoid(x),
    "softplus": lambda F, x: F.Activation(x, act_type="softrelu"),
    **{kind: partial(_named, kind) for kind in ("softsign", "exp", "log", "sqrt", "square", "abs")},
}


def _softmax(layer: layers.Softmax, F: Any, x: Any) -> Any:
    function = F.log_softmax if layer.log else F.softmax
    (axis,) = batched((layer.axis,))
    return function(x / layer.temperature, axis=axis)


def _attended(layer: layers.Attention, F: Any, x: Any) -> Any:
    # [n, tokens, 3 * heads, length], then queries, keys and values as [n * heads, tokens, length] each.
    apart = F.transpose(F.reshape(x, shape=(0, 0, 3 * layer.heads, -1)), axes=(0, 2, 1, 3))
    parts = (F.slice_axis(apart, axis=1, begin=at * layer.heads, end=(at + 1) * layer.heads) for at in range(3))
    queries, keys, values = (F.reshape(part, shape=(-3, 0, 0)) for part in parts)
    shares = F.softmax(F.batch_dot(F.contrib.div_sqrt_dim(queries), keys, transpose_b=True), axis=-1)
    together = F.reshape(F.batch_dot(shares, values), shape=(-4, -1, layer.heads, 0, 0))
    return F.reshape(F.transpose(together, axes=(0, 2, 1, 3)), shape=(0, 0, -3))


def _blurred(layer: layers.BlurPool, F: Any, x: Any) -> Any:
    """Averages of averages over 2x2, whose weights are binomial."""
    before, behind = layer.margins
    x = F.pad(x, mode="reflect", pad_width=(0, 0, 0, 0, before, behind, before, behind))
    for stride in [(1, 1)] * (layer.size - 2) + [pair(layer.stride)]:
        x = F.Pooling(x, pool_type="avg", kernel=(2, 2), stride=stride)
    return x


def _summed_windows(layer: layers.Pool, F: Any, x: Any) -> Any:
    kernel, stride, pad = map(pair, (layer.size, layer.stride, layer.pad))
    convention = "full" if layer.ceil else "valid"
    return F.Pooling(x, pool_type="sum", kernel=kernel, stride=stride, pad=pad, pooling_convention=convention)


def _scaled_to_length_1(layer: layers.L2Norm, F: Any, x: Any) -> Any:
    squares = F.sum(F.square(x), axis=batched(layer.axes), keepdims=True)
    return F.broadcast_div(x, F.sqrt(squares + layer.epsilon))


def _reduced(layer: layers.Reduce, F: Any, x: Any) -> Any:
    return getattr(F, layer.kind)(x, axis=batched(layer.axes), keepdims=layer.keep)


def _sliced(layer: layers.Slice, F: Any, x: Any) -> Any:
    (axis,) = batched((layer.axis,))
    # On the axis after that of the batch, since only `slice` knows steps and ends beyond the end. And of a copy: from
    # what a convolution leaves in oneDNN's own layout `slice` cannot take some of the channels, and kills the process.
    turned = F.swapaxes(x, dim1=1, dim2=axis) if axis != 1 else F.slice_axis(x, axis=1, begin=0, end=None)
    part = F.slice(turned, begin=(None, layer.begin), end=(None, layer.end), step=(None, layer.step))
    return F.swapaxes(part, dim1=1, dim2=axis) if axis != 1 else part


def _padded(layer: layers.Pad, F: Any, x: Any) -> Any:
    margins = (0, 0, 0, 0, layer.top, layer.bottom, layer.left, layer.right)
    return F.pad(x, mode=layer.kind, pad_width=margins, constant_value=layer.value)


def _repeated(layer: layers.Upsample, F: Any, x: Any) -> Any:
    return F.repeat(F.repeat(x, repeats=layer.scale, axis=2), repeats=layer.scale, axis=3)


def _greyed(layer: layers.Greyscale, F: Any, x: Any) -> Any:
    planes = F.split(x, num_outputs=3, axis=1)
    return sum(planes[channel] * share for channel, share in enumerate(layers.GREY_SHARES))


BROADCAST = {
    "add": "add", "subtract": "sub", "multiply": "mul", "divide": "div", "power": "power", "maximum": "maximum",
    "minimum": "minimum",
}  # fmt: skip
PLAIN: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "power": operator.pow,
}


def _with_number(layer: layers.Scalar, F: Any, x: Any) -> Any:
    if layer.kind in ("maximum", "minimum"):
        return getattr(F, layer.kind)(x, layer.value)
    first, second = (layer.value, x) if layer.reverse else (x, layer.value)
    return PLAIN[layer.kind](first, second)


def _combined(layer: layers.Elementwise, F: Any, *inputs: Any) -> Any:
    return reduce(getattr(F, f"broadcast_{BROADCAST[layer.kind]}"), inputs)


def _joined(layer: layers.Join, F: Any, *inputs: Any) -> Any:
    (axis,) = batched((layer.axis,))
    return F.concat(*inputs, dim=axis)


RULES: dict[type, Callable[..., Any]] = {
    # Unlike `clip` these have limits of the precision computed in.
    layers.Clip: lambda layer, F, x: F.minimum(F.maximum(x, layer.low), layer.high),
    layers.Softmax: _softmax,
    layers.Attention: _attended,
    layers.Pool: _summed_windows,
    layers.BlurPool: _blurred,
    layers.L2Norm: _scaled_to_length_1,
    layers.Reduce: _reduced,
    layers.Reshape: lambda layer, F, x: F.reshape(x, shape=(0, *layer.shape)),
    layers.Transpose: lambda layer, F, x: F.transpose(x, axes=(0, *batched(layer.axes))),
    layers.Slice: _sliced,
    layers.Pad: _padded,
    layers.Upsample: _repeated,
    layers.Greyscale: _greyed,
    layers.Scalar: _with_number,
    layers.Elementwise: _combined,
    layers.Join: _joined,
}
