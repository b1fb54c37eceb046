"""Values, pictures and engines for comparing one network on two frameworks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import OptimizerRecipe, Recipe
from imagenet_pipeline.engines import Blueprint, Engine, create_engine
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import parameters

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)

Array = np.ndarray[Any, Any]
Values = dict[str, Array]


@pytest.fixture(scope="session")
def random_values() -> Callable[[Sequential, int], Values]:
    """`random_values(network, size)`: float32 numbers, none left at 0 or 1, so that no layer hides behind another.

    MXNet keeps running statistics in float32, whatever the precision.
    """

    def draw(network: Sequential, size: int) -> Values:
        shape, random = (3, size, size), np.random.default_rng(1)
        declared = parameters(network, shape)
        fixed = {name for name, one in declared.items() if not one.trainable}
        values = dict(initial_values(network, shape, "he", 0))
        for name, value in values.items():
            if name.endswith("running_var"):
                values[name] = random.uniform(0.5, 2, value.shape).astype(np.float32)
            elif name.endswith(("bias", "running_mean", "value")):
                values[name] = (random.normal(size=value.shape) * 0.1).astype(np.float32)
            elif value.ndim == 1 and name not in fixed:
                start = np.float32(1) if declared[name].role == "scale" else value  # a Scale begins at next to nothing
                values[name] = start * random.uniform(0.5, 1.5, value.shape).astype(np.float32)
        return values

    return draw


@pytest.fixture(scope="session")
def photos() -> Callable[..., Array]:
    """`photos(count, size)`: random uint8 [count, size, size, 3]."""
    return lambda count, size: np.random.default_rng(2).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def engine_of() -> Callable[..., Engine]:
    """`engine_of("gluon", network, size, values, precision="float64")`: on the CPU, SGD without momentum or decay."""

    def make(name: str, network: Sequential, size: int, values: Values, precision: str = "float64") -> Engine:
        plain = OptimizerRecipe(momentum=0, weight_decay=0)
        recipe = Recipe(network="", records="", devices="cpu", precision=precision, optimizer=plain)
        return create_engine(name, Blueprint(network, size, MEAN, STD, recipe), values)

    return make


@pytest.fixture(scope="session")
def normalised() -> Callable[[Array], Array]:
    """What an engine makes of photos: float64 [count, 3, size, size]."""
    return lambda images: np.ascontiguousarray(((images - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2))
