from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from imagenet_pipeline.loading.random_erasing import ERASING_COLUMNS, Erasure, erase, erased_box, erasures


def numbers(count: int) -> NDArray[np.float64]:
    return np.random.default_rng(3).random((count, ERASING_COLUMNS))


def certain(count: int) -> list[Erasure]:
    return [erasure for erasure in erasures(1.0, numbers(count)) if erasure]


def test_so_many_images_are_erased() -> None:
    assert erasures(0, numbers(50)) == [None] * 50
    assert len(certain(50)) == 50
    assert np.mean([erasure is not None for erasure in erasures(0.25, numbers(10_000))]) == pytest.approx(
        0.25, abs=0.02
    )


def test_boxes_have_the_papers_areas_and_proportions_and_lie_anywhere() -> None:
    size = 1000
    boxes = [box for erasure in certain(20_000) if (box := erased_box(erasure, size, size))]
    assert len(boxes) == 20_000
    areas = np.array([box.width * box.height for box in boxes]) / size**2
    aspects = np.array([box.height / box.width for box in boxes])
    assert 0.0199 < areas.min() < 0.021
    assert 0.32 < areas.max() < 0.331
    assert 0.299 < aspects.min() < 0.31
    assert 3.2 < aspects.max() < 3.31
    # Boxes that do not fit are drawn again: those large and long at once, about 1 %.
    assert stats.kstest(areas, stats.uniform(0.02, 0.31).cdf).statistic < 0.02
    low, high = np.log([0.3, 3.3])
    assert stats.kstest(np.log(aspects), stats.uniform(low, high - low).cdf).statistic < 0.02
    lefts = np.array([box.left / (size - box.width + 1) for box in boxes if box.width < size])
    tops = np.array([box.top / (size - box.height + 1) for box in boxes if box.height < size])
    assert stats.kstest(lefts, stats.uniform.cdf).pvalue > 0.01
    assert stats.kstest(tops, stats.uniform.cdf).pvalue > 0.01


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 499))
def test_the_box_is_noise_and_the_rest_stays(height: int, width: int, row: int) -> None:
    erasure = certain(500)[row]
    batch = np.full((3, height, width, 3), 77, np.uint8)
    erase(batch[1], erasure)
    box = erased_box(erasure, height, width)
    inside = np.zeros((height, width), bool)
    if box:
        assert 0 <= box.left <= box.left + box.width <= width
        assert 0 <= box.top <= box.top + box.height <= height
        inside[box.top : box.top + box.height, box.left : box.left + box.width] = True
    assert (batch[1][~inside] == 77).all()
    assert (batch[[0, 2]] == 77).all()
    if inside.sum() > 50:
        assert np.mean(batch[1][inside] != 77) > 0.9


def test_noise_is_even_over_all_levels_and_each_images_own() -> None:
    images = np.full((40, 100, 100, 3), 77, np.uint8)
    for image, erasure in zip(images, certain(40), strict=True):
        erase(image, erasure)
    values = images[images != 77]
    assert len(values) > 100_000
    frequencies = np.bincount(values, minlength=256)[np.arange(256) != 77]
    assert stats.chisquare(frequencies).pvalue > 0.01
    again = np.full((100, 100, 3), 77, np.uint8)
    erase(again, certain(1)[0])
    assert np.array_equal(again, images[0])
    noises = [images[row][images[row] != 77][:50].tobytes() for row in range(40)]
    assert len(set(noises)) == 40


def test_a_tiny_image_may_be_left_alone() -> None:
    boxes = [erased_box(erasure, 1, 1) for erasure in certain(200)]
    assert None in boxes
