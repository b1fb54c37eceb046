from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.config import Augmentation
from imagenet_pipeline.loading.augment import (
    COLUMNS,
    draw_choices,
    evaluation_boxes,
    evaluation_transform,
    training_box,
    training_transform,
)
from imagenet_pipeline.loading.order import uniforms
from imagenet_pipeline.loading.transforms import resize_into
from imagenet_pipeline.records import image as image_module
from imagenet_pipeline.records.image import Box, LazyImage

Crop = Literal["resized", "random", "centre"]
crops: st.SearchStrategy[Crop] = st.sampled_from(["resized", "random", "centre"])
STRONG = Augmentation(
    rotation_degrees=30,
    shear=0.3,
    zoom=(0.5, 2),
    shift=0.2,
    pad=3,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    lighting=0.1,
)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=100, deadline=None)
@given(
    crops,
    st.integers(0, 4),
    st.integers(1, 600),
    st.integers(1, 600),
    st.integers(1, 300),
    st.integers(0, 99),
)
def test_a_crop_lies_within_the_widened_image(
    crop: Crop, pad: int, height: int, width: int, size: int, seed: int
) -> None:
    augmentation = Augmentation(crop=crop, pad=pad)
    for draw in draw_choices(augmentation, uniforms(seed, 0, range(5), COLUMNS)):
        box = training_box(augmentation, draw, height, width, size)
        assert box.width >= 1
        assert box.height >= 1
        assert -pad <= box.left <= box.left + box.width <= width + pad
        assert -pad <= box.top <= box.top + box.height <= height + pad
        if crop == "random":
            assert box.width == box.height == min(size, height + 2 * pad, width + 2 * pad)


def test_resized_crops_have_the_areas_and_proportions_asked_for() -> None:
    augmentation = Augmentation(area=(0.2, 0.5))
    height, width = 375, 500
    boxes = [
        training_box(augmentation, draw, height, width, 224)
        for draw in draw_choices(augmentation, uniforms(0, 0, range(4000), COLUMNS))
    ]
    areas = np.array([box.width * box.height for box in boxes]) / (height * width)
    aspects = np.array([box.width / box.height for box in boxes])
    assert areas.min() > 0.195
    assert areas.max() < 0.505
    assert areas.mean() == pytest.approx(0.35, abs=0.01)
    assert aspects.min() > 0.74
    assert aspects.max() < 1.35
    assert np.log(aspects).mean() == pytest.approx(0, abs=0.02)
    lefts = np.array([box.left / max(1, width - box.width) for box in boxes])
    assert lefts.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 1000, Box(493, 0, 13, 10)), (1000, 10, Box(0, 493, 10, 13)), (1, 1, Box(0, 0, 1, 1))],
)
def test_where_no_try_fits_the_centre_is_taken(height: int, width: int, box: Box) -> None:
    augmentation = Augmentation(area=(1.0, 1.0))
    draw = draw_choices(augmentation, np.full((1, COLUMNS), 0.4))[0]
    assert training_box(augmentation, draw, height, width, 8) == box


def test_draws_have_the_distributions_they_promise() -> None:
    augmentation = STRONG.model_copy(update={"flip": 0.3})
    draws = draw_choices(augmentation, uniforms(3, 1, range(20_000), COLUMNS))
    assert np.mean([draw.flip for draw in draws]) == pytest.approx(0.3, abs=0.015)
    degrees = np.array([draw.distortion.degrees for draw in draws])
    assert np.abs(degrees).max() <= 30
    assert degrees.std() == pytest.approx(30 / 3**0.5, rel=0.02)
    assert np.mean(np.log([draw.distortion.zoom for draw in draws])) == pytest.approx(0, abs=0.02)
    assert np.ptp([draw.contrast for draw in draws]) == pytest.approx(0.8, abs=0.01)
    lighting = np.array([draw.lighting for draw in draws]) / 0.1
    assert lighting.mean(axis=0) == pytest.approx(np.zeros(3), abs=0.03)
    assert np.cov(lighting.T) == pytest.approx(np.eye(3), abs=0.04)
    assert np.mean(np.abs(lighting) > 1.96) == pytest.approx(0.05, abs=0.005)


def test_switching_one_change_on_leaves_the_others_alone() -> None:
    numbers = uniforms(0, 0, range(50), COLUMNS)
    for plain, turned in zip(
        draw_choices(Augmentation(), numbers), draw_choices(Augmentation(rotation_degrees=20), numbers), strict=True
    ):
        assert plain.flip == turned.flip
        assert plain.areas == turned.areas
        assert plain.distortion != turned.distortion


@settings(max_examples=60, deadline=None)
@given(crops, st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 50), st.booleans())
def test_any_image_fills_its_row_and_no_other(
    crop: Crop, height: int, width: int, size: int, seed: int, strong: bool
) -> None:
    augmentation = (STRONG if strong else Augmentation()).model_copy(update={"crop": crop})
    draw = draw_choices(augmentation, uniforms(seed, 0, range(1), COLUMNS))[0]
    first, second = (np.full((3, size, size, 3), value, np.uint8) for value in (0, 255))
    for batch in (first, second):
        training_transform(LazyImage.of(noise(height, width)), augmentation, draw, batch[1])
    assert np.array_equal(first[1], second[1])
    assert (first[[0, 2]] == 0).all()
    assert (second[[0, 2]] == 255).all()


def test_evaluation_takes_the_centre_square_of_the_short_edge() -> None:
    assert evaluation_boxes(256, 300, 0.875, 1) == [Box(38, 16, 224, 224)]
    assert evaluation_boxes(300, 200, 1.0, 2) == [Box(0, 50, 200, 200)]
    assert evaluation_boxes(1, 9, 0.1, 1) == [Box(4, 0, 1, 1)]


def test_an_image_of_the_size_evaluates_to_itself() -> None:
    image = noise(32, 32)
    out = np.empty((1, 32, 32, 3), np.uint8)
    evaluation_transform(LazyImage.of(image), 1.0, out)
    assert np.array_equal(out[0], image)


def test_a_vertical_flip_is_the_same_image_upside_down_and_moves_no_other_draw() -> None:
    numbers = uniforms(0, 0, range(400), COLUMNS)
    plain = draw_choices(STRONG, numbers)
    flipped = draw_choices(STRONG.model_copy(update={"flip_vertical": 0.3, "hue": 0.2}), numbers)
    assert np.mean([draw.flip_vertical for draw in flipped]) == pytest.approx(0.3, abs=0.07)
    assert np.mean([draw.flip_vertical == draw.flip for draw in flipped]) == pytest.approx(0.5, abs=0.08)
    hues = np.array([draw.hue for draw in flipped])
    assert np.abs(hues).max() <= 0.2
    assert hues.std() == pytest.approx(0.2 / 3**0.5, rel=0.1)
    for before, after in zip(plain, flipped, strict=True):
        assert repr(after._replace(flip_vertical=False, hue=0.0)) == repr(before)
    image, out, upright = LazyImage.of(noise(50, 40)), *np.empty((2, 24, 24, 3), np.uint8)
    for draw in flipped[:20]:
        training_transform(image, STRONG, draw._replace(hue=0.0), out)
        training_transform(image, STRONG, draw._replace(hue=0.0, flip_vertical=False), upright)
        assert np.array_equal(out, upright[::-1] if draw.flip_vertical else upright)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.sampled_from([0.5, 0.875, 1.0]), st.integers(1, 40))
def test_ten_crops_are_the_five_boxes_one_by_one_and_their_mirrors(
    height: int, width: int, fraction: float, size: int
) -> None:
    image = noise(height, width)
    out = np.empty((10, size, size, 3), np.uint8)
    evaluation_transform(LazyImage.of(image), fraction, out)
    side = max(1, round(fraction * min(height, width)))
    right, bottom = width - side, height - side
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)]
    for place, (left, top) in enumerate(corners):
        alone = np.empty((size, size, 3), np.uint8)
        resize_into(LazyImage.of(image[top : top + side, left : left + side]), Box(0, 0, side, side), False, alone)
        assert np.array_equal(out[place], alone)
        assert np.array_equal(out[place + 5], alone[:, ::-1])


def test_two_crops_are_the_centre_and_its_mirror() -> None:
    image = noise(50, 70)
    one, two = (np.empty((count, 24, 24, 3), np.uint8) for count in (1, 2))
    evaluation_transform(LazyImage.of(image), 0.875, one)
    evaluation_transform(LazyImage.of(image), 0.875, two)
    assert np.array_equal(two[0], one[0])
    assert np.array_equal(two[1], one[0][:, ::-1])


@pytest.mark.parametrize(("crops", "boxes", "wholes"), [(1, 1, 0), (2, 1, 0), (10, 0, 1)])
def test_evaluation_decodes_the_centre_alone_and_ten_crops_once(
    monkeypatch: pytest.MonkeyPatch, crops: int, boxes: int, wholes: int
) -> None:
    pytest.importorskip("imagenet_pipeline.records.jpeg_crop", reason="it was not compiled here")
    pixels = np.repeat(np.repeat(noise(20, 30), 16, axis=0), 16, axis=1)
    data, asked = image_module.encode_jpeg(pixels, 95), []

    def counted(name: str) -> Callable[..., object]:
        inner = getattr(image_module, name)
        return lambda *arguments: (asked.append(name), inner(*arguments))[1]

    expected, out = (np.empty((crops, 64, 64, 3), np.uint8) for _ in range(2))
    evaluation_transform(LazyImage.of(image_module.decode_rgb(data)), 0.875, expected)
    for name in ("_decoded_part", "_bounded_rgb"):
        monkeypatch.setattr(image_module, name, counted(name))
    evaluation_transform(LazyImage(data), 0.875, out)
    assert (asked.count("_decoded_part"), asked.count("_bounded_rgb")) == (boxes, wholes)
    assert np.array_equal(out, expected)
