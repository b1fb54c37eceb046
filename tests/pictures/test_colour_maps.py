"""Colours mean what the key says: 0 is white (or grey), blue positive, red negative."""

from __future__ import annotations

import numpy as np
import pytest

from imagenet_pipeline.drawing import (
    EDGE,
    enlarged,
    framed,
    heat_colours,
    signed_colours,
    signed_levels,
)


def test_signs_have_colours_and_zero_is_white() -> None:
    red, white, blue = signed_colours(np.array([[-2.0, 0.0, 2.0]]))[0].astype(int)
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert white.min() > 240
    np.testing.assert_array_equal(signed_colours(np.array([[0.0, 3.0]])), signed_colours(np.array([[0.0, 300.0]])))


def test_levels_keep_grey_at_zero() -> None:
    levels = signed_levels(np.array([[[-1.0, 0.0, 0.5]]]))
    assert levels[0, 0].tolist() == [0, 128, 191]
    assert levels.dtype == np.uint8


@pytest.mark.parametrize("draw", [lambda: signed_colours(np.zeros((2, 3))), lambda: signed_levels(np.zeros((2, 3, 3)))])
def test_nothing_but_zeros_is_one_colour(draw) -> None:
    assert len(np.unique(draw().reshape(-1, 3), axis=0)) == 1


def test_heat_grows_brighter() -> None:
    brightness = heat_colours(np.linspace(0, 1, 11)[None])[0].sum(axis=1, dtype=int)
    assert (np.diff(brightness) > 0).all()


def test_a_frame_enlarges_by_whole_factors_and_shrinks_what_is_too_large() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    made = framed(pixels, 7)
    assert made.shape == (8, 8, 3)
    np.testing.assert_array_equal(made[1:-1:3, 1:-1:3], pixels)
    assert (made[[0, -1]] == EDGE).all()
    assert framed(np.zeros((50, 100, 3), np.uint8), 20).shape == (12, 22, 3)


def test_enlarging_keeps_a_plain_picture_plain() -> None:
    assert (enlarged(np.full((5, 5, 3), 77, np.uint8), 40) == np.full((40, 40, 3), 77)).all()
