"""The compiled shrinking gives OpenCV's pixels, all of them, whatever the sizes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imagenet_pipeline.records import image as module
from imagenet_pipeline.records.image import average_areas, decode_rgb, shrink

area_average = pytest.importorskip("imagenet_pipeline.records.area_average", reason="it was not compiled here")
LONG = bool(os.environ.get("IMAGENET_PIPELINE_LONG"))
sides = st.one_of(st.integers(1, 40), st.integers(1, 400))
Pixels = NDArray[np.uint8]


def of_opencv(pixels: Pixels, height: int, width: int) -> Pixels:
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=20_000 if LONG else 250, deadline=None)
@given(sides, sides, st.data())
def test_every_pixel_is_that_of_opencv(height: int, width: int, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    pixels, out = noise(height, width), np.full((rows, columns, 3), 77, np.uint8)
    average_areas(pixels, out)
    assert np.array_equal(out, of_opencv(pixels, rows, columns))
    if height % rows or width % columns:
        area_average.average(pixels, out)
        assert np.array_equal(out, of_opencv(pixels, rows, columns))


@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
def test_even_grey_stays_even(value: int) -> None:
    out = np.empty((224, 224, 3), np.uint8)
    area_average.average(np.full((501, 333, 3), value, np.uint8), out)
    assert (out == value).all()


def test_real_photos_are_shrunk_as_without_it(unpacked: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    photos = sorted(unpacked("imagenet_samples_300.tar").rglob("*.JPEG"))[:: 1 if LONG else 15]
    decoded = [decode_rgb(path.read_bytes()) for path in photos]
    compiled = [shrink(pixels, 224) for pixels in decoded if min(pixels.shape[:2]) > 224]
    monkeypatch.setattr(module, "average", None)
    plain = [shrink(pixels, 224) for pixels in decoded if min(pixels.shape[:2]) > 224]
    assert len(plain) > len(photos) // 2
    assert all(np.array_equal(*pair) for pair in zip(compiled, plain, strict=True))


def test_a_part_of_an_image_is_read_and_a_row_of_a_batch_written() -> None:
    pixels, batch = noise(90, 120), np.full((3, 31, 31, 3), 9, np.uint8)
    area_average.average(pixels[7:80, 11:100], batch[1])
    assert np.array_equal(batch[1], of_opencv(pixels[7:80, 11:100], 31, 31))
    assert (batch[[0, 2]] == 9).all()


WRITABLE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "out"),
    [
        (noise(3, 9), WRITABLE),  # lower than the output
        (noise(9, 3), WRITABLE),
        (noise(9, 9)[:, ::2], WRITABLE),
        (noise(9, 9)[:, :, ::-1], WRITABLE),
        (noise(9, 9)[..., :2], WRITABLE),
        (noise(9, 9)[..., 0], WRITABLE),
        (noise(9, 9).astype(np.float32), WRITABLE),
        (noise(9, 9), WRITABLE.view(np.int8)),
        (noise(9, 9), np.zeros((0, 4, 3), np.uint8)),
        (noise(9, 9), np.zeros((4, 4, 4), np.uint8)),
        (noise(9, 9), bytearray(48)),
    ],
)  # fmt: skip
def test_other_shapes_are_refused(image: Pixels, out: Pixels) -> None:
    with pytest.raises(ValueError, match="is needed"):
        area_average.average(image, out)


@pytest.mark.parametrize(
    "box",
    [
        (-0.1, 0, 5, 5),
        (0, -0.1, 5, 5),
        (5, 0, 4.5, 5),
        (0, 5, 5, 4.5),
        (0, 0, 3.9, 5),
        (2, 0, 0, 0),
        (float("nan"), 0, 5, 5),
    ],
)
def test_boxes_beyond_the_image_and_smaller_than_the_output_are_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="is needed"):
        area_average.average(noise(9, 9), WRITABLE, *box)


def test_what_cannot_be_written_is_refused() -> None:
    frozen = np.zeros((4, 4, 3), np.uint8)
    frozen.flags.writeable = False
    for image, out in ((noise(9, 9), frozen), (noise(9, 9), 3), ("text", WRITABLE)):
        with pytest.raises((TypeError, ValueError, BufferError)):
            area_average.average(image, out)
