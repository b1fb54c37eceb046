"""What became of every record: its class, the first five guesses, how sure the first was, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.engines import Array, Engine
from imagenet_pipeline.evaluation.probabilities import Logs
from imagenet_pipeline.evaluation.stats import Reals, Truths
from imagenet_pipeline.training.metrics import top_classes

Whole = npt.NDArray[np.int64]
GUESSES = 5


@dataclass(frozen=True)
class Outcomes:
    """Row i is the record at position i; of a million records 72 MB, whatever the number of classes."""

    numbers: Whole
    """[n], the number each record carries."""
    labels: Whole
    """[n], in the network's numbering of the classes."""
    top: Whole
    """[n, 5], the best classes, best first; [n, classes] of fewer."""
    confidence: Reals
    """[n], the probability of the first."""
    losses: Reals
    """[n]; NaN where the network's output was not finite."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def rank1_right(self) -> Truths:
        """[n], whether the first guess is the class."""
        right: Truths = self.top[:, 0] == self.labels
        return right

    @property
    def rank5_right(self) -> Truths:
        """[n], whether the class is among the first five."""
        right: Truths = (self.top == self.labels[:, None]).any(axis=1)
        return right


def outcomes_of(numbers: Whole, labels: Whole, ranked: Array, logs: Logs, loss_kind: str) -> Outcomes:
    """Of one batch. Classes rank by `ranked` [n, classes], ties to the lower; `logs` are of their probabilities."""
    top = top_classes(ranked, GUESSES)
    rows = np.arange(len(labels))
    confidence = np.minimum(1.0, np.exp(logs[rows, top[:, 0]]))
    return Outcomes(numbers.copy(), labels.copy(), top, confidence, losses_of(logs, labels, loss_kind))


def losses_of(logs: Logs, labels: Whole, kind: str) -> Reals:
    """[n], as `engines/__init__.py` writes the losses: of hinge, whose differences a constant leaves, logs will do."""
    own = logs[np.arange(len(labels)), labels]
    if kind == "hinge":
        margins: Reals = np.maximum(0.0, logs - own[:, None] + 1.0).sum(axis=1) - 1.0
        return margins
    losses: Reals = -own
    return losses


def gathered(engine: Engine, records: int, classes: int, parts: Sequence[tuple[int, Outcomes]]) -> Outcomes:
    """The outcomes of all records out of those of all ranks; each part begins at a position of its own. Collective."""
    table = np.zeros((records, 4 + min(GUESSES, classes)))
    for first, one in parts:
        own = [one.numbers, one.labels, one.confidence, one.losses, *one.top.T]
        table[first : first + len(one)] = np.stack(own, axis=1)
    if engine.ranks > 1:
        # Each row is one rank's and 0 elsewhere, so that the sums are those very numbers.
        table = engine.sum_over_ranks(table.ravel()).reshape(table.shape)
    numbers, labels = table[:, :2].astype(np.int64).T
    # Copies, or the whole table would live on in them.
    return Outcomes(numbers, labels, table[:, 4:].astype(np.int64), table[:, 2].copy(), table[:, 3].copy())
