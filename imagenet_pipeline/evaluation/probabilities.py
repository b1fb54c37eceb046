"""Scores to probabilities, in float64, averaged over the crops of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.engines import Array
from imagenet_pipeline.errors import BadInput

Logs = npt.NDArray[np.float64]
"""Logs of probabilities, [n, classes]."""


def log_probabilities(logits: Array, crops: int = 1) -> Logs:
    """Of each image, the log of its crops' probabilities averaged: [n * crops, classes] to [n, classes]."""
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    logs = scores.reshape(-1, crops, scores.shape[1])
    mean: Logs = np.logaddexp.reduce(logs, axis=1) - np.log(crops)
    return mean


def require_finite(output: npt.NDArray[np.floating[Any]], checkpoint: Path) -> None:
    """Raise BadInput, naming the checkpoint, where what a network gave, or was scored by, is not finite."""
    if not np.isfinite(output).all():
        raise BadInput("the network's output is not finite", where=checkpoint, advice="take another checkpoint")
