"""Predictions of a trained run for pictures, folders and lists, in memory that does not grow with their number.

A `Classifier` takes RGB images and gives probabilities; predictions can be written as CSV, a row a picture.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import os
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe, pair
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.errors import BadInput, BadRecipe, printable
from imagenet_pipeline.evaluation.calibration import temperature_of
from imagenet_pipeline.evaluation.evaluate import Crops, open_checkpoint
from imagenet_pipeline.evaluation.scoring import log_probabilities, one_behind, outputs_of, require_finite, tempered
from imagenet_pipeline.loading.augment import evaluation_transform
from imagenet_pipeline.loading.reduced import resize_photo_into, upright_image
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.processes import available_processors
from imagenet_pipeline.records.classes import ClassTable, LabelKind
from imagenet_pipeline.records.image import LazyImage, Rejected, calm
from imagenet_pipeline.records.image_files import READ_ENDINGS, ImageTree
from imagenet_pipeline.records.lists import LINE_LIMIT_BYTES, read_list, require_no_backslashes
from imagenet_pipeline.records.manifest import is_remote
from imagenet_pipeline.records.shard import read_image_file
from imagenet_pipeline.training.checkpoint import Checkpoint, State
from imagenet_pipeline.training.engine_setup import build_engine

log = logging.getLogger("imagenet_pipeline")

BATCHES_AHEAD = 2
"""Batches of views that are made ready beside the two in use: one being computed, one being read."""


MARGIN = 4
"""Pixels, along a side, that a reduced picture keeps for each of the network's input."""


@dataclass(frozen=True)
class Choice:
    """A class for a picture, and its probability."""

    class_id: str
    name: str
    probability: float


@dataclass(frozen=True)
class Amount:
    """A number that a network says of a picture."""

    name: str
    value: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of a picture, best first, or the reason why it could not be read.

    Of a network that tells several classes of an image, `top` are those of a probability above 1/2, maybe none; of one
    that says numbers there are `numbers` in their place.
    """

    path: Path
    top: tuple[Choice, ...]
    reason: str = ""
    numbers: tuple[Amount, ...] = ()
    label_kind: LabelKind = "class"


def predict(classifier: Classifier, paths: Sequence[Path], top: int = 5, crops: Crops = 1) -> Iterator[Prediction]:
    """Yield the predictions for pictures in their order, each of the `top` classes, or of all where there are fewer.

    Threads read, decode and crop the pictures of the next batches meanwhile; only the crops are kept. Pictures are
    turned as their EXIF tag says. A picture that cannot be read does not end the pass; a damaged picture that can
    be read is named on the log.
    Raises BadInput where the network's output is not finite.
    """
    calm()
    together = classifier.images_together(crops)
    batches = [paths[at : at + together] for at in range(0, len(paths), together)]
    threads = classifier.recipe.loader.threads
    pool = ThreadPoolExecutor(available_processors() if threads == "auto" else max(1, threads), "pictures")

    def start(batch: Sequence[Path]) -> list[Future[Pixels | str]]:
        return [pool.submit(_views, classifier, path, crops) for path in batch]

    def issued() -> Iterator[_Issued]:
        upcoming = iter(batches)
        started = deque((batch, start(batch)) for batch in islice(upcoming, BATCHES_AHEAD))
        while started:
            batch, views = started.popleft()
            started.extend((following, start(following)) for following in islice(upcoming, 1))
            yield _issue(classifier, batch, [future.result() for future in views])

    try:
        for batch in one_behind(issued()):
            yield from _predictions(classifier, batch, top)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_picture(path: Path, damaged: Callable[[str], None] | None = None, least_edge: int | None = None) -> LazyImage:
    """Read a picture file, upright, as `upright_image` does. Raises Rejected with the reason."""
    return upright_image(read_image_file(Path(), str(path), follow_links=True), damaged, least_edge)


def read_naming_damage(path: Path, least_edge: int | None = None) -> LazyImage:
    """Read a picture file as `read_picture` does; a damaged picture that can be read is named on the log."""
    damage: list[str] = []
    image = read_picture(path, damage.append, least_edge)
    for what in damage:
        log.warning("%s: read, but damaged: %s", printable(str(path)), what)
    return image


def least_edge_for(state: State) -> int:
    """The shorter edge that a picture must keep where it is reduced before the crops of a run are cut from it.

    A crop keeps MARGIN times the pixels of the network's input along each side, the rest is averaged over areas; so
    of photos larger than that the input differs by a few grey levels from that of the whole picture.
    """
    return math.ceil(MARGIN * max(pair(state.input_size)) / state.crop_fraction)


def views_of(image: LazyImage, state: State, crops: Crops = 1) -> Pixels:
    """Cut the crops that the network of a run sees, [crops, H, W, channels]."""
    out = np.empty((crops, *pair(state.input_size), len(state.mean)), np.uint8)
    evaluation_transform(image, state.crop_fraction, out, resize_photo_into)
    return out


def best_choices(probabilities: npt.NDArray[np.float64], classes: ClassTable, top: int) -> tuple[Choice, ...]:
    """The `top` most probable classes out of probabilities [classes]; equally probable classes in their order."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(Choice(classes.ids[label], classes.names[label], float(probabilities[label])) for label in order)


def _views(classifier: Classifier, path: Path, crops: Crops) -> Pixels | str:
    """The crops of a picture that the network sees, [crops, H, W, channels], or the reason why it cannot be read."""
    try:
        return classifier.views(read_naming_damage(path, least_edge_for(classifier.checkpoint.state)), crops)
    except Rejected as reason:
        return str(reason)


Probabilities = npt.NDArray[np.float64]
"""[n, classes]."""


@dataclass(frozen=True)
class _Issued:
    """Pictures whose classes the engine computes, each with the reason why it cannot be read, or nothing."""

    paths: Sequence[Path]
    reasons: Sequence[str]
    probabilities: Callable[[], Probabilities] | None
    """Waits for those of the pictures that can be read; None where there is no such picture."""


def _issue(classifier: Classifier, paths: Sequence[Path], views: Sequence[Pixels | str]) -> _Issued:
    readable = [crops for crops in views if not isinstance(crops, str)]
    reasons = [crops if isinstance(crops, str) else "" for crops in views]
    return _Issued(paths, reasons, classifier.issue_probabilities(np.stack(readable)) if readable else None)


def _predictions(classifier: Classifier, batch: _Issued, top: int) -> Iterator[Prediction]:
    rows = iter(batch.probabilities() if batch.probabilities else ())
    for path, reason in zip(batch.paths, batch.reasons, strict=True):
        yield Prediction(path, (), reason) if reason else _prediction(path, next(rows), classifier.classes, top)


def _prediction(path: Path, row: npt.NDArray[np.float64], classes: ClassTable, top: int) -> Prediction:
    if classes.label_kind == "number":
        named = zip(classes.names, row.tolist(), strict=True)
        return Prediction(path, (), "", tuple(Amount(name, value) for name, value in named), "number")
    choices = best_choices(row, classes, top)
    if classes.label_kind == "classes":
        choices = tuple(choice for choice in choices if choice.probability > 0.5)
    return Prediction(path, choices, label_kind=classes.label_kind)


@dataclass(frozen=True)
class Classifier:
    """A checkpoint on its engine, what its classes mean, and the temperature of its probabilities."""

    run: Path
    recipe: Recipe
    checkpoint: Checkpoint
    engine: Engine
    classes: ClassTable
    temperature: float = 1.0

    def probabilities(self, images: Sequence[Pixels], crops: Crops = 1) -> Probabilities:
        """Probabilities [n, classes] of RGB images [H, W, 3] of any size, cropped as in evaluation.

        Several crops are averaged. Images go to the engine a batch of the recipe at a time.
        Raises BadInput where the network's output is not finite.
        """
        together = self.images_together(crops)
        parts = [
            self.probabilities_of(
                np.stack([self.views(LazyImage.of(image), crops) for image in images[at : at + together]])
            )
            for at in range(0, len(images), together)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes)))

    def images_together(self, crops: Crops = 1) -> int:
        """The number of images that go to the engine at once."""
        return max(1, self.recipe.images_per_step // crops)

    def views(self, image: LazyImage, crops: Crops = 1) -> Pixels:
        """Cut the crops that the network sees, [crops, H, W, channels], from an image. Threads may share it."""
        return views_of(image, self.checkpoint.state, crops)

    def probabilities_of(self, views: Pixels) -> Probabilities:
        """Probabilities [n, classes] of the images of a batch, given their crops `views` [n, crops, H, W, channels].

        Of several classes an image each has its own; of a network that says numbers it is these.
        Raises BadInput where the network's output is not finite.
        """
        return self.issue_probabilities(views)()

    def issue_probabilities(self, views: Pixels) -> Callable[[], Probabilities]:
        """Issue the computation of `probabilities_of`; the function returned waits for them, and or raises."""
        logits, crops = self.engine.issue_logits(views.reshape(-1, *views.shape[2:])), views.shape[1]

        def read() -> Probabilities:
            found = logits()
            require_finite(found, self.checkpoint.folder)
            if self.classes.label_kind == "class":
                logs = log_probabilities(found, crops)
                return np.exp(logs if self.temperature == 1 else tempered(logs, self.temperature))
            outputs = outputs_of(found, self.classes.label_kind, crops)
            return outputs if self.classes.label_kind == "number" else np.exp(-np.logaddexp(0, -outputs))

        return read


def open_classifier(run: Path, which: str = "best", overrides: dict[str, object] | None = None) -> Classifier:
    """A run's checkpoint ("best", "latest" or an epoch), recipe keys of how to compute laid over the run's own.

    Raises BadRecipe as `evaluate` does, and where several processes were started.
    """
    recipe, checkpoint = open_checkpoint(run, which, overrides or {})
    engine = build_engine(recipe.model_copy(update={"compile": False}), checkpoint.state, checkpoint.weights)
    if engine.ranks > 1:
        raise BadRecipe(
            "predictions run in one process", found=f"{engine.ranks} processes", advice="start a single process"
        )
    classes = checkpoint.state.class_table
    fitted = temperature_of(checkpoint) if classes.label_kind == "class" else None
    if fitted:
        log.info("probabilities are those at %s", fitted.words)
    return Classifier(run, recipe, checkpoint, engine, classes, fitted.temperature if fitted else 1.0)


LIST_ENDINGS = (".txt", ".lst")


def find_pictures(sources: Sequence[Path], root: Path) -> list[Path]:
    """The pictures of these sources, in their order: a folder's sorted, with those of the folders in it.

    A `.txt` has a path a line, an `.lst` is im2rec's; relative paths in them start from `root`. Any other file is
    taken for a picture, whatever its name. Symbolic links are followed. Raises BadInput for a source that does not
    exist or has no pictures, and for a list of paths with backslashes; what else a list names is not looked for.
    """
    missing = next((source for source in sources if not os.path.exists(source)), None)
    if missing is not None:
        _require_here(missing)
        raise BadInput("no such picture, folder or list", where=missing)
    return [picture for source in sources for picture in _pictures_of(source, root)]


def _require_here(picture: Path) -> None:
    """Raise BadInput for an address, of pictures or of records, that is not of this machine."""
    if is_remote(picture):
        from imagenet_pipeline.storage import Storage  # for its name alone

        advice = "copy them here; evaluate --records scores a data set at an address"
        raise BadInput("pictures are read from this machine alone", where=Storage(picture), advice=advice)


def _pictures_of(source: Path, root: Path) -> list[Path]:
    if os.path.isdir(source):
        return _in_folder(source)
    if source.suffix.lower() not in LIST_ENDINGS:
        return [source]
    names = [row.path for row in read_list(source)] if source.suffix.lower() == ".lst" else list(_lines(source))
    if not names:
        raise BadInput("the list is empty", where=source, expected="the path of a picture on each line")
    require_no_backslashes(names, root, source)
    return [root / name for name in names]


def _in_folder(folder: Path) -> list[Path]:
    tree = ImageTree(folder)
    found = tree.images(folder)
    if not found:
        expected = "files ending in " + " ".join(READ_ENDINGS)
        raise BadInput("no pictures in this folder", where=folder, expected=expected, found=tree.left_out_below(folder))
    tree.say()
    return found


def _lines(path: Path) -> Iterator[str]:
    with files.regular_file(path) as (stream, _):
        for number, line in enumerate(iter(lambda: stream.readline(LINE_LIMIT_BYTES + 1), b""), 1):
            if len(line) > LINE_LIMIT_BYTES or b"\0" in line:
                raise BadInput("the line is not a path", where=f"{path}:{number}", found=repr(line[:80]))
            # A file's name may hold any bytes, and spaces at its ends.
            name = line.removeprefix(BOM_UTF8 if number == 1 else b"").rstrip(b"\r\n")
            if name.strip():
                yield name.decode("utf-8", "surrogateescape")


class PredictionTable:
    """Writes predictions as rows of a CSV; made by `prediction_table`."""

    def __init__(self, stream: io.TextIOWrapper, top: int, numbers: Sequence[str] = ()) -> None:
        self._writer = csv.writer(stream, lineterminator="\n")
        ranks = range(1, top + 1)
        choices = [column for n in ranks for column in (f"class_{n}", f"name_{n}", f"probability_{n}")]
        choices = [*numbers] or choices
        self._writer.writerow(["file", "unreadable", *choices])
        self._columns = len(choices)

    def add(self, prediction: Prediction) -> None:
        """Write a picture's row."""
        choices = [
            cell for choice in prediction.top for cell in (choice.class_id, choice.name, f"{choice.probability:.6f}")
        ]
        choices += [f"{amount.value:.9g}" for amount in prediction.numbers]
        choices += [""] * (self._columns - len(choices))
        self._writer.writerow([prediction.path, prediction.reason, *choices])


def require_csv(path: Path) -> None:
    """Raise BadRecipe for a table that is no CSV by its name."""
    files.require_ending(path, ".csv", "the table is written as CSV")


@contextlib.contextmanager
def prediction_table(path: Path, top: int, numbers: Sequence[str] = ()) -> Iterator[PredictionTable]:
    """A table of `top` classes a picture, to be filled; the file appears when the block ends well.

    Columns: file, unreadable (why, or nothing), then class_1, name_1, probability_1 and so on, or a column for each
    of the `numbers`. UTF-8; a file's name
    keeps its bytes. Raises BadRecipe for another ending.
    """
    require_csv(path)
    with files.whole_file(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
        yield PredictionTable(text, top, numbers)
        text.flush()
        text.detach()
