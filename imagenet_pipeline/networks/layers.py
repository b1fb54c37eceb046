"""The vocabulary networks are written in: frozen descriptions, no arithmetic, no engine.

Images are [channels, height, width] and vectors [features]; a batch axis in front belongs to the engine. Weights are
stored as (out, in / groups, height, width) for `Conv`, (in, out / groups, height, width) for `ConvTranspose` and
(out, in) for `Dense`. Axes are those of an image: 0 is the channels. A network is a `Sequential`; `stack` writes it as
a table whose keywords are the layers' names. What branches is a `Residual`, a `Concat`, or a `Graph`.

A layer's path is its name behind those of the layers around it: "stage2.unit1.conv". The items of a residual body
stand directly in the Residual, its other branch under the name "shortcut"; those of a head directly in the Tap.
Readers of the tree of layers go through it by `walk`, `fold` or `follow`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from imagenet_pipeline.config import Size as Size
from imagenet_pipeline.config import pair as pair
from imagenet_pipeline.networks.array_layers import GREY_SHARES as GREY_SHARES
from imagenet_pipeline.networks.array_layers import Arithmetic as Arithmetic
from imagenet_pipeline.networks.array_layers import Clip as Clip
from imagenet_pipeline.networks.array_layers import Constant as Constant
from imagenet_pipeline.networks.array_layers import Elementwise as Elementwise
from imagenet_pipeline.networks.array_layers import Greyscale as Greyscale
from imagenet_pipeline.networks.array_layers import Join as Join
from imagenet_pipeline.networks.array_layers import L2Norm as L2Norm
from imagenet_pipeline.networks.array_layers import Pad as Pad
from imagenet_pipeline.networks.array_layers import Reduce as Reduce
from imagenet_pipeline.networks.array_layers import Reshape as Reshape
from imagenet_pipeline.networks.array_layers import Scalar as Scalar
from imagenet_pipeline.networks.array_layers import Slice as Slice
from imagenet_pipeline.networks.array_layers import Softmax as Softmax
from imagenet_pipeline.networks.array_layers import Transpose as Transpose
from imagenet_pipeline.networks.array_layers import Upsample as Upsample


@dataclass(frozen=True)
class Conv:
    """Two-dimensional cross-correlation, `pad` zeros on every side. Parameters: weight, bias if asked for."""

    channels: int
    kernel: Size
    stride: Size = 1
    pad: Size = 0
    groups: int = 1
    bias: bool = True
    dilation: Size = 1


@dataclass(frozen=True)
class ConvTranspose:
    """Transposed convolution ("deconvolution"). Parameters: weight, bias if asked for.

    The output has (input - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1 + `extra` rows and columns: MXNet's
    `adj`, torch's `output_padding`.
    """

    channels: int
    kernel: Size
    stride: Size = 1
    pad: Size = 0
    extra: Size = 0
    groups: int = 1
    bias: bool = True
    dilation: Size = 1


@dataclass(frozen=True)
class Dense:
    """Fully connected layer on a vector, or with `last_axis` on every vector along the last axis of an array.

    Parameters: weight, bias if asked for; where it is not `trained` they stay as they are.
    """

    units: int
    bias: bool = True
    last_axis: bool = False
    trained: bool = True


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation per channel (Ioffe & Szegedy 2015), on images or vectors.

    Parameters: weight, bias, running_mean, running_var (the last two are not trained; nor is the weight
    without `scale`: it stays 1). Running value = momentum * running value + (1 - momentum) * batch value.
    With `frozen` training too normalises by the running values, and leaves them as they are.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    scale: bool = True
    frozen: bool = False


@dataclass(frozen=True)
class InstanceNorm:
    """Normalisation of each channel of each image by its own mean and variance (Ulyanov et al. 2016).

    Parameters: weight, bias, a number per channel.
    """

    epsilon: float = 1e-3


@dataclass(frozen=True)
class LayerNorm:
    """Normalisation along an axis of each image (Ba et al. 2016). Parameters: weight, bias, as long as the axis."""

    axis: int = -1
    epsilon: float = 1e-5


@dataclass(frozen=True)
class Scale:
    """Each value times a trained factor, one for every place along an axis ("layer scale", Touvron et al. 2021,
    "Going deeper with Image Transformers").

    Parameters: weight, as long as the axis, at first `initial` throughout.
    """

    initial: float = 1e-6
    axis: int = -1


@dataclass(frozen=True)
class Attention:
    """Self-attention of an array [tokens, 3 * width], queries, keys and values side by side: to [tokens, width].

    Each of `heads` has its share of the three widths: softmax(queries keys' / sqrt(width / heads)) values (Vaswani et
    al. 2017, section 3.2). The projections before and behind it are Dense layers along the last axis.
    """

    heads: int


@dataclass(frozen=True)
class Activation:
    """Elementwise function. `slope` is ELU's factor (exp(x) - 1 times it) and the slope of "leaky" below 0.

    Of "prelu" it is the initial value of the trained parameter `slope`, a number per channel. "gelu" is x times the
    normal distribution function, "swish", also called SiLU, x times its sigmoid, "softplus" log(1 + exp(x)),
    "softsign" x / (1 + |x|). "mish" is x tanh(log(1 + exp(x))) (Misra 2020); "hard_sigmoid" min(max(x + 3, 0), 6) / 6
    and "hard_swish" x times it (Howard et al. 2019).
    """

    kind: Literal[
        "relu", "elu", "prelu", "leaky", "tanh", "sigmoid", "selu", "gelu", "swish", "softplus", "softsign", "mish",
        "hard_swish", "hard_sigmoid", "exp", "log", "sqrt", "square", "abs",
    ]  # fmt: skip
    slope: float = 0.25


@dataclass(frozen=True)
class Pool:
    """Maximum, average or sum over windows. With `ceil` a last, partial window counts too.

    `count_pad`: an average divides by the whole window, padding included (by the real pixels if not).
    """

    kind: Literal["max", "average", "sum"]
    size: Size
    stride: Size
    pad: Size = 0
    ceil: bool = False
    count_pad: bool = True

    def __post_init__(self) -> None:
        for size, stride, pad in zip(pair(self.size), pair(self.stride), pair(self.pad), strict=True):
            # Outside these limits MXNet and PyTorch refuse the layer or count its windows differently.
            if 2 * pad > size or (self.ceil and pad + stride > size):
                raise ValueError(f"{self}: needs 2 * pad <= size, and with ceil pad + stride <= size")


@dataclass(frozen=True)
class BlurPool:
    """Every `stride`-th of the averages over size x size windows with the binomial weights of that size (Zhang 2019,
    "Making Convolutional Networks Shift-Invariant Again"); the image is mirrored at its edge.

    Of n rows (n - 1) // stride + 1 are left. Behind a maximum of stride 1 it makes what is called MaxBlurPool.
    """

    size: int = 3
    stride: Size = 2

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"{self}: needs a size of 2 or more")

    @property
    def margins(self) -> tuple[int, int]:
        """Mirrored pixels before the first and behind the last."""
        return (self.size - 1) // 2, self.size // 2


@dataclass(frozen=True)
class GlobalAveragePool:
    """Mean over all positions: [channels, height, width] to [channels, 1, 1]."""


@dataclass(frozen=True)
class Dropout:
    """Sets this share of the values to 0 in training, and divides the others by 1 - rate."""

    rate: float


@dataclass(frozen=True)
class Flatten:
    """[channels, height, width] to [channels * height * width], in that order."""


@dataclass(frozen=True)
class LocalResponseNorm:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta."""

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 2.0


@dataclass(frozen=True)
class Sequential:
    """Named layers in sequence."""

    items: tuple[tuple[str, Layer], ...]
    engine: ClassVar[None] = None
    """The only engine that runs it; None: each of them, as with every network of this vocabulary."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.items]
        if len(set(names)) < len(names) or any(not name.isidentifier() for name in names):
            raise ValueError(f"the names of a Sequential's items must be different plain words: {names}")


@dataclass(frozen=True)
class Residual:
    """body(x) + shortcut(x), or + x where there is no shortcut. The body has no item named "shortcut".

    In training the body of each image is left out at the `drop_rate`, and divided by 1 - drop_rate where it is not
    (stochastic depth, Huang et al. 2016, with the expected value kept as Dropout does).
    """

    body: Sequential
    shortcut: Sequential | None = None
    drop_rate: float = 0.0


@dataclass(frozen=True)
class Concat:
    """The outputs of the named branches, all fed with x, joined along the channels."""

    branches: tuple[tuple[str, Layer], ...]


@dataclass(frozen=True)
class Graph:
    """Named layers that read each other's outputs, of earlier items alone; the last one's output leaves the graph.

    `links` names the inputs of each item; "" is what enters the graph.
    """

    items: tuple[tuple[str, Layer], ...]
    links: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        known = {""}
        for (name, item), links in zip(self.items, self.links, strict=True):
            if name in known or not name.isidentifier():
                raise ValueError(f"the names of a Graph's items must be different plain words: {name!r}")
            if not known.issuperset(links):
                raise ValueError(f"{name} reads {sorted(set(links) - known)}, which no earlier item is")
            few, many = INPUTS.get(type(item), (1, 1))
            if not few <= len(links) <= many:
                raise ValueError(f"{name} has {len(links)} inputs, which no {type(item).__name__} has")
            known.add(name)
        if not self.items:
            raise ValueError("a Graph needs an item")


MOST_INPUTS = 1_000
INPUTS: dict[type, tuple[int, int]] = {Constant: (0, 0), Elementwise: (2, MOST_INPUTS), Join: (1, MOST_INPUTS)}
"""Fewest and most inputs of an item of a `Graph` that has not exactly one."""


@dataclass(frozen=True)
class Tap:
    """Auxiliary classifier (Szegedy et al. 2015, section 5): x goes on unchanged.

    In training the loss of `head` on x, times `weight`, is added to the network's; scoring skips the head.
    A tap stands among the items of the network itself, not deeper.
    """

    head: Sequential
    weight: float


Layer = (
    Conv | ConvTranspose | Dense | BatchNorm | InstanceNorm | LayerNorm | Scale | Attention | Activation | Clip
    | Softmax | Pool | BlurPool | GlobalAveragePool | Dropout | Flatten | LocalResponseNorm | L2Norm | Reduce | Reshape
    | Transpose | Slice | Pad | Upsample | Greyscale | Scalar | Elementwise | Join | Constant | Sequential | Residual
    | Concat | Graph | Tap
)  # fmt: skip


def stack(**items: Layer) -> Sequential:
    """A Sequential from keywords: `stack(conv=Conv(20, 5), relu=Activation("relu"))`."""
    return Sequential(tuple(items.items()))


def without_taps(network: Sequential) -> Sequential:
    """The network as it scores, its auxiliary classifiers left out."""
    return Sequential(tuple((name, item) for name, item in network.items if not isinstance(item, Tap)))


Value = TypeVar("Value")
SHORTCUT = "shortcut"


def joined(path: str, name: str) -> str:
    """The path of the layer `name` inside the layer at `path`; "" is the network's."""
    return f"{path}.{name}" if path else name


def parts(layer: Layer) -> tuple[tuple[str, Layer], ...]:
    """The layers directly inside a layer, by name: the shortcut first, the others in order of computation."""
    match layer:
        case Sequential(items) | Concat(items) | Graph(items):
            return items
        case Tap(Sequential(items)) | Residual(Sequential(items), None):
            return items
        case Residual(Sequential(items), Sequential() as shortcut):
            # First, since Gluon adds up the squares of gradients in the order its blocks are made in.
            return ((SHORTCUT, shortcut), *items)
    return ()


def walk(layer: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """Every layer inside `layer`, groups of layers included, with its path; a group before its parts."""
    for name, part in parts(layer):
        inner = joined(path, name)
        yield inner, part
        yield from walk(part, inner)


def draws(network: Sequential) -> bool:
    """True where training draws random numbers."""
    return any(isinstance(layer, Dropout) or (isinstance(layer, Residual) and layer.drop_rate > 0)
               for _, layer in walk(network))  # fmt: skip


def fold(layer: Layer, path: str, rule: Callable[[Layer, str, dict[str, Value]], Value]) -> Value:
    """The value of a layer: `rule(layer, path, values of its parts by name)`, from the inside out."""
    return rule(layer, path, {name: fold(part, joined(path, name), rule) for name, part in parts(layer)})


def follow(layer: Layer, path: str, value: Value, rule: Callable[[Layer, str, list[Value]], Value]) -> Value:
    """Follow a value through a layer in order of computation, and give what leaves it.

    `rule(layer, path, inputs)` gives what leaves a single layer (one input; in a Graph as many as it has links), a
    Residual (those of its body and its shortcut) or a Concat (those of its branches). The head of a Tap is followed
    too; what enters the Tap goes on.
    """
    match layer:
        case Sequential():
            for name, item in layer.items:
                value = follow(item, joined(path, name), value, rule)
            return value
        case Residual(body, shortcut):
            end = follow(body, path, value, rule)
            around = follow(shortcut, joined(path, SHORTCUT), value, rule) if shortcut else value
            return rule(layer, path, [end, around])
        case Concat():
            return rule(layer, path, [follow(item, joined(path, name), value, rule) for name, item in layer.branches])
        case Tap():
            follow(layer.head, path, value, rule)
            return value
        case Graph():
            return _followed(layer, path, value, rule)
    return rule(layer, path, [value])


def _followed(graph: Graph, path: str, value: Value, rule: Callable[[Layer, str, list[Value]], Value]) -> Value:
    outputs = {"": value}
    for (name, item), links in zip(graph.items, graph.links, strict=True):
        inputs = [outputs[link] for link in links]
        inner = joined(path, name)
        single = len(inputs) == 1 and not isinstance(item, Join)
        outputs[name] = follow(item, inner, inputs[0], rule) if single else rule(item, inner, inputs)
    return outputs[graph.items[-1][0]]
