"""An optimizer of another package: Signum (signum.py, to copy), through the public call, on both engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import load_recipe, read_recipe, recipe_keys
from imagenet_pipeline.engines import Blueprint, Engine, create_engine
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Activation, BatchNorm, Conv, Dense, Flatten, stack
from imagenet_pipeline.optimizers import OPTIMIZERS, UpdateRule, register_optimizer

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
HERE = Path(__file__).parent
ENGINES = ("gluon", "pytorch")
RATES = [0.003] * 4 + [0.0003] * 4
KEYS = {"name": "signum", "beta1": 0.9, "weight_decay": 0.1}
NETWORK = stack(
    conv=Conv(4, 3, pad=1, bias=False),
    norm=BatchNorm(),
    relu=Activation("relu"),
    flatten=Flatten(),
    classifier=Dense(5),
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPTIMIZERS, "_items", dict(OPTIMIZERS._items))
    monkeypatch.syspath_prepend(HERE)
    from signum import SIGNUM

    register_optimizer("signum", SIGNUM)


def engine_with(name: str, keys: dict[str, Any], precision: str = "float64") -> Engine:
    recipe = read_recipe(
        {"network": "", "records": "", "devices": "cpu", "precision": precision, "optimizer": keys}, "test"
    )
    blueprint = Blueprint(NETWORK, 6, (120.0,) * 3, (60.0,) * 3, recipe)
    return create_engine(name, blueprint, initial_values(NETWORK, blueprint.input_shape, "msra", 1))


def walk(engine: Engine, rates: list[float], first: int = 0) -> Engine:
    for step, rate in enumerate(rates, first):
        random = np.random.default_rng(step)
        images = random.integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
        engine.train_batch(images, random.integers(0, 5, 8), rate, seed=step)
    return engine


def worst(found: Arrays, wanted: Arrays) -> float:
    assert found.keys() == wanted.keys()
    return max(float(np.abs(found[name] - value).max()) for name, value in wanted.items() if "running" not in name)


def by_the_paper(values: Arrays, gradients: list[Arrays], rates: list[float]) -> Arrays:
    """Algorithm 2 in NumPy, on given gradients."""
    momentum = {name: np.zeros_like(value) for name, value in values.items()}
    for gradient, rate in zip(gradients, rates, strict=True):
        for name, value in values.items():
            momentum[name] = 0.9 * momentum[name] + 0.1 * gradient[name]
            values = {**values, name: value - rate * (np.sign(momentum[name]) + 0.1 * value)}
    return values


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_are_the_paper_s(engine: str) -> None:
    """Gradients are read off plain steps of sgd at rate 1, from the weights that Signum had."""
    signum_engine = engine_with(engine, KEYS)
    names = [name for name in signum_engine.values() if "running" not in name]
    start = {name: signum_engine.values()[name].astype(np.float64) for name in names}
    gradients = []
    for step, rate in enumerate(RATES):
        plain = engine_with(engine, {"momentum": 0.0, "weight_decay": 0.0})
        before = signum_engine.values()
        plain.set_values(before)
        after = walk(plain, [1.0], step).values()
        gradients.append({name: before[name] - after[name] for name in names})
        walk(signum_engine, [rate], step)
    wanted = by_the_paper(start, gradients, RATES)
    assert worst({name: signum_engine.values()[name] for name in names}, wanted) < 1e-12
    assert worst(wanted, start) > 1e-3


@pytest.mark.gluon
def test_both_engines_take_the_same_steps() -> None:
    gluon, pytorch = (walk(engine_with(name, KEYS), RATES) for name in ENGINES)
    assert worst(gluon.values(), pytorch.values()) < 1e-12
    state, other = gluon.optimizer_state(), pytorch.optimizer_state()
    assert state["steps/signum"].tolist() == other["steps/signum"].tolist() == [len(RATES)]
    assert worst(state, other) < 1e-12
    assert {name.partition("/")[0] for name in state} == {"mean_gradient", "steps"}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("engine", ENGINES)
def test_its_state_is_kept_and_read_to_the_last_bit(engine: str, precision: str) -> None:
    whole = walk(engine_with(engine, KEYS, precision), RATES)
    half = walk(engine_with(engine, KEYS, precision), RATES[:4])
    again = engine_with(engine, KEYS, precision)
    again.set_values(half.values())
    again.set_optimizer_state(half.optimizer_state())
    walk(again, RATES[4:], first=4)
    for found, wanted in ((again.values(), whole.values()), (again.optimizer_state(), whole.optimizer_state())):
        assert all(found[name].tobytes() == value.tobytes() for name, value in wanted.items())


def test_a_recipe_finds_it_by_its_name_and_its_keys(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('network = "lenet"\nrecords = "data"\n[optimizer]\nname = "signum"\nbeta1 = 0.8\n')
    assert load_recipe(recipe).optimizer.name == "signum"
    (key,) = [key for key in recipe_keys("optimizer.name") if key.name == "optimizer.name"]
    assert key.choices[-1] == "signum"
    with pytest.raises(BadRecipe, match="momentum': has no effect on signum, which reads beta1"):
        load_recipe(recipe, {"optimizer.momentum": 0.5})
    with pytest.raises(BadRecipe, match=r"no such word; .* or 'signum'; found 'singum'; did you mean signum"):
        load_recipe(recipe, {"optimizer.name": "singum"})


@pytest.mark.parametrize(
    ("name", "slots", "message"),
    [
        ("adam", ("mean",), "'adam': cannot register an optimizer under this name"),
        ("signum2", ("average",), "update rule: a slot cannot be named 'average'"),
    ],
)
def test_what_cannot_be_registered(name: str, slots: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadRecipe, match=message):
        register_optimizer(name, UpdateRule(slots, OPTIMIZERS.get("signum").update))
