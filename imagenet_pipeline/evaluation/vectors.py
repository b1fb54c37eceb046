"""Evaluation where a record's label is a vector: several classes of an image, or numbers.

Every record is scored once. Of several classes each is a question by itself, answered yes where its score is above 0
(a probability above 1/2). Average precision is the area below precision over recall, a step for each score that
occurs: sum over thresholds of (R_n - R_(n-1)) P_n, as scikit-learn has it; of a class without a positive there is none.
Of numbers: mean absolute error, root of the mean squared error, and R2, 1 - squared error / variance: 0 for whoever
says the mean of the split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from imagenet_pipeline import files
from imagenet_pipeline.config import LossRecipe, Recipe, Size
from imagenet_pipeline.engines import Array, Engine
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.evaluation.evaluate import Crops, open_checkpoint
from imagenet_pipeline.evaluation.scoring import Whole, one_behind, outputs_of, require_finite
from imagenet_pipeline.evaluation.stats import Interval, Reals, Truths, mean
from imagenet_pipeline.loading.order import Share
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.classes import ClassTable, LabelKind
from imagenet_pipeline.records.manifest import DataSet, no_split
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import Checkpoint, find_checkpoint
from imagenet_pipeline.training.data import loader_of, records_to_read, require_its_classes
from imagenet_pipeline.training.distributed import require_agreement
from imagenet_pipeline.training.engine_setup import build_engine


@dataclass(frozen=True)
class VectorOutcomes:
    """Row i is the record at position i; of a million records with 80 labels 1.3 GB."""

    numbers: Whole
    """[n], the number each record carries."""
    targets: Reals
    """[n, labels]."""
    outputs: Reals
    """[n, labels]: of several classes the logarithm of p / (1 - p), of numbers these."""
    losses: Reals
    """[n]."""


@dataclass(frozen=True)
class VectorEvaluation:
    """Figures of a checkpoint on a split whose labels are vectors, and everything they depend on, as --json prints it.

    `figures` of several classes, in percent: mean_average_precision, what chance would have of it, right decisions
    (accuracy), images with no wrong one (exact), and precision, recall and f1 of all decisions together; of numbers
    mae, rmse and r2, the means over the labels. `per_label` has those of each label.
    """

    run: str
    checkpoint: str
    epoch: int
    split: str
    images: int
    label_kind: LabelKind
    figures: dict[str, float]
    loss: float
    loss_interval: Interval | None
    loss_kind: str
    crops: int
    network: str
    input_size: Size
    crop_fraction: float
    classes: int
    engine: str
    devices: list[str]
    precision: str
    process: int
    processes: int
    images_per_second: float
    weights_digest: str
    data_digest: str
    recipe_digest: str
    versions: dict[str, str]
    per_label: list[dict[str, Any]] = field(repr=False)
    report: Path | None = None


@dataclass(frozen=True)
class VectorFindings:
    """A finished evaluation, what it was made of, and the outcomes of each record."""

    evaluation: VectorEvaluation
    outcomes: VectorOutcomes
    table: ClassTable
    data: DataSet


def label_kind_of(run: Path, which: str) -> LabelKind:
    """The kind of label that a checkpoint was trained for; its digests are looked at when it is opened."""
    state = files.read_json(find_checkpoint(run, which) / "state.json")
    kind: LabelKind = state.get("label_kind", "class")
    return kind


def require_alone(runs: Sequence[Path], checkpoints: Sequence[str], real_labels: Path | None = None) -> None:
    """Raise BadRecipe for several runs or checkpoints, and for labels of another source."""
    if len(runs) > 1 or len(checkpoints) > 1 or real_labels:
        what = "runs beside each other, and ReaL labels, are for records of one class each"
        raise BadRecipe(what, where=runs[0], advice="evaluate one checkpoint of one run")


def evaluate_vectors(
    run: Path,
    which: str = "best",
    split: str = "test",
    crops: Crops = 1,
    records: Path | None = None,
    overrides: dict[str, object] | None = None,
) -> VectorFindings:
    """Evaluate checkpoint `which` of `run` on a split of its records, or of `records` with the same labels.

    Probabilities, and numbers, of several crops are averaged. Collective. Raises BadInput where the labels differ or
    the network's output is not finite, BadRecipe where there is no such split.
    """
    recipe, checkpoint = open_checkpoint(run, which, overrides or {})
    data = records_to_read(recipe, records)
    require_its_classes(checkpoint.state, data)
    if not data.count(split):
        raise no_split(data.name, split, [name for name, count in data.counts.items() if count])
    engine = build_engine(recipe.model_copy(update={"compile": False}), checkpoint.state, checkpoint.weights)
    facts = {"split": split, "crops": str(crops), "records": data.digest, "checkpoint": checkpoint.weights_digest}
    require_agreement(engine, {**facts, "batch_size": str(recipe.images_per_step)})
    started = time.monotonic()
    source = _Source(recipe, checkpoint, data, split, crops)
    outcomes = _scored(engine, source)
    require_finite(outcomes.losses, checkpoint.folder)
    evaluation = _evaluation(run, engine, source, outcomes, time.monotonic() - started)
    return VectorFindings(evaluation, outcomes, data.classes, data)


class _Source(NamedTuple):
    recipe: Recipe
    checkpoint: Checkpoint
    data: DataSet
    split: str
    crops: Crops


class _Issued(NamedTuple):
    """A batch whose outputs the engine computes."""

    rows: slice
    numbers: Whole
    targets: npt.NDArray[np.float32]
    outputs: Callable[[], Array]


def _scored(engine: Engine, source: _Source) -> VectorOutcomes:
    labels, kind = len(source.data.classes), source.data.classes.label_kind
    table = np.zeros((source.data.count(source.split), 2 + 2 * labels))
    for batch in one_behind(_issued(engine, source)):
        outputs = outputs_of(batch.outputs(), kind, source.crops)
        losses = losses_of(outputs, batch.targets.astype(np.float64), source.recipe.loss)
        table[batch.rows] = np.column_stack([batch.numbers, losses, batch.targets, outputs])
    if engine.ranks > 1:  # each row is 0 on all ranks but one
        table = engine.sum_over_ranks(table.ravel()).reshape(table.shape)
    targets, outputs = table[:, 2 : 2 + labels], table[:, 2 + labels :]
    return VectorOutcomes(table[:, 0].astype(np.int64), targets, outputs, table[:, 1])


def _issued(engine: Engine, source: _Source) -> Iterator[_Issued]:
    recipe, state, classes = source.recipe, source.checkpoint.state, source.data.classes
    share = Share(engine.rank, engine.ranks)
    with RecordSet.of(source.data, source.split) as records, Bar(source.split, "batches", engine.rank == 0) as bar:
        loader = loader_of(
            recipe,
            records,
            state.input_size,
            len(classes),
            share,
            source.crops,
            engine.host_array,
            label_kind=classes.label_kind,
            channels=len(state.mean),
        )
        with loader.evaluation(state.crop_fraction, source.crops) as batches:
            total = len(batches)
            for done, batch in enumerate(batches, 1):
                rows = slice(batch.first_position, batch.first_position + len(batch.records))
                if batch.targets is None:
                    raise TypeError("records of label vectors have targets")
                # Copies, since the loader fills the batch again while the outputs are computed.
                outputs = engine.issue_logits(batch.images)
                yield _Issued(rows, batch.records.copy(), batch.targets.copy(), outputs)
                bar.show(done, total)


def losses_of(outputs: Reals, targets: Reals, loss: LossRecipe) -> Reals:
    """The loss of each image [n], as `engines/__init__.py` writes it; `outputs` as of `outputs_of`."""
    if loss.kind == "binary_cross_entropy":
        each = np.logaddexp(0, outputs) - targets * outputs
    else:
        error = np.abs(outputs - targets)
        near = np.minimum(error, loss.delta)
        each = {"mae": error, "mse": error**2, "huber": near * (error - near / 2)}[loss.kind]
    losses: Reals = each.mean(axis=1)
    return losses


def _evaluation(
    run: Path, engine: Engine, source: _Source, outcomes: VectorOutcomes, seconds: float
) -> VectorEvaluation:
    state, recipe, table = source.checkpoint.state, source.recipe, source.data.classes
    figures, per_label = (number_figures if table.label_kind == "number" else class_figures)(outcomes, table)
    loss = mean(outcomes.losses)
    return VectorEvaluation(
        run=str(run),
        checkpoint=source.checkpoint.folder.name,
        epoch=state.epoch,
        split=source.split,
        images=len(outcomes.losses),
        label_kind=table.label_kind,
        figures=figures,
        loss=loss.value,
        loss_interval=loss.interval,
        loss_kind=recipe.loss.kind,
        crops=source.crops,
        network=state.network_name,
        input_size=state.input_size,
        crop_fraction=state.crop_fraction,
        classes=len(table),
        engine=engine.name,
        devices=list(engine.device_names),
        precision=engine.precision,
        process=engine.rank,
        processes=engine.ranks,
        images_per_second=round(len(outcomes.losses) / seconds, 1),
        weights_digest=source.checkpoint.weights_digest,
        data_digest=source.data.digest,
        recipe_digest=files.sha256_of(run / "recipe.toml"),
        versions=engine.versions,
        per_label=per_label,
    )


Described = tuple[dict[str, float], list[dict[str, Any]]]
"""The figures of all labels together, and those of each."""


def class_figures(outcomes: VectorOutcomes, table: ClassTable) -> Described:
    """Figures where images show any of several classes, in percent; None where a class has no positive."""
    truths, said = outcomes.targets > 0.5, outcomes.outputs > 0
    hits, positives, chosen = ((each).sum(axis=0) for each in (truths & said, truths, said))
    per_label: list[dict[str, Any]] = []
    for label, (name, shown) in enumerate(zip(table.ids, table.names, strict=True)):
        precise = average_precision(truths[:, label], outcomes.outputs[:, label])
        rates = _rates(int(hits[label]), int(chosen[label]), int(positives[label]))
        counts = {"positives": int(positives[label]), "average_precision": precise}
        per_label.append({"class": name, "name": shown, **counts, **rates})
    averages = [row["average_precision"] for row in per_label if row["average_precision"] is not None]
    right = truths == said
    figures = {
        "mean_average_precision": float(np.mean(averages)) if averages else 0.0,
        "chance": 100.0 * float(truths[:, positives > 0].mean()) if averages else 0.0,
        "accuracy": 100.0 * float(right.mean()),
        "exact": 100.0 * float(right.all(axis=1).mean()),
        **_rates(int(hits.sum()), int(chosen.sum()), int(positives.sum())),
    }
    return figures, per_label


def _rates(hits: int, chosen: int, positives: int) -> dict[str, float]:
    precision, recall = 100.0 * hits / max(chosen, 1), 100.0 * hits / max(positives, 1)
    return {"precision": precision, "recall": recall, "f1": 200.0 * hits / max(chosen + positives, 1)}


def average_precision(truths: Truths, scores: Reals) -> float | None:
    """Average precision in percent of scores [n] whose images show the class where `truths` [n]; None without such.

    As scikit-learn's `average_precision_score`, which takes longer to import than all the rest.
    """
    positives = int(truths.sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    # Equal scores are a single threshold: its last image counts.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(truths[order])[ends]
    steps = np.diff(hits, prepend=0) / positives
    return 100.0 * float((steps * hits / (ends + 1)).sum())


def number_figures(outcomes: VectorOutcomes, table: ClassTable) -> Described:
    """Figures where labels are numbers, in their own unit; R2 is None where all records have the same number."""
    errors = outcomes.outputs - outcomes.targets
    mae, mse, variance = np.abs(errors).mean(axis=0), (errors**2).mean(axis=0), outcomes.targets.var(axis=0)
    per_label: list[dict[str, Any]] = [
        {
            "name": name,
            "mean": float(outcomes.targets[:, label].mean()),
            "deviation": float(np.sqrt(variance[label])),
            "mae": float(mae[label]),
            "rmse": float(np.sqrt(mse[label])),
            "r2": float(1 - mse[label] / variance[label]) if variance[label] else None,
        }
        for label, name in enumerate(table.names)
    ]
    known = [row["r2"] for row in per_label if row["r2"] is not None]
    figures = {"mae": float(mae.mean()), "rmse": float(np.sqrt(mse.mean()))}
    return figures | ({"r2": float(np.mean(known))} if known else {}), per_label
