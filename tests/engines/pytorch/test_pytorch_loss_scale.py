"""The dynamic loss scale of float16: against torch.amp.GradScaler, and in the engine on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as pytorch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.engines import Engine
from imagenet_pipeline.engines.pytorch import engine as pytorch_engine
from imagenet_pipeline.engines.pytorch import loss_scale
from imagenet_pipeline.engines.pytorch.loss_scale import LossScale
from imagenet_pipeline.networks.layers import Activation, BatchNorm, Conv, Dense, Flatten, stack

Array = np.ndarray[Any, Any]
MakeEngine = Callable[..., Engine]
MakeBatch = Callable[..., tuple[Any, Any]]
torch: Any = pytorch
CPU = torch.device("cpu")

NETWORK = stack(conv=Conv(4, 3), relu=Activation("relu"), flatten=Flatten(), classifier=Dense(7))


def step(scale: LossScale, value: float) -> bool:
    """One whose gradients are this number, one of them spoilt where it is not finite."""
    gradients = [scale.scaled(torch.full((2, 3), 0.5)), scale.scaled(torch.tensor([1.0, value]))]
    taken = not scale.unscale(gradients).item()
    assert scale.skipped() != taken
    assert not scale.skipped()
    if taken:
        assert (gradients[0] == 0.5).all()
        assert gradients[1].tolist() == [1.0, value]
    return taken


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([1.0, 2.0, -3.0, float("inf"), float("nan")]), max_size=40))
def test_it_moves_as_pytorchs_does(values: list[float]) -> None:
    """Except that ours stops falling at 1."""
    ours, weight = LossScale(CPU), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_scale, "STEPS_TO_GROW", 3)
        for value in values:
            optimizer.zero_grad()
            theirs.scale(weight * value).backward()
            before = weight.item()
            theirs.step(optimizer)
            theirs.update()
            assert step(ours, value) == np.isfinite(value) == (weight.item() != before)
            factor, good_steps = ours.state()["loss_scale"]
            assert factor == max(theirs.get_scale(), 1.0)
            assert good_steps == theirs._get_growth_tracker()
            if factor == 1:
                return


def test_it_falls_to_one_and_grows_again() -> None:
    scale = LossScale(CPU)
    for _ in range(40):
        assert not step(scale, float("nan"))
    assert scale.state()["loss_scale"].tolist() == [1, 0]
    scale.set_state({"loss_scale": np.array([8.0, loss_scale.STEPS_TO_GROW - 1])})
    assert step(scale, 2.0)
    assert scale.state()["loss_scale"].tolist() == [16, 0]


def test_large_gradients_are_no_overflow() -> None:
    """Their squares would be."""
    assert step(LossScale(CPU), 2.0**100)


@pytest.fixture
def make(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
    """A float16 engine, which is refused on a CPU because it is slow there."""
    monkeypatch.setattr(pytorch_engine, "choose_precision", lambda *_: "float16")

    def make(**options: Any) -> Engine:
        return make_engine(NETWORK, size=8, engine="pytorch", average_decay=0.9, name="adamw", **options)

    return make


def test_float16_learns_with_a_scale(make: MakeEngine, make_batch: MakeBatch) -> None:
    engine = make()
    for _ in range(25):
        engine.train_batch(*make_batch(8, 0, 8), 0.01, seed=0)
    losses = engine.totals().step_losses / 8
    assert losses[-1] < 0.5 * losses[0]
    assert engine.optimizer_state()["loss_scale"][1] > 5


def test_a_step_that_overflows_changes_nothing_but_the_scale(make: MakeEngine, make_batch: MakeBatch) -> None:
    engine = make()
    for seed in range(12):
        engine.train_batch(*make_batch(8, seed, 8), 0.01, seed=0)
    before, state, means = engine.values(), engine.optimizer_state(), engine.averages()
    engine.set_optimizer_state({**state, "loss_scale": np.array([2.0**60, 5.0])})
    engine.train_batch(*make_batch(8, 0, 8), 0.01, seed=0)
    after = engine.optimizer_state()
    assert after.pop("loss_scale").tolist() == [2.0**59, 0]
    assert all(after[name].tobytes() == state[name].tobytes() for name in after)
    assert set(state) == {*after, "loss_scale"}
    for now, then in ((engine.values(), before), (engine.averages(), means)):
        assert all(now[name].tobytes() == then[name].tobytes() for name in then)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_restart_is_exact(make: MakeEngine, make_batch: MakeBatch, accumulation: int) -> None:
    def walk(engine: Engine, first: int, last: int) -> Engine:
        for seed in range(first, last):
            engine.train_batch(*make_batch(8, seed, 8), 0.01, seed=0)
        return engine

    whole, half = walk(make(accumulation=accumulation), 0, 20), walk(make(accumulation=accumulation), 0, 2)
    again = make(values=half.values(), accumulation=accumulation)
    again.set_optimizer_state(half.optimizer_state())
    walk(again, 2, 20)
    for found, wanted in ((again.values(), whole.values()), (again.optimizer_state(), whole.optimizer_state())):
        assert list(found) == list(wanted)
        assert all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)


@pytest.mark.parametrize("name", ["gluon", "pytorch"])
def test_other_precisions_neither_keep_nor_mind_a_scale(
    name: str, make_engine: MakeEngine, make_batch: MakeBatch
) -> None:
    network = stack(flatten=Flatten(), norm=BatchNorm(), classifier=Dense(7))
    engine = make_engine(network, size=4, engine=name)
    engine.train_batch(*make_batch(6, 0, 4), 0.1, seed=0)
    state = engine.optimizer_state()
    assert "loss_scale" not in state
    engine.set_optimizer_state({**state, "loss_scale": np.array([4.0, 3.0])})
    assert list(engine.optimizer_state()) == list(state)
