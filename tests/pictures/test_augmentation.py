"""A recipe's augmentation drawn: the stored photo first, then its draws."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from imagenet_pipeline.config import Augmentation, InputRecipe, Recipe
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.pictures.augmentation import draw_augmentation
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.plan import Images, Plan


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, colour in enumerate([(0, 0, 200), (0, 200, 0), (200, 0, 0)]):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((60, 60, 3), colour, np.uint8))
    table = ClassTable("list", ("a", "b", "c"), ("red one", "green one", "blue one"))
    splits = {"train": Images([f"{number}.png" for number in range(3)], np.arange(3))}
    build(Plan(folder, splits, table, {"builder": "test"}), folder / "set", BuildOptions(resize=0, workers=1))
    return folder / "set"


def recipe(records: Path, **augmentation: float) -> Recipe:
    changes = Augmentation(flip=0.0, **augmentation)  # type: ignore[arg-type]
    return Recipe(network="lenet", records=str(records), input=InputRecipe(size=48), augmentation=changes, batch_size=2)


@pytest.mark.parametrize("draws", [1, 24])
def test_the_stored_photo_and_every_draw(records: Path, tmp_path: Path, draws: int) -> None:
    draw_augmentation(recipe(records), tmp_path / "a.png", 0, draws)
    red = (cv2.imread(str(tmp_path / "a.png"))[:, :, ::-1] - np.array([200, 0, 0])).__abs__().max(axis=2) < 8
    assert red.sum() == 120 * 120 + draws * 144 * 144  # 60 pixels twice as large, 48 pixels three times


def test_a_mixture_shows_both(records: Path, tmp_path: Path) -> None:
    draw_augmentation(recipe(records, cutmix=1.0), tmp_path / "a.png", 0, 12)
    drawn = cv2.imread(str(tmp_path / "a.png"))[:, :, ::-1]
    for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200)):
        assert (abs(drawn - np.array(colour)).max(axis=2) < 8).sum() > 500


def test_a_record_that_is_not_there(records: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such record; expected 0\.\.2; found 3"):
        draw_augmentation(recipe(records), tmp_path / "a.png", 3)
    assert not (tmp_path / "a.png").exists()
