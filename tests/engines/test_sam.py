"""Sharpness-aware minimisation on both engines: against two passes of PyTorch's autograd, written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as pytorch
from torch.nn import functional

from imagenet_pipeline.config import LossRecipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Sequential,
    stack,
)

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
MakeEngine = Callable[..., Engine]
MakeBatch = Callable[..., tuple[Any, Any]]
Difference = Callable[[Arrays, Arrays], float]

torch: Any = pytorch
ENGINES = ["gluon", "pytorch"]
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
NETWORK = stack(
    conv=Conv(6, 3, pad=1, bias=False), norm=BatchNorm(), relu=Activation("relu"), flatten=Flatten(),
    classifier=Dense(7),
)  # fmt: skip
PLAIN = stack(conv=Conv(6, 3, pad=1), tanh=Activation("tanh"), flatten=Flatten(), classifier=Dense(7))
RADIUS, RATE = 0.3, 0.02


def walk(engine: Engine, make_batch: MakeBatch, first: int, last: int, images: int = 8) -> Engine:
    for step in range(first, last):
        engine.train_batch(*make_batch(images, step, 8), RATE, seed=step)
    return engine


class Written:
    """Foret et al. 2021, algorithm 1, with plain steps; statistics follow the first pass (momentum 0.9, biased)."""

    def __init__(self, values: Arrays) -> None:
        self.tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        self.weights = [tensor for name, tensor in self.tensors.items() if "running" not in name]

    def gradients(self, images: Any, labels: Any, follow: bool) -> list[Any]:
        for weight in self.weights:
            weight.requires_grad_()
        get = self.tensors.__getitem__
        pixels = (torch.tensor(images, dtype=torch.float64) - torch.tensor(MEAN)) / torch.tensor(STD)
        x = functional.conv2d(pixels.permute(0, 3, 1, 2), get("conv.weight"), padding=1)
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = functional.batch_norm(x, None, None, get("norm.weight"), get("norm.bias"), training=True, eps=1e-5)
        logits = functional.linear(x.relu().flatten(1), get("classifier.weight"), get("classifier.bias"))
        loss = functional.cross_entropy(logits, torch.tensor(labels))
        found = torch.autograd.grad(loss, self.weights)
        for weight in self.weights:
            weight.requires_grad_(False)
        for name, value in (("norm.running_mean", mean), ("norm.running_var", variance)) if follow else ():
            get(name).mul_(0.9).add_(0.1 * value.detach())
        return [*found]

    def step(self, images: Any, labels: Any) -> None:
        first = self.gradients(images, labels, follow=True)
        length = torch.sqrt(sum((gradient**2).sum() for gradient in first))
        kept = [weight.clone() for weight in self.weights]
        for weight, gradient in zip(self.weights, first, strict=True):
            weight += RADIUS * gradient / length
        second = self.gradients(images, labels, follow=False)
        for weight, value, gradient in zip(self.weights, kept, second, strict=True):
            weight.copy_(value - RATE * gradient)

    def values(self) -> Arrays:
        return {name: tensor.numpy() for name, tensor in self.tensors.items()}


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_are_the_papers_and_statistics_those_of_the_first_pass(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference, engine: str
) -> None:
    keys: dict[str, Any] = {"engine": engine, "size": 8, "precision": "float64", "momentum": 0.0, "weight_decay": 0.0}
    made, plain = (make_engine(NETWORK, **keys, sam_radius=radius) for radius in (RADIUS, 0.0))
    written = Written(made.values())
    for step in range(5):
        written.step(*make_batch(8, step, 8))
        walk(made, make_batch, step, step + 1)
    wanted, found = written.values(), made.values()
    trained = [name for name in found if "running" not in name]
    assert difference({name: found[name] for name in trained}, {name: wanted[name] for name in trained}) < 1e-11
    # MXNet keeps running statistics in float32.
    assert difference(found, wanted) < 1e-6
    other = walk(plain, make_batch, 0, 5).values()
    assert difference({name: found[name] for name in trained}, {name: other[name] for name in trained}) > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_accumulation_devices_frozen_layers_and_clipping_leave_the_step_as_it_is(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference, engine: str
) -> None:
    """Without normalisation. The radius is that of all that moves; clipping is of the second pass."""
    keys: dict[str, Any] = {
        "engine": engine, "size": 8, "precision": "float64", "sam_radius": RADIUS, "clip_norm": 0.3, "name": "adamw",
    }  # fmt: skip
    whole = walk(make_engine(PLAIN, **keys), make_batch, 0, 3).values()
    ways: list[dict[str, Any]] = [{"accumulation": 4}]
    if engine == "gluon":
        ways += [{"devices": "cpu:0,1"}, {"devices": "cpu:0,1", "accumulation": 2}]
    for way in ways:
        assert difference(walk(make_engine(PLAIN, **keys, **way), make_batch, 0, 3).values(), whole) < 1e-11
    frozen = make_engine(PLAIN, **keys, frozen=("conv",))
    before = frozen.values()
    after = walk(frozen, make_batch, 0, 2).values()
    assert after["conv.weight"].tobytes() == before["conv.weight"].tobytes()
    assert (after["classifier.weight"] != before["classifier.weight"]).any()


@pytest.mark.gluon
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_both_engines_step_alike_with_everything_on(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference, precision: str
) -> None:
    keys: dict[str, Any] = {
        "size": 8, "precision": precision, "sam_radius": 0.05, "name": "radam", "lookahead_steps": 2, "clip_share": 0.1,
        "layer_decay": 0.7, "average_decay": 0.5,
    }  # fmt: skip
    engines = [walk(make_engine(NETWORK, engine=one, **keys), make_batch, 0, 5) for one in ENGINES]
    values = [{name: value for name, value in one.averages().items() if "running" not in name} for one in engines]
    assert difference(*values) < (1e-10 if precision == "float64" else 1e-3)


def dropping() -> Sequential:
    return stack(conv=Conv(4, 3), drop=Dropout(0.5), flatten=Flatten(), classifier=Dense(7))


@pytest.mark.parametrize("network", [NETWORK, dropping()], ids=["normalised", "dropping"])
@pytest.mark.parametrize("engine", ENGINES)
def test_going_on_gives_equal_bytes(
    make_engine: MakeEngine, make_batch: MakeBatch, engine: str, network: Sequential
) -> None:
    keys: dict[str, Any] = {"engine": engine, "size": 8, "sam_radius": 0.05, "lookahead_steps": 3, "name": "radam"}
    whole = walk(make_engine(network, **keys), make_batch, 0, 6)
    half = walk(make_engine(network, **keys), make_batch, 0, 3)
    again = make_engine(network, values=half.values(), **keys)
    again.set_optimizer_state(half.optimizer_state())
    walk(again, make_batch, 3, 6)
    for found, wanted in ((again.values(), whole.values()), (again.optimizer_state(), whole.optimizer_state())):
        assert all(found[name].tobytes() == value.tobytes() for name, value in wanted.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_metrics_are_those_of_the_first_pass(make_engine: MakeEngine, make_batch: MakeBatch, engine: str) -> None:
    found = []
    for radius in (0.0, 0.5):
        made = walk(make_engine(NETWORK, engine=engine, size=8, sam_radius=radius), make_batch, 0, 1)
        found.append(made.totals())
    assert found[0].images == found[1].images == 8
    assert found[0].step_losses.tolist() == found[1].step_losses.tolist()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_of_zero_has_no_direction(make_engine: MakeEngine, make_batch: MakeBatch, engine: str) -> None:
    """A network that is certain: the step leaves it, and it has no number that is none."""
    network = stack(flatten=Flatten(), classifier=Dense(7))
    loss = LossRecipe(kind="hinge")
    made = make_engine(network, engine=engine, size=4, sam_radius=0.1, weight_decay=0.0, loss=loss)
    values = {"classifier.weight": np.zeros((7, 48), np.float32), "classifier.bias": np.full(7, -1.0, np.float32)}
    values["classifier.bias"][2] = 1.0
    made.set_values(values)
    images, labels = make_batch(4, 0, 4)
    made.train_batch(images, np.full_like(labels, 2), 0.1, seed=0)
    assert all((made.values()[name] == value).all() for name, value in values.items())


def test_a_step_of_float16_that_overflows_leaves_everything(
    make_engine: MakeEngine, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale of its loss, on a CPU; an overflow of the first pass is one of the second."""
    from imagenet_pipeline.engines.pytorch.loss_scale import LossScale

    engine: Any = make_engine(PLAIN, engine="pytorch", size=8, sam_radius=0.05, name="adamw")
    engine._loss_scale = LossScale(engine._device)
    walk(engine, make_batch, 0, 2)
    before, state = engine.values(), engine._optimizer.state()
    monkeypatch.setattr(engine._loss_scale, "scaled", lambda loss: loss * np.inf)
    walk(engine, make_batch, 2, 3)
    engine.optimizer_state()
    assert all(value.tobytes() == before[name].tobytes() for name, value in engine.values().items())
    assert all(value.tobytes() == state[name].tobytes() for name, value in engine._optimizer.state().items())
    plain = make_engine(PLAIN, engine="pytorch", size=8, sam_radius=0.05, name="adamw")
    walk(plain, make_batch, 0, 2)
    assert all(np.allclose(value, before[name], atol=1e-6) for name, value in plain.values().items())
