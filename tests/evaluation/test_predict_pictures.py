"""Predictions drawn: every picture under a name of its own, legible at any size, a sheet that says where it was cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenet_pipeline.drawing import ACCENT
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.evaluation import predict_pictures
from imagenet_pipeline.evaluation.predict import Choice, Prediction
from imagenet_pipeline.evaluation.predict_pictures import SHEET_LIMIT, Drawings, annotated

TOP = (Choice("n1", "tabby, tabby cat", 0.75), Choice("n2", "кошка 猫 \x1b[31m" * 9, 0.25), Choice("n3", "", 0.0))


def save(path: Path, colour: tuple[int, int, int] = (200, 30, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 32), colour).save(path)
    return path


def draw(paths: list[Path], folder: Path | None, sheet: Path | None) -> tuple[Drawings, str]:
    drawings = Drawings(paths, folder, sheet)
    for path in paths:
        drawings.add(Prediction(path, TOP))
    return drawings, drawings.finish("lenet, epoch-0002 of demo")


def test_pictures_of_one_name_in_several_folders_are_all_drawn(tmp_path: Path) -> None:
    names = ["in/a/x.png", "in/b/x.png", "in/b/x.jpg", "in/b/x.png.jpg", "in/b/x.JPEG"]
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    paths = [save(tmp_path / name, colour) for name, colour in zip(names, colours, strict=True)]
    drawings, _ = draw(paths, tmp_path / "out", None)
    written = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.*")}
    assert set(written) == {"a/x.png.jpg", "b/x.png.jpg.jpg", "b/x.jpg", "b/x.png.jpg", "b/x.JPEG"}
    assert drawings.annotated == 5
    for name, colour in zip(("a/x.png.jpg", "b/x.png.jpg.jpg", "b/x.jpg", "b/x.png.jpg"), colours, strict=False):
        with Image.open(written[name]) as picture:
            np.testing.assert_allclose(picture.getpixel((picture.width // 2, 10)), colour, atol=12)


def test_nothing_is_drawn_among_the_pictures(tmp_path: Path) -> None:
    path = save(tmp_path / "in" / "a" / "x.png")
    for folder in (tmp_path / "in", tmp_path / "in" / "a"):
        with pytest.raises(BadRecipe, match="among the originals"):
            Drawings([path], folder, None)
    Drawings([path], tmp_path / "in" / "aa", None)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for pictures, folder in (([path], tmp_path / "link"), ([tmp_path / "link" / "a" / "x.png"], tmp_path / "in")):
        with pytest.raises(BadRecipe, match="among the originals"):
            Drawings(pictures, folder, None)


def test_a_copy_that_is_a_link_to_a_picture_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "in" / "x.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.jpg").symlink_to(path)
    with pytest.raises(BadRecipe, match="would overwrite an input"):
        Drawings([path], tmp_path / "out", None)


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (64, 48), (500, 375), (64, 900), (900, 64), (2000, 1500)])
def test_letters_fit_the_picture(size: tuple[int, int]) -> None:
    pixels = np.full((size[1], size[0], 3), (200, 30, 30), np.uint8)
    drawn = np.asarray(annotated(pixels, TOP))
    assert drawn.shape[1] == max(size[0], 336)
    picture_rows = int((drawn == (200, 30, 30)).all(axis=2).any(axis=1).sum())
    assert picture_rows >= size[1]
    strip = drawn[picture_rows:]
    assert len(strip) >= 3 * 20
    assert (strip[:, -3:] == 255).all()  # no letter runs over the edge
    assert (strip == 40).all(axis=2).any()
    first, second, third = np.array_split(strip, 3)
    bars = [int((part == ACCENT).all(axis=2).sum(axis=1).max()) for part in (first, second, third)]
    assert bars[0] == pytest.approx(0.75 * (drawn.shape[1] // 5), abs=1)
    assert bars[1] == pytest.approx(0.25 * (drawn.shape[1] // 5), abs=1)
    assert bars[2] == 0


def test_a_sheet_is_cut_and_says_so(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    _, said = draw([path] * (SHEET_LIMIT + 3), None, tmp_path / "sheet.png")
    assert said == "100 of 103 pictures"
    _, all_of_them = draw([path] * 3, None, tmp_path / "small.png")
    assert all_of_them == "3 pictures"
    with Image.open(tmp_path / "sheet.png") as large, Image.open(tmp_path / "small.png") as small:
        assert large.width < 2100
        assert small.height < 330 < large.height
        assert (np.asarray(small)[36:56, 14:150] < 200).any()  # whose predictions they are


def test_what_could_not_be_read_is_passed_over(tmp_path: Path) -> None:
    drawings = Drawings([tmp_path / "x.png"], tmp_path / "out", tmp_path / "sheet.png")
    drawings.add(Prediction(tmp_path / "x.png", (), "file is missing"))
    drawings.add(Prediction(tmp_path / "x.png", TOP))  # gone since
    assert drawings.finish("") == ""
    assert drawings.annotated == 0
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_is_a_png(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"\.png"):
        Drawings([], None, tmp_path / "sheet.jpg")


def test_a_sheet_shows_the_least_certain_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more pictures than fit those in most doubt, wherever they come."""
    monkeypatch.setattr(predict_pictures, "SHEET_LIMIT", 2)
    shades = {0.9: 20, 0.4: 120, 0.99: 60, 0.6: 220}
    drawings = Drawings(
        paths := [save(tmp_path / f"{shade}.png", (shade,) * 3) for shade in shades.values()],
        None,
        tmp_path / "sheet.png",
    )
    for path, probability in zip(paths, shades, strict=True):
        drawings.add(Prediction(path, (Choice("n1", "cat", probability),)))
    assert drawings.finish("lenet") == "2 of 4 pictures"
    with Image.open(tmp_path / "sheet.png") as sheet:
        row = [sheet.getpixel((14 + 90 + place * 194, sheet.height - 14 - 43 - 90)) for place in range(2)]
    assert row == [(120,) * 3, (220,) * 3]
