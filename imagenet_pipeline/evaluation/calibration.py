"""Whether a network is right as often as it says: its confidence against its hits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imagenet_pipeline.evaluation.stats import Rate, Reals, Truths, rate

BINS = 15


@dataclass(frozen=True)
class Bin:
    """The images whose confidence is above `low` and up to `high`: their mean confidence, and how many are right."""

    low: float
    high: float
    confidence: float
    right: Rate


@dataclass(frozen=True)
class Calibration:
    """The bins that have images, and the expected calibration error, 0..1."""

    error: float
    bins: tuple[Bin, ...]


def calibration(confidence: Reals, right: Truths, bins: int = BINS) -> Calibration:
    """Equal-width bins of confidence [n] and the expected calibration error over them (Guo et al. 2017, section 2)."""
    edges = np.linspace(0, 1, bins + 1)
    chosen = np.searchsorted(edges[1:-1], confidence, side="left")
    found = []
    for number in np.unique(chosen):
        inside = chosen == number
        hits = rate(int(right[inside].sum()), int(inside.sum()))
        found.append(Bin(float(edges[number]), float(edges[number + 1]), float(confidence[inside].mean()), hits))
    gaps = [one.right.images * abs(one.right.hits / one.right.images - one.confidence) for one in found]
    return Calibration(sum(gaps) / len(confidence), tuple(found))
