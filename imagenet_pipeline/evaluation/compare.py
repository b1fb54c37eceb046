"""Evaluation of checkpoints, side by side and as an ensemble: metrics and per-record outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.evaluation.evaluate import (
    Candidate,
    Crops,
    Evaluation,
    Scores,
    candidate_of,
    open_checkpoint,
    score_candidates,
)
from imagenet_pipeline.evaluation.numbering import is_unnamed
from imagenet_pipeline.evaluation.real_labels import RealLabels, real_labels
from imagenet_pipeline.evaluation.scoring import Outcomes, Whole
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.records.twins import records_in_train
from imagenet_pipeline.training.checkpoint import Checkpoint, State
from imagenet_pipeline.training.data import records_to_read


@dataclass(frozen=True)
class Ensemble:
    """Figures of an ensemble, ranks in percent, the loss cross-entropy in nats, and those of each member.

    An ensemble is scored by the mean of its members' probabilities, record by record.
    """

    split: str
    images: int
    rank1: float
    rank5: float
    loss: float
    rank1_hits: int
    rank5_hits: int
    crops: int
    classes: int
    scored_classes: int
    process: int
    processes: int
    images_per_second: float
    data_digest: str
    members: list[Evaluation]


@dataclass(frozen=True)
class InTrain:
    """The records of a split, by their positions, whose picture is in train, too, but for `distance` bits of a hash."""

    distance: int
    positions: Whole


def _in_train(data: DataSet, split: str) -> InTrain | None:
    """What `verify --duplicates` found of a split, where it has looked."""
    found = records_in_train(data, split)
    return found and InTrain(*found)


@dataclass(frozen=True)
class Examination:
    """A finished evaluation; `outcomes` are those behind the figures of `result`, `own` those of each of its members.

    `table` names the classes by the labels of `outcomes`; `notes` are what a reader must know of them,
    `in_train` the images of the run's own split that are near duplicates of images in train.
    """

    result: Evaluation | Ensemble
    outcomes: Outcomes
    own: list[Outcomes]
    table: ClassTable
    data: DataSet
    notes: list[str] = field(default_factory=list)
    real: RealLabels | None = None
    in_train: InTrain | None = None

    @property
    def evaluations(self) -> list[Evaluation]:
        """The evaluation of each member; of a single checkpoint, its own alone."""
        return self.result.members if isinstance(self.result, Ensemble) else [self.result]

    @property
    def loss_kind(self) -> str:
        """The kind of loss that all evaluations have."""
        return self.evaluations[0].loss_kind


def examine(
    runs: Sequence[Path],
    checkpoints: Sequence[str] = ("best",),
    split: str = "test",
    crops: Crops = 1,
    records: Path | None = None,
    overrides: dict[str, object] | None = None,
    real: Path | None = None,
    subset: bool | None = None,
) -> Examination:
    """Score all `checkpoints` of all runs in a single pass over a split of the first run's records, or of `records`.

    Networks, engines and input sizes may differ; of several, every member's loss is the cross-entropy of its
    probabilities. `real` is the file of ReaL labels, for ImageNet's validation images; `subset` is
    as for `candidate_of`. Raises BadInput naming two runs whose class tables differ, and otherwise as `evaluate` does.
    """
    opened, repeats = _opened(runs, checkpoints, overrides or {})
    candidates = _candidates(opened, split, records, subset)
    first = next((candidate for candidate in candidates if not is_unnamed(candidate.checkpoint.state)), candidates[0])
    table, data = first.numbering.table, first.data
    reassessed = real_labels(real, table, data, split) if real else None
    scores = score_candidates(candidates, split, crops)
    whole, own = scores.outcomes[0], scores.outcomes[-len(candidates) :]
    if reassessed is not None:
        reassessed.require_agreement(whole.numbers, whole.labels)
    result = scores.evaluations[0] if len(candidates) == 1 else _ensemble(scores)
    numbered = dict.fromkeys(candidate.numbering.note for candidate in candidates if candidate.numbering.note)
    notes = [*repeats, *numbered, *_notes_on_crops(candidates, crops), *_notes_on_temperatures(candidates, split)]
    known = data.digest == first.checkpoint.state.data_digest
    return Examination(result, whole, own, table, data, notes, reassessed, _in_train(data, split) if known else None)


def _candidates(
    opened: Sequence[tuple[Path, tuple[Recipe, Checkpoint]]], split: str, records: Path | None, subset: bool | None
) -> list[Candidate]:
    _require_one_table([(run, checkpoint.state) for run, (_, checkpoint) in opened])
    data = records_to_read(opened[0][1][0], records)
    candidates = [candidate_of(run, checkpoint, split, data, subset) for run, checkpoint in opened]
    for candidate in candidates[1:]:
        if not np.array_equal(candidate.numbering.relabel, candidates[0].numbering.relabel):
            raise BadInput(
                f"the classes of {candidates[0].run} and {candidate.run} are numbered differently",
                where=data.name,
                advice="score each run alone",
            )
    return candidates


def _notes_on_crops(candidates: Sequence[Candidate], crops: Crops) -> list[str]:
    """Reasons why several crops are of no use, or worse than the centre crop."""
    notes = []
    if crops > 1 and any(candidate.recipe.augmentation.flip == 0 for candidate in candidates):
        notes.append("Trained without mirror images (augmentation.flip = 0), which several crops add")
    if crops == 10 and any(candidate.checkpoint.state.crop_fraction == 1 for candidate in candidates):
        notes.append("At a crop_fraction of 1 the five crops of a square image are one")
    return notes


def _notes_on_temperatures(candidates: Sequence[Candidate], split: str) -> list[str]:
    notes = []
    for candidate in candidates:
        if candidate.temperature:
            whose = f" of {candidate.checkpoint.folder.name} of {candidate.run}" if len(candidates) > 1 else ""
            here = ": these very images, so loss and calibration error are those of the fit"
            said = f"Probabilities{whose} are those at {candidate.temperature.words}"
            notes.append(said + (here if candidate.is_fitted_on(split) else ""))
    return [*notes, "Averaged are probabilities without a temperature"] if notes and len(candidates) > 1 else notes


def _opened(
    runs: Sequence[Path], checkpoints: Sequence[str], overrides: dict[str, object]
) -> tuple[list[tuple[Path, tuple[Recipe, Checkpoint]]], list[str]]:
    """Every checkpoint once, and a note on those named more than once: "best" may be an epoch that is named as well."""
    opened: dict[Path, tuple[Path, tuple[Recipe, Checkpoint]]] = {}
    names: dict[Path, list[str]] = {}
    for run in runs:
        for which in checkpoints:
            recipe, checkpoint = open_checkpoint(run, which, overrides)
            folder = checkpoint.folder.resolve()
            opened.setdefault(folder, (Path(run), (recipe, checkpoint)))
            names.setdefault(folder, []).append(which if len(runs) == 1 else f"{which} of {run}")
    repeated = [(folder.name, given) for folder, given in names.items() if len(given) > 1]
    return list(opened.values()), [f"{' and '.join(given)} are {name}, listed once" for name, given in repeated]


def _require_one_table(states: Sequence[tuple[Path, State]]) -> None:
    """Raise BadInput where two runs number their classes differently; what an import left unnamed fits any."""
    named = [(run, state.class_table) for run, state in states if not is_unnamed(state)]
    for run, table in named[1:]:
        first, wanted = named[0]
        if table.ids != wanted.ids:
            label = next((n for n, ids in enumerate(zip(wanted.ids, table.ids, strict=False)) if len({*ids}) > 1), None)
            raise BadInput(
                f"the class tables of {first} and {run} differ",
                expected=f"{len(wanted)} classes" if label is None else f"label {label} = {wanted.ids[label]}",
                found=len(table) if label is None else table.ids[label],
                advice="an ensemble needs runs that tell the same classes apart",
            )


def _ensemble(scores: Scores) -> Ensemble:
    whole, first = scores.outcomes[0], scores.evaluations[0]
    images, rank1_hits, rank5_hits = len(whole), int(whole.rank1_right.sum()), int(whole.rank5_right.sum())
    return Ensemble(
        split=first.split,
        images=images,
        rank1=100.0 * rank1_hits / images,
        rank5=100.0 * rank5_hits / images,
        loss=float(whole.losses.mean()),
        rank1_hits=rank1_hits,
        rank5_hits=rank5_hits,
        crops=first.crops,
        classes=first.classes,
        scored_classes=first.scored_classes,
        process=first.process,
        processes=first.processes,
        images_per_second=first.images_per_second,
        data_digest=first.data_digest,
        members=scores.evaluations,
    )
