"""What engines share: the written rule, exact counts, totals that add up, and one-line errors.

Tests that ask for `make_engine` run on each engine, and on two devices where it takes two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import NO_TOTALS, Blueprint, Engine, Totals, create_engine, is_installed
from imagenet_pipeline.engines.zoos import zoo_names
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.loading.loader import Batch
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Layer,
    Residual,
    Sequential,
    stack,
)
from imagenet_pipeline.training.metrics import rank_hits, score, top_classes

Array = np.ndarray[Any, Any]
MakeEngine = Callable[..., Engine]
MakeBatch = Callable[..., tuple[Any, Any]]
Difference = Callable[[dict[str, Array], dict[str, Array]], float]

LINEAR = stack(flatten=Flatten(), classifier=Dense(7))
MEAN, STD = np.array([120.0, 110.0, 100.0]), np.array([60.0, 61.0, 62.0])

# The worst of many seeds, measured: float64 1e-15, float32 3e-7, relative to the largest value.
FLOAT64_NOISE, FLOAT32_NOISE = 1e-12, 3e-5

BLUEPRINT = Blueprint(
    stack(f=Flatten(), d=Dense(2)), 4, (0.0,) * 3, (1.0,) * 3, Recipe(network="", records="", devices="cpu")
)

counts = st.integers(1, 10**6).flatmap(
    lambda images: st.builds(
        Totals,
        st.just(images),
        st.integers(0, images),
        st.integers(0, images),
        st.lists(st.floats(0, 1e6), min_size=1, max_size=5).map(np.array),
    )
)


@given(counts, counts)
def test_totals_add_up(first: Totals, second: Totals) -> None:
    total = NO_TOTALS + first + second
    assert total.images == first.images + second.images
    assert total.rank1 == 100 * (first.rank1_hits + second.rank1_hits) / total.images
    assert total.rank5 == 100 * (first.rank5_hits + second.rank5_hits) / total.images
    assert total.loss == pytest.approx((first.loss * first.images + second.loss * second.images) / total.images)


def test_the_input_shape_is_channels_height_width() -> None:
    assert BLUEPRINT.input_shape == (3, 4, 4)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(BadRecipe, match=r"engine = 'caffe'.*expected 'gluon'"):
        create_engine("caffe", BLUEPRINT, {})


@pytest.mark.parametrize(("engine", "framework"), [("gluon", "mxnet"), ("pytorch", "torch")])
def test_a_framework_that_is_not_installed_is_one_line_of_advice(
    monkeypatch: pytest.MonkeyPatch, engine: str, framework: str
) -> None:
    for module in [name for name in sys.modules if name.startswith(f"imagenet_pipeline.engines.{engine}")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(BadRecipe, match=rf"not installed .*; pip install 'imagenet-pipeline\[{engine}\]'") as caught:
        create_engine(engine, BLUEPRINT, {})
    other = "pytorch" if engine == "gluon" else "gluon"
    assert (f", or take engine={other}, which is installed" in str(caught.value)) == is_installed(other)


@pytest.mark.parametrize(
    ("engine", "library", "framework"), [("gluon", "gluoncv", "mxnet"), ("pytorch", "timm", "torch")]
)
@pytest.mark.parametrize("failure", [OSError("libcudart.so.11.0:\n cannot open"), ImportError("undefined symbol")])
def test_a_framework_that_is_broken_is_one_line(
    monkeypatch: pytest.MonkeyPatch, engine: str, library: str, framework: str, failure: Exception
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == framework:
                raise failure

    ours = f"imagenet_pipeline.engines.{engine}"
    for module in [name for name in sys.modules if name.startswith(ours) or name == framework]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(f"imagenet_pipeline.engines.{engine}_zoo", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    for asked in (lambda: create_engine(engine, BLUEPRINT, {}), lambda: zoo_names(library)):
        with pytest.raises(BadRecipe, match=rf"the {engine} engine is installed but cannot be imported \(") as caught:
            asked()
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module", params=["gluon", "gluon on two devices", "pytorch"])
def make_engine(request: pytest.FixtureRequest, make_engine: MakeEngine) -> MakeEngine:
    """The one of conftest.py, of one engine after the other."""
    engine, _, two = request.param.partition(" ")
    return partial(make_engine, engine=engine, devices="cpu:0,1" if two else "cpu")


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def written_rule(
    values: dict[str, Array], batches: list[tuple[Array, Array]], rates: list[float],
    momentum: float, nesterov: bool, decay: float,
) -> dict[str, Array]:  # fmt: skip
    """Softmax regression by the rule of `rules.sgd`, in float64."""
    names = ("classifier.weight", "classifier.bias")
    w = {name: values[name].astype(np.float64) for name in names}
    v = {name: np.zeros_like(w[name]) for name in names}
    for (images, labels), r in zip(batches, rates, strict=True):
        x = ((images - MEAN) / STD).transpose(0, 3, 1, 2).reshape(len(images), -1)
        slope = softmax(x @ w[names[0]].T + w[names[1]])
        slope[np.arange(len(labels)), labels] -= 1
        g = {names[0]: slope.T @ x / len(labels), names[1]: slope.mean(0)}
        for name in names:
            G = g[name] + decay * w[name]
            v[name] = momentum * v[name] + G
            w[name] = w[name] - r * (G + momentum * v[name] if nesterov else v[name])
    return w


@settings(max_examples=15, deadline=None)
@given(
    rates=st.lists(st.sampled_from([0.01, 0.001, 1e-4, 0.02]), min_size=2, max_size=6),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    nesterov=st.booleans(),
    decay=st.sampled_from([0.0, 1e-4, 0.1]),
    precision=st.sampled_from(["float32", "float64"]),
)
def test_steps_follow_the_written_rule_through_changes_of_rate(
    difference: Difference, make_engine: MakeEngine,
    make_batch: MakeBatch, rates: list[float], momentum: float, nesterov: bool, decay: float,
    precision: str,
) -> None:  # fmt: skip
    nesterov = nesterov and momentum > 0
    engine = make_engine(LINEAR, size=4, precision=precision, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    values, batches = engine.values(), [make_batch(5, seed, 4) for seed in range(len(rates))]
    for (images, labels), rate in zip(batches, rates, strict=True):
        engine.train_batch(images, labels, rate, seed=0)
    wanted = written_rule(values, batches, rates, momentum, nesterov, decay)
    assert difference(engine.values(), wanted) < (FLOAT64_NOISE if precision == "float64" else FLOAT32_NOISE)


def test_a_change_of_rate_acts_at_once(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    """A rate a thousand times smaller moves the weights a thousand times less, momentum or not."""
    engine = make_engine(LINEAR, size=4, precision="float64", weight_decay=0)
    images, labels = make_batch(5, size=4)
    moves = []
    for rate in (0.01, 0.01, 1e-5):
        before = engine.values()["classifier.weight"]
        engine.train_batch(images, labels, rate, seed=0)
        moves.append(np.abs(engine.values()["classifier.weight"] - before).max())
    assert moves[2] < moves[1] / 300


@pytest.mark.parametrize(
    "optimizer", [{}, {"nesterov": True}, {"momentum": 0.0}], ids=["momentum", "nesterov", "plain"]
)
def test_going_on_from_values_and_state_gives_equal_bytes(
    make_engine: MakeEngine, make_batch: MakeBatch, plain_network: Sequential, optimizer: dict[str, Any]
) -> None:
    batches, rates = [make_batch(6, seed) for seed in range(6)], [0.1, 0.1, 0.05, 0.01, 0.01, 0.02]

    def steps(engine: Engine, first: int, last: int) -> None:
        for (images, labels), rate in zip(batches[first:last], rates[first:last], strict=True):
            engine.train_batch(images, labels, rate, seed=0)

    whole = make_engine(plain_network, **optimizer)
    steps(whole, 0, 6)
    first = make_engine(plain_network, **optimizer)
    steps(first, 0, 3)
    second = make_engine(plain_network, values=first.values(), **optimizer)
    second.set_optimizer_state(first.optimizer_state())
    steps(second, 3, 6)
    for name, value in whole.values().items():
        assert value.tobytes() == second.values()[name].tobytes(), name
    for name, value in whole.optimizer_state().items():
        assert value.tobytes() == second.optimizer_state()[name].tobytes(), name


def test_the_state_is_empty_before_the_first_step(make_engine: MakeEngine) -> None:
    engine = make_engine(LINEAR, size=4)
    assert engine.optimizer_state() == {}
    engine.set_optimizer_state({})


@pytest.mark.parametrize(
    "drop", [Dropout(0.5), Residual(stack(conv=Conv(4, 1)), drop_rate=0.5)], ids=["values", "body"]
)
def test_the_seed_alone_decides_dropout(make_engine: MakeEngine, make_batch: MakeBatch, drop: Layer) -> None:
    network = stack(conv=Conv(4, 3), relu=Activation("relu"), drop=drop, flatten=Flatten(), classifier=Dense(7))

    def trained(seed: int) -> bytes:
        engine = make_engine(network)
        for step in range(3):
            engine.train_batch(*make_batch(6, step), 0.05, seed=seed + step)
        return b"".join(value.tobytes() for value in engine.values().values())

    first = trained(2**32 - 3)
    assert trained(7) != first
    assert trained(2**32 - 3) == first


@pytest.mark.parametrize("batch_size", [1, 7, 22, 23, 24])
def test_every_image_is_counted_once_whatever_the_batch_size(
    make_engine: MakeEngine, make_batch: MakeBatch, plain_network: Sequential, batch_size: int
) -> None:
    images, labels = make_batch(23)
    engine = make_engine(plain_network)
    for first in range(0, 23, batch_size):
        engine.score_batch(images[first : first + batch_size], labels[first : first + batch_size])
    totals, logits = engine.totals(), engine.logits(images)
    assert totals.images == 23
    assert (totals.rank1_hits, totals.rank5_hits) == rank_hits(top_classes(logits), labels)
    own = np.log(softmax(logits.astype(np.float64)))[np.arange(23), labels]
    assert totals.loss == pytest.approx(-own.mean(), rel=1e-5)
    assert engine.totals().images == 0


def test_logits_of_several_batches_may_be_issued_before_any_is_read(
    make_engine: MakeEngine, make_batch: MakeBatch, plain_network: Sequential
) -> None:
    engine = make_engine(plain_network)
    batches = [make_batch(count, seed=count)[0] for count in (4, 4, 3)]
    alone = [engine.logits(images) for images in batches]
    room = engine.host_array(batches[0].shape, np.uint8)
    waits = []
    for images in batches:
        room[: len(images)] = images
        waits.append(engine.issue_logits(room[: len(images)]))
        room[:] = 0
    found = [wait() for wait in reversed(waits)]
    for logits, wanted in zip(reversed(found), alone, strict=True):
        np.testing.assert_array_equal(logits, wanted)


def test_a_batch_may_be_overwritten_at_once(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    engines = [make_engine(LINEAR) for _ in range(2)]
    room, labels_room = engines[1].host_array((5, 12, 12, 3), np.uint8), engines[1].host_array((5,), np.int64)
    for seed in range(4):
        images, labels = make_batch(5, seed)
        engines[0].train_batch(images, labels, 0.01, seed)
        room[:], labels_room[:] = images, labels
        engines[1].train_batch(room, labels_room, 0.01, seed)
        room[:], labels_room[:] = 255 - images, (labels + 1) % 7
        engines[1].score_batch(room, labels_room)
        engines[0].score_batch(255 - images, (labels + 1) % 7)
        room[:], labels_room[:] = 0, 0
    losses = [engine.totals().step_losses for engine in engines]
    np.testing.assert_array_equal(*losses)


def test_training_counts_before_the_step(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    images, labels = make_batch(9)
    engine = make_engine(LINEAR)
    engine.score_batch(images, labels)
    scored = engine.totals()
    engine.train_batch(images, labels, 0.1, seed=0)
    trained = engine.totals()
    assert (trained.rank1_hits, trained.rank5_hits) == (scored.rank1_hits, scored.rank5_hits)
    assert trained.loss == pytest.approx(scored.loss, rel=1e-6)


def test_ties_go_to_the_lower_class(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    """With all weights 0 every class has the same score: class 0 stands first, classes 0 to 4 among the first five."""
    values = {"classifier.weight": np.zeros((7, 48), np.float32), "classifier.bias": np.zeros(7, np.float32)}
    engine = make_engine(LINEAR, size=4, values=values)
    images, _ = make_batch(7, size=4)
    labels = np.arange(7)
    engine.score_batch(images, labels)
    totals = engine.totals()
    assert (totals.rank1_hits, totals.rank5_hits) == (1, 5)
    assert (totals.rank1_hits, totals.rank5_hits) == rank_hits(top_classes(engine.logits(images)), labels)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_give_a_loss_that_is_not(
    make_engine: MakeEngine, make_batch: MakeBatch, value: float
) -> None:
    values = dict(make_engine(LINEAR, size=4).values())
    values["classifier.bias"] = np.array([0, value, 0, 0, 0, 0, 0], np.float32)
    engine = make_engine(LINEAR, size=4, values=values)
    images, labels = make_batch(3, size=4)

    batch = Batch(images, labels, np.arange(len(labels)), 0, 0.0)
    assert not np.isfinite(score(engine, [batch]).loss)


def test_nothing_to_score_is_an_error(make_engine: MakeEngine) -> None:
    with pytest.raises(BadInput, match="no records to score"):
        score(make_engine(LINEAR, size=4), [])


def test_one_image_at_a_time_gives_the_logits_of_a_batch(
    make_engine: MakeEngine, make_batch: MakeBatch, plain_network: Sequential
) -> None:
    network = stack(
        conv=Conv(5, 3, bias=False), norm=BatchNorm(), pool=GlobalAveragePool(), flat=Flatten(), top=Dense(7)
    )
    images, _ = make_batch(4)
    engine = make_engine(network)
    logits = engine.logits(images)
    assert (logits.shape, logits.dtype) == ((4, 7), np.float32)
    one_by_one = np.concatenate([engine.logits(images[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(one_by_one, logits, rtol=1e-4, atol=1e-6)


def test_values_are_copies(make_engine: MakeEngine) -> None:
    engine = make_engine(LINEAR, size=4)
    engine.values()["classifier.bias"][:] = 9
    assert (engine.values()["classifier.bias"] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.bias": None}, r"classifier.bias missing \(1 in all\)"),
        ({"extra": np.zeros(1)}, r"extra not in this network \(1 in all\)"),
        ({"classifier.bias": np.zeros(3)}, r"classifier.bias has shape \(3,\), not \(7,\)"),
        ({"a": np.zeros(1), "b": np.zeros(1), "c": np.zeros(1), "d": np.zeros(1)}, r"a not .*; c not .*\(4 in all\)"),
    ],
)
def test_weights_of_another_network_are_refused_in_one_line(
    make_engine: MakeEngine, change: dict[str, Any], message: str
) -> None:
    engine = make_engine(LINEAR, size=4)
    values = {name: value for name, value in {**engine.values(), **change}.items() if value is not None}
    with pytest.raises(BadInput, match=message) as caught:
        engine.set_values(values)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput):
        make_engine(LINEAR, size=4, values=values)


def test_a_state_of_another_network_is_refused(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    engine = make_engine(LINEAR, size=4)
    engine.train_batch(*make_batch(3, size=4), 0.1, seed=0)
    state = dict(engine.optimizer_state())
    name = next(name for name in state if name.endswith("/classifier.bias"))
    del state[name]
    with pytest.raises(BadInput, match=f"the arrays of the optimizer state do not fit the network: {name} missing"):
        engine.set_optimizer_state(state)
