from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images

from imagenet_pipeline.loading.auto_augment import Change, change_colours
from imagenet_pipeline.loading.transforms import Pixels

FACTORS = (-0.99, -0.45, 0.0, 0.3, 0.99)
# Pillow cuts fractions off where we round: one level. Where a grey value is rounded before it is used, there or
# here, and then weighed by up to 0.99, that is one more.
PILLOWS: dict[str, tuple[Callable[[Image.Image, float], Image.Image], tuple[float, ...], int]] = {
    "brightness": (lambda image, size: ImageEnhance.Brightness(image).enhance(1 + size), FACTORS, 1),
    "colour": (lambda image, size: ImageEnhance.Color(image).enhance(1 + size), FACTORS, 2),
    "contrast": (lambda image, size: ImageEnhance.Contrast(image).enhance(1 + size), FACTORS, 2),
    "sharpness": (lambda image, size: ImageEnhance.Sharpness(image).enhance(1 + size), FACTORS, 1),
    "posterize": (lambda image, size: ImageOps.posterize(image, int(size)), (2, 3, 5, 8), 0),
    "solarize": (lambda image, size: ImageOps.solarize(image, size), (0, 8.5, 127.5, 255), 0),  # type: ignore[arg-type]
    "autocontrast": (lambda image, _: ImageOps.autocontrast(image), (0,), 1),
    "equalize": (lambda image, _: ImageOps.equalize(image), (0,), 0),
    "invert": (lambda image, _: ImageOps.invert(image), (0,), 0),
    "grey": (lambda image, _: ImageOps.grayscale(image).convert("RGB"), (0,), 1),
    "identity": (lambda image, _: image, (0,), 0),
    "rotate": (lambda image, _: image, (30,), 0),
}


def pictures() -> Iterator[Pixels]:
    """Two photos, one of them with little contrast, noise, noise of few levels, one level, hardly any pixels."""
    flower, china = (cv2.resize(one, (120, 90), interpolation=cv2.INTER_AREA) for one in load_sample_images().images)
    yield from (flower, china // 4 + 60)
    noise = np.random.default_rng(0).integers(0, 256, (64, 50, 3), np.uint8)
    yield from (noise, noise // 32 * 32, np.full((20, 20, 3), 77, np.uint8), noise[:2, :2], noise[:1, :3])


@pytest.mark.parametrize("name", PILLOWS)
def test_each_change_is_pillows(name: str) -> None:
    pillow, strengths, tolerance = PILLOWS[name]
    for picture in pictures():
        for strength in strengths:
            changed = picture.copy()
            change_colours(changed, Change(name, strength))
            expected = np.asarray(pillow(Image.fromarray(picture), strength)).astype(int)
            assert np.abs(changed - expected).max() <= tolerance, strength
            if name in ("brightness", "sharpness", "autocontrast"):
                assert (changed >= expected).all()  # never darker than what was cut off


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(PILLOWS)),
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12).map(lambda shape: (*shape, 3))),
    st.integers(0, 4),
)
def test_each_change_is_pillows_on_any_pixels(name: str, picture: Pixels, place: int) -> None:
    pillow, strengths, tolerance = PILLOWS[name]
    strength = strengths[place % len(strengths)]
    changed = picture.copy()
    change_colours(changed, Change(name, strength))
    assert np.abs(changed - np.asarray(pillow(Image.fromarray(picture), strength)).astype(int)).max() <= tolerance


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20).map(lambda shape: (*shape, 3))),
    st.floats(0.1, 2),
)
def test_blur_is_a_gaussian_over_the_image_continued_by_its_edge(picture: Pixels, deviation: float) -> None:
    """The sampled Gaussian, cut where less than 1 part in 80 of its peak is left, and summing to 1, in float64."""
    changed = picture.copy()
    change_colours(changed, Change("blur", deviation))
    reach = 10
    places = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (places / deviation) ** 2) * (abs(places) <= np.ceil(3 * deviation + 0.5))
    padded = np.pad(picture.astype(np.float64), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    across = sum(w * padded[:, at : at + picture.shape[1]] for at, w in enumerate(weights / weights.sum()))
    expected = sum(w * across[at : at + picture.shape[0]] for at, w in enumerate(weights / weights.sum()))
    assert np.abs(changed - expected).max() <= 3


@pytest.mark.parametrize("deviation", [0.1, 0.7, 2.0])
def test_blur_is_pillows_on_photos(deviation: float) -> None:
    """Pillow's is three box filters, nearly that Gaussian."""
    for photo in islice(pictures(), 2):
        changed = photo.copy()
        change_colours(changed, Change("blur", deviation))
        expected = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(deviation))).astype(int)
        assert np.abs(changed - expected).mean() < 1.0


@pytest.mark.parametrize("name", PILLOWS)
def test_a_row_of_a_batch_is_changed_in_place(name: str) -> None:
    photo = next(pictures())
    batch = np.stack([photo] * 3)
    change_colours(batch[1], Change(name, 4 if name == "posterize" else 0.4))
    assert np.array_equal(batch[0], photo)
    assert np.array_equal(batch[2], photo)
    assert np.array_equal(batch[1], photo) == (name in ("identity", "rotate"))
