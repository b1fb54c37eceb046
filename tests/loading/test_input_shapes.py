"""Inputs that are no squares, and grey ones: windows of the input's shape, and the grey of what would be the RGB."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.config import Augmentation
from imagenet_pipeline.loading.augment import evaluation_boxes, training_box, training_draws
from imagenet_pipeline.loading.auto_augment import Change, moved
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.loading.mixup import mixtures
from imagenet_pipeline.loading.order import uniforms
from imagenet_pipeline.loading.transforms import Distortion, affine, grey_into
from imagenet_pipeline.records.image import Box
from imagenet_pipeline.records.recordio import ImageRecord

RICH = Augmentation(
    rotation_degrees=20, pad=2, contrast=0.3, saturation=0.4, lighting=0.1, policy="rand_augment", mixup=0.2
)
sides = st.integers(1, 300)


class Photos:
    name = "photos"

    def __len__(self) -> int:
        return 24

    def read(self, position: int) -> ImageRecord:
        rng = np.random.default_rng(position)
        image = cv2.resize(rng.integers(0, 256, (5, 6, 3), np.uint8), (40 + position, 35 + position % 7))
        return ImageRecord((float(position % 10),), position, cv2.imencode(".jpg", image)[1].tobytes(), True)

    def location(self, position: int) -> tuple[Path, int, int]:
        return Path("photos.rec"), position, position


def batches(size: Any, channels: int, augmentation: Augmentation | None, threads: int = 0, crops: Any = 1) -> Any:
    loader = Loader(Photos(), size, 8, threads, classes=10, channels=channels)
    passes = loader.training(3, 1, augmentation) if augmentation else loader.evaluation(0.875, crops)
    with passes as found:
        return np.concatenate([batch.images.copy() for batch in found])


def grey_of(images: Any) -> Any:
    rgb = images.astype(np.int64)
    return ((9798 * rgb[..., :1] + 19235 * rgb[..., 1:2] + 3735 * rgb[..., 2:] + 16384) >> 15).astype(np.uint8)


def test_grey_is_the_stated_formula_and_leaves_grey_as_it_is() -> None:
    levels = np.arange(256, dtype=np.uint8)
    for blue in levels[::5]:
        rgb = np.stack([*np.meshgrid(levels, levels, indexing="ij"), np.full((256, 256), blue)], axis=-1)
        found = np.empty((256, 256, 1), np.uint8)
        grey_into(np.ascontiguousarray(rgb), found)
        assert np.array_equal(found, grey_of(rgb))
    same = np.repeat(levels[:, None, None], 3, axis=2)
    found = np.empty((256, 1, 1), np.uint8)
    grey_into(same, found)
    assert np.array_equal(found, same[:, :, :1])


@pytest.mark.parametrize("size", [16, (28, 20), (12, 33)])
def test_a_grey_batch_is_the_grey_of_the_rgb_batch(size: Any) -> None:
    colours = RICH.model_copy(update={"mixup": 0.0})
    for augmentation, crops in ((colours, 1), (None, 1), (None, 10)):
        rgb, grey = (batches(size, channels, augmentation, crops=crops) for channels in (3, 1))
        height, width = size if isinstance(size, tuple) else (size, size)
        assert rgb.shape[1:] == (height, width, 3)
        assert grey.shape[1:] == (height, width, 1)
        assert np.array_equal(grey, grey_of(rgb))


@pytest.mark.parametrize("channels", [1, 3])
def test_threads_change_no_byte_and_all_changes_reach_every_image(channels: int) -> None:
    rich = RICH.model_copy(update={"erasing": 1.0, "cutmix": 0.5})
    alone, threaded = (batches((28, 20), channels, rich, threads) for threads in (0, 3))
    plain = batches((28, 20), channels, Augmentation())
    assert np.array_equal(alone, threaded)
    assert all((image != other).any() for image, other in zip(alone, plain, strict=True))


@given(sides, sides, sides, sides, st.floats(0.01, 1), st.sampled_from([1, 10]))
def test_scored_windows_have_the_inputs_shape_and_lie_inside(
    height: int, width: int, rows: int, columns: int, fraction: float, crops: int
) -> None:
    scale = fraction * min(height / rows, width / columns)
    for box in evaluation_boxes(height, width, fraction, crops, (rows, columns)):
        assert 0 <= box.left <= width - box.width
        assert 0 <= box.top <= height - box.height
        assert abs(box.width - max(1, scale * columns)) <= 1
        assert abs(box.height - max(1, scale * rows)) <= 1


def test_five_windows_are_the_corners_and_the_centre() -> None:
    boxes = evaluation_boxes(100, 200, 0.5, 10, (20, 10))
    assert boxes == [Box(left, top, 25, 50) for top in (0, 50) for left in (0, 175)] + [Box(87, 25, 25, 50)]


@given(sides, sides, st.integers(1, 64), st.integers(1, 64), st.sampled_from(["resized", "random", "centre"]))
def test_training_windows_lie_inside(height: int, width: int, rows: int, columns: int, crop: Any) -> None:
    augmentation = Augmentation(crop=crop)
    for draws in training_draws(augmentation, 1, 2, range(4), (rows, columns)):
        box = training_box(augmentation, draws.draw, height, width, (rows, columns))
        assert 0 <= box.left <= width - box.width
        assert 0 <= box.top <= height - box.height
        assert box.width >= 1
        assert box.height >= 1
        if crop == "random" and height >= rows and width >= columns:
            assert (box.height, box.width) == (rows, columns)


def test_the_aspect_of_a_resized_crop_is_relative_to_the_inputs() -> None:
    augmentation = Augmentation(area=(0.1, 0.1), aspect=(0.8, 1.25))
    draws = training_draws(augmentation, 1, 2, range(200), (20, 40))
    boxes = [training_box(augmentation, each.draw, 1000, 1000, (20, 40)) for each in draws]
    proportions = [box.width / box.height / 2 for box in boxes]
    assert 0.79 < min(proportions) < 0.82
    assert 1.2 < max(proportions) < 1.27
    assert all(abs(box.width * box.height / 1e5 - 1) < 0.01 for box in boxes)


@given(st.floats(-180, 180), st.integers(1, 64), st.integers(1, 64), st.booleans())
def test_a_turn_is_about_the_centre_and_keeps_lengths(degrees: float, rows: int, columns: int, flip: bool) -> None:
    box = Box(5, 7, 3 * columns, 3 * rows)
    matrix = affine(box, flip, Distortion(degrees=degrees), (rows, columns))
    centre = matrix @ [columns / 2, rows / 2, 1]
    assert centre == pytest.approx([box.left + box.width / 2, box.top + box.height / 2])
    assert matrix[:, :2] @ matrix[:, :2].T == pytest.approx(9 * np.eye(2), abs=1e-9)
    turned = moved([Change("rotate", degrees)], (rows, columns))
    assert turned is not None
    assert turned @ [columns / 2, rows / 2, 1] == pytest.approx([columns / 2, rows / 2, 1])


def test_a_shift_is_a_share_of_each_side() -> None:
    matrix = affine(Box(0, 0, 40, 20), False, Distortion(shift_x=0.25, shift_y=0.5), (20, 40))
    assert matrix @ [10, 10, 1] == pytest.approx([0, 0])


@given(st.floats(0.1, 2), st.integers(2, 64), st.integers(2, 64))
def test_the_share_of_a_cut_is_what_its_box_leaves(alpha: float, rows: int, columns: int) -> None:
    for mix in mixtures(0, alpha, uniforms(1, 2, range(8), 4), (rows, columns)):
        assert mix is not None
        assert mix.box is not None
        covered = np.zeros((rows, columns), bool)
        covered[mix.box.top : mix.box.top + mix.box.height, mix.box.left : mix.box.left + mix.box.width] = True
        assert math.isclose(mix.own, 1 - covered.mean(), abs_tol=1e-12)
