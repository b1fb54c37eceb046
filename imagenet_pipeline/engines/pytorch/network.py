"""Turn a network description into PyTorch modules, with a small rule for each layer.

Gradients of a class's logit by the output of a layer; `engines/gluon/network.py` states both for MXNet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from imagenet_pipeline.engines import Array, find_layer, not_scored
from imagenet_pipeline.engines.pytorch.runtime import torch
from imagenet_pipeline.networks import layers
from imagenet_pipeline.networks.layers import SHORTCUT, fold, joined

nn = torch.nn
functional = torch.nn.functional


def build(network: layers.Sequential, tensors: Mapping[str, Any]) -> Any:
    """The module that computes a network with these tensors, found by their parameters' names.

    It returns a list: the logits and, in training, those of every auxiliary classifier. Its `layers` has the module
    of every layer, and of every group of layers, by its path.
    """
    taps = {index for index, (_, item) in enumerate(network.items) if isinstance(item, layers.Tap)}
    builder = _Builder(tensors)
    modules = [fold(item, name, builder.module) for name, item in network.items]
    return _Root(modules, taps, builder.layers)


class _Builder:
    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.tensors = tensors
        self.layers: dict[str, Any] = {}

    def module(self, layer: layers.Layer, path: str, parts: dict[str, Any]) -> Any:
        """The module of a layer, noted by its path, out of those of its parts."""
        # A residual body and the Residual share a path; the Residual is registered last and stays.
        module = self.layers[path] = self._module(layer, path, parts)
        return module

    def _module(self, layer: layers.Layer, path: str, parts: dict[str, Any]) -> Any:
        match layer:
            case layers.Sequential() | layers.Tap():
                return nn.Sequential(*parts.values())
            case layers.Residual():
                shortcut = parts.pop(SHORTCUT) if layer.shortcut else None
                return _Sum(nn.Sequential(*parts.values()), shortcut, layer.drop_rate)
            case layers.Concat():
                return _Joined(list(parts.values()))
            case layers.Graph():
                return _Graph(layer, parts)
            case layers.Conv() | layers.Dense() | layers.Activation(kind="prelu"):
                return _Weighted(layer, self._owned(path))
            case layers.BatchNorm():
                return _BatchNorm(layer, self._owned(path))
            case layers.Activation(kind="relu"):
                return nn.ReLU()
            case layers.Dropout():
                return nn.Dropout(layer.rate)
            case (
                layers.Activation(kind="elu" | "leaky" | "tanh" | "sigmoid")
                | layers.Pool(kind="max" | "average")
                | layers.GlobalAveragePool()
                | layers.Flatten()
                | layers.LocalResponseNorm()
            ):
                return _Plain(layer)
        from imagenet_pipeline.engines.pytorch.operators import Operator

        return Operator(layer, self._owned(path))

    def _owned(self, path: str) -> dict[str, Any]:
        names = ("weight", "bias", "running_mean", "running_var", "slope", "value")
        return {name: self.tensors[joined(path, name)] for name in names if joined(path, name) in self.tensors}


class _Root(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, items: list[Any], taps: set[int], layers: Mapping[str, Any]) -> None:
        super().__init__()
        self.layers = layers
        self.items = nn.ModuleList(items)
        self.taps = taps
        self.norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]

    def forward(self, x: Any) -> list[Any]:
        moving = [norm for norm in self.norms if norm.by_batch and norm.over_ranks is None]
        # Gradients do not depend on them; `data` keeps autograd from thinking so.
        variances = [norm.running_var.data for norm in moving]
        kept = torch._foreach_mul(variances, [norm.layer.momentum for norm in moving]) if moving else []
        heads = []
        for index, item in enumerate(self.items):
            if index not in self.taps:
                x = item(x)
            elif self.training:
                heads.append(item(x))
        _make_biased(variances, kept, [norm.count for norm in moving])
        return [x, *heads]


class _Weighted(torch.nn.Module):  # type: ignore[misc]
    """Conv, Dense or PReLU."""

    def __init__(self, layer: layers.Conv | layers.Dense | layers.Activation, owned: dict[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        for name in ("weight", "bias", "slope"):
            setattr(self, name, owned.get(name))

    def forward(self, x: Any) -> Any:
        match self.layer:
            case layers.Conv(stride=stride, pad=pad, groups=groups, dilation=dilation):
                if _reads_one_pixel(x, self.layer):
                    stride = 1
                return functional.conv2d(x, self.weight, self.bias, stride, pad, dilation, groups)
            case layers.Dense(trained=False):
                return _exactly_linear(x, self.weight, self.bias)
            case layers.Dense():
                return functional.linear(x, self.weight, self.bias)
            case _:
                return functional.prelu(x, self.slope.to(x.dtype))


def _reads_one_pixel(x: Any, layer: layers.Conv) -> bool:
    """Tell a 16-bit convolution on a CPU from one pixel to one pixel, which it is at any stride.

    At a stride of 2 torch 2.13 leaves numbers in the gradient of its weight that were in that memory before.
    """
    if tuple(x.shape[2:]) != (1, 1) or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    sides = zip(*map(layers.pair, (layer.kernel, layer.pad, layer.dilation)), strict=True)
    return all(2 * pad == dilation * (kernel - 1) for kernel, pad, dilation in sides)


def _exactly_linear(x: Any, weight: Any, bias: Any) -> Any:
    """A dense layer in the precision of its weight, whatever the others compute in.

    Whitening enlarges what pixels differ in little: rounded to 16 bits, or to tf32, its input would be mostly noise.
    """
    rounds = x.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    kind = torch.float64 if rounds else weight.dtype
    with torch.autocast(x.device.type, enabled=False):
        return functional.linear(x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)).to(weight.dtype)


class _BatchNorm(torch.nn.Module):  # type: ignore[misc]
    """A single kernel; `_Root` makes the running variances of all layers together those of the written layer."""

    def __init__(self, layer: layers.BatchNorm, owned: dict[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.over_ranks: Callable[..., tuple[Any, Any, Any]] | None = None
        """Normalises in training in the place of PyTorch's; gives biased mean and variance as well."""
        self.count = 0
        """Numbers that a channel's last statistics were taken of."""
        for name, tensor in owned.items():
            # Without scale the weight is 1, whatever was stored.
            fixed = name == "weight" and not layer.scale
            setattr(self, name, torch.ones_like(tensor, requires_grad=False) if fixed else tensor)

    @property
    def by_batch(self) -> bool:
        """True where it normalises by the batch, which moves the running statistics."""
        return self.training and not self.layer.frozen

    def forward(self, x: Any) -> Any:
        if self.by_batch and self.over_ranks is not None:
            normalised, mean, variance = self.over_ranks(x, self.weight, self.bias, self.layer.epsilon)
            for running, new in ((self.running_mean, mean), (self.running_var, variance)):
                running.data.lerp_(new, 1 - self.layer.momentum)
            return normalised
        self.count = x.numel() // x.shape[1]
        momentum = 1 - self.layer.momentum
        statistics = (self.running_mean, self.running_var)
        return torch.batch_norm(
            x, self.weight, self.bias, *statistics, self.by_batch, momentum, self.layer.epsilon, True
        )


def normalise_together(module: Any, over_ranks: Callable[..., tuple[Any, Any, Any]]) -> None:
    """Let every batch normalisation of a module that trains go by all ranks' images (`distributed.py`)."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.over_ranks = over_ranks


def _make_biased(variances: list[Any], kept: list[Any], counts: list[int]) -> None:
    """Turn what PyTorch has added to the `kept` share of each running variance into the biased variance of the batch.

    It adds the unbiased variance, of n numbers n / (n - 1) times ours, and not a number where n is 1. Layers of the
    same n go in one call.
    """
    for count in dict.fromkeys(counts):
        moved, before = (
            [array for array, own in zip(arrays, counts, strict=True) if own == count] for arrays in (variances, kept)
        )
        if count > 1:
            torch._foreach_lerp_(moved, before, 1 / count)
        else:
            torch._foreach_copy_(moved, before)


class _Plain(torch.nn.Module):  # type: ignore[misc]
    """A layer without parameters, the same in training and scoring."""

    def __init__(self, layer: layers.Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        match self.layer:
            case layers.Activation(kind="elu", slope=slope):
                return functional.elu(x, slope)
            case layers.Activation(kind="leaky", slope=slope):
                return functional.leaky_relu(x, slope)
            case layers.Activation(kind="tanh" | "sigmoid" as kind):
                return getattr(torch, kind)(x)
            case layers.Pool(kind="max", size=size, stride=stride, pad=pad, ceil=ceil):
                return functional.max_pool2d(x, size, stride, pad, ceil_mode=ceil)
            case layers.Pool(size=size, stride=stride, pad=pad, ceil=ceil, count_pad=count_pad):
                return functional.avg_pool2d(x, size, stride, pad, ceil, count_pad)
            case layers.GlobalAveragePool():
                return x.mean((2, 3), keepdim=True)
            case layers.Flatten():
                return x.flatten(1)
            case layers.LocalResponseNorm():
                return _response_normalised(x, self.layer)


class _Sum(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, body: Any, shortcut: Any | None, drop_rate: float) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.drop_rate = drop_rate

    def forward(self, x: Any) -> Any:
        around = x if self.shortcut is None else self.shortcut(x)
        body = self.body(x)
        if self.training and self.drop_rate:
            # A factor for each image: 0 or 1 / (1 - rate).
            ones = body.new_ones((len(body), *[1] * (body.ndim - 1)))
            body = body * functional.dropout(ones, self.drop_rate)
        # Not in place: on a CPU adding bfloat16 to itself takes up to twice as long as into a new array.
        return body + around


class _Joined(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, branches: list[Any]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Any) -> Any:
        return torch.cat([branch(x) for branch in self.branches], 1)


class _Graph(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, graph: layers.Graph, items: dict[str, Any]) -> None:
        super().__init__()
        self.items = nn.ModuleList(items.values())
        # A Constant is fed with what enters, since it has a value for each image.
        links = [links or ("",) for links in graph.links]
        last_read = {name: index for index, names in enumerate(links) for name in names}
        self.steps = [
            (name, names, [link for link, last in last_read.items() if last == index])
            for index, (name, names) in enumerate(zip(items, links, strict=True))
        ]

    def forward(self, x: Any) -> Any:
        outputs = {"": x}
        for item, (name, links, read) in zip(self.items, self.steps, strict=True):
            x = outputs[name] = item(*[outputs[link] for link in links])
            for link in read:
                del outputs[link]
        return x


def _response_normalised(x: Any, layer: layers.LocalResponseNorm) -> Any:
    """Half the time of PyTorch's own, which pools in three dimensions and not in bfloat16."""
    reach, channels = layer.size // 2, x.shape[1]
    squares = functional.pad(x.square(), (0, 0, 0, 0, reach, reach))
    total = sum(squares[:, first : first + channels] for first in range(layer.size))
    return (x / (layer.bias + layer.alpha / layer.size * total) ** layer.beta).to(x.dtype)


@contextmanager
def watched_layer(layers: Mapping[str, Any], path: str) -> Iterator[list[Any]]:
    """List the layer's outputs while this lasts, each a leaf that gradients go back to and no further.

    Raises BadRecipe for a layer there is not.
    """
    outputs: list[Any] = []

    def begin_anew(module: Any, inputs: Any, output: Any) -> Any:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = find_layer(layers, path).register_forward_hook(begin_anew)
    try:
        yield outputs
    finally:
        handle.remove()


def gradients_of(logits: Any, classes: Any, outputs: list[Any], path: str) -> tuple[Array, Array]:
    """The layer's listed output, and the gradient by it of each image's logit [n, classes] for its class.

    Raises BadRecipe where the layer was not run.
    """
    if not outputs:
        raise not_scored(path)
    chosen = logits.gather(1, classes.unsqueeze(1)).sum()
    (gradients,) = torch.autograd.grad(chosen, outputs[0])
    return _on_host(outputs[0], logits.dtype), _on_host(gradients, logits.dtype)


def _on_host(tensor: Any, dtype: Any) -> Array:
    array: Array = tensor.detach().to(dtype).contiguous().cpu().numpy()
    return array
