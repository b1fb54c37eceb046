"""Results of an evaluation, as the reports and --json give them: metrics overall and by class, confusions, mistakes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.evaluation.compare import Ensemble, Examination, InTrain
from imagenet_pipeline.evaluation.evaluate import Evaluation
from imagenet_pipeline.evaluation.real_labels import RealLabels
from imagenet_pipeline.evaluation.scoring import Outcomes, Whole
from imagenet_pipeline.evaluation.stats import (
    Calibration,
    Difference,
    Interval,
    Mean,
    Rate,
    calibration,
    difference,
    mean,
    rate,
)
from imagenet_pipeline.training.metrics import chance_percent, says_rank5

WORST, PAIRS = 24, 20


@dataclass(frozen=True)
class Figures:
    """Metrics of a set of outcomes; `real` is rank-1 by ReaL labels."""

    rank1: Rate
    rank5: Rate
    loss: Mean
    calibration: Calibration
    real: Rate | None


@dataclass(frozen=True)
class Mistake:
    """A wrong first prediction: the record's position, its class, and the class predicted with its probability."""

    position: int
    number: int
    label: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class InTrainFigures:
    """Near duplicates of images in train among the images scored: rank-1 of them, and without them.

    None where there is no such image.
    """

    distance: int
    images: int
    rank1_of_them: Rate | None
    rank1_without: Rate | None


@dataclass(frozen=True)
class Findings:
    """Everything a report shows; `own` are each member's figures.

    `differences` to the first member are of every other member and, at the end, of all together.
    """

    examination: Examination
    figures: Figures
    own: list[Figures]
    differences: list[Difference]
    classes: list[ClassFigures]
    confusion: Confusion
    mistakes: list[Mistake]
    in_train: InTrainFigures | None = None

    def class_id(self, label: int) -> str:
        """The id of a class in the data set."""
        return self.examination.table.ids[label]

    def class_name(self, label: int) -> str:
        """The name of a class; with its id where two share a name, as ImageNet's cranes do."""
        table = self.examination.table
        name = table.names[label].replace("_", " ")
        return f"{name} ({table.ids[label]})" if table.names[label] in self._shared_names else name

    @property
    def chance(self) -> str:
        """The rank-1 of guessing, as it stands beside that of the network."""
        return f"chance: {chance_percent(self.examination.result.scored_classes):.3g} %"

    @property
    def says_rank5(self) -> bool:
        """True where readers are shown rank-5; JSON always has it."""
        return says_rank5(self.examination.result.scored_classes)

    @cached_property
    def _shared_names(self) -> set[str]:
        return {name for name, count in Counter(self.examination.table.names).items() if count > 1}


def findings_of(examination: Examination) -> Findings:
    """Figures of all together, of each, by class, and the mistakes."""
    outcomes, real = examination.outcomes, examination.real
    own = [figures_of(member, real) for member in examination.own]
    first = examination.own[0]
    return Findings(
        examination,
        figures=own[0] if len(own) == 1 else figures_of(outcomes, real),
        own=own,
        differences=[
            difference(member.rank1_right, member.losses, first.rank1_right, first.losses)
            for member in ([] if len(own) == 1 else [*examination.own[1:], outcomes])
        ],
        classes=per_class(outcomes),
        confusion=confusion(outcomes),
        mistakes=worst_mistakes(outcomes, WORST),
        in_train=_in_train(outcomes, examination.in_train),
    )


def _in_train(outcomes: Outcomes, found: InTrain | None) -> InTrainFigures | None:
    if found is None:
        return None
    them = np.zeros(len(outcomes), bool)
    them[found.positions] = True
    rates = [
        rate(int(outcomes.rank1_right[chosen].sum()), int(chosen.sum())) if chosen.any() else None
        for chosen in (them, ~them)
    ]
    return InTrainFigures(found.distance, int(them.sum()), *rates)


def figures_of(outcomes: Outcomes, real: RealLabels | None = None) -> Figures:
    """Compute the figures of a set of outcomes."""
    right, images = outcomes.rank1_right, len(outcomes)
    return Figures(
        rate(int(right.sum()), images),
        rate(int(outcomes.rank5_right.sum()), images),
        mean(outcomes.losses),
        calibration(outcomes.confidence, right),
        real.rate(outcomes.numbers, outcomes.top[:, 0]) if real else None,
    )


def worst_mistakes(outcomes: Outcomes, most: int) -> list[Mistake]:
    """The wrong first predictions of highest probability, surest first."""
    wrong = np.flatnonzero(~outcomes.rank1_right)
    chosen = wrong[np.argsort(-outcomes.confidence[wrong], kind="stable")][:most]
    columns = outcomes.numbers, outcomes.labels, outcomes.top[:, 0], outcomes.confidence
    return [Mistake(int(at), *(column[at].item() for column in columns)) for at in chosen]


@dataclass(frozen=True)
class _Intervals:
    """95 % intervals of a result's figures, and what stands beside them; calibration errors are 0..1."""

    rank1_interval: Interval
    rank5_interval: Interval
    loss_interval: Interval | None
    calibration_error: float
    real: dict[str, Any] | None
    rank1_chance: float


@dataclass(frozen=True)
class _Difference:
    difference_to_first: dict[str, Any]


@dataclass(frozen=True)
class _ByClass:
    """Results by class and by record, and the page of the report where one was written."""

    notes: list[str] = field(repr=False)
    calibration: list[dict[str, Any]] = field(repr=False)
    per_class: list[dict[str, Any]] = field(repr=False)
    confusion: dict[str, list[int]] = field(repr=False)
    most_confused: list[dict[str, Any]] = field(repr=False)
    worst_mistakes: list[dict[str, Any]] = field(repr=False)
    in_train: dict[str, Any] | None
    report: Path | None


@dataclass(frozen=True)
class EvaluationReport(_ByClass, _Intervals, Evaluation):
    """An evaluation and all that was found beside its figures, as `evaluate --json` prints it.

    Ranks and class figures are percent, probabilities 0..1.
    """

    def _repr_html_(self) -> str:
        from imagenet_pipeline.evaluation.notebook import evaluation_html

        return evaluation_html(self)


@dataclass(frozen=True)
class EnsembleReport(_ByClass, _Difference, _Intervals, Ensemble):
    """An ensemble and all that was found beside its figures; `members` are dictionaries with their own intervals."""


def report_of(findings: Findings, page: Path | None) -> EvaluationReport | EnsembleReport:
    """Everything found as a dataclass of plain values; `page` is where the report was written."""
    kind = EvaluationReport if isinstance(findings.examination.result, Evaluation) else EnsembleReport
    return kind(**as_json(findings), report=page)


def as_json(findings: Findings) -> dict[str, Any]:
    """Everything found as an object of plain values: the result's own keys first.

    Ranks and class figures are percent, probabilities and the calibration error 0..1.
    """
    examination = findings.examination
    chance = {"rank1_chance": chance_percent(examination.result.scored_classes)}
    content = dataclasses.asdict(examination.result) | _figures(findings.figures) | chance
    members = content.get("members", [])
    for member, figures in zip(members, findings.own, strict=False):
        member |= _figures(figures)
    for member, difference_to_first in zip([*members[1:], content], findings.differences, strict=False):
        member["difference_to_first"] = dataclasses.asdict(difference_to_first)
    return content | {
        "notes": examination.notes,
        "calibration": [dataclasses.asdict(part) for part in findings.figures.calibration.bins],
        "per_class": [
            {
                "class": findings.class_id(figures.label),
                "name": findings.class_name(figures.label),
                **dataclasses.asdict(figures),
            }
            for figures in findings.classes
        ],
        "confusion": {name: column.tolist() for name, column in vars(findings.confusion).items()},
        "most_confused": _pairs(findings),
        "worst_mistakes": [
            dataclasses.asdict(mistake)
            | {"class": findings.class_id(mistake.label), "predicted_class": findings.class_id(mistake.predicted)}
            for mistake in findings.mistakes
        ],
        "in_train": findings.in_train and dataclasses.asdict(findings.in_train),
    }


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "rank1_interval": figures.rank1.interval,
        "rank5_interval": figures.rank5.interval,
        "loss_interval": figures.loss.interval,
        "calibration_error": figures.calibration.error,
        "real": figures.real and dataclasses.asdict(figures.real),
    }


def _pairs(findings: Findings) -> list[dict[str, Any]]:
    worst = findings.confusion.most_confused(PAIRS)
    columns = worst.true.tolist(), worst.predicted.tolist(), worst.images.tolist()
    return [
        {"class": findings.class_id(true), "predicted_class": findings.class_id(predicted), "images": images}
        for true, predicted, images in zip(*columns, strict=True)
    ]


@dataclass(frozen=True)
class ClassFigures:
    """Metrics of a class, in percent; `rank1` is its recall. Shares are 0 without an image, or without a prediction."""

    label: int
    images: int
    rank1: float
    rank5: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    """Counts of images of class `true` taken for `predicted`: every pair that occurs, by true and predicted class.

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
    """Metrics of every class that is there or was predicted, in the order of labels."""
    labels = classes_met(outcomes)
    images, predicted = _count(outcomes.labels, labels), _count(outcomes.top[:, 0], labels)
    hits = _count(outcomes.labels[outcomes.rank1_right], labels)
    # As scikit-learn's precision_recall_fscore_support, to the last bit; it takes longer to import than all the rest.
    recall, precision, f1 = (
        hits / np.maximum(images, 1),
        hits / np.maximum(predicted, 1),
        2 * hits / (images + predicted),
    )
    among_five = _count(outcomes.labels[outcomes.rank5_right], labels) / np.maximum(images, 1)
    columns = (100.0 * column for column in (recall, among_five, precision, recall, f1))
    rows = zip(labels.tolist(), images.tolist(), *(column.tolist() for column in columns), strict=True)
    return [ClassFigures(*row) for row in rows]


def confusion(outcomes: Outcomes) -> Confusion:
    """Count how often each class was taken for each."""
    pairs = np.stack([outcomes.labels, outcomes.top[:, 0]])
    (true, predicted), images = np.unique(pairs, axis=1, return_counts=True)
    return Confusion(true, predicted, images.astype(np.int64))


def classes_met(outcomes: Outcomes) -> Whole:
    """The labels of images and first predictions, in rising order."""
    met: npt.NDArray[np.int64] = np.unique(np.concatenate([outcomes.labels, outcomes.top[:, 0]]))
    return met


def _count(chosen: Whole, labels: Whole) -> Whole:
    return np.bincount(np.searchsorted(labels, chosen), minlength=len(labels))
