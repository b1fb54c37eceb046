"""Ranks counted exactly, on small cases and on the published predictions of five networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagenet_pipeline.record_builders.imagenet_devkit import blacklisted_numbers, parse_devkit, validation_labels
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.training.metrics import rank_hits, top_classes


@given(st.integers(1, 20), st.integers(5, 12), st.integers(0, 2**32 - 1))
def test_hits_equal_those_of_a_full_sort(count: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, (count, classes)).astype(np.float32)  # few values: many ties
    labels = random.integers(0, classes, count)
    ranks = [
        sorted(range(classes), key=lambda label: (-row[label], label)).index(truth)
        for row, truth in zip(scores.tolist(), labels.tolist(), strict=True)
    ]
    assert rank_hits(top_classes(scores), labels) == (sum(r < 1 for r in ranks), sum(r < 5 for r in ranks))


def test_ties_go_to_the_lower_class() -> None:
    assert top_classes(np.zeros((1, 7)), 3).tolist() == [[0, 1, 2]]


def test_fewer_than_five_classes() -> None:
    assert rank_hits(top_classes(np.array([[0.0, 1.0]])), np.array([0])) == (0, 1)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(BadInput, match="differ in length"):
        rank_hits(np.zeros((3, 5), np.int64), np.zeros(4, np.int64))


PUBLISHED = {
    "alexnet": (56.518, 79.070), "vgg16": (71.592, 90.382), "bninception": (73.524, 91.562),
    "resnet50": (76.130, 92.862), "squeezenet1_1": (58.178, 80.624),
}  # fmt: skip
WITHOUT_BLACKLISTED = {"alexnet": (56.798, 79.317), "vgg16": (71.869, 90.526), "resnet50": (76.407, 92.958)}


@pytest.fixture(scope="module")
def validation(unpacked: Callable[[str], Path]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Labels of the 50,000 validation images, and which of them are not on the blacklist."""
    devkit = parse_devkit(unpacked("imagenet_meta.tar.xz") / "imagenet_meta" / "devkit" / "data")
    labels = validation_labels(devkit)
    kept = np.ones(len(labels), bool)
    kept[np.array(sorted(blacklisted_numbers(devkit))) - 1] = False
    return labels, kept


def percentages(top: NDArray[np.integer[Any]], labels: NDArray[np.int64]) -> tuple[float, ...]:
    return tuple(round(100 * hits / len(labels), 3) for hits in rank_hits(top, labels))


@pytest.mark.parametrize("network", PUBLISHED)
def test_published_figures_to_the_last_digit(
    shared_data: Path, validation: tuple[NDArray[np.int64], NDArray[np.bool_]], network: str
) -> None:
    labels, kept = validation
    with np.load(shared_data / "imagenet_val_top5_5models.npz", allow_pickle=False) as predictions:
        top = predictions[network]
    assert (len(labels), kept.sum()) == (50_000, 48_238)
    assert percentages(top, labels) == PUBLISHED[network]
    if network in WITHOUT_BLACKLISTED:
        assert percentages(top[kept], labels[kept]) == WITHOUT_BLACKLISTED[network]
