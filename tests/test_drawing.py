"""Sheets of small pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from imagenet_pipeline.drawing import ACCENT, TRACK, contact_sheet, fit, tile

RED = np.full((40, 80, 3), (200, 0, 0), np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (10, 3), (64, 64), (100, 99), (101, 30), (4000, 10), (3, 5000)])
def test_a_picture_fits_into_the_square_and_keeps_its_proportions(size: tuple[int, int]) -> None:
    fitted = fit(Image.new("RGB", size), 100)
    assert 50 < max(fitted.size) <= 100
    scale = max(fitted.size) / max(size)
    assert min(fitted.size) == max(1, round(scale * min(size)))


def test_pixels_of_small_pictures_stay() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(fit(Image.fromarray(pixels), 100))[1::3, 1::3], pixels)


@pytest.mark.parametrize(("share", "filled"), [(0.0, 0), (0.25, 25), (1.0, 100), (1.5, 100)])
def test_a_tile_has_a_bar_of_the_share(share: float, filled: int) -> None:
    drawn = np.asarray(tile(RED, 100, ["name", "file"], share))
    rows = drawn[100:]
    assert (rows == ACCENT).all(axis=2).sum(axis=1).max() == filled
    assert (rows == TRACK).all(axis=2).sum(axis=1).max() == 100 - filled
    assert (drawn[:100] == (200, 0, 0)).all(axis=2).sum() == 100 * 50


def test_tiles_stand_in_rows() -> None:
    tiles = [tile(RED, 100, ["a"]) for _ in range(7)]
    sheet = np.asarray(contact_sheet(tiles, 3, "seven"))
    red = (sheet == (200, 0, 0)).all(axis=2)
    starts = np.flatnonzero(np.diff(red.any(axis=1).astype(int)) == 1)
    assert len(starts) == 3
    assert [int(red[start + 5].sum()) for start in starts] == [300, 300, 100]
