"""PReLU's gradient, ResNets against MXNet's own model zoo, and training steps against its own optimizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("imagenet_pipeline.engines.gluon.runtime")

from imagenet_pipeline.config import OptimizerRecipe, Recipe
from imagenet_pipeline.engines import Blueprint
from imagenet_pipeline.engines.gluon.engine import GluonEngine
from imagenet_pipeline.engines.gluon.engine import mx as mxnet
from imagenet_pipeline.engines.gluon.network import build
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Activation, Flatten, stack

Array = np.ndarray[Any, Any]
mx: Any = mxnet


def close(found: Array, wanted: Array, limit: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= limit * max(np.abs(wanted).max(), 1e-30)


@pytest.mark.parametrize("hybridized", [False, True])
def test_slope_gradients_inside_a_network(hybridized: bool) -> None:
    """MXNet's own PReLU fails this where the network is hybridized: it sums a gradient already overwritten."""
    random = np.random.default_rng(0)
    x, weights = (random.normal(size=(4, 6, 5, 5)).astype(np.float32) for _ in range(2))
    slope = np.linspace(0.1, 0.6, 6).astype(np.float32)
    network = stack(
        before=Activation("leaky", 0.5), prelu=Activation("prelu"), after=Activation("leaky", 0.25), flatten=Flatten()
    )
    built = build(network, lambda name: 6)
    built.block.initialize()
    built.parameters["prelu.slope"].set_data(mx.nd.array(slope))
    built.block.hybridize(active=hybridized)
    pixels = mx.nd.array(x)
    pixels.attach_grad()
    with mx.autograd.record():
        total = (built.block(pixels) * mx.nd.array(weights.reshape(4, -1))).sum()
    total.backward()
    wanted = (np.where(x < 0, 0.5 * x * 0.25, 0) * weights).sum((0, 2, 3))
    close(built.parameters["prelu.slope"].grad().asnumpy(), wanted)


def random_values(network: Any, shape: tuple[int, int, int]) -> dict[str, Array]:
    """Initial weights, but with biases and running statistics that are not 0 and 1."""
    random, values = np.random.default_rng(0), dict(initial_values(network, shape, "he", 0))
    for name, value in values.items():
        if name.endswith((".bias", ".running_mean")):
            values[name] = (random.normal(size=value.shape) * 0.1).astype(np.float32)
        if name.endswith(".running_var"):
            values[name] = random.uniform(0.5, 2, value.shape).astype(np.float32)
    return values


def zoo_network(name: str, values: dict[str, Array], dtype: str, size: int) -> Any:
    """MXNet's own network, holding our values: both list their parameters in the order of the layers."""
    network = getattr(mx.gluon.model_zoo.vision, name)(classes=len(values["classifier.bias"]))
    network.cast(dtype)
    network.initialize()
    network(mx.nd.zeros((1, 3, size, size), dtype=dtype))
    for parameter, value in zip(network.collect_params().values(), values.values(), strict=True):
        parameter.set_data(mx.nd.array(value, dtype=dtype))
    return network


MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)


def normalised(batch: Array, dtype: str) -> Any:
    return mx.nd.array(((batch - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2), dtype=dtype)


@pytest.mark.parametrize("depth", [18, 34])
def test_resnets_equal_those_of_the_model_zoo(depth: int) -> None:
    network = catalog.build(f"resnet{depth}", 10)
    values = random_values(network, (3, 64, 64))
    engine = GluonEngine(Blueprint(network, 64, MEAN, STD, Recipe(network="", records="", devices="cpu")), values)
    batch = np.random.default_rng(3).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    zoo = zoo_network(f"resnet{depth}_v1", values, "float32", 64)
    close(engine.logits(batch), zoo(normalised(batch, "float32")).asnumpy())


def test_training_steps_equal_those_of_the_model_zoo_and_mxnets_own_optimizer() -> None:
    """At a constant rate MXNet's SGD is the written rule, so gradients and updates can be compared in float64.

    Its rate, momentum and decay are float32, so they are powers of two here.
    """
    rate, momentum, decay = 2.0**-7, 0.875, 2.0**-10
    network = catalog.build("resnet18", 10)
    values, optimizer = random_values(network, (3, 64, 64)), OptimizerRecipe(momentum=momentum, weight_decay=decay)
    recipe = Recipe(network="", records="", devices="cpu", precision="float64", optimizer=optimizer)
    engine = GluonEngine(Blueprint(network, 64, MEAN, STD, recipe), values)
    zoo = zoo_network("resnet18_v1", values, "float64", 64)
    options = {"learning_rate": rate, "momentum": momentum, "wd": decay}
    trainer = mx.gluon.Trainer(zoo.collect_params(), "sgd", options, kvstore=None)
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    random = np.random.default_rng(4)
    for _ in range(2):
        batch, labels = random.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8), random.integers(0, 10, 4)
        with mx.autograd.record():
            loss = loss_of(zoo(normalised(batch, "float64")), mx.nd.array(labels, dtype="float64"))
        loss.backward()
        trainer.step(len(batch))
        engine.train_batch(batch, labels, rate, seed=0)
        assert engine.totals().step_losses[0] == pytest.approx(loss.sum().asscalar(), rel=1e-9)
    trained = engine.values()
    for name, theirs in zip(values, zoo.collect_params().values(), strict=True):
        limit = 1e-6 if "running" in name else 1e-8  # MXNet keeps running statistics in float32
        close(trained[name], theirs.data().asnumpy(), limit)
        assert np.abs(trained[name] - values[name]).max() > 0
