"""Random erasing: a rectangle of noise over a training image (Zhong et al. 2020, "Random erasing data augmentation").

The rectangle covers 2 to 33 % of the image, its height is 0.3 to 3.3 times its width (even in its logarithm), and it
lies anywhere within the image. The noise is the paper's best kind, RE-R: every value of every pixel is even over
0..255. Other programs erase after normalisation and so stand normal noise for it; these are the paper's own values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import Box

ERASING_COLUMNS = 24
"""Uniform numbers for each image."""

AREA = (0.02, 0.33)
ASPECT = (0.3, 3.3)

_ERASES, _LEFT, _TOP, _NOISE = range(4)
_AREAS, _ASPECTS = slice(4, 14), slice(14, 24)


class Erasure(NamedTuple):
    """One rectangle of noise, before the image's size is known."""

    areas: list[float]
    """Ten tries of its share of the image; the first that fits counts."""
    aspects: list[float]
    """Ten tries of its height over its width."""
    left: float
    top: float
    """Position within its room to move, 0 to 1."""
    noise: int
    """The seed of its pixels."""


def erasures(probability: float, uniforms: NDArray[np.float64]) -> list[Erasure | None]:
    """Turn uniform numbers [n, ERASING_COLUMNS] into the rectangles of n images, None for those left alone."""
    if not probability:
        return [None] * len(uniforms)
    areas = AREA[0] + (AREA[1] - AREA[0]) * uniforms[:, _AREAS]
    aspects = ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** uniforms[:, _ASPECTS]
    return [
        Erasure(
            areas[row].tolist(),
            aspects[row].tolist(),
            left=float(uniforms[row, _LEFT]),
            top=float(uniforms[row, _TOP]),
            noise=int(uniforms[row, _NOISE] * 2**53),
        )
        if uniforms[row, _ERASES] < probability
        else None
        for row in range(len(uniforms))
    ]


def erase(image: Pixels, erasure: Erasure) -> None:
    """Put the rectangle over an image [H, W, C] in place; nothing where no try fits, as in a very small image."""
    box = erased_box(erasure, *image.shape[:2])
    if box is not None:
        shape = (box.height, box.width, image.shape[2])
        noise = np.frombuffer(np.random.default_rng(erasure.noise).bytes(math.prod(shape)), np.uint8)
        image[box.top : box.top + box.height, box.left : box.left + box.width] = noise.reshape(shape)


def erased_box(erasure: Erasure, height: int, width: int) -> Box | None:
    """Place the rectangle in an image of this height and width."""
    for area, aspect in zip(erasure.areas, erasure.aspects, strict=True):
        pixels = area * height * width
        box_height, box_width = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            left = int(erasure.left * (width - box_width + 1))
            return Box(left, int(erasure.top * (height - box_height + 1)), box_width, box_height)
    return None
