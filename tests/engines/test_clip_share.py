"""Adaptive gradient clipping on both engines: against Brock et al. 2021, equation 3, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.engines import Engine
from imagenet_pipeline.networks.layers import Activation, BatchNorm, Conv, Dense, Flatten, stack

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
MakeEngine = Callable[..., Engine]
MakeBatch = Callable[..., tuple[Any, Any]]
Difference = Callable[[Arrays, Arrays], float]

ENGINES = {"gluon": {}, "gluon on two devices": {"devices": "cpu:0,1"}, "pytorch": {}}
NETWORK = stack(
    conv=Conv(4, 3, pad=1, bias=False), norm=BatchNorm(), prelu=Activation("prelu"), thin=Conv(6, 1, groups=2),
    flatten=Flatten(), dense=Dense(6), relu=Activation("relu"), classifier=Dense(7),
)  # fmt: skip
PLAIN: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.0, "precision": "float64", "size": 8}


def unit_norms(array: Array) -> Array:
    """`unitwise_norm` of the authors' code: of outputs, or of a whole vector."""
    if array.ndim <= 1:
        return np.asarray(np.linalg.norm(array))
    return np.asarray(np.sqrt(np.square(array).sum(axis=tuple(range(1, array.ndim)), keepdims=True)))


def clipped(weight: Array, gradient: Array, share: float) -> Array:
    longest = share * np.maximum(unit_norms(weight), 1e-3)
    norm = unit_norms(gradient)
    scaled = gradient * (longest / np.maximum(norm, 1e-6))
    return np.asarray(np.where(norm > longest, scaled, gradient))


def moved(engine: Engine, make_batch: MakeBatch) -> Arrays:
    """What a plain step at rate 1 subtracts: the gradient."""
    before = engine.values()
    engine.train_batch(*make_batch(8, 0, 8), 1.0, seed=0)
    after = engine.values()
    return {name: before[name] - after[name] for name in before if "running" not in name}


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("engine", ENGINES)
def test_each_unit_is_clipped_by_its_weights_but_the_heads(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference, engine: str, share: float
) -> None:
    options = {**PLAIN, **ENGINES[engine], "engine": engine.partition(" ")[0]}
    plain, adaptive = make_engine(NETWORK, **options), make_engine(NETWORK, **options, clip_share=share)
    weights, gradients = plain.values(), moved(plain, make_batch)
    wanted = {name: clipped(weights[name], one, share) for name, one in gradients.items()}
    wanted |= {name: one for name, one in gradients.items() if name.startswith("classifier")}
    assert any((wanted[name] != one).any() for name, one in gradients.items())
    assert difference(moved(adaptive, make_batch), wanted) < 1e-12


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
@pytest.mark.gluon
def test_both_engines_step_alike_and_go_on_alike(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference, name: str
) -> None:
    """With everything else that is done to a gradient; Gluon's kernel of sgd gives way to the written rule."""
    keys: dict[str, Any] = {"name": name, "clip_share": 0.02, "clip_norm": 0.5, "max_norm": 0.9, "size": 8}
    for precision, l1, noise in (("float64", 1e-3, 1e-10), ("float32", 0.0, 2e-3)):
        options = {**keys, "precision": precision, "l1": l1}
        engines = [make_engine(NETWORK, engine=one, **options) for one in ("gluon", "pytorch")]
        for step in range(4):
            for engine in engines:
                engine.train_batch(*make_batch(8, step, 8), 0.01, seed=step)
        values = [{n: v for n, v in engine.values().items() if "running" not in n} for engine in engines]
        assert difference(*values) < noise


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_a_gradient_that_is_no_number_stays_visible(
    make_engine: MakeEngine, make_batch: MakeBatch, engine: str
) -> None:
    made = make_engine(NETWORK, size=8, engine=engine, clip_share=0.01)
    made.set_values({**made.values(), "norm.bias": np.full(4, np.nan, np.float32)})
    made.train_batch(*make_batch(8, 0, 8), 0.1, seed=0)
    assert np.isnan(made.values()["dense.weight"]).any()
