"""A single pass over a split for all networks to be scored on its records: per-record outcomes.

An outcome is a record's class, the first five predictions, the probability of the first, and the loss. Probabilities
are float64, averaged over the crops of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import LossRecipe, Recipe, Size, log_odds
from imagenet_pipeline.engines import LEAST_MISSING, Array, Images
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.evaluation.stats import Reals, Truths
from imagenet_pipeline.loading.loader import Batch
from imagenet_pipeline.loading.order import Share
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.classes import LabelKind
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.data import loader_of
from imagenet_pipeline.training.metrics import top_classes

Crops = Literal[1, 2, 10]
CROSS_ENTROPY = LossRecipe()
View = tuple[Size, float]
"""Input of a network: its size in pixels, and the share of the largest window of its shape that the crop takes."""


class Scorer(Protocol):
    """The part of an engine that scoring needs."""

    @property
    def rank(self) -> int: ...

    @property
    def ranks(self) -> int: ...

    def issue_logits(self, images: Images) -> Callable[[], Array]: ...

    def host_array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]: ...

    def sum_over_ranks(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...


@dataclass(frozen=True)
class Member:
    """A network to be scored; its input has as many `channels`, RGB or grey, and its outputs `columns` alone count.

    Its probabilities, and its loss where that is cross-entropy, are those at `temperature`; ranks are the same at any.
    """

    engine: Scorer
    view: View
    loss: LossRecipe
    channels: int = 3
    columns: Whole | None = None
    temperature: float = 1.0

    @property
    def images(self) -> tuple[View, int]:
        """The marks that tell its images from those that other networks see."""
        return self.view, self.channels


@dataclass(frozen=True)
class RelabelledSplit:
    """A split of a data set, its labels mapped to the network's by `relabel`; `recipe` says how it is read.

    Only each `every`-th record is scored.
    """

    data: DataSet
    split: str
    relabel: Whole
    recipe: Recipe
    every: int = 1


def score_split(source: RelabelledSplit, crops: Crops, members: Sequence[Member], classes: int) -> list[Outcomes]:
    """Score each member; with several, the first outcomes are those of the mean of their probabilities.

    Every record is scored once over all ranks, whatever the batch size. Memory does not grow with the number of
    classes. Collective.
    """
    parts: list[list[tuple[int, Outcomes]]] = [[] for _ in range(1 + len(members))]
    for batch in one_behind(_issued(source, crops, members)):
        logs = []
        for member, wait, own in zip(members, batch.logits, parts[1:], strict=True):
            logits = _finite(wait())
            logits = logits if member.columns is None else logits[:, member.columns]
            with np.errstate(invalid="ignore"):
                logs.append(log_probabilities(logits, crops))
            # A single crop ranks by the scores themselves: what rounds to the same probability is not a tie.
            ranked = logits if crops == 1 else logs[-1]
            outcomes = outcomes_of(batch.numbers, batch.labels, ranked, logs[-1], member.loss)
            if member.temperature != 1:
                outcomes = _at_temperature(outcomes, logs[-1], member)
            own.append((batch.first_position, outcomes))
        if len(members) > 1:
            mean = np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))
            outcomes = outcomes_of(batch.numbers, batch.labels, mean, mean, CROSS_ENTROPY)
            parts[0].append((batch.first_position, outcomes))
    count = -(-source.data.count(source.split) // source.every)
    return [gathered(members[0].engine, count, classes, own) for own in parts[len(members) == 1 :]]


def _at_temperature(outcomes: Outcomes, logs: Logs, member: Member) -> Outcomes:
    """The outcomes with the confidence, and the cross-entropy, of a member's temperature."""
    own = tempered(logs, member.temperature)
    confidence = np.minimum(1.0, np.exp(own[np.arange(len(own)), outcomes.top[:, 0]]))
    kept = outcomes.losses if member.loss.kind != CROSS_ENTROPY.kind else losses_of(own, outcomes.labels, member.loss)
    return replace(outcomes, confidence=confidence, losses=kept)


def logs_by_batch(source: RelabelledSplit, crops: Crops, member: Member) -> Iterator[tuple[Whole, Logs]]:
    """Yield labels [n] and log probabilities [n, classes] of a member, a batch at a time; NaN where not finite."""
    for batch in one_behind(_issued(source, crops, [member])):
        logits = _finite(batch.logits[0]())
        with np.errstate(invalid="ignore"):
            yield (
                batch.labels,
                log_probabilities(logits if member.columns is None else logits[:, member.columns], crops),
            )


@dataclass(frozen=True)
class _Issued:
    """A batch whose logits the engines compute; `logits` has a function of each member that waits for its own."""

    first_position: int
    numbers: Whole
    labels: Whole
    logits: list[Callable[[], Array]]


def _issued(source: RelabelledSplit, crops: Crops, members: Sequence[Member]) -> Iterator[_Issued]:
    engine, first = members[0].engine, members[0].images
    for batches in _shown(source, engine, crops, {member.images for member in members}):
        logits = [member.engine.issue_logits(batches[member.images].images) for member in members]
        own = batches[first]
        # Copies, since the loader fills the batch again while the logits are computed.
        yield _Issued(own.first_position, own.records.copy(), source.relabel[own.labels], logits)


_Item = TypeVar("_Item")


def one_behind(issued: Iterable[_Item]) -> Iterator[_Item]:
    """Yield each item after the next was made: the devices work on the next while Python waits for and reads this."""
    waiting: list[_Item] = []
    for item in issued:
        yield from waiting
        waiting = [item]
    yield from waiting


def _finite(logits: Array) -> Array:
    """Return the logits, or NaN for them all: infinities would pass unseen where they are no image's own."""
    return logits if np.isfinite(logits).all() else np.full_like(logits, np.nan)


def _shown(
    source: RelabelledSplit, engine: Scorer, crops: Crops, wanted: Collection[tuple[View, int]]
) -> Iterator[dict[tuple[View, int], Batch]]:
    """Yield the same records batch by batch as every `Member.images` has them, with a progress bar."""
    recipe = source.recipe
    with ExitStack() as stack, Bar(source.split, "batches", engine.rank == 0) as bar:
        passes = {}
        for images in wanted:
            (size, crop_fraction), channels = images
            records = stack.enter_context(RecordSet.of(source.data, source.split))
            share = Share(engine.rank, engine.ranks)
            classes = len(source.relabel)
            loader = loader_of(recipe, records, size, classes, share, crops, engine.host_array, channels=channels)
            chosen = np.arange(0, len(records), source.every)
            passes[images] = stack.enter_context(loader.evaluation(crop_fraction, crops, chosen))
        total = min(map(len, passes.values()))
        for done in range(1, total + 1):
            yield {images: next(batches) for images, batches in passes.items()}
            bar.show(done, total)


Whole = npt.NDArray[np.int64]
PREDICTIONS = 5


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
        """[n], True where the first prediction is the class (top-1)."""
        right: Truths = self.top[:, 0] == self.labels
        return right

    @property
    def rank5_right(self) -> Truths:
        """[n], True where the class is among the first five predictions (top-5)."""
        right: Truths = (self.top == self.labels[:, None]).any(axis=1)
        return right


def outcomes_of(numbers: Whole, labels: Whole, ranked: Array, logs: Logs, loss: LossRecipe) -> Outcomes:
    """Outcomes of a batch. Classes rank by `ranked` [n, classes], ties to the lower; `logs` are log probabilities."""
    top = top_classes(ranked, PREDICTIONS)
    rows = np.arange(len(labels))
    confidence = np.minimum(1.0, np.exp(logs[rows, top[:, 0]]))
    return Outcomes(numbers, labels, top, confidence, losses_of(logs, labels, loss))


def losses_of(logs: Logs, labels: Whole, loss: LossRecipe) -> Reals:
    """[n], as `engines/__init__.py` writes the losses: of hinge, whose differences a constant leaves, logs will do."""
    rows = np.arange(len(labels))
    if loss.kind == "hinge":
        own = logs[rows, labels][:, None]
        margins: Reals = np.maximum(0.0, logs - own + loss.margin).sum(axis=1) - loss.margin
        return margins
    if loss.kind == "binary_cross_entropy":
        logs = log_probabilities(logs + np.array([0.0, log_odds(loss.threshold)]))
    losses: Reals = -logs[rows, labels]
    if loss.kind == "focal":
        losses *= np.maximum(-np.expm1(-losses), LEAST_MISSING) ** loss.gamma
    return losses


def gathered(engine: Scorer, records: int, classes: int, parts: Sequence[tuple[int, Outcomes]]) -> Outcomes:
    """Gather the outcomes of all records from all ranks; each part begins at a position of its own. Collective."""
    table = np.zeros((records, 4 + min(PREDICTIONS, classes)))
    for first, part in parts:
        own = [part.numbers, part.labels, part.confidence, part.losses, *part.top.T]
        table[first : first + len(part)] = np.stack(own, axis=1)
    if engine.ranks > 1:
        # Each row belongs to a single rank and is 0 on the others, so that the sums are those very numbers.
        table = engine.sum_over_ranks(table.ravel()).reshape(table.shape)
    numbers, labels = table[:, :2].astype(np.int64).T
    # Copies, or the whole table would live on in them.
    return Outcomes(numbers, labels, table[:, 4:].astype(np.int64), table[:, 2].copy(), table[:, 3].copy())


Logs = npt.NDArray[np.float64]
"""Logs of probabilities, [n, classes]."""


def log_probabilities(logits: Array, crops: int = 1) -> Logs:
    """Log of the probabilities averaged over the crops of each image: [n * crops, classes] to [n, classes]."""
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    logs = scores.reshape(-1, crops, scores.shape[1])
    mean: Logs = np.logaddexp.reduce(logs, axis=1) - np.log(crops)
    return mean


def tempered(logs: Logs, temperature: float) -> Logs:
    """Log probabilities [n, classes] at a temperature, of such, or of logits."""
    return log_probabilities(logs.astype(np.float64) / temperature)


def outputs_of(logits: Array, label_kind: LabelKind, crops: int = 1) -> Reals:
    """The outputs of each image, [n * crops, labels] to float64 [n, labels], the mean of its crops.

    Of several classes the logarithm of p / (1 - p), where p is the mean of the probabilities.
    """
    scores = logits.astype(np.float64).reshape(-1, crops, logits.shape[1])
    if crops == 1 or label_kind == "number":
        means: Reals = scores.mean(axis=1)
        return means
    yes, no = (np.logaddexp.reduce(-np.logaddexp(0, -sign * scores), axis=1) for sign in (1, -1))
    odds: Reals = yes - no
    return odds


def require_finite(output: npt.NDArray[np.floating[Any]], checkpoint: Path) -> None:
    """Raise BadInput, naming the checkpoint, where a network's outputs or losses are not finite."""
    if not np.isfinite(output).all():
        raise BadInput("the network's output is not finite", where=checkpoint, advice="take another checkpoint")
