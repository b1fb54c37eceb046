"""A data set drawn: some of its records on a sheet, and the images in each class and split."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from imagenet_pipeline.drawing import tile
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.pictures import data
from imagenet_pipeline.pictures.data import count_classes, draw_classes, montage
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.inspect import inspect
from imagenet_pipeline.records.plan import Images, Plan
from imagenet_pipeline.records.recordio import frame, pack


def test_the_counts_are_those_of_the_records(data_set: Path) -> None:
    counts = count_classes(data_set)
    assert list(counts) == ["train", "val", "test"]
    for split, each in counts.items():
        assert (
            dict(zip(("cat", "dog", "emu"), each.tolist(), strict=True)) == inspect(data_set, split=split).class_counts
        )


def test_bars_for_few_classes_and_curves_for_many(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = draw_classes(data_set, tmp_path / "bars.png")
    assert {split: int(each.sum()) for split, each in counts.items()} == {"train": 18, "val": 6, "test": 6}
    monkeypatch.setattr(data, "BARS_LIMIT", 2)
    draw_classes(data_set, tmp_path / "curves.png")
    bars, curves = (cv2.imread(str(tmp_path / name)) for name in ("bars.png", "curves.png"))
    of_bars, of_curves = (float((picture[:, :, 0] > 1.5 * picture[:, :, 2]).mean()) for picture in (bars, curves))
    assert of_bars > 0.05 > of_curves > 0.0005


def test_a_montage_shows_eight_records_a_row(data_set: Path, tmp_path: Path) -> None:
    assert montage(data_set, tmp_path / "m.png", range(10)) == list(range(10))
    with Image.open(tmp_path / "m.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (14 + 2 * (181 + 14), 14 + 8 * (160 + 14), 3)
    assert (pixels[0] == 255).all()
    assert pixels[40:150, 40:150].std() > 10
    assert pixels[-180:, 14 + 2 * 174 :].min() == 255
    with pytest.raises(BadInput, match=r"records 20:30 are outside 0\.\.17"):
        montage(data_set, tmp_path / "m.png", range(20, 30))
    (tmp_path / "a.rec").touch()
    with pytest.raises(BadInput, match="the number of records to draw is out of range"):
        montage(tmp_path / "a.rec", tmp_path / "m.png", range(10))


def caption(sheet: Path) -> np.ndarray:
    """What stands below the first image."""
    with Image.open(sheet) as picture:
        return np.asarray(picture)[14 + 160 : 14 + 181, 14 : 14 + 160]


@pytest.mark.parametrize("name", ["größe", "собака"])
def test_a_montage_writes_class_names_in_their_own_letters(name: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    images = {"train": Images(["a.png"], np.array([0])), "val": Images(["./a.png"], np.array([0]))}
    build(
        Plan(tmp_path, images, ClassTable("list", ("a",), (name,)), {"builder": "test"}),
        tmp_path / "set",
        BuildOptions(resize=0, workers=1),
    )
    montage(tmp_path / "set", tmp_path / "m.png")
    right, wrong = (np.asarray(tile(np.zeros((8, 8, 3), np.uint8), 160, [line]))[160:] for line in (f"0 {name}", "0 ?"))
    assert np.array_equal(caption(tmp_path / "m.png"), right)
    assert not np.array_equal(right, wrong)


def test_a_record_without_an_image_is_drawn_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_bytes(frame(pack((1.5, 2.0), 3, b"nothing")))
    assert montage(tmp_path / "a.rec", tmp_path / "m.png") == [0]
    expected = np.asarray(tile(np.full((1, 1, 3), 255, np.uint8), 160, ["3 no image"]))[160:]
    assert np.array_equal(caption(tmp_path / "m.png"), expected)


def test_names_of_any_kind_are_drawn(tmp_path: Path) -> None:
    """Formulas, letters without a glyph and very long names; a class without an image."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    names = ("$x^$ {", "犬\x1b[31m", "x" * 500, "_hidden", "none")
    plan = Plan(
        tmp_path,
        {"train": Images(["a.png"], np.array([2])), "val": Images(["./a.png"], np.array([1]))},
        ClassTable("list", tuple("abcde"), names),
        {"builder": "test"},
    )
    build(plan, tmp_path / "set", BuildOptions(resize=0, workers=1))
    counts = draw_classes(tmp_path / "set", tmp_path / "classes.png")
    assert counts["train"].tolist() == [0, 0, 1, 0, 0]
    assert cv2.imread(str(tmp_path / "classes.png")).shape[1] > 1000


def test_mistakes(data_set: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no data set here"):
        draw_classes(tmp_path, tmp_path / "a.png")
    with pytest.raises(BadRecipe, match=r"\.png"):
        draw_classes(data_set, tmp_path / "a.pdf")
