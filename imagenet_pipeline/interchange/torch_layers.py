"""PyTorch's words for each of our layers: the module that it is, or what it computes of an `x`.

`CLASSES` are those modules that torch lacks, as an exported file defines them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from imagenet_pipeline.interchange.symbol_operators import batched, batched_axes, indices
from imagenet_pipeline.networks.layers import (
    GREY_SHARES,
    Activation,
    Attention,
    BatchNorm,
    BlurPool,
    Clip,
    Constant,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Elementwise,
    Flatten,
    GlobalAveragePool,
    Greyscale,
    InstanceNorm,
    L2Norm,
    Layer,
    LayerNorm,
    LocalResponseNorm,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Scalar,
    Scale,
    Slice,
    Softmax,
    Transpose,
    Upsample,
    pair,
)
from imagenet_pipeline.networks.shapes import Shape

RESIDUAL = '''\
class Residual(nn.Sequential):
    """The items one after the other, plus what goes around them: `shortcut`, or the input as it is."""

    def __init__(self, **items):
        super().__init__(OrderedDict(items))

    def forward(self, x):
        body, around = x, x
        for name, item in self.named_children():
            if name == "shortcut":
                around = item(x)
            else:
                body = item(body)
        return body + around'''

DROPPING_RESIDUAL = '''\
class DroppingResidual(nn.Sequential):
    """A Residual whose body training leaves out of this share of the images."""

    def __init__(self, drop_rate, /, **items):
        super().__init__(OrderedDict(items))
        self.drop_rate = drop_rate

    def forward(self, x):
        body, around = x, x
        for name, item in self.named_children():
            if name == "shortcut":
                around = item(x)
            else:
                body = item(body)
        if self.training:
            ones = body.new_ones([body.shape[0]] + [1] * (body.dim() - 1))
            body = body * nn.functional.dropout(ones, self.drop_rate)
        return body + around'''

CONCAT = '''\
class Concat(nn.Sequential):
    """What the items make of the same input, joined along the channels."""

    def __init__(self, **items):
        super().__init__(OrderedDict(items))

    def forward(self, x):
        return torch.cat([item(x) for item in self], dim=1)'''

PRELU = '''\
class PReLU(nn.Module):
    """torch's own, its parameter called `slope`."""

    def __init__(self, channels, slope):
        super().__init__()
        self.slope = nn.Parameter(torch.full((channels,), slope))

    def forward(self, x):
        return nn.functional.prelu(x, self.slope)'''

NORMALISE = '''\
class Normalise(nn.Module):
    """(x - mean) / std, channel by channel."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x):
        return (x - self.mean) / self.std'''

APPLY = '''\
class Apply(nn.Module):
    """A function without parameters."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)'''

CONSTANT = '''\
class Constant(nn.Module):
    """A trained array that depends on no image: a batch of one."""

    def __init__(self, *shape):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))

    def forward(self):
        return self.value.unsqueeze(0)'''

AXIS_NORM = '''\
class AxisNorm(nn.LayerNorm):
    """Layer normalisation along another axis than the last."""

    def __init__(self, length, axis, eps):
        super().__init__(length, eps=eps)
        self.axis = axis

    def forward(self, x):
        return super().forward(x.transpose(self.axis, -1)).transpose(self.axis, -1)'''

PIXEL_NORM = '''\
class PixelNorm(nn.InstanceNorm2d):
    """Instance normalisation of a single position, which torch's own refuses: the bias is left."""

    def forward(self, x):
        return torch.instance_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, False)'''

FROZEN_NORM = '''\
class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the running values, which training leaves as they are."""

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        return nn.functional.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)'''

SCALE = '''\
class Scale(nn.Module):
    """A trained factor for every place along an axis."""

    def __init__(self, length, initial, behind):
        super().__init__()
        self.weight = nn.Parameter(torch.full((length,), initial))
        self.behind = behind

    def forward(self, x):
        return x * self.weight.view([-1] + [1] * self.behind)'''

ATTENTION = '''\
class Attention(nn.Module):
    """Self-attention of queries, keys and values side by side: [n, tokens, 3 * width] to [n, tokens, width]."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, x):
        n, tokens, length = x.shape
        apart = x.reshape(n, tokens, 3, self.heads, length // (3 * self.heads)).permute(2, 0, 3, 1, 4)
        mean = nn.functional.scaled_dot_product_attention(apart[0], apart[1], apart[2])
        return mean.transpose(1, 2).reshape(n, tokens, length // 3)'''

BLUR_POOL = '''\
class BlurPool(nn.Sequential):
    """Averages over windows with binomial weights, of the mirrored image: averages over 2x2 of such averages."""

    def __init__(self, size, stride):
        averages = [nn.AvgPool2d(2, stride=1) for _ in range(size - 2)]
        mirrored = nn.ReflectionPad2d(((size - 1) // 2, size // 2) * 2)
        super().__init__(mirrored, *averages, nn.AvgPool2d(2, stride=stride))'''

CLASSES = {
    "Residual": RESIDUAL, "DroppingResidual": DROPPING_RESIDUAL, "Concat": CONCAT, "PReLU": PRELU,
    "Normalise": NORMALISE, "Apply": APPLY, "Constant": CONSTANT, "AxisNorm": AXIS_NORM,
    "FrozenBatchNorm": FROZEN_NORM, "PixelNorm": PIXEL_NORM, "Scale": SCALE, "Attention": ATTENTION,
    "BlurPool": BLUR_POOL,
}  # fmt: skip

USUAL: dict[str, object] = {
    "stride": 1, "padding": 0, "groups": 1, "bias": True, "eps": 1e-5, "momentum": 0.1, "ceil_mode": False,
    "count_include_pad": True, "dilation": 1, "output_padding": 0,
}  # fmt: skip
"""torch's values of keywords that are not given."""
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "power": "**"}
_BOUNDS = {"maximum": "min", "minimum": "max"}  # the larger of x and a number is x with that as its least
_SUMS = {"mean": "mean", "sum": "sum", "max": "amax", "min": "amin"}
_METHODS = ("exp", "log", "sqrt", "square", "abs")


def module_of(layer: Layer, shape: Shape) -> str:
    """The expression that makes the module of a single layer; `shape` is that of its input, without the batch axis."""
    computed = computed_by(layer, shape, "x")
    if computed is not None:
        return f"Apply(lambda x: {computed})"
    match layer:
        case Conv() | ConvTranspose() | Dense() | Constant():
            return _weighted(layer, shape)
        case BatchNorm() | InstanceNorm() | LayerNorm() | LocalResponseNorm():
            return _norm(layer, shape)
        case Activation():
            return _activation(layer, shape[0])
        case Pool():
            return _pool(layer)
        case Scale(initial=initial, axis=axis):
            place = axis % len(shape)
            return f"Scale({shape[place]}, {initial!r}, behind={len(shape) - 1 - place})"
        case Attention(heads=heads):
            return f"Attention({heads})"
        case BlurPool():
            return f"BlurPool({layer.size}, stride={layer.stride})"
        case GlobalAveragePool():
            return _module("AdaptiveAvgPool2d", 1)
        case Flatten():
            return _module("Flatten")
        case Dropout():
            return _module("Dropout", layer.rate)
        case Softmax():
            return _module("LogSoftmax" if layer.log else "Softmax", f"dim={batched(layer.axis)}")
        case Pad():
            margins = str((layer.left, layer.right, layer.top, layer.bottom))
            names = {"constant": "ConstantPad2d", "edge": "ReplicationPad2d", "reflect": "ReflectionPad2d"}
            return _module(names[layer.kind], margins, *([number(layer.value)] if layer.kind == "constant" else []))
        case Upsample(scale=scale):
            return _module("Upsample", f"scale_factor={scale}")
        case _:
            raise NotImplementedError(f"PyTorch export has no rule for {type(layer).__name__}")


def computed_by(layer: Layer, shape: Shape, x: str) -> str | None:
    """The expression a layer without parameters is of the array `x`; None where torch has a module for it."""
    match layer:
        case Scalar(kind="maximum" | "minimum" as kind, value=value):
            return f"{x}.clamp({_BOUNDS[kind]}={number(value)})"
        case Scalar(kind=kind, value=value, reverse=reverse):
            if not reverse:
                return f"{x} {_SIGNS[kind]} {number(value)}"
            # In Python -2 ** x is -(2 ** x).
            own = f"({number(value)})" if value < 0 else number(value)
            return f"{own} {_SIGNS[kind]} {x}"
        case Clip(low=low, high=high):
            return f"{x}.clamp({number(low)}, {number(high)})"
        case Softmax(temperature=temperature) if temperature != 1:
            name = "log_softmax" if layer.log else "softmax"
            return f"torch.{name}({x} / {number(temperature)}, dim={batched(layer.axis)})"
        case Activation(kind=kind) if kind in _METHODS:
            return f"{x}.{kind}()"
        case L2Norm():
            squares = _over(f"{x}.square()", "sum", batched_axes(layer.axes, shape), keep=True)
            return f"{x} / ({squares} + {number(layer.epsilon)}).sqrt()"
        case Reduce(kind=kind, axes=axes, keep=keep):
            return _over(x, _SUMS[kind], batched_axes(axes, shape), keep)
        case Reshape(shape=wanted):
            return f"{x}.reshape({x}.shape[0], {_comma(wanted)})"
        case Transpose(axes=axes):
            return f"{x}.permute(0, {_comma(axis + 1 for axis in axes)})"
        case Slice():
            return f"{x}[{_index(layer, shape)}]"
        case Greyscale():
            return " + ".join(f"{share} * {x}[:, {at}:{at + 1}]" for at, share in enumerate(GREY_SHARES))
    return None


def arithmetic(layer: Elementwise, words: list[str]) -> str:
    """The inputs of an Elementwise, from left to right."""
    text = words[0]
    for number_, word in enumerate(words[1:], 1):
        if layer.kind in ("maximum", "minimum"):
            text = f"torch.{layer.kind}({text}, {word})"
        else:
            # Python takes powers from right to left.
            before = f"({text})" if layer.kind == "power" and number_ > 1 else text
            text = f"{before} {_SIGNS[layer.kind]} {word}"
    return text


def number(value: float) -> str:
    """A number as Python reads it."""
    return repr(float(value)) if math.isfinite(value) else f'float("{value}")'


def _over(x: str, method: str, axes: tuple[int, ...], keep: bool) -> str:
    # Without an axis torch takes all of them.
    over = str(axes) if len(axes) > 1 else _comma(axes)
    return f"{x}.{method}({over}{', keepdim=True' if keep else ''})" if axes else x


def _comma(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _index(layer: Slice, shape: Shape) -> str:
    axis, taken = layer.axis % len(shape), indices(layer, shape)
    begin = "" if taken.start == 0 else str(taken.start)
    end = "" if taken.stop >= shape[axis] else str(taken.stop)
    step = "" if taken.step == 1 else f":{taken.step}"
    return ", ".join([":"] * (axis + 1) + [f"{begin}:{end}{step}"])


def _weighted(layer: Conv | ConvTranspose | Dense | Constant, shape: Shape) -> str:
    match layer:
        case Conv(bias=bias, groups=groups):
            sizes = {"stride": layer.stride, "padding": layer.pad}
            more = {"groups": groups, "bias": bias, "dilation": layer.dilation}
            return _module("Conv2d", shape[0], layer.channels, layer.kernel, **sizes, **more)
        case ConvTranspose(bias=bias, groups=groups):
            sizes = {"stride": layer.stride, "padding": layer.pad, "output_padding": layer.extra}
            more = {"groups": groups, "bias": bias, "dilation": layer.dilation}
            return _module("ConvTranspose2d", shape[0], layer.channels, layer.kernel, **sizes, **more)
        case Dense():
            return _module("Linear", shape[-1], layer.units, bias=layer.bias) + _fixed(layer.trained)
        case Constant(shape=own):
            return f"Constant({_comma(own)})" + _fixed(layer.trained)


def _fixed(trained: bool) -> str:
    """The end of an expression whose module's parameters training is to leave as they are."""
    return "" if trained else ".requires_grad_(False)"


def _norm(layer: BatchNorm | InstanceNorm | LayerNorm | LocalResponseNorm, shape: Shape) -> str:
    match layer:
        case BatchNorm(epsilon=eps) if layer.frozen:
            return f"FrozenBatchNorm({shape[0]}, eps={eps!r})"
        case BatchNorm():
            # torch's momentum is the share of the batch, ours that of the past.
            name = f"BatchNorm{max(len(shape) - 1, 1)}d"
            return _module(name, shape[0], eps=layer.epsilon, momentum=round(1 - layer.momentum, 12))
        case InstanceNorm(epsilon=eps) if math.prod(shape[1:]) == 1:
            return f"PixelNorm({shape[0]}, eps={eps!r}, affine=True)"
        case InstanceNorm(epsilon=eps):
            return _module(f"InstanceNorm{len(shape) - 1}d", shape[0], eps=eps, affine=True)
        case LayerNorm(axis=axis, epsilon=eps):
            if axis % len(shape) == len(shape) - 1:
                return _module("LayerNorm", shape[-1], eps=eps)
            return f"AxisNorm({shape[axis]}, axis={axis % len(shape) + 1}, eps={eps!r})"
        case LocalResponseNorm():
            return _module("LocalResponseNorm", layer.size, alpha=layer.alpha, beta=layer.beta, k=layer.bias)


def _pool(layer: Pool) -> str:
    # Without a stride torch takes the window's size: it is always written.
    words = (layer.size, f"stride={layer.stride!r}")
    if layer.kind == "max":
        return _module("MaxPool2d", *words, padding=layer.pad, ceil_mode=layer.ceil)
    if layer.kind == "sum":
        return _module("AvgPool2d", *words, padding=layer.pad, ceil_mode=layer.ceil, divisor_override=1)
    count = layer.count_pad or not any(pair(layer.pad))
    return _module("AvgPool2d", *words, padding=layer.pad, ceil_mode=layer.ceil, count_include_pad=count)


def _activation(layer: Activation, channels: int) -> str:
    return {
        "relu": "nn.ReLU()",
        "elu": f"nn.ELU({layer.slope!r})",
        "leaky": f"nn.LeakyReLU({layer.slope!r})",
        "prelu": f"PReLU({channels}, {layer.slope!r})",
        "tanh": "nn.Tanh()",
        "sigmoid": "nn.Sigmoid()",
        "selu": "nn.SELU()",
        "gelu": "nn.GELU()",
        "swish": "nn.SiLU()",
        "softplus": "nn.Softplus()",
        "softsign": "nn.Softsign()",
        "mish": "nn.Mish()",
        "hard_swish": "nn.Hardswish()",
        "hard_sigmoid": "nn.Hardsigmoid()",
    }[layer.kind]


def _module(name: str, *words: object, **more: object) -> str:
    """A call of torch's `name`; keywords with torch's own value are left out."""
    named = [f"{key}={value!r}" for key, value in more.items() if key not in USUAL or value != USUAL[key]]
    return f"nn.{name}({', '.join([*map(str, words), *named])})"
