"""Class figures and confusions against scikit-learn and plain counting on the same arrays."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import classification_report, confusion_matrix, precision_recall_fscore_support

from imagenet_pipeline.evaluation.results import classes_met, confusion, per_class
from imagenet_pipeline.evaluation.scoring import Outcomes


def drawn(images: int, classes: int, seed: int = 0) -> Outcomes:
    """Labels and guesses by chance, the label first more often than not."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, images)
    top = np.array([random.permutation(classes)[:5] for _ in range(images)])
    for at in np.flatnonzero(random.random(images) < 0.5):
        top[at] = [labels[at], *[one for one in top[at] if one != labels[at]][:4]]
    return Outcomes(np.arange(images), labels, top, random.random(images), random.random(images))


@pytest.mark.parametrize(("images", "classes"), [(400, 7), (30, 12), (300, 1000)])
def test_class_figures_are_scikit_learn_s(images: int, classes: int) -> None:
    outcomes = drawn(images, classes)
    report = classification_report(outcomes.labels, outcomes.top[:, 0], output_dict=True, zero_division=0.0)
    found = per_class(outcomes)
    assert [str(one.label) for one in found] == [key for key in report if key.isdecimal()]
    for one in found:
        theirs = report[str(one.label)]
        assert one.images == theirs["support"]
        assert (one.precision, one.recall, one.f1) == pytest.approx(
            tuple(100 * theirs[key] for key in ("precision", "recall", "f1-score"))
        )
        own = outcomes.labels == one.label
        assert one.rank1 == one.recall
        assert one.rank5 == pytest.approx(100 * outcomes.rank5_right[own].mean() if own.any() else 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_class_figures_are_scikit_learn_s_to_the_last_bit(seed: int) -> None:
    outcomes = drawn(images=37 * (seed + 1), classes=6 + 5 * seed, seed=seed)
    theirs = precision_recall_fscore_support(
        outcomes.labels, outcomes.top[:, 0], labels=classes_met(outcomes), zero_division=0.0
    )
    wanted = [100.0 * column for column in theirs[:3]]
    found = [[getattr(figures, name) for figures in per_class(outcomes)] for name in ("precision", "recall", "f1")]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("images", "classes"), [(400, 7), (300, 1000), (1, 6)])
def test_confusions_are_scikit_learn_s(images: int, classes: int) -> None:
    outcomes = drawn(images, classes)
    labels = classes_met(outcomes)
    square = confusion(outcomes).square(labels)
    np.testing.assert_array_equal(square, confusion_matrix(outcomes.labels, outcomes.top[:, 0]))
    assert square.trace() == outcomes.rank1_right.sum()


def test_the_most_confused_are_the_largest_beside_the_diagonal() -> None:
    outcomes = drawn(500, 6)
    square = confusion_matrix(outcomes.labels, outcomes.top[:, 0])
    np.fill_diagonal(square, 0)
    worst = confusion(outcomes).most_confused(8)
    assert worst.images.tolist() == sorted(square.ravel().tolist(), reverse=True)[:8]
    assert square[worst.true, worst.predicted].tolist() == worst.images.tolist()


def test_who_makes_no_mistake_confuses_nothing() -> None:
    outcomes = drawn(20, 6)
    outcomes.top[:, 0] = outcomes.labels
    assert len(confusion(outcomes).most_confused(5).images) == 0
    assert all(one.precision == one.recall == 100.0 for one in per_class(outcomes))
