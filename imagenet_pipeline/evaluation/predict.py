"""What a trained network takes pictures for, one after the other, in memory that does not grow with their number."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.errors import printable
from imagenet_pipeline.evaluation.classifier import Classifier
from imagenet_pipeline.evaluation.evaluate import Crops
from imagenet_pipeline.loading.loader import available_processors
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image import Rejected, calm, upright_rgb
from imagenet_pipeline.records.shard import read_image_file

log = logging.getLogger("imagenet_pipeline")

BATCHES_AHEAD = 2
"""How many batches of views, beside the one in use, are made ready."""


@dataclass(frozen=True)
class Choice:
    """One class for a picture, and how probable it is."""

    class_id: str
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of a picture, best first; of one that could not be read, the reason."""

    path: Path
    top: tuple[Choice, ...]
    reason: str = ""


def predict(classifier: Classifier, paths: Sequence[Path], top: int = 5, crops: Crops = 1) -> Iterator[Prediction]:
    """The predictions for pictures, in their order, as they are made; of fewer than `top` classes, all.

    Threads read, decode and cut the pictures of the next batches meanwhile; of each no more is kept than what the
    network looks at. Pictures are turned as their EXIF tag says. One that cannot be read does not end it; one
    that is damaged and can be read is named on the log.
    Raises BadInput where the network's output is not finite.
    """
    calm()
    together = classifier.images_together(crops)
    batches = [paths[at : at + together] for at in range(0, len(paths), together)]
    threads = classifier.recipe.loader.threads
    pool = ThreadPoolExecutor(available_processors() if threads == "auto" else max(1, threads), "pictures")

    def start(batch: Sequence[Path]) -> list[Future[Pixels | str]]:
        return [pool.submit(_views, classifier, path, crops) for path in batch]

    try:
        upcoming = iter(batches)
        started = deque((batch, start(batch)) for batch in islice(upcoming, BATCHES_AHEAD))
        while started:
            batch, views = started.popleft()
            started.extend((following, start(following)) for following in islice(upcoming, 1))
            yield from _predictions(classifier, batch, [one.result() for one in views], top)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_picture(path: Path, damaged: Callable[[str], None] | None = None) -> Pixels:
    """A picture file as RGB [H, W, 3], upright; `damaged` is as for `decode_rgb`. Raises Rejected with the reason."""
    return upright_rgb(read_image_file(Path(), str(path), follow_links=True), damaged)


def read_naming_damage(path: Path) -> Pixels:
    """A picture file as `read_picture` gives it; one that is damaged and can be read is named on the log."""
    damage: list[str] = []
    pixels = read_picture(path, damage.append)
    for what in damage:
        log.warning("%s: read, but damaged: %s", printable(str(path)), what)
    return pixels


def best_choices(probabilities: npt.NDArray[np.float64], classes: ClassTable, top: int) -> tuple[Choice, ...]:
    """The `top` most probable classes out of probabilities [classes]; of equal ones the first class comes first."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(Choice(classes.ids[label], classes.names[label], float(probabilities[label])) for label in order)


def _views(classifier: Classifier, path: Path, crops: Crops) -> Pixels | str:
    """What the network looks at of a picture, [crops, S, S, 3], or why it cannot be read."""
    try:
        return classifier.views(read_naming_damage(path), crops)
    except Rejected as reason:
        return str(reason)


def _predictions(
    classifier: Classifier, paths: Sequence[Path], views: Sequence[Pixels | str], top: int
) -> Iterator[Prediction]:
    readable = [one for one in views if not isinstance(one, str)]
    rows = iter(classifier.probabilities_of(np.stack(readable)) if readable else ())
    for path, one in zip(paths, views, strict=True):
        if isinstance(one, str):
            yield Prediction(path, (), one)
        else:
            yield Prediction(path, best_choices(next(rows), classifier.classes, top))
