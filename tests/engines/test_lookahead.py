"""Lookahead around every rule: against slow weights kept by hand beside an engine that knows nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import OptimizerRecipe, Recipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.engines.optimizer_state import rule_of
from imagenet_pipeline.networks.layers import Activation, BatchNorm, Conv, Dense, Flatten, stack
from imagenet_pipeline.optimizers import OPTIMIZERS, Step

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
MakeEngine = Callable[..., Engine]
MakeBatch = Callable[..., tuple[Any, Any]]
Difference = Callable[[Arrays, Arrays], float]

ENGINES = ["gluon", "pytorch"]
NETWORK = stack(
    conv=Conv(4, 3, pad=1, bias=False), norm=BatchNorm(), relu=Activation("relu"), flatten=Flatten(),
    dense=Dense(6), tanh=Activation("tanh"), classifier=Dense(7),
)  # fmt: skip
AHEAD: dict[str, Any] = {"lookahead_steps": 3, "lookahead_share": 0.25}


def walk(engine: Engine, make_batch: MakeBatch, first: int, last: int) -> Engine:
    for step in range(first, last):
        engine.train_batch(*make_batch(8, step, 8), 0.01 if step < 4 else 0.005, seed=step)
    return engine


def trained(values: Arrays) -> Arrays:
    return {name: value for name, value in values.items() if "running" not in name}


def shortened(values: Arrays, limit: float) -> Arrays:
    """Each output's weights no longer than the limit."""
    lengths = {name: np.linalg.norm(one.reshape(len(one), -1), axis=1) for name, one in values.items() if one.ndim > 1}
    factors = {name: np.minimum(1, limit / length) for name, length in lengths.items()}
    return {name: (one.T * factors[name]).T if name in factors else one for name, one in values.items()}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("rule", "limit"), [("sgd", 0), ("adam", 0), ("radam", 0), ("lion", 0), ("muon", 0), ("sgd", 0.7), ("adam", 0.7)]
)
def test_slow_weights_follow_and_the_rule_goes_on_from_them(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference, rule: str, limit: float, engine: str
) -> None:
    """Zhang et al. 2019, algorithm 1, literally; the slots of the rule are left alone, and `max_norm` holds."""
    keys = {"name": rule, "engine": engine, "size": 8, "precision": "float64", "max_norm": limit}
    plain, ahead = make_engine(NETWORK, **keys), make_engine(NETWORK, **keys, **AHEAD)
    slow = trained(plain.values())
    for step in range(8):
        walk(plain, make_batch, step, step + 1)
        if step % 3 == 2:
            fast = plain.values()
            slow = {name: value + 0.25 * (fast[name] - value) for name, value in slow.items()}
            slow = shortened(slow, limit) if limit else slow
            plain.set_values({**fast, **slow})
        walk(ahead, make_batch, step, step + 1)
        assert difference(trained(ahead.values()), trained(plain.values())) < 1e-11, step


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", ["sgd", "radam"])
def test_going_on_between_two_synchronisations_gives_equal_bytes(
    make_engine: MakeEngine, make_batch: MakeBatch, rule: str, engine: str, precision: str
) -> None:
    """Of sgd, too, whose state has a count of steps then."""
    keys: dict[str, Any] = {"name": rule, "engine": engine, "size": 8, "precision": precision, **AHEAD}
    whole = walk(make_engine(NETWORK, average_decay=0.9, **keys), make_batch, 0, 8)
    half = walk(make_engine(NETWORK, average_decay=0.9, **keys), make_batch, 0, 4)
    again = make_engine(NETWORK, average_decay=0.9, values=half.values(), **keys)
    again.set_optimizer_state(half.optimizer_state())
    walk(again, make_batch, 4, 8)
    pairs = ((again.values(), whole.values()), (again.optimizer_state(), whole.optimizer_state()))
    for found, wanted in (*pairs, (again.averages(), whole.averages())):
        assert list(found) == list(wanted)
        assert all(found[name].tobytes() == value.tobytes() for name, value in wanted.items())


@pytest.mark.gluon
@pytest.mark.parametrize(("first", "second"), [("gluon", "pytorch"), ("pytorch", "gluon")])
def test_a_run_begins_and_ends_to_look_ahead(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference, first: str, second: str
) -> None:
    """A state without slow weights gives ones that are the weights, one with them goes on without; either engine's."""
    for precision, noise in (("float64", 1e-11), ("float32", 1e-4)):
        keys = {"size": 8, "precision": precision}
        before = walk(make_engine(NETWORK, engine=first, **keys), make_batch, 0, 2)
        begun, literal = (
            make_engine(NETWORK, engine=second, values=before.values(), **keys, **more) for more in (AHEAD, {})
        )
        for engine in (begun, literal):
            engine.set_optimizer_state(before.optimizer_state())
        slow = trained(literal.values())
        # The count of sgd's steps begins at 1 where its state has none.
        fast = walk(literal, make_batch, 2, 4).values()
        literal.set_values({**fast, **{name: one + 0.25 * (fast[name] - one) for name, one in slow.items()}})
        walk(begun, make_batch, 2, 4)
        assert difference(trained(begun.values()), trained(literal.values())) < noise
        ended = make_engine(NETWORK, engine=first, values=begun.values(), **keys)
        ended.set_optimizer_state(begun.optimizer_state())
        assert difference(
            trained(walk(ended, make_batch, 4, 5).values()), trained(walk(literal, make_batch, 4, 5).values())
        ) < (1e-11 if precision == "float64" else 1e-4)


def test_the_moving_average_is_that_of_the_weights_of_every_step(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference
) -> None:
    engine = make_engine(NETWORK, size=8, engine="pytorch", precision="float64", average_decay=0.5, **AHEAD)
    wanted = engine.values()
    for step in range(1, 8):
        kept = min(0.5, step / (step + 9))
        now = walk(engine, make_batch, step - 1, step).values()
        wanted = {name: kept * mean + (1 - kept) * now[name] for name, mean in wanted.items()}
    assert difference(trained(engine.averages()), trained(wanted)) < 1e-12


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_it_wraps_every_rule(name: Any) -> None:
    plain, ahead = (rule_of(OptimizerRecipe(name=name, **keys)) for keys in ({}, AHEAD))
    assert ahead.slots == (*plain.slots, "slow_offset")
    assert (ahead.on_lists, ahead.keys) == (plain.on_lists, plain.keys)


def test_what_max_norm_has_cut_off_does_not_come_back() -> None:
    """A weight at the limit, pulled outwards, stays there."""
    recipe = OptimizerRecipe(momentum=0, weight_decay=0, max_norm=1, lookahead_steps=5)
    weight, slots = np.array([[1.0, 0.0]]), (np.zeros((1, 2)), np.zeros((1, 2)))
    for count in range(1, 13):
        step = Step(0.1, count, recipe)
        weight, slots = rule_of(recipe).update(weight, np.array([[-1.0, 0.0]]), slots, step)
        np.testing.assert_allclose(weight, [[1, 0]], atol=1e-12)


def test_a_share_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="lookahead_share: has no effect without lookahead_steps"):
        Recipe(network="", records="", optimizer=OptimizerRecipe(lookahead_share=0.8))
