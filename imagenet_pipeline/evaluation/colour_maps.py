"""Numbers as colours: white is 0, blue is positive, red is negative."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

from imagenet_pipeline.loading.transforms import Pixels

Numbers = npt.NDArray[np.floating[Any]]

SIGNED, HEAT = "RdBu", "inferno"
EDGE = (205, 211, 218)


def signed_colours(numbers: Numbers) -> Pixels:
    """Numbers [h, w] as colours [h, w, 3], the farthest from 0 the darkest."""
    return _coloured(0.5 + 0.5 * numbers / _largest(numbers), SIGNED)


def signed_levels(numbers: Numbers) -> Pixels:
    """Numbers [h, w, 3] of red, green and blue as a picture, 0 the middle grey, the farthest from it black or white."""
    levels: Pixels = np.round(255 * (0.5 + 0.5 * numbers / _largest(numbers))).astype(np.uint8)
    return levels


def heat_colours(shares: Numbers) -> Pixels:
    """Numbers 0 to 1 [h, w] as colours [h, w, 3], from black over red to pale yellow."""
    return _coloured(shares, HEAT)


def framed(pixels: Pixels, side: int) -> Pixels:
    """A small picture enlarged by the largest whole factor within `side` pixels, and an edge of one pixel around."""
    times = max(1, side // max(pixels.shape[:2]))
    large = np.repeat(np.repeat(pixels, times, axis=0), times, axis=1)
    if max(large.shape[:2]) > side:
        picture = Image.fromarray(large)
        picture.thumbnail((side, side), Image.Resampling.BOX)
        large = np.asarray(picture)
    frame = np.empty((large.shape[0] + 2, large.shape[1] + 2, 3), np.uint8)
    frame[:] = EDGE
    frame[1:-1, 1:-1] = large
    return frame


def enlarged(pixels: Pixels, side: int) -> Pixels:
    """A square picture resized smoothly to `side` pixels."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def _coloured(places: Numbers, name: str) -> Pixels:
    colours: Pixels = matplotlib.colormaps[name](places, bytes=True)[..., :3]
    return colours


def _largest(numbers: Numbers) -> float:
    return float(np.abs(numbers).max()) or 1.0
