"""Ranks counted exactly, on small cases and on the published predictions of five networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize("network", PUBLISHED)
def test_published_figures_to_the_last_digit(
    shared_data: Path, unpacked: Callable[[str], Path], network: str
) -> None:
    labels_file = next(unpacked("imagenet_meta.tar.xz").rglob("caffe_val.txt"))
    labels = np.array([int(line.split()[1]) for line in labels_file.read_text().splitlines()])
    with np.load(shared_data / "imagenet_val_top5_5models.npz", allow_pickle=False) as predictions:
        top = predictions[network]
    rank1, rank5 = rank_hits(top, labels)
    assert (round(rank1 / 500, 3), round(rank5 / 500, 3)) == PUBLISHED[network]
