"""Batches computed in parts: the step of the whole batch, on both engines, with everything else a step can have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import LossRecipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.engines.devices import micro_batches
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    LocalResponseNorm,
    Pool,
    Residual,
    Tap,
    stack,
)

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
MakeEngine = Callable[..., Engine]
MakeBatch = Callable[..., tuple[Any, Any]]
Difference = Callable[[Arrays, Arrays], float]

ENGINES = {"gluon": {}, "gluon on two devices": {"devices": "cpu:0,1"}, "pytorch": {}}
TAPPED = stack(
    conv=Conv(6, 3, pad=1),
    prelu=Activation("prelu"),
    tap=Tap(stack(pool=GlobalAveragePool(), flatten=Flatten(), classifier=Dense(7)), 0.3),
    unit=Residual(stack(conv=Conv(6, 3, pad=1, groups=2), elu=Activation("elu"))),
    pool=Pool("max", 2, stride=2),
    flatten=Flatten(),
    classifier=Dense(7),
)
NORMALISED = stack(conv=Conv(4, 3, bias=False), norm=BatchNorm(), flatten=Flatten(), classifier=Dense(7))


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, make_engine: MakeEngine) -> MakeEngine:
    """The one of conftest.py, of one engine after the other."""
    return partial(make_engine, size=8, engine=request.param.partition(" ")[0], **ENGINES[request.param])


def walk(engine: Engine, make_batch: MakeBatch, steps: int, soft: bool = False, first: int = 0) -> Engine:
    for step in range(first, first + steps):
        images, labels = make_batch(12, step, 8)
        shares = np.random.default_rng(step).dirichlet(np.ones(7), 12).astype(np.float32)
        engine.train_batch(images, shares if soft else labels, 0.02, seed=step)
    return engine


@pytest.mark.parametrize("parts", [2, 3, 6])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_micro_batches_a_batch_make_the_step_of_the_whole(
    make: MakeEngine, make_batch: MakeBatch, difference: Difference, parts: int, precision: str
) -> None:
    """Taps included, where nothing is normalised over a batch."""
    whole, split = (walk(make(TAPPED, precision=precision, accumulation=one), make_batch, 4) for one in (1, parts))
    # Measured worst: float64 8e-16, float32 4e-7.
    assert difference(split.values(), whole.values()) < (1e-12 if precision == "float64" else 5e-6)
    first, second = whole.totals(), split.totals()
    assert (first.images, first.rank1_hits, first.rank5_hits) == (second.images, second.rank1_hits, second.rank5_hits)
    np.testing.assert_allclose(second.step_losses, first.step_losses, rtol=1e-12 if precision == "float64" else 1e-5)


def test_response_normalisation_in_parts(make: MakeEngine, make_batch: MakeBatch, difference: Difference) -> None:
    network = stack(conv=Conv(16, 3), relu=Activation("relu"), norm=LocalResponseNorm(5, 0.5), f=Flatten(), d=Dense(7))
    whole, split = (walk(make(network, accumulation=one), make_batch, 3) for one in (1, 3))
    assert difference(split.values(), whole.values()) < 1e-5


def test_soft_targets_in_parts(make: MakeEngine, make_batch: MakeBatch, difference: Difference) -> None:
    options = {"precision": "float64", "loss": LossRecipe(label_smoothing=0.1)}
    whole, split = (walk(make(TAPPED, accumulation=one, **options), make_batch, 3, soft=True) for one in (1, 3))
    assert difference(split.values(), whole.values()) < 1e-12


def test_frozen_layers_in_parts(make: MakeEngine, make_batch: MakeBatch, difference: Difference) -> None:
    options = {"precision": "float64", "frozen": ("unit", "tap"), "rates": {"conv": 0.1}, "clip_norm": 1.0}
    whole, split = (walk(make(TAPPED, accumulation=one, **options), make_batch, 3) for one in (1, 3))
    assert difference(split.values(), whole.values()) < 1e-12
    assert (split.values()["unit.conv.weight"] == make(TAPPED).values()["unit.conv.weight"]).all()


def test_every_part_is_normalised_by_itself(make: MakeEngine, make_batch: MakeBatch) -> None:
    """And changes the running statistics: one step in two parts is two updates of them."""
    engine = make(NORMALISED, accumulation=2, precision="float64", average_decay=0.5)
    one, two = (make(NORMALISED, precision="float64", weight_decay=0.0, momentum=0.0) for _ in range(2))
    images, labels = make_batch(12, 0, 8)
    engine.train_batch(images, labels, 1e-30, seed=0)
    for part in (slice(0, 6), slice(6, 12)):
        one.train_batch(images[part], labels[part], 1e-30, seed=0)
    two.train_batch(images, labels, 1e-30, seed=0)
    name = "norm.running_mean"
    np.testing.assert_allclose(engine.values()[name], one.values()[name], rtol=1e-6, atol=1e-9)
    assert np.abs(engine.values()[name] - two.values()[name]).max() > 1e-3


def test_the_seed_decides_dropout_in_every_part(make: MakeEngine, make_batch: MakeBatch) -> None:
    network = stack(conv=Conv(4, 3), drop=Dropout(0.5), flatten=Flatten(), classifier=Dense(7))
    results = []
    for seed in (1, 1, 2):
        engine = make(network, accumulation=3)
        engine.train_batch(*make_batch(12, 0, 8), 0.1, seed=seed)
        results.append(engine.values()["classifier.weight"].tobytes())
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_parts_do_not_drop_alike(engine: str, make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    """Were both halves of a doubled batch dropped alike, two parts would do what one half does."""
    network = stack(flatten=Flatten(), drop=Dropout(0.5), classifier=Dense(7))
    images, labels = make_batch(4, size=4)
    half, split = (make_engine(network, size=4, engine=engine, accumulation=one) for one in (1, 2))
    half.train_batch(images, labels, 0.1, seed=3)
    split.train_batch(np.concatenate([images, images]), np.concatenate([labels, labels]), 0.1, seed=3)
    moves = [one.values()["classifier.weight"] for one in (half, split)]
    assert np.abs(moves[0] - moves[1]).max() > 1e-3


@pytest.mark.parametrize(("count", "accumulation", "devices"), [(7, 2, 1), (6, 4, 1), (10, 3, 2), (6, 2, 2), (1, 2, 1)])
def test_a_batch_that_does_not_divide_is_refused_with_both_numbers(count: int, accumulation: int, devices: int) -> None:
    images, labels = np.zeros((count, 2, 2, 3), np.uint8), np.zeros(count, np.int64)
    message = (
        rf"the batch does not divide by accumulation.*; expected a multiple of {accumulation * devices}; found {count}"
    )
    with pytest.raises(BadRecipe, match=message):
        micro_batches(images, labels, accumulation, devices)


def test_the_engines_refuse_it_too(make: MakeEngine, make_batch: MakeBatch) -> None:
    with pytest.raises(BadRecipe, match=r"the batch does not divide by accumulation.*; found 12"):
        make(TAPPED, accumulation=5).train_batch(*make_batch(12, 0, 8), 0.1, seed=0)


def test_parts_are_consecutive_and_equal() -> None:
    images, labels = np.arange(12).reshape(12, 1, 1, 1), np.arange(12)
    parts = micro_batches(images.astype(np.uint8), labels, 3, 2)
    assert [part.tolist() for _, part, _ in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert all((one.ravel() == part).all() for one, part, _ in parts)


OPTIMIZERS = [{"name": "sgd"}, {"name": "sgd", "nesterov": True}, {"name": "adamw"}]


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize(("first", "second"), [("gluon", "pytorch"), ("pytorch", "gluon")])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_run_with_everything_goes_on_on_the_other_engine(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference,
    optimizer: dict[str, Any], first: str, second: str, precision: str,
) -> None:  # fmt: skip
    """Frozen first, then free; clipped, in parts, with averages, slow layers, and decay of weights alone."""
    options: dict[str, Any] = {
        **optimizer, "precision": precision, "accumulation": 2, "average_decay": 0.9, "clip_norm": 1.0,
        "decay_all": False, "weight_decay": 0.01, "rates": {"conv": 0.1, "classifier": 2.0}, "size": 8,
        "loss": LossRecipe(label_smoothing=0.1),
    }  # fmt: skip
    results = []
    for engines in ((first, first, first), (first, second, first)):
        values, state = None, {}
        for place, (engine, frozen) in enumerate(zip(engines, [("unit",), (), ()], strict=True)):
            made = make_engine(TAPPED, engine=engine, frozen=frozen, values=values, **options)
            made.set_optimizer_state(state)
            walk(made, make_batch, 2, soft=True, first=2 * place)
            values, state = made.values(), made.optimizer_state()
        results.append((values, made.averages(), {n: one.astype(float) for n, one in state.items()}))
    limit = 1e-9 if precision == "float64" else 5e-4
    for whole, changed in zip(*results, strict=True):
        assert difference(changed, whole) < limit
