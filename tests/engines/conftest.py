"""Small networks and batches for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Blueprint
from imagenet_pipeline.engines.gluon import GluonEngine
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Activation, Conv, Dense, Flatten, Pool, Sequential, stack

CLASSES, SIZE = 7, 12


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
def make_engine() -> Callable[..., GluonEngine]:
    """`make_engine(network, size=12, devices="cpu", precision="float32", values=None, **optimizer)`."""

    def make(
        network: Sequential,
        size: int = SIZE,
        devices: str = "cpu",
        precision: str = "float32",
        values: dict[str, Any] | None = None,
        **optimizer: Any,
    ) -> GluonEngine:
        blueprint = Blueprint(
            network,
            size,
            (120.0, 110.0, 100.0),
            (60.0, 61.0, 62.0),
            OptimizerRecipe(**optimizer),
            devices,
            precision,
        )
        return GluonEngine(blueprint, values or initial_values(network, blueprint.input_shape, "msra", 1))

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., tuple[Any, Any]]:
    """`make_batch(count, seed=0, size=12)`: random images and labels."""

    def make(count: int, seed: int = 0, size: int = SIZE) -> tuple[Any, Any]:
        random = np.random.default_rng(seed)
        images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        return images, random.integers(0, CLASSES, count)

    return make
