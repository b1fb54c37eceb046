"""Rules for the layers that networks from elsewhere are made of; `engines/gluon/operators.py` has MXNet's.

Where a function has no single gradient these have MXNet's: of two equal inputs the first counts as the larger and as
the smaller, and of equal values each as the largest.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

from imagenet_pipeline.engines.pytorch.runtime import torch
from imagenet_pipeline.networks import layers

nn = torch.nn
functional = torch.nn.functional


class Operator(torch.nn.Module):  # type: ignore[misc]
    """The module of a layer, with the tensors that are its own; of an item of a Graph it takes all inputs."""

    def __init__(self, layer: layers.Layer, owned: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        for name, tensor in owned.items():
            setattr(self, name, tensor)
        if type(layer) in WEIGHTED:
            self._rule: Callable[..., Any] = partial(WEIGHTED[type(layer)], self)
        elif isinstance(layer, layers.Activation):
            self._rule = ACTIVATIONS[layer.kind]
        elif type(layer) in RULES:
            self._rule = partial(RULES[type(layer)], layer)
        else:
            raise NotImplementedError(f"the PyTorch engine has no rule for {type(layer).__name__}")

    def forward(self, *inputs: Any) -> Any:
        return self._rule(*inputs)


def _transposed_convolution(module: Any, x: Any) -> Any:
    layer, bias = module.layer, getattr(module, "bias", None)
    return functional.conv_transpose2d(
        x, module.weight, bias, layer.stride, layer.pad, layer.extra, layer.groups, layer.dilation
    )


def _normalised_by_image(module: Any, x: Any) -> Any:
    # Groups of a single channel; unlike PyTorch's own InstanceNorm it takes a single position as well.
    return torch.group_norm(x, x.shape[1], module.weight, module.bias, module.layer.epsilon).to(x.dtype)


def _normalised_along(module: Any, x: Any) -> Any:
    (axis,) = batched((module.layer.axis,))
    weight, bias = module.weight, module.bias
    last = functional.layer_norm(x.transpose(axis, -1), weight.shape, weight, bias, module.layer.epsilon)
    return last.transpose(axis, -1).to(x.dtype)


def _scaled(module: Any, x: Any) -> Any:
    (axis,) = batched((module.layer.axis,))
    return (x * module.weight.view(-1, *[1] * (x.ndim - 1 - axis % x.ndim))).to(x.dtype)


WEIGHTED: dict[type, Callable[[Any, Any], Any]] = {
    layers.ConvTranspose: _transposed_convolution,
    layers.InstanceNorm: _normalised_by_image,
    layers.LayerNorm: _normalised_along,
    layers.Scale: _scaled,
    layers.Constant: lambda module, x: module.value.expand(len(x), *module.value.shape),
}


def batched(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of an image as those of a batch of images; negative ones count from the end."""
    return tuple(axis + 1 if axis >= 0 else axis for axis in axes)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "selu": functional.selu,
    "gelu": functional.gelu,
    "swish": functional.silu,
    "softplus": partial(functional.softplus, threshold=100),  # beyond it float64 too knows no difference
    "softsign": functional.softsign,
    "mish": functional.mish,
    "hard_swish": functional.hardswish,
    # Not PyTorch's own, whose gradient is 1/6 in float32 whatever the precision.
    "hard_sigmoid": lambda x: (x + 3).clamp(0, 6) / 6,
    **{kind: getattr(torch, kind) for kind in ("exp", "log", "sqrt", "square", "abs")},
}


def _softmax(layer: layers.Softmax, x: Any) -> Any:
    function = torch.log_softmax if layer.log else torch.softmax
    return function(x / layer.temperature, *batched((layer.axis,)))


def _attended(layer: layers.Attention, x: Any) -> Any:
    images, tokens, length = x.shape
    apart = x.reshape(images, tokens, 3, layer.heads, length // (3 * layer.heads)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(*apart).transpose(1, 2).reshape(images, tokens, length // 3)


def _blurred(layer: layers.BlurPool, x: Any) -> Any:
    before, behind = layer.margins
    quarters = weights = x.new_full((1, 1, 2, 2), 0.25)
    for _ in range(layer.size - 2):
        weights = functional.conv_transpose2d(weights, quarters)
    mirrored = functional.pad(x, (before, behind, before, behind), "reflect")
    # A third of the time that averages of averages take, MXNet's way.
    return functional.conv2d(mirrored, weights.expand(x.shape[1], 1, -1, -1), stride=layer.stride, groups=x.shape[1])


def _summed_windows(layer: layers.Pool, x: Any) -> Any:
    # Windows divided by 1: zeros of the padding add nothing.
    return functional.avg_pool2d(x, layer.size, layer.stride, layer.pad, layer.ceil, divisor_override=1)


def _scaled_to_length_1(layer: layers.L2Norm, x: Any) -> Any:
    return (x / (layer.epsilon + x.square().sum(batched(layer.axes), keepdim=True)).sqrt()).to(x.dtype)


def _reduced(layer: layers.Reduce, x: Any) -> Any:
    axes = batched(layer.axes)
    match layer.kind:
        case "max":
            return _Largest.apply(x, axes, layer.keep)
        case "min":
            return -_Largest.apply(-x, axes, layer.keep)
        case "sum":
            return x.sum(axes, keepdim=layer.keep)
    return x.mean(axes, keepdim=layer.keep)


class _Largest(torch.autograd.Function):  # type: ignore[misc]
    """The maximum over axes, whose gradient goes to every value equal to it, whole."""

    @staticmethod
    def forward(context: Any, x: Any, axes: tuple[int, ...], keep: bool) -> Any:
        largest = x.amax(axes, keepdim=True)
        context.save_for_backward(x == largest)
        context.kept = largest.shape
        return largest if keep else x.amax(axes)

    @staticmethod
    def backward(context: Any, gradient: Any) -> Any:
        (is_largest,) = context.saved_tensors
        return is_largest * gradient.reshape(context.kept), None, None


def _sliced(layer: layers.Slice, x: Any) -> Any:
    (axis,) = batched((layer.axis,))
    return x[(*[slice(None)] * (axis % x.ndim), slice(layer.begin, layer.end, layer.step))]


def _padded(layer: layers.Pad, x: Any) -> Any:
    margins = (layer.left, layer.right, layer.top, layer.bottom)
    if layer.kind != "constant":
        return functional.pad(x, margins, {"edge": "replicate", "reflect": "reflect"}[layer.kind])
    # float32's lowest number, which a maximum passes over, is beyond the range of the 16-bit types.
    limits = torch.finfo(x.dtype)
    return functional.pad(x, margins, value=min(max(layer.value, limits.min), limits.max))


def _greyed(layer: layers.Greyscale, x: Any) -> Any:
    return sum(share * x[:, channel : channel + 1] for channel, share in enumerate(layers.GREY_SHARES))


def _larger(first: Any, second: Any) -> Any:
    return torch.where((first >= second) | first.isnan(), first, second)


def _smaller(first: Any, second: Any) -> Any:
    return torch.where((first <= second) | first.isnan(), first, second)


ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "power": operator.pow,
    "maximum": _larger,
    "minimum": _smaller,
}


def _with_number(layer: layers.Scalar, x: Any) -> Any:
    match layer.kind:
        case "maximum":
            return x.clamp(min=layer.value)
        case "minimum":
            return x.clamp(max=layer.value)
    first, second = (layer.value, x) if layer.reverse else (x, layer.value)
    return ARITHMETIC[layer.kind](first, second)


RULES: dict[type, Callable[..., Any]] = {
    layers.Clip: lambda layer, x: x.clamp(layer.low, layer.high),
    layers.Softmax: _softmax,
    layers.Attention: _attended,
    layers.Pool: _summed_windows,
    layers.BlurPool: _blurred,
    layers.L2Norm: _scaled_to_length_1,
    layers.Reduce: _reduced,
    layers.Reshape: lambda layer, x: x.reshape(len(x), *layer.shape),
    layers.Transpose: lambda layer, x: x.permute(0, *batched(layer.axes)),
    layers.Slice: _sliced,
    layers.Pad: _padded,
    layers.Upsample: lambda layer, x: x.repeat_interleave(layer.scale, 2).repeat_interleave(layer.scale, 3),
    layers.Greyscale: _greyed,
    layers.Scalar: _with_number,
    layers.Elementwise: lambda layer, *inputs: reduce(ARITHMETIC[layer.kind], inputs),
    layers.Join: lambda layer, *inputs: torch.cat(inputs, *batched((layer.axis,))),
}
