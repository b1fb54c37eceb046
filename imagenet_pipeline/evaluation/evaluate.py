"""Score a run's checkpoint on a split: every record once, counts exact."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from imagenet_pipeline.config import Recipe, load_recipe
from imagenet_pipeline.engines import Engine, Totals
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.loading.batches import Loader
from imagenet_pipeline.loading.order import Share
from imagenet_pipeline.records.manifest import DataSet, read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.building import build_engine
from imagenet_pipeline.training.checkpoint import Checkpoint, State, find_checkpoint, load_checkpoint
from imagenet_pipeline.training.metrics import score, watched
from imagenet_pipeline.training.ranks import require_agreement
from imagenet_pipeline.training.records import records_of, require_its_classes

Crops = Literal[1, 2, 10]
HOW_KEYS = ("engine", "devices", "precision", "batch_size", "loader.threads", "loader.prefetch")
"""Recipe keys that say how to compute, not what."""


@dataclass(frozen=True)
class Evaluation:
    """A figure and everything it depends on. `rank1` and `rank5` are percent; every one of `processes` has it.

    `loss` is the mean an image of the run's own kind, `loss_kind`; cross-entropy is in nats.
    """

    run: str
    checkpoint: str
    epoch: int
    split: str
    images: int
    rank1: float
    rank5: float
    loss: float
    loss_kind: str
    rank1_hits: int
    rank5_hits: int
    crops: int
    network: str
    input_size: int
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
    versions: dict[str, str]


@dataclass(frozen=True)
class Subject:
    """What is to be scored: a run's checkpoint, on records of its classes."""

    run: Path
    recipe: Recipe
    checkpoint: Checkpoint
    data: DataSet

    def engine(self) -> Engine:
        """An engine that holds the checkpoint. Scoring is not compiled: it needs no compiler."""
        return build_engine(
            self.recipe.model_copy(update={"compile": False}), self.checkpoint.state, self.checkpoint.weights
        )

    def evaluation(self, engine: Engine, totals: Totals, split: str, crops: int, seconds: float) -> Evaluation:
        """The figures with everything they depend on. Raises BadInput where they are none."""
        state = self.checkpoint.state
        if not np.isfinite(totals.loss):
            where, advice = self.checkpoint.folder, "take another checkpoint"
            raise BadInput("the network's output is not finite", where=where, advice=advice)
        return Evaluation(
            run=str(self.run),
            checkpoint=self.checkpoint.folder.name,
            epoch=state.epoch,
            split=split,
            images=totals.images,
            rank1=totals.rank1,
            rank5=totals.rank5,
            loss=totals.loss,
            loss_kind=self.recipe.loss.kind,
            rank1_hits=totals.rank1_hits,
            rank5_hits=totals.rank5_hits,
            crops=crops,
            network=state.network,
            input_size=state.input_size,
            crop_fraction=state.crop_fraction,
            classes=len(state.classes),
            engine=engine.name,
            devices=list(engine.device_names),
            precision=engine.precision,
            process=engine.rank,
            processes=engine.ranks,
            images_per_second=round(totals.images / seconds, 1),
            weights_digest=self.checkpoint.weights_digest,
            data_digest=self.data.digest,
            versions=engine.versions,
        )


def evaluate(
    run: Path,
    which: str = "best",
    split: str = "test",
    crops: Crops = 1,
    records: Path | None = None,
    overrides: dict[str, object] | None = None,
) -> Evaluation:
    """Evaluate checkpoint `which` ("best", "latest" or an epoch) of `run` on a split of its records.

    `records` names another data set of the same classes. With several crops their probabilities are averaged.
    Raises BadInput where the class tables differ or the split is empty, BadRecipe where there are no records.
    """
    recipe, checkpoint = open_checkpoint(Path(run), which, overrides or {})
    data = records_to_score(recipe, checkpoint.state, split, records)
    return _scored(Subject(Path(run), recipe, checkpoint, data), split, crops)


def open_checkpoint(run: Path, which: str, overrides: dict[str, object]) -> tuple[Recipe, Checkpoint]:
    """A run's recipe, `overrides` laid over it, and one of its checkpoints."""
    require_harmless(overrides, "evaluate")
    recipe = load_recipe(run / "recipe.toml", overrides)
    return recipe, load_checkpoint(find_checkpoint(run, which))


def records_to_score(recipe: Recipe, state: State, split: str, records: Path | None) -> DataSet:
    """The data set in `records`, or the recipe's own, which must have the split and the classes of `state`."""
    data = read_data_set(records) if records else records_of(recipe)
    require_its_classes(state, data)
    if not data.counts.get(split):
        raise BadInput(f"no split {split!r}", where=data.folder, expected=f"one of {', '.join(data.counts)}")
    return data


def require_harmless(overrides: dict[str, object], verb: str) -> None:
    """Raise BadRecipe for a recipe key that says how the run was trained and cannot change what comes of it now."""
    for key in overrides:
        if key not in HOW_KEYS:
            raise BadRecipe(f"recipe key {key!r} does not apply", where=verb, expected=", ".join(HOW_KEYS))


def _scored(subject: Subject, split: str, crops: Crops) -> Evaluation:
    recipe, state, data = subject.recipe, subject.checkpoint.state, subject.data
    engine = subject.engine()
    facts = {"split": split, "crops": str(crops), "checkpoint": subject.checkpoint.weights_digest}
    how = repr([state.input_size, state.crop_fraction, recipe.batch_size])
    require_agreement(engine, facts | {"records": data.digest, "recipe": how})
    started = time.monotonic()
    with RecordSet.open(data.folder, split) as records:
        loader = Loader(
            records,
            state.input_size,
            max(1, recipe.batch_size // crops),
            threads=recipe.loader.threads,
            prefetch=recipe.loader.prefetch,
            classes=len(data.classes),
            share=Share(engine.rank, engine.ranks),
        )
        with loader.evaluation(state.crop_fraction, crops) as batches:
            totals = score(engine, watched(batches, split, shown=engine.rank == 0), crops)
    return subject.evaluation(engine, totals, split, crops, time.monotonic() - started)
