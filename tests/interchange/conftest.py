"""Networks of every family, small and fast, with values that no layer leaves without effect."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import OptimizerRecipe, Recipe
from imagenet_pipeline.engines import FRAMEWORKS, Blueprint, Engine, create_engine, is_installed
from imagenet_pipeline.interchange.mxnet_layers import Layered, layered
from imagenet_pipeline.interchange.symbol import symbol_of_json
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Dropout,
    Flatten,
    LocalResponseNorm,
    Pool,
    Residual,
    Sequential,
    stack,
)
from imagenet_pipeline.networks.shapes import describe

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
                values[one.name] = (values[one.name] + random.uniform(-0.2, 0.2, one.shape)).astype(np.float32)
    return values


def sample_of(name: str) -> Sample:
    network = every_layer() if name == "every_layer" else narrowed(catalog.entry(name).build(CLASSES))
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
    return {name: sample_of(name) for name in ("every_layer", *SIZES)}


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
