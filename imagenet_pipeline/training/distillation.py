"""A teacher for a run: the checkpoint of a finished run, whose logits training aims at beside the labels.

It scores the very batch that the student sees, augmented and mixed, brought to its own input size where that is
another: so the two always speak of the same picture (Beyer et al. 2022, "Knowledge distillation: A good teacher is
patient and consistent"). Or it scores every record once, as in evaluation, into a file beside the run, and a step
takes its rows from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe, Size, load_run_recipe, pair, shown_size
from imagenet_pipeline.engines import Array, Engine, Images, is_installed
from imagenet_pipeline.engines.devices import first_of
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, counted, first_few
from imagenet_pipeline.loading.loader import Batch
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.classes import NUMBERED, require_one_class
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import Checkpoint, State, find_checkpoint, has_checkpoint, load_checkpoint
from imagenet_pipeline.training.data import IMPORTED, loader_of, require_its_classes
from imagenet_pipeline.training.distributed import together
from imagenet_pipeline.training.engine_setup import build_engine, scoring_engine
from imagenet_pipeline.training.journal import Event, Journal
from imagenet_pipeline.training.run import Run

log = logging.getLogger("imagenet_pipeline")

SCORES = "teacher-scores.npy"
"""File of the scores of all training records, a row each: its number, and its logits."""
Columns = npt.NDArray[np.int64]
Scores = npt.NDArray[Any]
_NPY: Any = np.lib.format
_COMPLETE = ("end", "import")
"""Last events of a run whose best checkpoint stays what it is."""


@dataclass
class Teacher:
    """A checkpoint of `run` that teaches the run of `recipe`; `columns` are its outputs for that run's classes."""

    run: Path
    checkpoint: Checkpoint
    columns: Columns
    recipe: Recipe
    _answer: Callable[[Batch], Array] = field(init=False)

    @property
    def digest(self) -> str:
        """SHA-256 of its weights."""
        return self.checkpoint.weights_digest

    @property
    def entry(self) -> dict[str, str]:
        """Itself, as the journal has it."""
        return {"checkpoint": str(self.checkpoint.folder), "sha256": self.digest}

    def begin(self, student: Run, records: RecordSet) -> None:
        """Get ready for the batches of `records`: score them, where the recipe wants that and it is not done.

        Collective. Raises Damaged where the scores are not as they were written.
        """
        if self.recipe.distillation.scores == "records":
            self._answer = looked_up(self._scores(student, records))
        else:
            engine = self._engine()
            self._answer = lambda batch: self._logits(engine, batch.images)

    def logits(self, batch: Batch) -> Array:
        """Logits [n, classes] of a batch, of the student's classes in their order."""
        return self._answer(batch)

    def _engine(self) -> Engine:
        """The teacher on the student's devices, in its precision; on the first device where it needs another engine."""
        state, recipe, student = self.checkpoint.state, load_run_recipe(self.run), self.recipe
        if recipe.engine != "auto" and not is_installed(recipe.engine):
            recipe = recipe.model_copy(update={"engine": "auto"})
        engine, devices, precision = scoring_engine(recipe, state), student.devices, student.precision
        if engine != student.engine:
            devices, precision = first_of(devices), precision if precision in ("float32", "float64") else "auto"
        changes = {"engine": engine, "devices": devices, "precision": precision, "sync_batch_norm": False}
        return build_engine(recipe.model_copy(update=changes), state, self.checkpoint.weights)

    def _logits(self, engine: Engine, images: Images) -> Array:
        """Logits of images of any size, in the student's columns. Raises BadInput where they are not finite."""
        logits = engine.logits(resized(images, self.checkpoint.state.input_size))
        if not np.isfinite(logits).all():
            raise BadInput("the teacher's output is not finite", where=self.checkpoint.folder)
        return logits[:, self.columns]

    def _scores(self, student: Run, records: RecordSet) -> Scores:
        """The scores of all records, those in the run's folder, or else made now. Collective."""
        path = student.folder / SCORES
        with together(student.engine):
            missing = student.leads and not _is_written(path, student.journal.events(), self.digest)
        if student.engine.sum_over_ranks(np.array([float(missing)]))[0]:
            self._write_scores(student, records, path)
            with together(student.engine):
                if student.leads:
                    student.journal.write("scores", weights=self.digest, sha256=files.sha256_of(path))
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]

    def _write_scores(self, student: Run, records: RecordSet, path: Path) -> None:
        """Score every record once over all ranks, the first of which writes. Collective."""
        row = np.dtype([("number", np.int64), ("logits", np.float32, (len(self.columns),))])
        about = {"descr": _NPY.dtype_to_descr(row), "fortran_order": False, "shape": (len(records),)}
        files.check_free_space(student.folder, len(records) * row.itemsize)
        writing = files.whole_file(path) if student.leads else nullcontext()
        with writing as stream, Bar("teacher", "records", shown=student.leads) as bar:
            if stream is not None:
                _NPY.write_array_header_2_0(stream, about)
            done = 0
            for numbers, logits in self._tables(student, records):
                rows = np.empty(len(numbers), row)
                rows["number"], rows["logits"] = numbers, logits
                if stream is not None:
                    stream.write(rows.tobytes())
                done += len(rows)
                bar.show(done, len(records))

    def _tables(self, student: Run, records: RecordSet) -> Iterator[tuple[Array, Array]]:
        """Numbers [n] and logits [n, classes] of the records of each batch, as evaluation sees them. Collective."""
        state, engine, classes = self.checkpoint.state, self._engine(), len(self.columns)
        loader = loader_of(
            self.recipe, records, state.input_size, classes, student.share,
            empty=engine.host_array, channels=len(state.mean),
        )  # fmt: skip
        with loader.evaluation(state.crop_fraction) as batches:
            for first in range(0, len(records), loader.batch_size):
                last = min(first + loader.batch_size, len(records))
                table, own = np.zeros((last - first, 1 + classes)), student.share.of(range(first, last))
                if own:
                    batch = next(batches)
                    rows = slice(own.start - first, own.stop - first)
                    table[rows, 0], table[rows, 1:] = batch.records, self._logits(engine, batch.images)
                # A row belongs to a single rank and is 0 on the others, so that the sums are those very numbers.
                table = student.engine.sum_over_ranks(table.ravel()).reshape(table.shape)
                yield table[:, 0], table[:, 1:]


def looked_up(scores: Scores) -> Callable[[Batch], Array]:
    """Make what finds the logits of a batch's records. Raises BadInput for two records of the same number."""
    order = np.argsort(scores["number"], kind="stable")
    numbers = scores["number"][order]
    if (numbers[1:] == numbers[:-1]).any():
        what, advice = "two records carry the same number", "distillation.scores=batch does not go by them"
        raise BadInput(what, where="distillation.scores = 'records'", advice=advice)

    def answer(batch: Batch) -> Array:
        rows = np.minimum(np.searchsorted(numbers, batch.records), len(numbers) - 1)
        if (numbers[rows] != batch.records).any():
            raise BadInput("a record is not among those that the teacher scored", where=SCORES)
        found: Array = scores["logits"][order[rows]]
        return found

    return answer


def resized(images: Images, size: Size) -> Images:
    """Images [n, height, width, channels] at `size`: averaged over areas where it is smaller, else linear."""
    height, width = pair(size)
    if images.shape[1:3] == (height, width):
        return images
    shrinks = height * width < images.shape[1] * images.shape[2]
    kind = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    out = np.empty((len(images), height, width, images.shape[3]), np.uint8)
    for image, row in zip(images, out, strict=True):
        row[:] = cv2.resize(image, (width, height), interpolation=kind).reshape(row.shape)
    return out


def _is_written(path: Path, events: Sequence[Event], teacher: str) -> bool:
    """Tell whether these are the scores that the journal says the teacher gave. Raises Damaged for changed ones."""
    said = [event for event in events if event["event"] == "scores" and event["weights"] == teacher][-1:]
    if not said or not path.exists():
        return False
    if files.sha256_of(path) != said[0]["sha256"]:
        advice = "remove it: the teacher then scores the records again"
        raise Damaged("the file has changed since it was written", where=path, advice=advice)
    return True


def open_teacher(recipe: Recipe, data: DataSet, folder: Path, events: Sequence[Event] = ()) -> Teacher:
    """The teacher of the run in `folder`, which has been started as its `events` say.

    Raises BadRecipe where there is no such run, it is not finished, or is the student itself; BadInput for a teacher of
    other classes or images, or another than the run was started with; Damaged.
    """
    named = recipe.distillation.teacher
    where = f"distillation.teacher = {named!r}"
    run, which = _run_and_checkpoint(named)
    if run.resolve() == folder.resolve():
        raise BadRecipe("a run cannot be its own teacher", where=where, advice="name another run")
    if not has_checkpoint(run):
        raise BadRecipe("the teacher is no run with a checkpoint", where=where, expected="RUN or RUN:EPOCH")
    if which == "best" and Journal(run).last_event() not in _COMPLETE:
        advice = f"let it end, or name its epoch: distillation.teacher={named}:EPOCH"
        raise BadRecipe("the teacher is not finished: its best checkpoint may change", where=where, advice=advice)
    checkpoint = load_checkpoint(find_checkpoint(run, which))
    before = [event["teacher"]["sha256"] for event in events if "teacher" in event][-1:]
    if before and before != [checkpoint.weights_digest]:
        what, advice = "the teacher is not the one this run began with", "name that, or start a new run with --run"
        found = f"{checkpoint.folder} of weights {checkpoint.weights_digest[:12]}"
        raise BadInput(what, where=where, expected=f"weights {before[0][:12]}", found=found, advice=advice)
    _require_same_images(checkpoint.state, recipe, where)
    columns = columns_of(checkpoint.state, data, where)
    log.info("taught by %s (%s)", checkpoint.folder, checkpoint.state.network_name)
    return Teacher(run, checkpoint, columns, recipe)


def _run_and_checkpoint(named: str) -> tuple[Path, str]:
    run, colon, epoch = named.rpartition(":")
    return (Path(run), epoch) if colon and not Path(named).is_dir() else (Path(named), "best")


def _require_same_images(state: State, recipe: Recipe, where: str) -> None:
    """Raise BadInput where the student's batches cannot be brought to the teacher's input."""
    if recipe.distillation.scores == "records":
        return
    words = {1: "grey images", 3: "RGB images"}
    own, (height, width) = pair(recipe.input.trained_size), pair(state.input_size)
    found, expected = words[len(state.mean)], words[recipe.input.channels]
    if found == expected and height * own[1] != width * own[0]:
        found, expected = (f"{shown_size(size)} px" for size in (state.input_size, recipe.input.trained_size))
    if found != expected:
        what, advice = "the teacher looks at images of another kind", "distillation.scores=records lets it see its own"
        raise BadInput(what, where=where, expected=f"{expected}, as the student", found=found, advice=advice)


def columns_of(state: State, data: DataSet, where: str) -> Columns:
    """The teacher's outputs for the classes of the records, in their order. Raises BadInput where it lacks one."""
    require_one_class(state.class_table, where, "a teacher")
    own, known = data.classes.ids, {name: column for column, name in enumerate(state.classes)}
    if (state.data_digest, state.class_order) == (IMPORTED, NUMBERED) and len(own) == len(known):
        require_its_classes(state, data)
        return np.arange(len(own))
    unknown = [name for name in own if name not in known]
    if unknown:
        what = f"the teacher does not know {counted(len(unknown), 'class')} of the records"
        raise BadInput(what, where=where, expected=f"one that does: {first_few(unknown)}", found=first_few(known))
    return np.array([known[name] for name in own])
