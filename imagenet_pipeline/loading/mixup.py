"""Training images mixed in pairs, and their labels with them: mixup and CutMix.

mixup (Zhang et al. 2018, "mixup: Beyond empirical risk minimization"): an image is lambda x + (1 - lambda) y.
CutMix (Yun et al. 2019, "CutMix: Regularization strategy to train strong classifiers"): a box of y, of the share
1 - lambda of its area and of its proportions, about a point anywhere, is put over x; the part of the box beyond the
border is lost, and lambda is then what is left of x.

lambda comes from Beta(alpha, alpha). The partner of position p is p XOR 1. The papers mix a batch with a shuffled
copy of itself by a single lambda; here every image has a lambda and a box of its own, of the same distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.config import Size, pair
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import Box

MIXING_COLUMNS = 4
"""Uniform numbers for each image."""

_KIND, _LAMBDA, _CENTRE_X, _CENTRE_Y = range(MIXING_COLUMNS)


class Mix(NamedTuple):
    """The mixture for an image: `own` is its share, the rest its partner's."""

    own: float
    box: Box | None
    """The box of the partner's pixels; None where both shine through everywhere."""


def mixtures(mixup: float, cutmix: float, uniforms: NDArray[np.float64], size: Size) -> list[Mix] | list[None]:
    """Turn uniform numbers [n, MIXING_COLUMNS] into mixtures for n images of `size` pixels; None with both off.

    mixup, cutmix: the alpha of each, 0 for off; with both on, an image gets either with probability 1/2.
    """
    if not mixup and not cutmix:
        return [None] * len(uniforms)
    # SciPy takes as long to import as all else that a command needs.
    from scipy.special import betaincinv

    cuts = (uniforms[:, _KIND] < 0.5) if mixup and cutmix else np.full(len(uniforms), cutmix > 0)
    alphas = np.where(cuts, cutmix, mixup)
    lambdas = betaincinv(alphas, alphas, uniforms[:, _LAMBDA])
    return [
        _cut(float(own), float(x), float(y), size) if cut else Mix(float(own), None)
        for own, cut, x, y in zip(lambdas, cuts, uniforms[:, _CENTRE_X], uniforms[:, _CENTRE_Y], strict=True)
    ]


def mix_pair(first: Pixels, second: Pixels, first_mix: Mix, second_mix: Mix) -> None:
    """Mix two images [H, W, channels] into each other in place, rounding to the nearest level."""
    unmixed = first.copy()
    _mix_into(first, second, first_mix)
    _mix_into(second, unmixed, second_mix)


def mixed_target(target: NDArray[np.float32], label: int, partner: int, mix: Mix) -> None:
    """Write the share of each class to all of `target` [classes]."""
    target[:] = 0
    target[label] = mix.own
    target[partner] += 1 - mix.own


def mix_vectors(first: NDArray[np.float32], second: NDArray[np.float32], first_mix: Mix, second_mix: Mix) -> None:
    """Mix two label vectors into each other in place, as their images are."""
    unmixed = first.copy()
    first[:] = first_mix.own * first + (1 - first_mix.own) * second
    second[:] = second_mix.own * second + (1 - second_mix.own) * unmixed


def _mix_into(image: Pixels, partner: Pixels, mix: Mix) -> None:
    if mix.box is None:
        cv2.addWeighted(image, mix.own, partner, 1 - mix.own, 0, dst=image)
    else:
        rows = slice(mix.box.top, mix.box.top + mix.box.height)
        columns = slice(mix.box.left, mix.box.left + mix.box.width)
        image[rows, columns] = partner[rows, columns]


def _cut(own: float, x: float, y: float, size: Size) -> Mix:
    height, width = pair(size)
    (left, right), (top, bottom) = _edges(own, x, width), _edges(own, y, height)
    box = Box(left, top, right - left, bottom - top)
    return Mix(1 - box.width * box.height / (height * width), box)


def _edges(own: float, centre: float, side: int) -> list[int]:
    half = (1 - own) ** 0.5 * side / 2
    return [round(min(max(centre * side + reach, 0), side)) for reach in (-half, half)]
