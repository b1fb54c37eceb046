"""Class by class: how many are found, how many of those named so are so, and what is taken for what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_fscore_support

from imagenet_pipeline.evaluation.outcomes import Outcomes, Whole


@dataclass(frozen=True)
class ClassFigures:
    """Of one class, in percent; `rank1` is its recall. Without an image, or where never named, shares are 0."""

    label: int
    images: int
    rank1: float
    rank5: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    """So many images of class `true` were taken for `predicted`: every pair that occurs, by true and predicted class.

    Pairs, not a square: of 1,000 classes nearly all pairs never occur.
    """

    true: Whole
    predicted: Whole
    images: Whole

    def square(self, labels: Whole) -> Whole:
        """[true, predicted] counts over `labels` in rising order, which must have every class that occurs."""
        square = np.zeros((len(labels), len(labels)), np.int64)
        square[np.searchsorted(labels, self.true), np.searchsorted(labels, self.predicted)] = self.images
        return square

    def most_confused(self, most: int) -> Confusion:
        """The pairs of two different classes that occur most, most first; at most so many."""
        order = np.argsort(-self.images, kind="stable")
        order = order[self.true[order] != self.predicted[order]][:most]
        return Confusion(self.true[order], self.predicted[order], self.images[order])


def per_class(outcomes: Outcomes) -> list[ClassFigures]:
    """Of every class that is there or was predicted, in the order of labels."""
    labels = classes_met(outcomes)
    precision, recall, f1, images = precision_recall_fscore_support(
        outcomes.labels, outcomes.top[:, 0], labels=labels, zero_division=0.0
    )
    among_five = _count(outcomes.labels[outcomes.rank5_right], labels) / np.maximum(images, 1)
    columns = (100.0 * column for column in (recall, among_five, precision, recall, f1))
    rows = zip(labels.tolist(), images.tolist(), *(column.tolist() for column in columns), strict=True)
    return [ClassFigures(*row) for row in rows]


def confusion(outcomes: Outcomes) -> Confusion:
    """How often each class was taken for each."""
    pairs = np.stack([outcomes.labels, outcomes.top[:, 0]])
    (true, predicted), images = np.unique(pairs, axis=1, return_counts=True)
    return Confusion(true, predicted, images.astype(np.int64))


def classes_met(outcomes: Outcomes) -> Whole:
    """The labels of images and first predictions, in rising order."""
    met: npt.NDArray[np.int64] = np.unique(np.concatenate([outcomes.labels, outcomes.top[:, 0]]))
    return met


def _count(chosen: Whole, labels: Whole) -> Whole:
    return np.bincount(np.searchsorted(labels, chosen), minlength=len(labels))
