"""Statistics of an evaluation: 95 % confidence intervals of a figure and of the difference of two, and calibration.

Intervals take the images as drawn by chance from all those that the figure is to speak for; nothing else varies.
Calibration compares a network's confidence with its hits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)

Interval = tuple[float, float]
Reals = npt.NDArray[np.float64]
Truths = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rate:
    """Hits among images: their share and its `interval`, both in percent."""

    hits: int
    images: int
    percent: float
    interval: Interval


@dataclass(frozen=True)
class Mean:
    """A mean and its interval, which a single image does not have."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Difference:
    """Rank-1 of a network less that of another on the same images, in percentage points.

    `gained` images the network alone has right, `lost` the other alone; `p` is the chance of a split at least as
    uneven, were neither better (McNemar's exact test). `loss` is the difference of the mean losses.
    """

    rank1: float
    rank1_interval: Interval
    gained: int
    lost: int
    p: float
    loss: Mean


def rate(hits: int, images: int) -> Rate:
    """Wilson's score interval (Wilson 1927; Brown, Cai and DasGupta 2001), which stays within 0 and 100."""
    share = hits / images
    weight = 1 + _Z**2 / images
    centre = (share + _Z**2 / (2 * images)) / weight
    half = _Z / weight * math.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2))
    # Rounding must not take the bound past the figure, or out of 0..1, where none, or all, are hits.
    low, high = max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))
    return Rate(hits, images, 100.0 * hits / images, _percent(low, high))


def mean(values: Reals) -> Mean:
    """The mean of values [n] and its normal interval, from their own standard deviation; not below 0 if none is."""
    middle = float(values.mean())
    if len(values) < 2:
        return Mean(middle, None)
    half = _Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    low = middle - half
    return Mean(middle, (low if values.min() < 0 else max(0.0, low), middle + half))


def difference(right: Truths, loss: Reals, other_right: Truths, other_loss: Reals) -> Difference:
    """Compare two networks on the same images, [n] each: pairs, so that what is hard for both does not count.

    The interval of rank-1 is Agresti and Min's (2005): half an image more in each cell of the fourfold table.
    """
    images = len(right)
    gained, lost = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    discordant, padded = gained + lost, images + 2
    middle = (gained - lost) / padded
    half = _Z * math.sqrt((discordant + 1) / padded - middle**2) / math.sqrt(padded)
    p = _mcnemar(gained, discordant) if discordant else 1.0
    points = 100.0 * (gained - lost) / images
    return Difference(points, _percent(middle - half, middle + half), gained, lost, p, mean(loss - other_loss))


def _mcnemar(gained: int, discordant: int) -> float:
    # Not above: it takes as long to import as all else that an evaluation of one network needs.
    from scipy.stats import binomtest

    return float(binomtest(gained, discordant).pvalue)


def _percent(low: float, high: float) -> Interval:
    return 100.0 * low, 100.0 * high


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
    gaps = [part.right.images * abs(part.right.hits / part.right.images - part.confidence) for part in found]
    return Calibration(sum(gaps) / len(confidence), tuple(found))
