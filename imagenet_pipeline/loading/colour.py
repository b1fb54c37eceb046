"""One colour transform per image: brightness, contrast, saturation and lighting in one 3 x 4 matrix."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# Principal components of RGB over ImageNet's pixels, 0..255, as published with fb.resnet.torch
# (datasets/imagenet.lua, there in 0..1) and used by MXNet and GluonCV; the method is section 4.1 of
# Krizhevsky et al., NIPS 2012 (AlexNet).
LIGHTING_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045]) * 255
LIGHTING_DIRECTIONS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])

GREY = np.array([0.299, 0.587, 0.114])
"""Share of R, G and B in an image's grey (ITU-R BT.601)."""


def colour_matrix(
    brightness: float, contrast: float, saturation: float, lighting: NDArray[np.float64], mean_grey: float
) -> NDArray[np.float64]:
    """The map of (R, G, B, 1) to new (R, G, B), all 0..255: float64 [3, 4].

    In this order: colours are multiplied by `brightness`; pulled by `contrast` towards (below 1) or away from
    the image's mean grey; pulled by `saturation` towards or away from each pixel's own grey; moved along the
    principal components of ImageNet's colours by `lighting` [3] of their deviations. `mean_grey` is that of
    the image before.
    """
    own_grey = np.outer(np.ones(3), GREY)
    saturated = saturation * np.eye(3) + (1 - saturation) * own_grey
    offset = (1 - contrast) * brightness * mean_grey * np.ones(3)
    moved = LIGHTING_DIRECTIONS @ (LIGHTING_DEVIATIONS * lighting)
    return np.column_stack([saturated * contrast * brightness, saturated @ offset + moved])


def mean_grey(image: NDArray[np.uint8]) -> float:
    """The mean grey of an RGB image [H, W, 3], 0..255."""
    return float(np.dot(cv2.mean(image)[:3], GREY))


def recolour(image: NDArray[np.uint8], matrix: NDArray[np.float64]) -> None:
    """Apply a colour matrix in place, rounding and cutting to 0..255."""
    cv2.transform(image, matrix, dst=image)
