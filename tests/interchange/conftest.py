"""Networks of every family, small and fast, with values that no layer leaves without effect."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import OptimizerRecipe, Recipe
from imagenet_pipeline.engines import FRAMEWORKS, Blueprint, Engine, create_engine, is_installed
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.mxnet_layers import Layered, layered
from imagenet_pipeline.interchange.symbol import symbol_of_json
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import (
    Activation,
    Attention,
    BatchNorm,
    BlurPool,
    Clip,
    Concat,
    Constant,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Elementwise,
    Flatten,
    GlobalAveragePool,
    Graph,
    Greyscale,
    InstanceNorm,
    Join,
    L2Norm,
    Layer,
    LayerNorm,
    LocalResponseNorm,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Residual,
    Scalar,
    Scale,
    Sequential,
    Slice,
    Softmax,
    Transpose,
    Upsample,
    stack,
    walk,
)
from imagenet_pipeline.networks.shapes import describe, output_shapes
from imagenet_pipeline.networks.squeeze_excitation import squeeze_excitation

Array = np.ndarray[Any, Any]

CLASSES = 5
WIDEST_DENSE = 64
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
LONG = os.environ.get("IMAGENET_PIPELINE_LONG") == "1"
SIZES = {
    "alexnet": 67,
    "vgg11": 32,
    "googlenet": 96,
    "resnet18": 32,
    "resnet18_v2": 32,
    "squeezenet1_1": 35,
    "densenet121": 32,
}
MORE_SIZES = {"alexnet_book": 67, "vgg16_book": 32, "googlenet_book": 32, "resnet50": 32, "squeezenet_book": 67}
SIZES |= MORE_SIZES if LONG else {}

WRITTEN = ("every_layer", "graph_layers", "layers_of_today", "layers_but_attention")
DRAWN = [f"drawn{seed}" for seed in range(50 if LONG else 8)]


@dataclass(frozen=True)
class Sample:
    """A network, its values, three images and what our engines make of them."""

    name: str
    network: Sequential
    size: int
    values: dict[str, Array]
    images: Array
    logits: dict[str, Array]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (3, self.size, self.size)

    def pixels(self, normalised: bool) -> Array:
        """float32 [n, channels, height, width], in 0..255 or normalised."""
        pixels = self.images.transpose(0, 3, 1, 2).astype(np.float32)
        if not normalised:
            return pixels
        mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in (MEAN, STD))
        return (pixels - mean) / std

    def difference(self, found: Array) -> float:
        """The largest difference from either engine's logits, relative to the largest logit."""
        return max(
            float(np.abs(found - wanted[: len(found)]).max() / np.abs(wanted).max()) for wanted in self.logits.values()
        )


def every_layer() -> Sequential:
    """Each kind of layer in each form that is written differently."""
    return stack(
        nothing=Sequential(()),
        conv=Conv(6, (3, 5), stride=(1, 2), pad=(1, 2), groups=3),
        prelu=Activation("prelu", 0.3),
        response=LocalResponseNorm(3, 0.5, 0.6, 1.5),
        ceil=Pool("max", 3, 2, ceil=True),
        leaky=Activation("leaky", 0.1),
        padded=Pool("average", 3, 1, pad=1),
        bare=Pool("average", 3, 1, pad=1, count_pad=False),
        both=Pool("average", (4, 3), (2, 1), pad=1, ceil=True),
        rest=Pool("average", (4, 3), (2, 2), pad=1, ceil=True, count_pad=False),
        open=Pool("average", 2, 2, ceil=True),
        sum=Residual(stack(conv=Conv(6, 1), tanh=Activation("tanh"))),
        identity=Residual(Sequential(()), Sequential(())),
        join=Concat((("same", Sequential(())), ("conv", Conv(4, 1, bias=False)), ("elu", Activation("elu", 0.7)))),
        norm=BatchNorm(epsilon=1e-2, momentum=0.7, scale=False),
        dropout=Dropout(0.5),
        flatten=Flatten(),
        hidden=Dense(7, bias=False),
        slope=Activation("prelu"),
        sigmoid=Activation("sigmoid"),
        vector_norm=BatchNorm(),
        classifier=Dense(CLASSES),
        last=Dropout(0.1),
    )


def graph_layers() -> Sequential:
    """Each kind of layer that came with graphs, in each form that is written differently."""
    twice = Graph((("double", Elementwise("add")), ("conv", Conv(2, 1)), ("more", Elementwise("add"))),
                  (("", ""), ("double",), ("conv", "")))  # fmt: skip
    return stack(
        margin=Pad(1, 0, 2, 1, "constant", 3.0),
        dilated=Conv(6, 3, dilation=(1, 2)),
        spread=ConvTranspose(4, (3, 2), stride=2, pad=1, extra=(1, 0), groups=2),
        fat=ConvTranspose(4, 2, bias=False, dilation=2),
        block=Graph(
            (
                ("instance", InstanceNorm(0.01)),
                ("layer", LayerNorm(0, 0.02)),
                ("gelu", Activation("gelu")),
                ("colour", Constant((4, 1, 1))),
                ("x", Elementwise("multiply")),
                ("most", Elementwise("maximum")),
                ("left", Elementwise("subtract")),
                ("field", Constant((2, 38, 36))),
                ("torch", Join(0)),
            ),
            (
                ("",),
                ("",),
                ("instance",),
                (),
                ("gelu", "colour"),
                ("x", "layer", "gelu"),
                ("most", "x", ""),
                (),
                ("field", "left", "x"),
            ),
        ),
        frozen=BatchNorm(scale=False, frozen=True),
        selu=Activation("selu"),
        sums=Pool("sum", 3, 2, pad=1, ceil=True),
        scale=Scalar("multiply", -0.05),
        softsign=Activation("softsign"),
        power=stack(abs=Activation("abs"), add=Scalar("add", 0.5), power=Scalar("power", 1.5), log=Activation("log")),
        other=stack(tanh=Activation("tanh"), power=Scalar("power", 1.5, reverse=True), sqrt=Activation("sqrt")),
        bounds=stack(least=Scalar("maximum", 0.7), most=Scalar("minimum", 1.4), away=Scalar("subtract", 0.2, True)),
        first=stack(conv=Conv(2, 1), graph=twice),
        second=stack(conv=Conv(2, 1), graph=twice),
        part=Slice(2, -9, None, 2),
        rows=Slice(1, 2, 11),
        colours=Conv(3, 1),
        grey=Greyscale(),
        larger=Upsample(2),
        edge=Pad(1, 2, 0, 3, "edge"),
        mirror=Pad(1, 2, 4, 3, "reflect"),
        lengths=stack(unit=L2Norm((0, 1)), all=L2Norm((0, 1, 2), 0.1), columns=L2Norm((-1,), 0.3)),
        heat=Softmax(1, temperature=0.1),
        logs=Softmax(-1, log=True),
        range=Clip(-4.0, float("inf")),
        turn=Transpose((2, 0, 1)),
        shape=Reshape((2, -1, 8)),
        widest=Reduce("max", (0,), keep=True),
        plane=Reduce("mean", (-3,)),
        dense=Dense(6, last_axis=True),
        vectors=stack(norm=LayerNorm(), turned=Transpose((1, 0)), narrow=Dense(4, bias=False, last_axis=True)),
        soft=Activation("softplus"),
        square=Activation("square"),
        exp=stack(negative=Scalar("multiply", -1.0), exp=Activation("exp")),
        total=Reduce("sum", (1,)),
        classifier=Dense(CLASSES, last_axis=True),
    )


def layers_of_today(attention: bool = True) -> Sequential:
    """What networks since 2017 are made of: gates, blurs, patches, tokens and their attention."""
    gate = squeeze_excitation(4, 2, Activation("swish"), "hard_sigmoid")
    attended = stack(together=Dense(24, last_axis=True), attention=Attention(2)) if attention else Sequential(())
    tokens = stack(norm=LayerNorm(), mixed=attended, out=Dense(8, last_axis=True), scale=Scale(0.5))
    wide = stack(norm=LayerNorm(), up=Dense(12, last_axis=True), gelu=Activation("gelu"),
                 down=Dense(8, last_axis=True))  # fmt: skip
    embedding = Graph(
        (("token", Constant((1, 8))), ("all", Join(0)), ("places", Constant((17, 8))), ("sum", Elementwise("add"))),
        ((), ("token", ""), (), ("all", "places")),
    )
    return stack(
        stem=stack(conv=Conv(4, 3), norm=LayerNorm(0), mish=Activation("mish")),
        unit=Residual(stack(conv=Conv(4, 3, pad=1), se=gate, scale=Scale(0.3, axis=0)), drop_rate=0.25),
        pool=stack(max=Pool("max", 3, 1), blur=BlurPool()),
        other=BlurPool(4, (1, 2)),
        swish=Activation("hard_swish"),
        patches=Conv(8, (2, 1), stride=(2, 1)),
        rows=Reshape((8, -1)),
        tokens=Transpose((1, 0)),
        embedding=embedding,
        attention=Residual(tokens, drop_rate=0.1),
        mlp=Residual(wide),
        first=Slice(0, 0, 1),
        flatten=Flatten(),
        classifier=Dense(CLASSES),
    )


def drawn_graph(seed: int, most: int = 30) -> Sequential:
    """A graph of 5 to `most` layers at random, that nothing leaves unread."""
    random, drawing = np.random.default_rng(seed), _Drawing()
    for _ in range(int(random.integers(4, most))):
        drawing.add_any(random)
    return drawing.network()


class _Drawing:
    """Items of a graph that reads the stem's 4 x 10 x 10, and their shapes."""

    def __init__(self) -> None:
        self.items: list[tuple[str, Layer]] = []
        self.links: list[tuple[str, ...]] = []
        self.shapes: dict[str, tuple[int, ...]] = {"": (4, 10, 10)}

    def add(self, layer: Layer, *links: str) -> str:
        """The item's name, or that of its first input where the layer does not fit, grows too large or has no image."""
        if links and all(isinstance(dict(self.items).get(link), Constant) for link in links):
            return links[0]
        name = f"node{len(self.shapes)}"
        graph = Graph((*self.items, (name, layer)), (*self.links, links))
        try:
            shape = output_shapes(_around(graph), (3, 19, 19))[f"drawn.{_last(name, layer)}"]
        except BadRecipe:
            return links[0]
        if np.prod(shape) > (20_000 if isinstance(layer, Flatten | Join | Constant) else 3000):
            return links[0]
        self.items, self.links, self.shapes[name] = list(graph.items), list(graph.links), shape
        return name

    def add_any(self, random: np.random.Generator) -> None:
        names = [*self.shapes][-4:]
        x = str(random.choice(names))
        shape, kind = self.shapes[x], random.random()
        if kind < 0.7 or len(shape) == 0:
            self.add(_drawn_layer(random, shape), x)
        elif kind < 0.9:
            self.add_arithmetic(random, x)
        else:
            axis = int(random.integers(len(shape)))
            same = [name for name in names if self.shapes[name] == shape]
            others = [str(random.choice(same)), self.add(Constant(shape))]
            self.add(Join(axis), *random.permutation([x, *others]).tolist())

    def add_arithmetic(self, random: np.random.Generator, x: str) -> None:
        shape = self.shapes[x]
        axes = tuple(axis for axis in range(len(shape)) if random.random() < 0.5) or (0,)
        other = str(random.choice([
            x, self.add(Reduce("mean", axes, keep=True), x),
            self.add(Constant(tuple(1 if axis in axes else length for axis, length in enumerate(shape)))),
        ]))  # fmt: skip
        kind: Any = random.choice(["add", "subtract", "multiply", "maximum", "minimum", "divide", "power"])
        if kind in ("divide", "power"):
            small = self.add(Activation("tanh"), x)
            positive = self.add(stack(abs=Activation("abs"), more=Scalar("add", 0.5)), other)
            self.add(Elementwise(kind), *((small, positive) if kind == "divide" else (positive, small)))
        else:
            self.add(Elementwise(kind), *random.permutation([x, other, x][: random.integers(2, 4)]).tolist())

    def network(self) -> Sequential:
        """What no item reads, flat and joined, before a classifier."""
        read = {link for links in self.links for link in links}
        kept = [name in read or not isinstance(item, Constant) for name, item in self.items]
        self.items, self.links = [*compress(self.items, kept)], [*compress(self.links, kept)]
        ends = [self.add(Flatten(), name) for name, _ in [*self.items] if name not in read]
        self.add(Join(0), *(ends or [self.add(Flatten(), "")]))
        return _around(Graph(tuple(self.items), tuple(self.links)))


def _last(name: str, layer: Layer) -> str:
    """The path of the last layer inside an item."""
    return [name, *(f"{name}.{path}" for path, _ in walk(layer))][-1]


def _around(graph: Graph) -> Sequential:
    return stack(stem=Conv(4, 3, stride=2, pad=1), drawn=graph, end=Flatten(), classifier=Dense(CLASSES))


def _drawn_layer(random: np.random.Generator, shape: tuple[int, ...]) -> Layer:
    """A layer for an array of this shape; it may not fit."""
    count = len(shape)
    axis = int(random.integers(-count, count))
    number = float(random.uniform(-2, 2))
    kind: Any = random.choice(["constant", "edge", "reflect"])
    pool: Any = random.choice(["max", "average", "sum"])
    reduction: Any = random.choice(["mean", "sum", "max", "min"])
    activation: Any = random.choice(["relu", "elu", "prelu", "leaky", "tanh", "sigmoid", "selu", "gelu", "softplus",
                                     "softsign", "swish", "abs"])  # fmt: skip
    arithmetic: Any = random.choice(["add", "subtract", "multiply", "divide", "maximum", "minimum"])
    positive = stack(abs=Activation("abs"), more=Scalar("add", 0.5))
    any_shape: list[Layer] = [
        Activation(activation), Activation(activation, 0.1), Clip(-1.5, abs(number)), Softmax(axis),
        Softmax(axis, True, 2.0), Reduce(reduction, (axis,), bool(random.integers(2))), L2Norm((axis,), 0.1),
        L2Norm(tuple(range(count)), 0.1), Slice(axis, int(random.integers(3)), None, int(random.integers(1, 3))),
        Dense(5, last_axis=True), LayerNorm(axis, 0.1), Scalar(arithmetic, number), Dropout(0.5),
        BatchNorm(frozen=True), Transpose(tuple(random.permutation(count).tolist())),
        BatchNorm(0.1, scale=bool(random.integers(2))),
        Reshape((-1, shape[-1])), Reshape((1, shape[0], -1)), stack(positive=positive, log=Activation("log")),
        stack(positive=positive, root=Activation("sqrt")), stack(tanh=Activation("tanh"), exp=Activation("exp")),
        stack(tanh=Activation("tanh"), square=Activation("square"), power=Scalar("power", 1.5, True)),
        stack(positive=positive, power=Scalar("power", number)),
    ]  # fmt: skip
    of_images: list[Layer] = [
        Conv(4, 3, pad=1, groups=int(random.integers(1, 3))), Conv(6, (3, 2), stride=2, pad=1, dilation=2),
        ConvTranspose(4, 3, stride=2, pad=1, extra=1, groups=2), LocalResponseNorm(3, 0.5),
        InstanceNorm(0.1),
        Pool(pool, 3, 2, 1), Pool(pool, (3, 2), 2, 0, True), Pool(pool, 2, 2, 1, count_pad=False), GlobalAveragePool(),
        Pad(*random.integers(0, 3, 4).tolist(), kind, number), Upsample(2), Greyscale(),
        Residual(stack(conv=Conv(shape[0], 1))), Concat((("same", Sequential(())), ("conv", Conv(2, 1)))),
    ]  # fmt: skip
    chosen = of_images if count == 3 and random.random() < 0.6 else any_shape
    return chosen[int(random.integers(len(chosen)))]


def narrowed(network: Sequential) -> Sequential:
    """The network with hidden dense layers of at most 64 units: the same form in a fraction of the time."""
    return Sequential(
        tuple(
            (name, Dense(min(item.units, WIDEST_DENSE), item.bias) if isinstance(item, Dense) else item)
            for name, item in network.items
        )
    )


def values_of(network: Sequential, input_shape: tuple[int, int, int]) -> dict[str, Array]:
    """Initial values with every other parameter moved from where it has no effect."""
    random = np.random.default_rng(3)
    values: dict[str, Array] = dict(initial_values(network, input_shape, "msra", 1))
    for report in describe(network, input_shape):
        for one in report.parameters:
            fixed = one.role == "scale" and not one.trainable
            if one.role != "weight" and not fixed:
                values[one.name] = (
                    (one.role == "constant") + values[one.name] + random.uniform(-0.2, 0.2, one.shape)
                ).astype(np.float32)
    return values


def network_of(name: str) -> Sequential:
    if name.startswith("drawn"):
        return drawn_graph(int(name.removeprefix("drawn")))
    made = {
        "every_layer": every_layer,
        "graph_layers": graph_layers,
        "layers_of_today": layers_of_today,
        "layers_but_attention": partial(layers_of_today, False),
    }
    return made[name]() if name in made else narrowed(catalog.entry(name).build(CLASSES))


def sample_of(name: str) -> Sample:
    network = network_of(name)
    size = SIZES.get(name, 19)
    blueprint = Blueprint(network, size, MEAN, STD, Recipe(network="", records="", devices="cpu", precision="float32"))
    values = values_of(network, blueprint.input_shape)
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    engines = filter(is_installed, FRAMEWORKS)
    logits = {engine: create_engine(engine, blueprint, values).logits(images) for engine in engines}
    return Sample(name, network, size, values, images, logits)


@pytest.fixture(scope="session")
def samples() -> dict[str, Sample]:
    """Every family's, and one network of all kinds of layers; more of a family with IMAGENET_PIPELINE_LONG=1."""
    return {name: sample_of(name) for name in (*WRITTEN, *DRAWN, *SIZES)}


GREY, SPREAD = 120.0, 60.0
LIMIT = 1e-9


class AgainstMXNet:
    """Graphs of MXNet's symbols with drawn values, and two images of `side` pixels: MXNet's numbers and ours."""

    def __init__(self, mx: Any, side: int, channels: int) -> None:
        self._mx, self._channels = mx, channels
        self.engines = [engine for engine in FRAMEWORKS if is_installed(engine)]
        random = np.random.default_rng(1)
        self.images = random.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
        if channels == 1:
            self.images[...] = self.images[..., :1]
        self.labels = np.array([0, 1])
        self._pixels = ((self.images - GREY) / SPREAD).transpose(0, 3, 1, 2)[:, :channels]

    def drawn(self, symbol: Any) -> dict[str, Array]:
        """Values for every parameter of a graph, float32, none of which has no effect."""
        random = np.random.default_rng(0)
        arguments, _, statistics = symbol.infer_shape(data=self._pixels.shape)
        values = {}
        for name, shape in zip(symbol.list_arguments(), arguments, strict=True):
            if name != "data" and not name.endswith("label"):
                spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.3
                values[name] = random.normal(0, spread, shape) + name.endswith("gamma")
        for name, shape in zip(symbol.list_auxiliary_states(), statistics, strict=True):
            values[name] = random.uniform(0.5, 1.5, shape) if name.endswith("var") else random.normal(0, 0.3, shape)
        return {name: value.astype(np.float32) for name, value in values.items()}

    def bound(self, symbol: Any, precision: str = "float64") -> Any:
        """MXNet's executor of the graph on the images, normalised; labels are zeros."""
        shapes, _, _ = symbol.infer_shape(data=self._pixels.shape)
        values, given = self.drawn(symbol), {}
        for name, shape in zip(symbol.list_arguments(), shapes, strict=True):
            value = self._pixels if name == "data" else values.get(name, np.zeros(shape))
            given[name] = self._mx.nd.array(value, dtype=precision)
        gradients = {name: self._mx.nd.zeros_like(array) for name, array in given.items()}
        statistics = {name: self._mx.nd.array(values[name], dtype=precision) for name in symbol.list_auxiliary_states()}
        return symbol.bind(self._mx.cpu(), given, args_grad=gradients, aux_states=statistics)

    def gradients(self, symbol: Any) -> dict[str, Array]:
        """MXNet's gradients of the mean cross-entropy."""
        executor = self.bound(symbol)
        logits = executor.forward(is_train=True)[0].asnumpy()
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares[np.arange(len(self.labels)), self.labels] -= 1
        executor.backward(self._mx.nd.array(shares / len(self.labels), dtype="float64"))
        return {name: array.asnumpy() for name, array in executor.grad_dict.items() if name != "data"}

    def read(self, symbol: Any, side: int | None = None) -> Layered:
        """The graph as layers."""
        graph = symbol_of_json(symbol.tojson().encode(), "m")
        return layered(graph, self.drawn(symbol), side, (Path("m-symbol.json"), Path("m.params")))

    def engine_of(self, name: str, found: Layered, precision: str = "float64") -> Engine:
        plain = OptimizerRecipe(momentum=0, weight_decay=0)
        recipe = Recipe(network="", records="", devices="cpu", precision=precision, optimizer=plain)
        mean, std = found.normalisation or ((GREY,) * 3, (SPREAD,) * 3)
        return create_engine(name, Blueprint(found.network, found.size, mean, std, recipe), found.values)

    def assert_equal(self, symbol: Any, precision: str = "float64", limit: float = LIMIT) -> Layered:
        """Compare MXNet's logits with those of both engines; a softmax at the end is left off."""
        wanted = self.bound(symbol, precision).forward()[0].asnumpy().reshape(len(self.images), -1)
        found = self.read(symbol, self.images.shape[1])
        for engine in self.engines:
            logits = self.engine_of(engine, found, precision).logits(self.images)
            difference = np.abs(logits - wanted)
            assert difference.max() <= limit * np.abs(wanted).max(), (engine, difference.max(axis=0).argmax())
        return found


@pytest.fixture
def against_mxnet(mx: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AgainstMXNet]:
    """`against_mxnet(side, channels=3)` compares graphs with MXNet, without its fusions, which change what some are."""
    monkeypatch.setenv("MXNET_SUBGRAPH_BACKEND", "NONE")
    return lambda side, channels=3: AgainstMXNet(mx, side, channels)
