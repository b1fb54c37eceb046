"""The Gluon engine: the written update rule, device lists, exact counts, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("imagenet_pipeline.engines.gluon.runtime")

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines.gluon.engine import GluonEngine, parse_contexts, refuse_keys_of_pytorch
from imagenet_pipeline.engines.gluon.engine import mx as mxnet
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import (
    BatchNorm,
    Dense,
    Dropout,
    Flatten,
    Sequential,
    stack,
)

Array = np.ndarray[Any, Any]
MakeEngine = Callable[..., GluonEngine]
MakeBatch = Callable[..., tuple[Any, Any]]
Difference = Callable[[dict[str, Array], dict[str, Array]], float]
mx: Any = mxnet

LINEAR = stack(flatten=Flatten(), classifier=Dense(7))
MEAN, STD = np.array([120.0, 110.0, 100.0]), np.array([60.0, 61.0, 62.0])

# The worst of many seeds, measured: float64 1e-15, float32 3e-7, relative to the largest value.
FLOAT64_NOISE, FLOAT32_NOISE = 1e-12, 3e-5


@pytest.mark.parametrize(("precision", "limit"), [("float64", 1e-9), ("float32", 2e-6)])
@pytest.mark.parametrize("count", [6, 7])
def test_two_devices_train_as_one_where_nothing_is_normalised_by_batch(
    difference: Difference,
    make_engine: MakeEngine,
    make_batch: MakeBatch,
    plain_network: Sequential,
    precision: str,
    limit: float,
    count: int,
) -> None:
    one = make_engine(plain_network, precision=precision)
    two = make_engine(plain_network, devices="cpu:0,1", precision=precision)
    for seed in range(5):
        images, labels = make_batch(count, seed)
        for engine in (one, two):
            engine.train_batch(images, labels, 0.05 / (1 + seed), seed=0)
    assert difference(two.values(), one.values()) < limit
    first, second = one.totals(), two.totals()
    assert np.abs(first.step_losses - second.step_losses).max() < limit * first.step_losses.max()
    assert (first.images, first.rank1_hits, first.rank5_hits) == (second.images, second.rank1_hits, second.rank5_hits)


def test_running_statistics_of_two_devices_are_averaged(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    network = stack(flatten=Flatten(), norm=BatchNorm(momentum=0.5), classifier=Dense(7))
    images, labels = make_batch(8, size=4)
    engine = make_engine(network, size=4, devices="cpu:0,1")
    engine.train_batch(images, labels, 0.1, seed=0)
    x = ((images - MEAN) / STD).transpose(0, 3, 1, 2).reshape(8, -1)
    found = engine.values()
    np.testing.assert_allclose(found["norm.running_mean"], 0.5 * x.mean(0), atol=1e-6)
    variance = (x[:4].var(0) + x[4:].var(0)) / 2
    np.testing.assert_allclose(found["norm.running_var"], 0.5 + 0.5 * variance, rtol=1e-5)


def test_fewer_images_than_devices_are_refused(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    engine = make_engine(LINEAR, size=4, devices="cpu:0,1")
    with pytest.raises(BadRecipe, match="a step has fewer images than there are devices; expected 2; found 1"):
        engine.train_batch(*make_batch(1, size=4), 0.1, seed=0)
    engine.score_batch(*make_batch(1, size=4))
    assert engine.totals().images == 1


def test_devices_drop_different_values(difference: Difference, make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    """Were both halves of a doubled batch dropped alike, two devices would do what one does with one half."""
    network = stack(flatten=Flatten(), drop=Dropout(0.5), classifier=Dense(7))
    images, labels = make_batch(4, size=4)
    one, two = make_engine(network, size=4), make_engine(network, size=4, devices="cpu:0,1")
    one.train_batch(images, labels, 0.1, seed=3)
    two.train_batch(np.concatenate([images, images]), np.concatenate([labels, labels]), 0.1, seed=3)
    assert difference(one.values(), two.values()) > 1e-3


@pytest.mark.parametrize(
    "devices",
    [
        "tpu",
        "cpu:x",
        "cpu:-1",
        "cpu:0,0",
        "cpu:0,",
        "cpu:",
        "gpu:a",
        "cpu:all",
        "auto:all",
        "",
        "cpu,gpu",
        "cpu:0;1",
        "CPU:²",
    ],
)
def test_a_devices_word_that_means_nothing_is_refused(devices: str) -> None:
    with pytest.raises(BadRecipe, match=r"cannot be read; expected auto, cpu, cpu:0,1, gpu:all or gpu:0,1"):
        parse_contexts(devices)


def test_devices_words() -> None:
    assert parse_contexts("cpu") == [mx.cpu(0)]
    assert parse_contexts("cpu:0,1,2") == [mx.cpu(0), mx.cpu(1), mx.cpu(2)]
    assert len(parse_contexts("auto")) == 1


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 0)
    with pytest.raises(BadRecipe, match=r"devices = 'gpu:0': there is no GPU that MXNet can use"):
        parse_contexts("gpu:0")
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 2)
    with pytest.raises(BadRecipe, match=r"no device number 2; found 2 GPUs"):
        parse_contexts("gpu:0,2")
    assert parse_contexts("auto") == [mx.gpu(0)]
    assert parse_contexts("gpu:all") == [mx.gpu(0), mx.gpu(1)]


def test_a_huge_cpu_number_is_refused_instead_of_filling_the_memory() -> None:
    with pytest.raises(BadRecipe, match="no device number 4294967296"):
        parse_contexts("cpu:0,4294967296")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precisions_are_refused(make_engine: MakeEngine, precision: str) -> None:
    with pytest.raises(
        BadRecipe, match=rf"precision = '{precision}': the gluon engine .*; take precision=auto or"
    ) as caught:
        make_engine(LINEAR, precision=precision)
    assert ("float16 matrices on GPUs alone" in str(caught.value)) == (precision == "float16")


def test_compilation_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(BadRecipe, match="compile = true: the gluon engine compiles its own way"):
        make_engine(LINEAR, compile=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sync_batch_norm", True, r"^sync_batch_norm = true: the gluon engine has no .*; sync_batch_norm=false or"),
        ("gradient_compression", "bfloat16", r'^gradient_compression = "bfloat16": .*; gradient_compression=none or'),
    ],
)
def test_keys_of_pytorchs_processes_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(BadRecipe, match=message):
        refuse_keys_of_pytorch(Recipe(network="", records="", **{key: value}))


def test_auto_is_float32(make_engine: MakeEngine) -> None:
    assert make_engine(LINEAR, precision="auto").precision == "float32"
