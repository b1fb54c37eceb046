"""Score a run's checkpoint on a split: every record once, counts exact."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from imagenet_pipeline.config import Recipe, load_recipe
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.loading.batches import Loader
from imagenet_pipeline.records.manifest import DataSet, read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from imagenet_pipeline.training.metrics import score, watched
from imagenet_pipeline.training.records import records_of, require_its_classes
from imagenet_pipeline.training.run import build_engine

Crops = Literal[1, 2, 10]
HOW_KEYS = ("engine", "devices", "precision", "batch_size", "loader.threads", "loader.prefetch")
"""Recipe keys that say how to compute, not what."""


@dataclass(frozen=True)
class Evaluation:
    """A figure and everything it depends on. `rank1` and `rank5` are percent.

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
    images_per_second: float
    weights_digest: str
    data_digest: str
    versions: dict[str, str]


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
    _require_harmless(overrides or {})
    recipe = load_recipe(Path(run) / "recipe.toml", overrides)
    checkpoint = load_checkpoint(find_checkpoint(Path(run), which))
    data = read_data_set(records) if records else records_of(recipe)
    require_its_classes(checkpoint.state, data)
    if not data.counts.get(split):
        raise BadInput(f"no split {split!r}", where=data.folder, expected=f"one of {', '.join(data.counts)}")
    return _scored(Path(run), recipe, checkpoint, data, split, crops)


def _require_harmless(overrides: dict[str, object]) -> None:
    """Raise BadRecipe for a recipe key that says how the run was trained and cannot change its score now."""
    for key in overrides:
        if key not in HOW_KEYS:
            raise BadRecipe(f"recipe key {key!r} does not apply", where="evaluate", expected=", ".join(HOW_KEYS))


def _scored(run: Path, recipe: Recipe, checkpoint: Checkpoint, data: DataSet, split: str, crops: Crops) -> Evaluation:
    state = checkpoint.state
    # Scoring is not compiled: it needs no compiler, and every engine will do.
    engine = build_engine(recipe.model_copy(update={"compile": False}), state, checkpoint.weights)
    started = time.monotonic()
    with RecordSet.open(data.folder, split) as records:
        loader = Loader(
            records,
            state.input_size,
            max(1, recipe.batch_size // crops),
            threads=recipe.loader.threads,
            prefetch=recipe.loader.prefetch,
            classes=len(data.classes),
        )
        with loader.evaluation(state.crop_fraction, crops) as batches:
            totals = score(engine, watched(batches, split), crops)
    seconds = time.monotonic() - started
    if not np.isfinite(totals.loss):
        raise BadInput("the network's output is not finite", where=checkpoint.folder, advice="take another checkpoint")
    return Evaluation(
        run=str(run),
        checkpoint=checkpoint.folder.name,
        epoch=state.epoch,
        split=split,
        images=totals.images,
        rank1=totals.rank1,
        rank5=totals.rank5,
        loss=totals.loss,
        loss_kind=recipe.loss.kind,
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
        images_per_second=round(totals.images / seconds, 1),
        weights_digest=checkpoint.weights_digest,
        data_digest=data.digest,
        versions=engine.versions,
    )
