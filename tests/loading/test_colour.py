from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from imagenet_pipeline.loading.transforms import (
    GREY,
    LIGHTING_DEVIATIONS,
    LIGHTING_DIRECTIONS,
    colour_matrix,
    mean_grey,
    recolour,
    turn_hue,
)

factors = st.floats(0, 2)
steps = st.tuples(*[st.floats(-0.5, 0.5)] * 3).map(np.array)


def noise() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (23, 31, 3), np.uint8)


def step_by_step(
    image: NDArray[np.float64],
    brightness: float,
    contrast: float,
    saturation: float,
    lighting: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The same four changes said one after another."""
    image = image * brightness
    grey_level = (image @ GREY).mean()
    image = grey_level + contrast * (image - grey_level)
    own_grey = (image @ GREY)[..., None]
    image = own_grey + saturation * (image - own_grey)
    for direction, deviation, step in zip(LIGHTING_DIRECTIONS.T, LIGHTING_DEVIATIONS, lighting, strict=True):
        image = image + direction * deviation * step
    return image


@settings(max_examples=60, deadline=None)
@given(factors, factors, factors, steps)
def test_one_matrix_does_what_the_steps_do(
    brightness: float, contrast: float, saturation: float, lighting: NDArray[np.float64]
) -> None:
    image = noise()
    expected = np.clip(step_by_step(image.astype(float), brightness, contrast, saturation, lighting), 0, 255)
    recolour(image, colour_matrix(brightness, contrast, saturation, lighting, mean_grey(image)))
    assert np.abs(image - expected).max() <= 1.0


def test_neutral_factors_change_nothing() -> None:
    image = noise()
    recolour(image, colour_matrix(1, 1, 1, np.zeros(3), mean_grey(image)))
    assert np.array_equal(image, noise())


def test_values_are_cut_not_wrapped() -> None:
    image = noise()
    recolour(image, colour_matrix(50, 1, 1, np.zeros(3), 0))
    assert np.array_equal(image, np.where(noise() > 5, 255, noise() * np.uint8(50)))


def test_no_contrast_is_the_mean_grey_and_no_saturation_is_grey() -> None:
    flat, grey = noise(), noise()
    level = mean_grey(flat)
    recolour(flat, colour_matrix(1, 0, 1, np.zeros(3), level))
    assert (flat == round(level)).all()
    recolour(grey, colour_matrix(1, 1, 0, np.zeros(3), 0))
    assert np.ptp(grey.astype(int), axis=2).max() == 0


def test_a_row_of_a_batch_is_changed_in_place() -> None:
    batch = np.stack([noise()] * 3)
    recolour(batch[1], colour_matrix(0, 1, 1, np.zeros(3), 0))
    assert (batch[1] == 0).all()
    assert np.array_equal(batch[0], noise())
    assert np.array_equal(batch[2], noise())


def test_the_published_directions_are_at_right_angles() -> None:
    product = LIGHTING_DIRECTIONS.T @ LIGHTING_DIRECTIONS
    assert product == pytest.approx(np.eye(3), abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8).map(lambda shape: (*shape, 3))),
    st.floats(-0.5, 0.5),
)
def test_hue_is_turned_as_pythons_own_hsv_says(image: NDArray[np.uint8], turn: float) -> None:
    changed = image.copy()
    turn_hue(changed, turn)
    for before, after in zip(image.reshape(-1, 3).tolist(), changed.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert np.abs(after - np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))).max() <= 0.501


def test_a_third_of_the_circle_is_the_channels_in_turn_and_grey_has_no_hue() -> None:
    image = noise()
    changed = image.copy()
    turn_hue(changed, 1 / 3)
    assert np.array_equal(changed, image[..., [2, 0, 1]])
    grey = np.repeat(image[..., :1], 3, axis=2)
    changed = grey.copy()
    turn_hue(changed, 0.4)
    assert np.array_equal(changed, grey)
