"""Moving averages of all values, against their formula in NumPy, on both engines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.engines import Engine
from imagenet_pipeline.engines.ema import Averages, rule_state
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.networks.layers import Activation, BatchNorm, Conv, Dense, Flatten, stack

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
MakeEngine = Callable[..., Engine]
MakeBatch = Callable[..., tuple[Any, Any]]
Difference = Callable[[Arrays, Arrays], float]

NETWORK = stack(conv=Conv(4, 3), norm=BatchNorm(), relu=Activation("relu"), flatten=Flatten(), classifier=Dense(7))
NOISE = {"float64": 1e-12, "float32": 2e-6}


@pytest.fixture(scope="module", params=["gluon", "gluon on two devices", "pytorch"])
def make(request: pytest.FixtureRequest, make_engine: MakeEngine) -> MakeEngine:
    """The one of conftest.py, of one engine after the other."""
    engine, _, two = request.param.partition(" ")
    return partial(make_engine, NETWORK, size=6, engine=engine, devices="cpu:0,1" if two else "cpu")


def walk(engine: Engine, make_batch: MakeBatch, first: int, last: int) -> Engine:
    for step in range(first, last):
        engine.train_batch(*make_batch(6, step, 6), 0.05, seed=step)
    return engine


def equal_bytes(first: Arrays, second: Arrays) -> bool:
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize("precision", NOISE)
@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_averages_follow_the_formula(
    make: MakeEngine, make_batch: MakeBatch, difference: Difference, decay: float, precision: str
) -> None:
    """Running statistics included; the early steps weigh more, until t / (t + 9) reaches the decay."""
    engine = make(average_decay=decay, precision=precision)
    wanted = {name: value.astype(np.float64) for name, value in engine.values().items()}
    assert equal_bytes(engine.averages(), engine.values())
    for step in range(1, 13):
        walk(engine, make_batch, step, step + 1)
        kept = min(decay, step / (step + 9))
        wanted = {name: kept * wanted[name] + (1 - kept) * value for name, value in engine.values().items()}
    assert difference(engine.averages(), wanted) < NOISE[precision]
    assert difference(engine.values(), wanted) > 1e-3


def test_training_goes_on_as_without(make: MakeEngine, make_batch: MakeBatch) -> None:
    plain, averaged = (walk(make(average_decay=decay), make_batch, 0, 4) for decay in (0.0, 0.9))
    assert equal_bytes(averaged.values(), plain.values())
    assert equal_bytes(plain.averages(), plain.values())
    assert equal_bytes(rule_state(averaged.optimizer_state()), plain.optimizer_state())


def test_going_on_from_a_state_gives_equal_bytes(make: MakeEngine, make_batch: MakeBatch) -> None:
    whole = walk(make(average_decay=0.9), make_batch, 0, 6)
    half = walk(make(average_decay=0.9), make_batch, 0, 3)
    again = make(average_decay=0.9, values=half.values())
    # On two devices running statistics are saved as their mean.
    half.set_values(half.values())
    state = half.optimizer_state()
    assert state["average_steps"].tolist() == [3]
    again.set_optimizer_state(state)
    assert equal_bytes(again.averages(), half.averages())
    walk(again, make_batch, 3, 6)
    if len(again.device_names) == 1:
        assert equal_bytes(again.averages(), whole.averages())
        assert equal_bytes(again.optimizer_state(), whole.optimizer_state())
    else:
        trained = {name for name in whole.values() if "running" not in name}
        assert all(again.averages()[name].tobytes() == whole.averages()[name].tobytes() for name in trained)


def test_a_state_without_averages_starts_them_from_the_values(
    make: MakeEngine, make_batch: MakeBatch, difference: Difference
) -> None:
    old = walk(make(), make_batch, 0, 3)
    engine = make(average_decay=0.9, values=old.values())
    engine.set_optimizer_state(old.optimizer_state())
    assert equal_bytes(engine.averages(), old.values())
    before = engine.values()
    walk(engine, make_batch, 3, 4)
    wanted = {name: 0.1 * before[name].astype(np.float64) + 0.9 * value for name, value in engine.values().items()}
    assert difference(engine.averages(), wanted) < NOISE["float32"]


def test_a_state_with_averages_is_read_where_there_shall_be_none(make: MakeEngine, make_batch: MakeBatch) -> None:
    averaged = walk(make(average_decay=0.9), make_batch, 0, 3)
    plain = make(values=averaged.values())
    plain.set_optimizer_state(averaged.optimizer_state())
    assert equal_bytes(plain.averages(), plain.values())
    assert equal_bytes(plain.optimizer_state(), rule_state(averaged.optimizer_state()))


def test_set_values_leaves_averages_alone(make: MakeEngine, make_batch: MakeBatch) -> None:
    engine = walk(make(average_decay=0.9), make_batch, 0, 2)
    means = engine.averages()
    engine.set_values({name: value + 1 for name, value in engine.values().items()})
    assert equal_bytes(engine.averages(), means)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("average/conv.bias", None, "the moving averages do not fit the network: average/conv.bias missing"),
        ("average/conv.bias", np.zeros(3), r"average/conv.bias has shape \(3,\), not \(4,\)"),
        ("average/head.bias", np.zeros(3), "average/head.bias not in this network"),
        ("average_steps", None, "average_steps missing"),
    ],
)
def test_averages_of_another_network_are_refused(
    make: MakeEngine, make_batch: MakeBatch, name: str, value: Array | None, message: str
) -> None:
    engine = walk(make(average_decay=0.9), make_batch, 0, 1)
    state = {key: array for key, array in {**engine.optimizer_state(), name: value}.items() if array is not None}
    with pytest.raises(BadInput, match=message):
        engine.set_optimizer_state(state)


def test_an_average_of_what_stays_stays_to_the_last_bit() -> None:
    """Lists of numbers that cannot be written to, with the written way to approach."""

    def approach(means: list[Any], arrays: list[Any], share: float) -> list[Any]:
        for mean in means:
            mean.flags.writeable = False
        return [mean + share * (array - mean) for mean, array in zip(means, arrays, strict=True)]

    arrays = {"w": [np.array([0.1, 1 / 3, 1e-20])]}
    averages = Averages(0.999, arrays, np.copy, approach)
    averages.begin()
    for _ in range(50):
        averages.update()
    assert averages.means["w"][0].tobytes() == arrays["w"][0].tobytes()
