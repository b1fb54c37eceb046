from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from imagenet_pipeline.loading.reduced import average_into
from imagenet_pipeline.loading.transforms import (
    Distortion,
    Pixels,
    affine,
    resample,
    resample_moved,
    resize_into,
    warp_into,
)
from imagenet_pipeline.records.image import Box, LazyImage, average

PLAIN = Distortion()
distortions = st.builds(
    Distortion,
    degrees=st.floats(-180, 180),
    shear=st.floats(-1, 1),
    zoom=st.floats(0.5, 2),
    shift_x=st.floats(-0.5, 0.5),
    shift_y=st.floats(-0.5, 0.5),
)
boxes = st.builds(Box, st.integers(-5, 20), st.integers(-5, 20), st.integers(1, 40), st.integers(1, 40))


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int) -> Pixels:
    """A picture without fine detail, on which any good interpolation gives nearly the same."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 17 + phase) + np.cos(y / 23 - phase) for phase in (0, 1, 2)]
    return np.round(127 + 60 * np.stack(waves, axis=2)).astype(np.uint8)


def blank(size: int) -> Pixels:
    return np.full((size, size, 3), 77, np.uint8)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_a_crop_of_the_outputs_size_is_the_pixels_themselves(size: int, left: int, top: int, flip: bool) -> None:
    image, out = noise(size + 9, size + 9), blank(size)
    resample(LazyImage.of(image), Box(left, top, size, size), flip, PLAIN, 0, out)
    crop = image[top : top + size, left : left + size]
    assert np.array_equal(out, crop[:, ::-1] if flip else crop)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_areas_are_averaged_by_the_share_of_each_pixel(data: st.DataObject, height: int, width: int, size: int) -> None:
    def shares(pixels: int) -> tuple[float, float, np.ndarray[Any, np.dtype[np.float64]]]:
        start = data.draw(st.integers(0, 8 * pixels - 1)) / 8
        length = data.draw(st.integers(1, round(8 * (pixels - start)))) / 8
        edges, whole = start + length * np.arange(size + 1) / size, np.arange(pixels)
        low, high = np.maximum(edges[:-1, None], whole), np.minimum(edges[1:, None], whole + 1)
        return start, length, np.maximum(0, high - low) / (length / size)

    (top, box_height, of_rows), (left, box_width, of_columns) = shares(height), shares(width)
    image, out = noise(height, width), blank(size)
    expected = np.einsum("ah,hwc,bw->abc", of_rows, image.astype(np.float64), of_columns)
    for compiled in (average, None):
        with patch("imagenet_pipeline.loading.reduced.average", compiled):
            average_into(image, (left, top, box_width, box_height), out)
        assert np.abs(out - expected).max() <= (0.75 if compiled else 0.5 + 1e-6)


def test_areas_of_very_large_pictures_are_summed_without_overflow() -> None:
    image, out = np.full((3000, 3000, 3), 255, np.uint8), blank(3)
    for compiled in (average, None):
        with patch("imagenet_pipeline.loading.reduced.average", compiled):
            average_into(image, (0.5, 0.25, 2999, 2999), out)
        assert (out == 255).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 48))
def test_flipping_twice_is_not_flipping(height: int, width: int, size: int) -> None:
    image = noise(height, width)
    flipped, straight = blank(size), blank(size)
    resize_into(LazyImage.of(image), Box(0, 0, width, height), True, flipped)
    resize_into(LazyImage.of(image), Box(0, 0, width, height), False, straight)
    assert np.array_equal(flipped[:, ::-1], straight)


@settings(max_examples=50, deadline=None)
@given(boxes, st.booleans(), distortions, st.integers(1, 50), st.floats(0, 1), st.floats(0, 1))
def test_the_affine_is_the_composition_of_its_steps(
    box: Box, flip: bool, distortion: Distortion, size: int, u: float, v: float
) -> None:
    """A point of the box, put through each step in turn, comes out where the matrix says it came from."""
    centre = size / 2
    x, y = u * size - centre, v * size - centre
    x, y = x + distortion.shear * y, y
    turn = math.radians(distortion.degrees)
    x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
    x, y = x * distortion.zoom, y * distortion.zoom
    x, y = x + distortion.shift_x * size + centre, y + distortion.shift_y * size + centre
    if flip:
        x = size - x
    source = affine(box, flip, distortion, size) @ [x, y, 1]
    assert source == pytest.approx([box.left + u * box.width, box.top + v * box.height], abs=1e-8)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [Box(3, 5, 100, 80), Box(0, 0, 200, 160), Box(50, 20, 64, 64), Box(9, 8, 30, 40)])
def test_slicing_and_warping_agree(box: Box, flip: bool) -> None:
    image = smooth(160, 200)
    sliced, warped = blank(64), blank(64)
    resize_into(LazyImage.of(image), box, flip, sliced)
    warp_into(image, affine(box, flip, PLAIN, 64), 0, warped)
    inner = np.abs(sliced.astype(int) - warped)[1:-1, 1:-1]  # the rim mixes with the fill in the warp alone
    assert inner.max() <= 3
    assert inner.mean() < 0.6


@pytest.mark.parametrize("distortion", [Distortion(zoom=1.25), Distortion(shift_x=0.1), Distortion(shift_y=-0.05)])
def test_zoom_and_shift_keep_to_the_matrix(distortion: Distortion) -> None:
    image = smooth(160, 200)
    fast, warped = blank(80), blank(80)
    box = Box(40, 20, 120, 120)
    resample(LazyImage.of(image), box, True, distortion, 0, fast)
    warp_into(image, affine(box, True, distortion, 80), 0, warped)
    assert np.abs(fast.astype(int) - warped)[1:-1, 1:-1].max() <= 6  # half a source pixel of rounding


def test_a_quarter_turn_is_exact() -> None:
    image, out = noise(32, 32), blank(32)
    resample(LazyImage.of(image), Box(0, 0, 32, 32), False, Distortion(degrees=90), 0, out)
    assert np.array_equal(out, np.rot90(image, -1))


def test_zoom_enlarges_and_shift_moves_right_and_down() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[16:24, 16:24] = 255
    zoomed, shifted = blank(40), blank(40)
    resample(LazyImage.of(image), Box(0, 0, 40, 40), False, Distortion(zoom=2), 0, zoomed)
    resample(LazyImage.of(image), Box(0, 0, 40, 40), False, Distortion(shift_x=0.25, shift_y=0.1), 0, shifted)
    assert (zoomed[13:27, 13:27] == 255).all()
    assert np.array_equal(shifted[20:28, 26:34], np.full((8, 8, 3), 255))
    assert shifted.sum() == image.sum()


def test_outside_the_image_is_the_fill() -> None:
    image, out = noise(8, 8), blank(12)
    resample(LazyImage.of(image), Box(-2, -2, 12, 12), False, PLAIN, 200, out)
    assert np.array_equal(out[2:10, 2:10], image)
    out[2:10, 2:10] = 200
    assert (out == 200).all()


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Distortion, st.floats(-180, 180), st.floats(-1, 1), st.floats(0.6, 2), st.floats(-2, 2), st.floats(-2, 2)
    ),
    st.builds(Box, st.integers(-50, 80), st.integers(-50, 80), st.integers(8, 40), st.integers(8, 40)),
    st.booleans(),
    st.integers(10, 40),
)
def test_outside_the_image_is_the_nearest_pixel_of_its_edge(
    distortion: Distortion, box: Box, flip: bool, size: int
) -> None:
    """Against SciPy's interpolation of a smooth picture continued by its edge, whose pixels are points at 0.5."""
    image, out = smooth(40, 50), blank(size)
    resample(LazyImage.of(image), box, flip, distortion, "nearest", out)
    matrix = affine(box, flip, distortion, size)
    assume(abs(np.linalg.det(matrix[:, :2])) < 3.9)  # beyond, the image is averaged over blocks first
    y, x = np.mgrid[0:size, 0:size] + 0.5
    across, down = np.einsum("ij,jab->iab", matrix, np.stack([x, y, np.ones_like(x)])) - 0.5
    expected = [
        ndimage.map_coordinates(image[..., channel].astype(np.float64), [down, across], order=1, mode="nearest")
        for channel in range(3)
    ]
    # Half a pixel where an upright box is rounded to whole ones, hardly a level by OpenCV's steps of 1/32 pixel.
    assert np.abs(out - np.stack(expected, axis=-1)).max() <= (4 if distortion.upright else 1.5)


@settings(max_examples=60, deadline=None)
@given(
    st.builds(Box, st.integers(-60, 90), st.integers(-60, 90), st.integers(1, 40), st.integers(1, 40)),
    st.floats(-20, 20),
    st.floats(-0.6, 0.6),
)
def test_what_is_moved_in_from_beyond_the_crop_may_be_its_nearest_pixel(box: Box, shift: float, shear: float) -> None:
    image = smooth(36, 36)
    widened = np.pad(image, ((99, 99), (99, 99), (0, 0)), mode="edge")
    crop = widened[box.top + 99 : box.top + 99 + box.height, box.left + 99 : box.left + 99 + box.width]
    moved = np.array([[1, shear, shift], [shear / 2, 1, 0], [0, 0, 1]])
    straight, cut = blank(40), blank(40)
    resample_moved(LazyImage.of(image), box, False, PLAIN, moved, "nearest", straight)
    warp_into(crop, affine(Box(0, 0, box.width, box.height), False, PLAIN, 40) @ moved, "nearest", cut)
    assert np.abs(straight.astype(int) - cut).max() <= 2


def test_strong_shrinking_averages_instead_of_skipping() -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, ::2] = 255  # the finest stripes there are: skipping pixels would show some, averages are grey
    for distortion in (PLAIN, Distortion(degrees=5), Distortion(shear=0.1)):
        out = blank(32)
        resample(LazyImage.of(image), Box(0, 0, 256, 256), False, distortion, 128, out)
        assert np.abs(out[8:24, 8:24].astype(int) - 128).max() <= 2


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), distortions, boxes, st.booleans())
def test_any_image_box_and_distortion_fill_the_whole_output(
    height: int, width: int, size: int, distortion: Distortion, box: Box, flip: bool
) -> None:
    image = np.full((height, width, 3), 9, np.uint8)
    out = blank(size)
    resample(LazyImage.of(image), box, flip, distortion, 9, out)
    assert (out == 9).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_tiny_and_extreme_images(shape: tuple[int, int]) -> None:
    for distortion in (PLAIN, Distortion(degrees=30, zoom=0.7)):
        resample(LazyImage.of(noise(*shape)), Box(0, 0, shape[1], shape[0]), True, distortion, 0, blank(17))


@settings(max_examples=60, deadline=None)
@given(
    st.builds(Box, st.integers(-9, 45), st.integers(-9, 45), st.integers(1, 40), st.integers(1, 40)),
    st.booleans(),
    st.floats(-20, 20),
    st.floats(-0.6, 0.6),
)
def test_what_is_moved_is_the_crop_with_its_widening(box: Box, flip: bool, shift: float, shear: float) -> None:
    """Cut out by slicing, the padding there, and moved: the same as straight from the image."""
    image = noise(36, 36)
    widened = np.pad(image, ((60, 60), (60, 60), (0, 0)), constant_values=99)
    crop = widened[box.top + 60 : box.top + 60 + box.height, box.left + 60 : box.left + 60 + box.width]
    moved = np.array([[1, shear, shift], [shear / 2, 1, 0], [0, 0, 1]])
    straight, cut = blank(40), blank(40)
    resample_moved(LazyImage.of(image), box, flip, PLAIN, moved, 99, straight)
    warp_into(crop, affine(Box(0, 0, box.width, box.height), flip, PLAIN, 40) @ moved, 99, cut)
    assert np.abs(straight.astype(int) - cut).max() <= 9  # OpenCV's steps of 1/32 pixel, on noise


def test_moving_nothing_is_resampling() -> None:
    image, moved, straight = noise(40, 50), blank(24), blank(24)
    for flip in (False, True):
        resample_moved(LazyImage.of(image), Box(7, 9, 24, 24), flip, PLAIN, np.eye(3), 0, moved)
        resample(LazyImage.of(image), Box(7, 9, 24, 24), flip, PLAIN, 0, straight)
        assert np.array_equal(moved, straight)


def test_what_is_moved_in_from_beyond_the_crop_is_fill() -> None:
    image, out = noise(60, 60), blank(20)
    resample_moved(
        LazyImage.of(image), Box(20, 20, 20, 20), False, PLAIN, np.array([[1, 0, 5], [0, 1, 0], [0, 0, 1.0]]), 50, out
    )
    assert np.array_equal(out[:, :15], image[20:40, 25:40])
    assert (out[:, 15:] == 50).all()


def test_nothing_is_written_beyond_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV silently makes a new array when the one given does not suit; results must land in the batch."""
    batch = np.full((3, 20, 20, 3), 77, np.uint8)
    image = noise(50, 40)
    for distortion, flip in [(PLAIN, False), (PLAIN, True), (Distortion(degrees=9), False)]:
        resample(LazyImage.of(image), Box(2, 2, 30, 40), flip, distortion, 0, batch[1])
        assert (batch[[0, 2]] == 77).all()
        assert (batch[1] != 77).any()
        batch[1] = 77


def test_averaging_is_exact_for_whole_factors() -> None:
    image, out = noise(64, 64), blank(32)
    resize_into(LazyImage.of(image), Box(0, 0, 64, 64), False, out)
    blocks: Any = image.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(out - blocks).max() <= 0.5
