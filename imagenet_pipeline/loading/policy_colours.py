"""The changes of `policy.py` that leave pixels where they are, each a table, a matrix or a filter, in place.

Their definitions are Pillow's (ImageEnhance and ImageOps), which RandAugment and TrivialAugment were published with.
Where Pillow cuts the fraction off, these round: results differ by a level or two, and do not darken.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.loading.auto_augment import Change
from imagenet_pipeline.loading.colour import GREY, mean_grey, recolour
from imagenet_pipeline.loading.transforms import Pixels

_LEVELS = np.arange(256)
_SMOOTHED = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
"""Pillow's filter SMOOTH."""


def change_colours(image: Pixels, change: Change) -> None:
    """Apply one change to an RGB image [H, W, 3] in place; identity and geometric changes do nothing here."""
    name, strength = change
    factor = 1 + strength
    if name == "brightness":
        _look_up(image, factor * _LEVELS)
    elif name == "colour":
        grey = np.outer(np.ones(3), GREY)
        recolour(image, np.column_stack([factor * np.eye(3) + (1 - factor) * grey, np.zeros(3)]))
    elif name == "contrast":
        _look_up(image, factor * _LEVELS + (1 - factor) * round(mean_grey(image)))
    elif name == "sharpness":
        _sharpen(image, factor)
    elif name == "posterize":
        np.bitwise_and(image, 256 - 2 ** (8 - int(strength)), out=image)
    elif name == "solarize":
        _look_up(image, np.where(np.less(_LEVELS, strength), _LEVELS, 255 - _LEVELS))
    elif name == "autocontrast":
        _look_up(image, *map(_stretched, _histograms(image)))
    elif name == "equalize":
        _look_up(image, *map(_equalized, _histograms(image)))


def _look_up(image: Pixels, *tables: NDArray[np.float64] | NDArray[np.int64]) -> None:
    """Replace every value by its entry in the table of all channels, or of each."""
    table = np.rint(np.clip(np.stack(tables, axis=-1), 0, 255)).astype(np.uint8)
    cv2.LUT(image, table.reshape(1, 256, len(tables)), dst=image)


def _sharpen(image: Pixels, factor: float) -> None:
    """Away from the smoothed image, or towards it below 1; the rim stays as it is."""
    kernel = (1 - factor) * _SMOOTHED
    kernel[1, 1] += factor
    filtered = cv2.filter2D(image, -1, kernel)
    image[1:-1, 1:-1] = filtered[1:-1, 1:-1]


def _histograms(image: Pixels) -> list[NDArray[np.int64]]:
    return [
        cv2.calcHist([image], [channel], None, [256], [0, 256])[:, 0].astype(np.int64)
        for channel in range(image.shape[2])
    ]


def _stretched(histogram: NDArray[np.int64]) -> NDArray[np.float64]:
    """The table that sends a channel's smallest level to 0 and its largest to 255."""
    present = np.flatnonzero(histogram)
    low, high = int(present[0]), int(present[-1])
    return (_LEVELS - low) * (255 / (high - low)) if high > low else _LEVELS.astype(np.float64)


def _equalized(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """The table after which a channel's levels are about equally frequent."""
    present = histogram[histogram > 0]
    step = int(present.sum() - present[-1]) // 255
    if step == 0:
        return _LEVELS
    below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
    return (step // 2 + below) // step
