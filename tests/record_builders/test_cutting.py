"""Cuts keep proportions, lose nothing and repeat nothing."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagenet_pipeline.record_builders.cutting import cut, cut_each, cut_shares, shuffled, with_train_val

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.foreign import RecordsPlan
from imagenet_pipeline.records.plan import Images, Plan


def images_of(count: int, classes: int) -> Images:
    return Images([str(i) for i in range(count)], np.arange(count) % classes)


@given(st.integers(2, 60), st.integers(1, 5), st.integers(0, 60), st.integers(0, 2**31))
def test_a_cut_is_a_partition(per_class: int, classes: int, count: int, seed: int) -> None:
    images = images_of(per_class * classes, classes)
    try:
        rest, chosen = cut(images, count, seed)
    except BadInput:
        assert count
        return
    assert len(chosen) == count
    assert sorted([*rest.paths, *chosen.paths], key=int) == images.paths
    assert np.ptp(np.bincount(chosen.labels, minlength=classes)) <= 1
    for part in (rest, chosen):
        assert [int(path) % classes for path in part.paths] == part.labels.tolist()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 5), st.integers(0, 2**31), st.randoms())
def test_exactly_so_many_of_each_class_whatever_their_order(
    labels: list[int], per_class: int, seed: int, random: Random
) -> None:
    images = Images([str(i) for i in range(len(labels))], np.array(labels))
    if per_class >= min(np.unique(labels, return_counts=True)[1]):
        with pytest.raises(BadInput, match="of each class out"):
            cut_each(images, per_class, seed)
        return
    rest, chosen = cut_each(images, per_class, seed)
    assert set(np.unique(chosen.labels, return_counts=True)[1].tolist()) <= {per_class}
    assert sorted([*rest.paths, *chosen.paths], key=int) == images.paths
    assert chosen.paths == sorted(chosen.paths)
    for part in (rest, chosen):
        assert [labels[int(path)] for path in part.paths] == part.labels.tolist()
    other = random.sample(range(len(labels)), len(labels))
    again = cut_each(Images([str(i) for i in other], np.array(labels)[other]), per_class, seed)
    assert (again[0].paths, again[1].paths) == (rest.paths, chosen.paths)


def test_the_cut_of_each_class_depends_on_the_seed() -> None:
    cuts = {tuple(cut_each(images_of(200, 4), 5, seed)[1].paths) for seed in range(5)}
    assert len(cuts) == 5


def test_places_in_an_archive_stay_with_their_images() -> None:
    images = Images([str(i) for i in range(40)], np.arange(40) % 2, np.stack([np.arange(40), np.arange(40)], axis=1))
    for part in (*cut(images, 10, 1), *cut_each(images, 5, 1), shuffled(images, 1)):
        assert part.spans is not None
        assert [str(offset) for offset, _ in part.spans.tolist()] == part.paths


def test_shuffling_depends_on_the_seed_alone() -> None:
    images = images_of(50, 3)
    assert shuffled(images, 1).paths == shuffled(images, 1).paths != shuffled(images, 2).paths


def test_fractions_leave_a_rest() -> None:
    splits = cut_shares(images_of(100, 4), {"val": 0.1, "test": 0.2}, 0)
    assert {name: len(images) for name, images in splits.items()} == {"train": 70, "val": 10, "test": 20}
    for fractions in ({"val": 1.0}, {"val": 0.5, "test": 0.5}, {"val": -0.1}):
        with pytest.raises(BadInput, match="nothing to train on"):
            cut_shares(images_of(100, 4), fractions, 0)


def test_train_val_is_cut_out_of_images_of_train_alone(tmp_path: Path) -> None:
    images, classes = Images(list("abcd"), np.array([0, 0, 1, 1])), ClassTable("list", ("x", "y"), ("x", "y"))
    plan = Plan(tmp_path, {"train": images}, classes)
    cut_once = with_train_val(plan, 0.5)
    assert cut_once.counts == {"train": 2, "train_val": 2}
    records = RecordsPlan(tmp_path, {"train": images}, classes)
    for other in (cut_once, records, Plan(tmp_path, {"val": images}, classes)):
        with pytest.raises(BadInput, match="no train_val can be cut out"):
            with_train_val(other, 0.5)


def test_a_class_too_small_to_be_cut_is_named() -> None:
    images = Images([*(f"cat/{i}.jpg" for i in range(40)), "dog/1.jpg"], np.array([0] * 40 + [1]))
    with pytest.raises(
        BadInput, match=r"label 1 has a single image \(dog/1\.jpg\).* --val-fraction 0 --test-fraction 0"
    ):
        cut_shares(images, {"val": 0.1, "test": 0.1}, 0)
    with pytest.raises(BadInput, match=r"cannot cut 1 of 100 images .* expected 4\.\.96; .* --test-fraction 0"):
        cut_shares(images_of(100, 4), {"test": 0.01}, 0)


def test_cuts_that_take_the_whole_of_a_class_are_refused() -> None:
    images = Images([str(i) for i in range(22)], np.array([0] * 20 + [1] * 2))
    with pytest.raises(BadInput, match=r"the cuts leave no training image of label 1; .*smaller shares"):
        cut_shares(images, {"val": 0.9}, 0)
