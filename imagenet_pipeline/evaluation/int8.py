"""A run's ONNX export in int8: calibrated on images of its records, and scored beside float32."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import Recipe, Size
from imagenet_pipeline.engines import Normalisation
from imagenet_pipeline.errors import BadInput, PipelineError
from imagenet_pipeline.evaluation.evaluate import scoring_recipe
from imagenet_pipeline.evaluation.numbering import numbering_of
from imagenet_pipeline.evaluation.scoring import CROSS_ENTROPY, Member, Outcomes, RelabelledSplit, View, score_split
from imagenet_pipeline.interchange.int8 import METHOD, quantise, require_runtime
from imagenet_pipeline.interchange.onnx_runtime import OnnxScorer, Pixels, pixels_of
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.classes import require_one_class
from imagenet_pipeline.records.manifest import DataSet, no_split, read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import ImageRecord
from imagenet_pipeline.training.checkpoint import State
from imagenet_pipeline.training.data import records_of
from imagenet_pipeline.training.metrics import says_rank5

CALIBRATION_IMAGES = 256
BATCH = 16
"""Images calibrated at a time: every array of the network is kept for them."""
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Int8Plan:
    """Int8 of an export: a `Change` of `interchange.export.export`.

    `calibration` is a data set, its split and how many of its images to see, `scored` what rank-1 is measured on, if
    anything. `normalisation` is what the network is not doing itself.
    """

    state: State
    view: View
    recipe: Recipe
    normalisation: Normalisation | None
    calibration: tuple[DataSet, str, int]
    scored: RelabelledSplit | None

    def __call__(self, written: list[Path]) -> dict[str, Any]:
        """Bring the ONNX file to int8, and tell the card's part."""
        (path,) = written
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            before = Path(folder, "float32.onnx")
            shutil.copyfile(path, before)
            quantise(path, self._images())
            sizes = {"float32": before.stat().st_size, "int8": path.stat().st_size}
            scored = self._scores(self.scored, before, path) if self.scored else None
        data, split, images = self.calibration
        seen = {"records": data.name, "split": split, "images": images}
        runtime = require_runtime().__version__
        return {
            "int8": {"method": METHOD, "onnxruntime": runtime, "calibration": seen, "bytes": sizes, "scored": scored}
        }

    def _images(self) -> Iterator[Pixels]:
        data, split, count = self.calibration
        size, crop_fraction = self.view
        with RecordSet.of(data, split) as records, Bar("calibration", "images") as bar:
            spread = _Spread(records, count)
            threads, channels = self.recipe.loader.threads, len(self.state.mean)
            loader = Loader(spread, size, BATCH, threads, prefetch=2, channels=channels)
            with loader.evaluation(crop_fraction) as batches:
                for batch in batches:
                    yield pixels_of(batch.images, self.normalisation)
                    bar.show(batch.first_position + len(batch.images), count)

    def _scores(self, source: RelabelledSplit, before: Path, after: Path) -> dict[str, Any]:
        """Rank-1 in percent, and rank-5 where there are more than five classes, of both on the same images."""
        scorers = [OnnxScorer(path, self.normalisation) for path in (before, after)]
        members = [Member(scorer, self.view, CROSS_ENTROPY, len(self.state.mean)) for scorer in scorers]
        classes = len(self.state.classes)
        _, *outcomes = score_split(source, 1, members, classes)
        by_form: dict[str, Outcomes] = dict(zip(("float32", "int8"), outcomes, strict=True))
        found: dict[str, Any] = {
            "records": source.data.name,
            "split": source.split,
            "images": len(outcomes[0]),
            "rank1": {form: 100.0 * float(own.rank1_right.mean()) for form, own in by_form.items()},
        }
        if says_rank5(classes):
            found["rank5"] = {form: 100.0 * float(own.rank5_right.mean()) for form, own in by_form.items()}
        return found


def int8_plan(
    run: Path, state: State, input_size: Size, raw: bool, calibrate: str | None, images: int = CALIBRATION_IMAGES
) -> Int8Plan:
    """Plan the int8 form of a run's checkpoint: what it is calibrated on, and what is scored before and after.

    `calibrate` is a split of the run's records, or another data set's folder; by default train, or else val. Scored
    are the run's validation images, or its test images, or else those of the other data set if it has the classes.
    Raises BadRecipe where onnxruntime is missing, there are no records or no such split; BadInput for no data set, and
    for a network of several classes an image, or of numbers.
    """
    require_one_class(state.class_table, run, "--int8")
    require_runtime()
    recipe = scoring_recipe(run, {}, "export")
    is_other = calibrate is not None and calibrate not in SPLITS
    other = read_data_set(str(calibrate), cache_gb=recipe.loader.cache_gb) if is_other else None
    own = _own_records(recipe, other)
    data = other or own
    split = calibrate if calibrate in SPLITS else next((name for name in SPLITS if data.counts.get(name)), "train")
    if not data.counts.get(split or ""):
        raise no_split(data.name, split, [name for name, count in data.counts.items() if count])
    normalisation = (state.mean, state.std) if raw else None
    return Int8Plan(
        state,
        (input_size, state.crop_fraction),
        recipe,
        normalisation,
        (data, str(split), min(images, data.counts[str(split)])),
        _scored(recipe, state, own, other),
    )


def _own_records(recipe: Recipe, other: DataSet | None) -> DataSet:
    """The run's records; with `other` records to calibrate on, these do where the run's own are gone."""
    try:
        return records_of(recipe)
    except PipelineError as error:
        if other is not None:
            return other
        where, advice = error.where or "--int8", "--calibrate DIR names a data set"
        raise error.replaced(where=where, advice=advice) from error


def _scored(recipe: Recipe, state: State, own: DataSet, other: DataSet | None) -> RelabelledSplit | None:
    split = next((name for name in ("val", "test") if own.counts.get(name)), None)
    if split is None:
        return None
    try:
        return RelabelledSplit(own, split, numbering_of(state, own).relabel, recipe)
    except BadInput:
        if own is other:
            return None
        raise


class _Spread:
    """Some of the records, evenly spaced over all of them."""

    def __init__(self, records: RecordSet, count: int) -> None:
        self._records = records
        self._positions: npt.NDArray[np.int64] = np.linspace(0, len(records) - 1, count).round().astype(np.int64)
        self.name = records.name

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, position: int) -> ImageRecord:
        """The record at this place among those chosen."""
        return self._records.read(int(self._positions[position]))

    def location(self, position: int) -> tuple[Path, int, int]:
        """The file and offset of that record."""
        return self._records.location(int(self._positions[position]))
