"""The activations of one layer for every record, to a file of features."""

from __future__ import annotations

import json
import math
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe, load_run_recipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.evaluation.evaluate import require_harmless
from imagenet_pipeline.evaluation.feature_file import FEATURES, LABELS, RECORDS, new_archive, open_rows, write_array
from imagenet_pipeline.evaluation.layer_engine import engine_until
from imagenet_pipeline.evaluation.probabilities import require_finite
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.networks.shapes import Shape
from imagenet_pipeline.records.manifest import DataSet, no_split, read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from imagenet_pipeline.training.data import records_of
from imagenet_pipeline.training.metrics import watched

BYTES_A_RECORD = 2 * 8
"""Label and number."""


@dataclass(frozen=True)
class Extraction:
    """What a file of features holds and where it is from. `shape` is the layer's, flattened to `features` numbers."""

    run: str
    checkpoint: str
    network: str
    layer: str
    shape: Shape
    features: int
    images: dict[str, int]
    input_size: int
    crop_fraction: float
    engine: str
    precision: str
    weights_digest: str
    data_digest: str


def extract(
    run: Path,
    layer: str,
    out: Path,
    splits: Sequence[str] = (),
    which: str = "best",
    records: Path | None = None,
    overrides: dict[str, object] | None = None,
) -> tuple[Extraction, float]:
    """Write `layer`'s output for the centre crop of every record of `splits` (none given: all), and say images/s.

    `records` names another data set, of any classes. Memory is that of a batch, and 16 bytes a record.
    Raises BadRecipe for a layer the network lacks or a split the records lack, OutOfRoom before a byte is
    written where the disk has no room for all.
    """
    require_harmless(overrides or {}, "features")
    recipe = load_run_recipe(run, overrides)
    checkpoint = load_checkpoint(find_checkpoint(Path(run), which))
    data = read_data_set(records) if records else records_of(recipe)
    images = _images_of(data, splits)
    engine, shape = engine_until(recipe, checkpoint, layer, "features")
    state, width = checkpoint.state, math.prod(shape)
    if out.is_dir():
        raise BadRecipe("a folder, not a file to write", where=f"--out {out}")
    if out.suffix != ".npz":
        raise BadRecipe("features are an archive of NumPy's", where=out, expected="a name that ends in .npz")
    files.check_free_space(out, sum(images.values()) * (4 * width + BYTES_A_RECORD) + 2**20)
    extraction = Extraction(
        str(run), checkpoint.folder.name, state.network, layer, shape, width, images, state.input_size,
        state.crop_fraction, engine.name, engine.precision, checkpoint.weights_digest, data.digest,
    )  # fmt: skip
    started = time.monotonic()
    with new_archive(out) as archive:
        for split, count in images.items():
            _write_split(archive, split, (count, width), engine, _Source(recipe, checkpoint, data))
        write_array(archive, "classes", np.array(data.classes.ids))
        write_array(archive, "about", np.array(json.dumps(asdict(extraction))))
    return extraction, sum(images.values()) / (time.monotonic() - started)


@dataclass(frozen=True)
class _Source:
    recipe: Recipe
    checkpoint: Checkpoint
    data: DataSet

    def loader(self, records: RecordSet) -> Loader:
        how = self.recipe.loader
        size, classes = self.checkpoint.state.input_size, len(self.data.classes)
        return Loader(
            records, size, self.recipe.batch_size, threads=how.threads, prefetch=how.prefetch, classes=classes
        )


def _images_of(data: DataSet, splits: Sequence[str]) -> dict[str, int]:
    there = {split: count for split, count in data.counts.items() if count}
    for split in splits:
        if split not in there:
            raise no_split(data.folder, split, there)
    return {split: there[split] for split in there if split in splits or not splits}


def _write_split(archive: zipfile.ZipFile, split: str, shape: tuple[int, int], engine: Engine, source: _Source) -> None:
    labels, numbers = np.empty(shape[0], np.int64), np.empty(shape[0], np.int64)
    with RecordSet.open(source.data.folder, split) as records, open_rows(
        archive, f"{split}_{FEATURES}", shape
    ) as write, source.loader(records).evaluation(source.checkpoint.state.crop_fraction) as batches:  # fmt: skip
        for batch in watched(batches, split):
            rows = engine.logits(batch.images).reshape(len(batch.labels), -1)
            require_finite(rows, source.checkpoint.folder)
            write(rows)
            place = slice(batch.first_position, batch.first_position + len(rows))
            labels[place], numbers[place] = batch.labels, batch.records
    for name, column in ((LABELS, labels), (RECORDS, numbers)):
        write_array(archive, f"{split}_{name}", column)
