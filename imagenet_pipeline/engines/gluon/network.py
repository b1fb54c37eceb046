"""Turn a network description into Gluon blocks, with a small rule for each layer.

Gradients of a class's logit by the output of a layer; `engines/pytorch/network.py` states both for PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagenet_pipeline.engines import Array, Images, Labels, find_layer, not_scored
from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.networks import layers
from imagenet_pipeline.networks.layers import SHORTCUT, fold

nn = mx.gluon.nn


@dataclass
class GluonNetwork:
    """A block and its parameters by the names the whole pipeline uses.

    `training` shares the layers of `block`; where there are taps it gives [logits, *those of each tap's head].
    `layers` has the block of every layer, and of every group of layers, by its path.
    """

    block: Any
    training: Any
    parameters: dict[str, Any]
    tap_weights: list[float] = field(default_factory=list)
    layers: dict[str, Any] = field(default_factory=dict)


def build(network: layers.Sequential, channels_of: Callable[[str], int]) -> GluonNetwork:
    """Build the block tree; `channels_of(name)` is the length of a one-dimensional parameter."""
    builder = _Builder(channels_of)
    blocks = [fold(item, name, builder.block) for name, item in network.items]
    taps = {index: item.weight for index, (_, item) in enumerate(network.items) if isinstance(item, layers.Tap)}
    scoring = _chain(block for index, block in enumerate(blocks) if index not in taps)
    training = _Tapped(blocks, set(taps)) if taps else scoring
    return GluonNetwork(scoring, training, builder.parameters, list(taps.values()), builder.layers)


class _Builder:
    def __init__(self, channels_of: Callable[[str], int]) -> None:
        self.parameters: dict[str, Any] = {}
        self.layers: dict[str, Any] = {}
        self.channels_of = channels_of

    def block(self, layer: layers.Layer, path: str, parts: dict[str, Any]) -> Any:
        """The block of a layer, noted by its path, out of those of its parts."""
        # A residual body and the Residual share a path; the Residual is registered last and stays.
        block = self.layers[path] = self._block(layer, path, parts)
        return block

    def _block(self, layer: layers.Layer, path: str, parts: dict[str, Any]) -> Any:
        match layer:
            case layers.Sequential() | layers.Tap():
                return _chain(parts.values())
            case layers.Residual():
                shortcut = parts.pop(SHORTCUT) if layer.shortcut else None
                return _Sum(_chain(parts.values()), shortcut, layer.drop_rate)
            case layers.Concat():
                return _Joined(list(parts.values()))
            case layers.Graph():
                return _Graph(layer, list(parts.values()))
            case layers.Conv() | layers.Dense() | layers.BatchNorm():
                return self._weighted(layer, path)
            case (
                layers.ConvTranspose() | layers.InstanceNorm() | layers.LayerNorm() | layers.Scale() | layers.Constant()
            ):
                return self._operator(layer, path)
            case layers.Activation(kind="prelu"):
                block = _PReLU(self.channels_of(f"{path}.slope"))
                self.parameters[f"{path}.slope"] = block.slope
                return block
            case _:
                return _plain(layer)

    def _weighted(self, layer: layers.Conv | layers.Dense | layers.BatchNorm, path: str) -> Any:
        if isinstance(layer, layers.BatchNorm):
            block = nn.BatchNorm(
                epsilon=layer.epsilon, momentum=layer.momentum, scale=layer.scale, use_global_stats=layer.frozen
            )
            names = {
                "weight": "gamma",
                "bias": "beta",
                "running_mean": "running_mean",
                "running_var": "running_var",
            }
        else:
            block = _convolution(layer) if isinstance(layer, layers.Conv) else _dense(layer)
            names = {"weight": "weight", "bias": "bias"} if layer.bias else {"weight": "weight"}
        for ours, theirs in names.items():
            self.parameters[f"{path}.{ours}"] = getattr(block, theirs)
        return block

    def _operator(self, layer: layers.Layer, path: str) -> Any:
        from imagenet_pipeline.engines.gluon.operators import block as operator_block

        is_row = isinstance(layer, layers.InstanceNorm | layers.LayerNorm | layers.Scale)
        block = operator_block(layer, self.channels_of(f"{path}.weight") if is_row else 0)
        for name in ("weight", "bias", "value"):
            if getattr(block, name, None) is not None:
                self.parameters[f"{path}.{name}"] = getattr(block, name)
        return block


def _chain(blocks: Iterable[Any]) -> Any:
    chain = nn.HybridSequential(prefix="")
    chain.add(*blocks)
    return chain


def _convolution(layer: layers.Conv) -> Any:
    return nn.Conv2D(
        layer.channels,
        layer.kernel,
        strides=layer.stride,
        padding=layer.pad,
        dilation=layer.dilation,
        groups=layer.groups,
        use_bias=layer.bias,
    )


def _dense(layer: layers.Dense) -> Any:
    return nn.Dense(layer.units, use_bias=layer.bias, flatten=False)


def _plain(layer: layers.Layer) -> Any:
    match layer:
        case layers.Activation(kind="elu"):
            return nn.HybridLambda(lambda F, x: _elu(F, x, layer.slope))
        case layers.Activation(kind="leaky"):
            # Not MXNet's LeakyReLU, which computes in float32 whatever the precision.
            return nn.HybridLambda(lambda F, x: F.where(x > 0, x, layer.slope * x))
        case layers.Activation(kind="relu" | "tanh" | "sigmoid"):
            return nn.Activation(layer.kind)
        case layers.Pool(kind="max"):
            return nn.MaxPool2D(layer.size, layer.stride, layer.pad, ceil_mode=layer.ceil)
        case layers.Pool(kind="average"):
            return nn.AvgPool2D(
                layer.size, layer.stride, layer.pad, ceil_mode=layer.ceil, count_include_pad=layer.count_pad
            )
        case layers.GlobalAveragePool():
            return nn.GlobalAvgPool2D()
        case layers.Dropout():
            return nn.Dropout(layer.rate)
        case layers.Flatten():
            return nn.Flatten()
        case layers.LocalResponseNorm():
            return nn.HybridLambda(lambda F, x: _response_normalised(F, x, layer))
    from imagenet_pipeline.engines.gluon.operators import block as operator_block

    return operator_block(layer, 0)


def _elu(F: Any, x: Any, slope: float) -> Any:
    """MXNet's own, which has its slope in float32; where that is another number, of slope 1."""
    if slope == float(np.float32(slope)):
        return F.LeakyReLU(x, act_type="elu", slope=slope)
    return F.where(x > 0, x, slope * F.LeakyReLU(x, act_type="elu", slope=1.0))


class _Tapped(mx.gluon.HybridBlock):  # type: ignore[misc]
    def __init__(self, blocks: list[Any], taps: set[int]) -> None:
        super().__init__()
        self.blocks = blocks
        self.taps = taps
        for block in blocks:
            self.register_child(block)

    def hybrid_forward(self, F: Any, x: Any) -> list[Any]:
        heads = []
        for index, block in enumerate(self.blocks):
            if index in self.taps:
                heads.append(block(x))
            else:
                x = block(x)
        return [x, *heads]


class _Sum(mx.gluon.HybridBlock):  # type: ignore[misc]
    def __init__(self, body: Any, shortcut: Any | None, drop_rate: float) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.drop_rate = drop_rate

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        body = self.body(x)
        if self.drop_rate:
            body = _dropped_whole(F, body, self.drop_rate)
        return body + (self.shortcut(x) if self.shortcut is not None else x)


def _dropped_whole(F: Any, x: Any, rate: float) -> Any:
    """In training each image of it times 0, or 1 / (1 - rate)."""
    rows = F.reshape(x, shape=(0, -1))
    factors = F.Dropout(F.ones_like(F.slice_axis(rows, axis=1, begin=0, end=1)), p=rate)
    return F.reshape_like(F.broadcast_mul(rows, factors), x)


class _PReLU(mx.gluon.HybridBlock):  # type: ignore[misc]
    """max(x, 0) - slope * max(-x, 0), the slope per channel.

    Not MXNet's own: in a hybridized network it writes the gradient of x over the gradient yet to be summed for the
    slope (`FInplaceOption` in leaky_relu.cc), which then is wrong by half and more.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slope = self.params.get("slope", shape=(channels,), init="zeros")

    def hybrid_forward(self, F: Any, x: Any, slope: Any) -> Any:
        rows = F.reshape(x, shape=(0, 0, -1))
        falling = F.broadcast_mul(F.reshape(slope, shape=(1, -1, 1)), F.relu(-rows))
        return F.reshape_like(F.relu(rows) - falling, x)


def _response_normalised(F: Any, x: Any, layer: layers.LocalResponseNorm) -> Any:
    """The mean over neighbouring channels is an average pooling of [n, 1, channels, pixels], zeros beyond the ends.

    Not MXNet's LRN: it has no float64, and on a CPU its gradient is wrong where the layers before and after it
    keep 16 channels together in memory, as convolutions do (by 0.3 % in AlexNet, by all of it with alpha = 1).
    """
    columns = F.reshape(F.square(x), shape=(0, -4, 1, -1, -3))
    window = {"kernel": (layer.size, 1), "pad": (layer.size // 2, 0), "count_include_pad": True}
    means = F.reshape_like(F.Pooling(columns, pool_type="avg", **window), x)
    return x * (layer.bias + layer.alpha * means) ** -layer.beta


class _Joined(mx.gluon.HybridBlock):  # type: ignore[misc]
    def __init__(self, branches: list[Any]) -> None:
        super().__init__()
        self.branches = branches
        for branch in branches:
            self.register_child(branch)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.concat(*[branch(x) for branch in self.branches], dim=1)


class _Graph(mx.gluon.HybridBlock):  # type: ignore[misc]
    def __init__(self, graph: layers.Graph, blocks: list[Any]) -> None:
        super().__init__()
        self.names = [name for name, _ in graph.items]
        # A Constant is fed with what enters, since it has a value for each image.
        self.links = [links or ("",) for links in graph.links]
        self.blocks = blocks
        for block in blocks:
            self.register_child(block)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        outputs = {"": x}
        for name, links, block in zip(self.names, self.links, self.blocks, strict=True):
            x = outputs[name] = block(*[outputs[link] for link in links])
        return x


def gradients_of(
    network: Any, layers: Mapping[str, Any], path: str, images: Images, classes: Labels, context: Any
) -> tuple[Array, Array]:
    """Output of the layer `path` of a network that is not hybridized, and the gradient by it of the logits.

    Raises BadRecipe for a layer there is not, or that is not run.
    """
    outputs: list[Any] = []

    def begin_anew(block: Any, inputs: Any, output: Any) -> None:
        # On a computed array this forgets how it came about: gradients go back to it and no further.
        output.attach_grad()
        outputs.append(output)

    pixels = mx.nd.array(images, ctx=context, dtype="uint8")
    with ExitStack() as hooks:
        hooks.callback(find_layer(layers, path).register_forward_hook(begin_anew).detach)
        hooks.enter_context(_remembering_maxima(layers.values()))
        with mx.autograd.record(train_mode=False):
            chosen = mx.nd.pick(network(pixels), mx.nd.array(classes, ctx=context, dtype="int32"))
    if not outputs:
        raise not_scored(path)
    (gradients,) = mx.autograd.grad(chosen, outputs[:1], train_mode=False)
    return outputs[0].asnumpy(), gradients.asnumpy()


@contextmanager
def _remembering_maxima(blocks: Any) -> Iterator[None]:
    """Let max pooling, and it alone, run as in training, where its result is the same.

    In scoring oneDNN's float32 kernel does not note where the maxima were, and the gradient is wrong throughout.
    """
    with ExitStack() as hooks:
        for block in blocks:
            if isinstance(block, mx.gluon.nn.MaxPool2D):
                before = block.register_forward_pre_hook(lambda *_: mx.autograd.set_training(True))
                after = block.register_forward_hook(lambda *_: mx.autograd.set_training(False))
                hooks.callback(before.detach)
                hooks.callback(after.detach)
        yield
