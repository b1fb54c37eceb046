"""A few photos as records, and a recipe that trains a zoo's network on them in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from imagenet_pipeline.record_builders import folder
from imagenet_pipeline.records.build import BuildOptions, build

SIZE, CLASSES, PHOTOS = 32, 3, 8

RECIPE = """
network = "{network}"
engine = "{engine}"
records = "{records}"
epochs = 2
batch_size = 9
devices = "cpu"
precision = "float32"

[input]
size = 32

[optimizer]
learning_rate = 0.02

[loader]
threads = 0
"""


@pytest.fixture(scope="session")
def photo_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of three colours: 18 train, 3 val, 3 test images."""
    root, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("records")
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"colour{label}").mkdir()
        for number in range(PHOTOS):
            pixels = random.integers(0, 128, (SIZE, SIZE, 3), dtype=np.uint8)
            pixels[..., label] += 100
            cv2.imwrite(str(root / f"colour{label}" / f"{number}.png"), pixels)
    build(folder.plan(root, 0.125, 0.125), out, BuildOptions(resize=0, workers=1))
    return out


@pytest.fixture
def make_recipe(photo_records: Path, tmp_path: Path) -> Callable[..., Path]:
    """`make_recipe(network, engine)`: a recipe file of two epochs of two steps."""

    def make(network: str, engine: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(RECIPE.format(network=network, engine=engine, records=photo_records))
        return path

    return make
