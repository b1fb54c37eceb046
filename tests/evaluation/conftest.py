"""Records of twelve small photos in three splits, and runs that score them: drawn weights, nothing trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline.config import InputRecipe, LoaderRecipe, Recipe, recipe_text
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.record_builders import folder
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.training.checkpoint import State, save_checkpoint

CLASSES, PHOTOS, SIDE = 6, 8, 40


@pytest.fixture(scope="session")
def photo_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of six brightnesses: 30 train, 6 val, 12 test images."""
    root, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("records")
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"class{label}").mkdir()
        for number in range(PHOTOS):
            pixels = random.integers(0, 100, (SIDE, SIDE, 3), dtype=np.uint8) + 30 * label
            cv2.imwrite(str(root / f"class{label}" / f"{number}.png"), pixels.astype(np.uint8))
    build(folder.plan(root, 0.125, 0.25), out, BuildOptions(resize=0, workers=1))
    return out


@pytest.fixture(scope="session")
def make_run(photo_records: Path) -> Callable[..., Path]:
    """`make_run(folder, network="lenet", size=28, engine="pytorch", seed=1, classes=None, crop_fraction=0.875)`."""

    def make(
        place: Path,
        network: str = "lenet",
        size: int = 28,
        engine: Any = "pytorch",
        seed: int = 1,
        classes: tuple[str, ...] | None = None,
        crop_fraction: float = 0.875,
    ) -> Path:
        data = read_data_set(photo_records)
        ids = classes or data.classes.ids
        recipe = Recipe(
            network=network, records=str(photo_records), engine=engine, batch_size=5, devices="cpu",
            precision="float64", input=InputRecipe(size=size, crop_fraction=crop_fraction),
            loader=LoaderRecipe(threads=0),
        )  # fmt: skip
        place.mkdir(parents=True)
        (place / "recipe.toml").write_text(recipe_text(recipe))
        values = initial_values(catalog.entry(network).build(len(ids)), (3, size, size), "he", seed)
        state = State(
            1, 6, network, size, ids, ids, data.classes.order, data.mean, data.std, data.digest, engine, {},
            {"validation_rank1": 10.0}, {}, crop_fraction,
        )  # fmt: skip
        save_checkpoint(place, state, values, {})
        return place

    return make
