"""Temperature scaling: a number that the logits of a checkpoint are divided by, so that its confidence is honest.

Fitted on validation images by the least cross-entropy (Guo et al. 2017, "On Calibration of Modern Neural Networks",
section 4.2). It divides the logarithms of probabilities, those of several crops after they were averaged, so no rank
changes. It lies in the checkpoint's folder, temperature.json, and holds for those very weights.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, OutOfRoom
from imagenet_pipeline.evaluation.scoring import Logs, Member, RelabelledSplit, Whole, logs_by_batch, tempered
from imagenet_pipeline.evaluation.stats import calibration
from imagenet_pipeline.processes import available_memory_bytes
from imagenet_pipeline.training.checkpoint import Checkpoint

FILE = "temperature.json"
LOWEST, HIGHEST = 0.05, 20.0
"""A temperature at either end is none: the network is always right, or says nothing about the images."""
_ROWS = 4096
_AGAIN = "calibrate the checkpoint again, or remove the file"

log = logging.getLogger("imagenet_pipeline")


@dataclass(frozen=True)
class Temperature:
    """A temperature, the digests of the weights and the records it is of, and what it changed where it was fitted.

    Losses are cross-entropies in nats, errors expected calibration errors, 0..1.
    """

    temperature: float
    weights: str
    records: str
    split: str
    images: int
    loss_before: float
    loss_after: float
    error_before: float
    error_after: float

    @property
    def words(self) -> str:
        """A phrase that says which it is."""
        return f"temperature {self.temperature:.3f}, fitted on {self.images:,} {self.split} images"


def least_loss(logs: Logs, labels: Whole) -> float:
    """The temperature of least mean cross-entropy of log probabilities [n, classes], or logits, for labels [n].

    Raises BadInput where there is none between 0.05 and 20.
    """
    from scipy.optimize import minimize_scalar  # takes long to import

    def loss(log_temperature: float) -> float:
        return mean_loss(logs, labels, math.exp(log_temperature))

    # Convex in 1 / T, so there is a single minimum in log T.
    ends = math.log(LOWEST), math.log(HIGHEST)
    found = math.exp(minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6}).x)
    always = (logs.argmax(axis=1) == labels).all()  # and then it has no minimum, but what rounds to 0
    if always or not LOWEST * 1.001 < found < HIGHEST / 1.001:
        sure = always or found < 1
        why = "every image is right, so the network can only be surer" if sure else "the network is worse than a guess"
        raise BadInput(f"no temperature fits: {why}", found=f"{len(labels):,} images", advice="take another split")
    return found


def mean_loss(logs: Logs, labels: Whole, temperature: float) -> float:
    """The mean cross-entropy, nats, at a temperature."""
    total = 0.0
    for start in range(0, len(labels), _ROWS):
        part = tempered(logs[start : start + _ROWS], temperature)
        total -= float(part[np.arange(len(part)), labels[start : start + _ROWS]].sum())
    return total / len(labels)


def fit_temperature(checkpoint: Checkpoint, source: RelabelledSplit, member: Member) -> Temperature:
    """Fit a checkpoint's temperature on a split and keep it in the checkpoint's folder.

    Raises as `least_loss`, BadRecipe in one of several processes, OutOfRoom where the logits would not fit.
    """
    if member.engine.ranks > 1:
        advice = "name a single device, as devices=gpu:0"
        raise BadRecipe("a temperature is fitted in one process", found=f"{member.engine.ranks}", advice=advice)
    images = source.data.count(source.split)
    _require_room(images, len(checkpoint.state.classes))
    batches = [(labels, logs.astype(np.float32)) for labels, logs in logs_by_batch(source, 1, member)]
    labels, logs = np.concatenate([batch[0] for batch in batches]), np.concatenate([batch[1] for batch in batches])
    if not np.isfinite(logs).all():
        raise BadInput("the network's output is not finite", where=checkpoint.folder, advice="take another checkpoint")
    value = least_loss(logs, labels)
    fitted = Temperature(
        temperature=value,
        weights=checkpoint.weights_digest,
        records=source.data.digest,
        split=source.split,
        images=images,
        loss_before=mean_loss(logs, labels, 1.0),
        loss_after=mean_loss(logs, labels, value),
        error_before=_error(logs, labels, 1.0),
        error_after=_error(logs, labels, value),
    )
    files.write_json(checkpoint.folder / FILE, asdict(fitted))
    return fitted


def _error(logs: Logs, labels: Whole, temperature: float) -> float:
    first = logs.argmax(axis=1)
    parts = [tempered(logs[start : start + _ROWS], temperature).max(axis=1) for start in range(0, len(logs), _ROWS)]
    return calibration(np.minimum(1.0, np.exp(np.concatenate(parts))), first == labels).error


def _require_room(images: int, classes: int) -> None:
    needed, free = 8 * images * classes, available_memory_bytes()
    if free is not None and needed > free:
        raise OutOfRoom(
            "the logits do not fit into memory",
            expected=f"{needed / 2**30:.1f} GiB for {images:,} images of {classes:,} classes",
            found=f"{free / 2**30:.1f} GiB",
        )


def temperature_of(checkpoint: Checkpoint) -> Temperature | None:
    """The temperature of a checkpoint, None where it has none of its own; of other weights it is left, and said.

    Raises Damaged where it cannot be read.
    """
    path = checkpoint.folder / FILE
    if not path.is_file():
        return None
    found = _parsed(files.read_json(path), path)
    if found.weights != checkpoint.weights_digest:
        log.warning("%s is of other weights: it is not used; calibrate fits another", path)
        return None
    return found


def _parsed(value: Any, path: Path) -> Temperature:
    try:
        found = Temperature(**value)
        if not LOWEST <= float(found.temperature) <= HIGHEST:
            raise ValueError(f"temperature {found.temperature}")
        return found
    except (TypeError, ValueError) as error:
        raise Damaged(f"not a temperature ({error})", where=path, advice=_AGAIN) from error
