from __future__ import annotations

from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images

from imagenet_pipeline.loading.auto_augment import POLICY_COLUMNS, Change, moved, policy_changes
from imagenet_pipeline.loading.transforms import Distortion, Pixels, resample_moved
from imagenet_pipeline.records.image import Box, LazyImage

PLAIN = Distortion()
SIZE = 96

# The published table, each strength as k of 30 says it: RandAugment's and TrivialAugment's, as torchvision 0.29 has
# them (transforms/autoaugment.py).
STRENGTHS: dict[str, tuple[Any, Any]] = {
    "identity": (lambda k: 0, lambda k: 0),
    "shear_x": (lambda k: 0.01 * k, lambda k: 0.033 * k),
    "shear_y": (lambda k: 0.01 * k, lambda k: 0.033 * k),
    "translate_x": (lambda k: int(150 / 331 * SIZE * k / 30), lambda k: int(32 * k / 30)),
    "translate_y": (lambda k: int(150 / 331 * SIZE * k / 30), lambda k: int(32 * k / 30)),
    "rotate": (lambda k: k, lambda k: 4.5 * k),
    "brightness": (lambda k: 0.03 * k, lambda k: 0.033 * k),
    "colour": (lambda k: 0.03 * k, lambda k: 0.033 * k),
    "contrast": (lambda k: 0.03 * k, lambda k: 0.033 * k),
    "sharpness": (lambda k: 0.03 * k, lambda k: 0.033 * k),
    "posterize": (lambda k: 8 - round(k / 7.5), lambda k: 8 - round(k / 5)),
    "solarize": (lambda k: 255 - 8.5 * k, lambda k: 255 - 8.5 * k),
    "autocontrast": (lambda k: 0, lambda k: 0),
    "equalize": (lambda k: 0, lambda k: 0),
}
UNSIGNED = {"identity", "posterize", "solarize", "autocontrast", "equalize"}


def numbers(count: int) -> NDArray[np.float64]:
    return np.random.default_rng(4).random((count, POLICY_COLUMNS))


def photo() -> Pixels:
    image: Pixels = cv2.resize(load_sample_images().images[1], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(image, (0, 0), 1.5)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_rand_augment_makes_so_many_changes_of_one_strength(count: int, magnitude: int) -> None:
    drawn = policy_changes("rand_augment", count, magnitude, numbers(3000), SIZE)
    assert {len(changes) for changes in drawn} == {count}
    for name, strength in {change for changes in drawn for change in changes}:
        expected = STRENGTHS[name][0](magnitude)
        assert (strength if name in UNSIGNED else abs(strength)) == pytest.approx(expected)
    # Every place draws each of the fourteen alike, and independently of the places before: chi squared, p = 0.001.
    for place in range(count):
        frequencies = Counter(changes[place].name for changes in drawn)
        assert set(frequencies) == set(STRENGTHS)
        assert sum((frequency - 3000 / 14) ** 2 / (3000 / 14) for frequency in frequencies.values()) < 34.5
    if count > 1:
        assert len({(changes[0].name, changes[1].name) for changes in drawn}) == 196


def test_trivial_augment_makes_one_change_of_any_strength() -> None:
    drawn = policy_changes("trivial_augment", 3, 9, numbers(30_000), SIZE)
    assert {len(changes) for changes in drawn} == {1}
    for name, (_, strength_of) in STRENGTHS.items():
        strengths = [change.strength for [change] in drawn if change.name == name]
        assert len(strengths) == pytest.approx(30_000 / 14, abs=200)  # 4.5 deviations
        possible = {round(strength_of(k), 9) for k in range(31)}
        sizes = strengths if name in UNSIGNED else [abs(one) for one in strengths]
        assert {round(one, 9) for one in sizes} == possible
        assert np.mean(sizes) == pytest.approx(np.mean([strength_of(k) for k in range(31)]), rel=0.06, abs=1e-9)
        if name not in UNSIGNED:
            assert np.mean(np.array(strengths) < 0) == pytest.approx(0.5 * np.mean(np.array(sizes) > 0), abs=0.05)


def test_without_a_policy_nothing_changes() -> None:
    assert policy_changes("none", 2, 9, numbers(3), SIZE) == [[], [], []]


def pillow_moved(image: Pixels, change: Change, fill: int) -> Pixels:
    """One change by Pillow, with the coefficients of AutoAugment's published code."""
    coefficients = {
        "shear_x": (1, change.strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, change.strength, 1, 0),
        "translate_x": (1, 0, change.strength, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, change.strength),
    }
    picture, grey = Image.fromarray(image), (fill, fill, fill)
    if change.name == "rotate":
        turned = picture.rotate(change.strength, Image.Resampling.BILINEAR, fillcolor=grey)
    else:
        how = Image.Transform.AFFINE
        turned = picture.transform(picture.size, how, coefficients[change.name], Image.Resampling.BILINEAR, 1, grey)
    return np.asarray(turned)


def ours_moved(image: Pixels, changes: list[Change], fill: int) -> Pixels:
    out = np.empty_like(image)
    matrix = moved(changes, SIZE)
    assert matrix is not None
    resample_moved(LazyImage.of(image), Box(0, 0, SIZE, SIZE), False, PLAIN, matrix, fill, out)
    return out


@pytest.mark.parametrize("fill", [0, 128])
@pytest.mark.parametrize(
    "change",
    [
        *[Change(name, sign * size) for name in ("shear_x", "shear_y") for sign in (1, -1) for size in (0.1, 0.99)],
        *[Change(name, size) for name in ("translate_x", "translate_y") for size in (32, -7)],
        *[Change("rotate", degrees) for degrees in (9, -30, 90, 135, -135)],
    ],
)
def test_each_geometric_change_is_pillows(change: Change, fill: int) -> None:
    """On a blurred photo, where OpenCV's steps of 1/32 pixel are a level or two; Pillow also cuts fractions off.

    Left out are points within a pixel of the image's edge, where OpenCV blends with the fill and Pillow does not.
    """
    difference = np.abs(ours_moved(photo(), [change], fill).astype(int) - pillow_moved(photo(), change, fill))
    inside = np.full((SIZE, SIZE, 3), 255, np.uint8)
    inside[[0, 1, -2, -1]] = inside[:, [0, 1, -2, -1]] = 0
    certain = pillow_moved(inside, change, 0) == 255
    outside = pillow_moved(np.full_like(inside, 255), change, 0) == 0
    assert certain.mean() > 0.2
    assert difference[certain].max() <= 3
    assert difference[certain].mean() < 0.7
    # One pixel inside the border of what lies outside, the fill is all there is.
    far = cv2.erode(outside.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0).astype(bool)
    assert (ours_moved(photo(), [change], fill)[far] == fill).all()


def test_composed_changes_are_pillows_one_after_the_other() -> None:
    """Pillow interpolates twice, hence blurs a little more; what is gone after the first stays gone only there."""
    pairs = [("shear_x", 0.15), ("rotate", 20), ("translate_y", 9), ("shear_y", -0.2), ("translate_x", -11)]
    for first in pairs:
        for second in pairs:
            changes = [Change(*first), Change(*second)]
            one_by_one, mask = photo(), np.full((SIZE, SIZE, 3), 255, np.uint8)
            mask[[0, 1, -2, -1]] = mask[:, [0, 1, -2, -1]] = 0
            for change in changes:
                one_by_one, mask = pillow_moved(one_by_one, change, 0), pillow_moved(mask, change, 0)
            difference = np.abs(ours_moved(photo(), changes, 0).astype(int) - one_by_one)[mask == 255]
            assert difference.mean() < 1.2, changes
            wrong_order = np.abs(ours_moved(photo(), changes[::-1], 0).astype(int) - one_by_one)[mask == 255]
            if {first[0], second[0]} == {"rotate", "translate_y"}:
                assert wrong_order.mean() > 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(STRENGTHS)), max_size=4), st.integers(1, 300), st.integers(0, 30))
def test_other_changes_leave_the_geometry_alone(names: list[str], size: int, step: int) -> None:
    geometric = [name for name in names if name[:5] in ("shear", "trans", "rotat")]
    matrix = moved([Change(name, float(step)) for name in names], size)
    assert (matrix is None) == (not geometric)
    if matrix is not None and set(geometric) == {"rotate"}:
        assert matrix @ [size / 2, size / 2, 1] == pytest.approx([size / 2, size / 2, 1])


# AutoAugment's policy for ImageNet as torchvision 0.29 has it (transforms/autoaugment.py): change, probability, and
# strength as k of 9 says it; "-" has none.
IMAGENET_POLICY = """
posterize 0.4 8 rotate 0.6 9; solarize 0.6 5 autocontrast 0.6 -; equalize 0.8 - equalize 0.6 -
posterize 0.6 7 posterize 0.6 6; equalize 0.4 - solarize 0.2 4; equalize 0.4 - rotate 0.8 8
solarize 0.6 3 equalize 0.6 -; posterize 0.8 5 equalize 1.0 -; rotate 0.2 3 solarize 0.6 8
equalize 0.6 - posterize 0.4 6; rotate 0.8 8 colour 0.4 0; rotate 0.4 9 equalize 0.6 -
equalize 0.0 - equalize 0.8 -; invert 0.6 - equalize 1.0 -; colour 0.6 4 contrast 1.0 8
rotate 0.8 8 colour 1.0 2; colour 0.8 8 solarize 0.8 7; sharpness 0.4 7 invert 0.6 -
shear_x 0.6 5 equalize 1.0 -; colour 0.4 0 equalize 0.6 -; equalize 0.4 - solarize 0.2 4
solarize 0.6 5 autocontrast 0.6 -; invert 0.6 - equalize 1.0 -; colour 0.6 4 contrast 1.0 8
equalize 0.8 - equalize 0.6 -
"""
TENTHS: dict[str, Any] = {
    "posterize": lambda k: 8 - round(k / (9 / 4)),
    "solarize": lambda k: 255 - 255 * k / 9,
    "rotate": lambda k: 30 * k / 9,
    "shear_x": lambda k: 0.3 * k / 9,
    **dict.fromkeys(("colour", "contrast", "sharpness"), lambda k: 0.9 * k / 9),
}


def pairs_of_torchvision() -> list[list[tuple[str, float, float]]]:
    pairs = [text.split() for text in IMAGENET_POLICY.replace(";", "\n").strip().splitlines()]
    return [
        [(name, float(p), 0.0 if k == "-" else TENTHS[name](int(k))) for name, p, k in (words[:3], words[3:])]
        for words in pairs
    ]


def test_auto_augment_is_the_published_policy() -> None:
    """By the very numbers that it draws with: the pair, then for each of its two whether it is made, and the sign."""
    drawn, uniforms, pairs = (
        policy_changes("auto_augment", 2, 9, numbers(4000), SIZE),
        numbers(4000),
        pairs_of_torchvision(),
    )
    assert len(pairs) == 25
    seen = Counter()
    for changes, row in zip(drawn, uniforms, strict=True):
        place = int(row[0] * 25)
        expected = []
        for at, (name, probability, strength) in enumerate(pairs[place]):
            if row[1 + at] < probability:
                negative = row[4 + at] < 0.5 and name not in UNSIGNED | {"invert"}
                expected.append((name, pytest.approx(-strength if negative else strength)))
        assert [tuple(change) for change in changes] == expected
        seen[place] += 1
    assert sum((seen[place] - 160) ** 2 / 160 for place in range(25)) < 51.2  # chi squared, p = 0.001


def test_three_augment_makes_one_of_three() -> None:
    drawn = [change for [change] in policy_changes("three_augment", 2, 9, numbers(6000), SIZE)]
    counts = Counter(change.name for change in drawn)
    assert {*counts} == {"grey", "solarize", "blur"}
    assert sum((count - 2000) ** 2 / 2000 for count in counts.values()) < 13.8
    assert {change.strength for change in drawn if change.name == "solarize"} == {128}
    deviations = [change.strength for change in drawn if change.name == "blur"]
    assert stats.kstest(deviations, stats.uniform(0.1, 1.9).cdf).pvalue > 0.01
