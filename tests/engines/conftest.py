"""Small networks and batches for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import LossRecipe, OptimizerRecipe, Recipe, TransferRecipe
from imagenet_pipeline.engines import Blueprint, Engine, create_engine
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Activation, Conv, Dense, Flatten, Pool, Sequential, stack

CLASSES, SIZE = 7, 12
PLAIN = LossRecipe()


@pytest.fixture(scope="session")
def plain_network() -> Sequential:
    """Convolution, ReLU, pooling, dense: no batch normalisation, no dropout."""
    return stack(
        conv=Conv(6, 3, pad=1),
        relu=Activation("relu"),
        pool=Pool("max", 2, stride=2),
        flatten=Flatten(),
        classifier=Dense(CLASSES),
    )


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., Engine]:
    """`make_engine(network, size=12, devices="cpu", precision="float32", values=None, engine="auto",
    loss=LossRecipe(), compile=False, frozen=(), rates={}, layer_decay=1.0, accumulation=1, average_decay=0.0,
    class_weights=(), **optimizer)`.
    """

    def make(
        network: Sequential,
        size: int = SIZE,
        devices: str = "cpu",
        precision: str = "float32",
        values: dict[str, Any] | None = None,
        engine: str = "auto",
        loss: LossRecipe = PLAIN,
        compile: bool = False,
        frozen: tuple[str, ...] = (),
        rates: dict[str, float] | None = None,
        layer_decay: float = 1.0,
        accumulation: int = 1,
        average_decay: float = 0.0,
        class_weights: tuple[float, ...] = (),
        **optimizer: Any,
    ) -> Engine:
        recipe = Recipe(
            network="",
            records="",
            devices=devices,
            precision=precision,
            loss=loss,
            compile=compile,
            transfer=TransferRecipe(rates=rates or {}, layer_decay=layer_decay),
            accumulation=accumulation,
            average_decay=average_decay,
            optimizer=OptimizerRecipe(**optimizer),
        )
        blueprint = Blueprint(network, size, (120.0, 110.0, 100.0), (60.0, 61.0, 62.0), recipe, frozen)
        blueprint = replace(blueprint, class_weights=class_weights)
        return create_engine(engine, blueprint, values or initial_values(network, blueprint.input_shape, "msra", 1))

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., tuple[Any, Any]]:
    """`make_batch(count, seed=0, size=12)`: random images and labels."""

    def make(count: int, seed: int = 0, size: int = SIZE) -> tuple[Any, Any]:
        random = np.random.default_rng(seed)
        images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        return images, random.integers(0, CLASSES, count)

    return make


@pytest.fixture(scope="session")
def difference() -> Callable[[dict[str, Any], dict[str, Any]], float]:
    """`difference(found, wanted)`: the worst difference of all values, relative to the largest of its array."""

    def worst(found: dict[str, Any], wanted: dict[str, Any]) -> float:
        assert found.keys() == wanted.keys()
        return max(
            float(np.abs(found[name].astype(np.float64) - wanted[name]).max() / max(np.abs(wanted[name]).max(), 1e-30))
            for name in found
        )

    return worst
