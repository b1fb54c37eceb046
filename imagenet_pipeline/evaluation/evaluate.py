"""Score a run's checkpoint on a split: every record once, counts exact."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagenet_pipeline.config import Recipe, load_recipe
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.loading.batches import Loader
from imagenet_pipeline.records.classes import require_same
from imagenet_pipeline.records.manifest import DataSet, read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from imagenet_pipeline.training.metrics import score
from imagenet_pipeline.training.run import build_engine

Crops = Literal[1, 2, 10]


@dataclass(frozen=True)
class Evaluation:
    """A figure and everything it depends on. `rank1` and `rank5` are percent, `loss` is nats an image."""

    run: str
    checkpoint: str
    epoch: int
    split: str
    images: int
    rank1: float
    rank5: float
    loss: float
    rank1_hits: int
    rank5_hits: int
    crops: int
    network: str
    input_size: int
    classes: int
    engine: str
    devices: list[str]
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
    Raises BadInput where the class tables differ or the split is empty.
    """
    recipe = load_recipe(Path(run) / "recipe.toml", overrides)
    checkpoint = load_checkpoint(find_checkpoint(Path(run), which))
    data = read_data_set(records or Path(recipe.records))
    require_same(checkpoint.state.class_table, data.classes, where=data.folder)
    if not data.counts.get(split):
        raise BadInput(f"no split {split!r}", where=data.folder, expected=f"one of {', '.join(data.counts)}")
    return _scored(Path(run), recipe, checkpoint, data, split, crops)


def _scored(run: Path, recipe: Recipe, checkpoint: Checkpoint, data: DataSet, split: str, crops: Crops) -> Evaluation:
    state = checkpoint.state
    engine = build_engine(recipe, state, checkpoint.weights)
    loader = Loader(
        RecordSet.open(data.folder, split),
        state.input_size,
        max(1, recipe.batch_size // crops),
        threads=recipe.loader.threads,
        prefetch=recipe.loader.prefetch,
        classes=len(data.classes),
    )
    started = time.monotonic()
    with loader.evaluation(recipe.input.crop_fraction, crops) as batches:
        totals = score(engine, batches, crops)
    seconds = time.monotonic() - started
    return Evaluation(
        run=str(run),
        checkpoint=checkpoint.folder.name,
        epoch=state.epoch,
        split=split,
        images=totals.images,
        rank1=totals.rank1,
        rank5=totals.rank5,
        loss=totals.loss,
        rank1_hits=totals.rank1_hits,
        rank5_hits=totals.rank5_hits,
        crops=crops,
        network=state.network,
        input_size=state.input_size,
        classes=len(state.classes),
        engine=engine.name,
        devices=list(engine.device_names),
        images_per_second=round(totals.images / seconds, 1),
        weights_digest=checkpoint.weights_digest,
        data_digest=data.digest,
        versions=engine.versions,
    )
