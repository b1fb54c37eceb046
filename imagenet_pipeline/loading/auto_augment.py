"""Published lists of random changes: RandAugment, TrivialAugment, AutoAugment, AugMix and 3-Augment.

The first two draw from the same fourteen changes. RandAugment (Cubuk et al. 2020, "RandAugment: Practical automated
data augmentation with a reduced search space") makes so many to each image, all of one strength. TrivialAugment Wide
(Mueller & Hutter 2021, "TrivialAugment: Tuning-free yet state-of-the-art data augmentation") makes one, of a random
strength, up to stronger ones. Strengths have 31 steps, 0 to 30, and the ranges that torchvision gives them.
AutoAugment (Cubuk et al. 2019, "AutoAugment: Learning augmentation policies from data") makes one pair of changes, out
of the 25 that were found on ImageNet, each of the two by a chance of its own; strengths have ten steps over the ranges
of RandAugment, and either sign is as likely, as torchvision has it.
3-Augment (Touvron et al. 2022, "DeiT III: Revenge of the ViT") makes one of three: grey, solarised or blurred.
AugMix (Hendrycks et al. 2020, "AugMix: A simple data processing method to improve robustness and uncertainty") mixes an
image with three that chains of up to three changes made of it, all changes that ImageNet-C does not test. It is the
method without the consistency loss (Jensen-Shannon) of its paper: labels and loss are those of any image.

An image is resampled once: the geometric changes of an image are composed, in the order drawn, with its crop; then
the others, each a table, a matrix or a filter, are applied to the pixels in that order (a chain of AugMix: to a copy of
the finished crop, which it resamples once more). Their definitions are Pillow's (ImageEnhance, ImageOps, ImageFilter),
which these lists were published with. Where Pillow cuts the fraction off, these round: results differ by a level or
two, and do not darken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.config import Fill, Policy, Size, as_size, pair
from imagenet_pipeline.loading.transforms import GREY, Affine, Pixels, mean_grey, recolour, warp_into

POLICY_COLUMNS = 9
"""Uniform numbers for each image: up to four changes."""
STEPS = 30

_CHANGES, _SIGNS, _STEP = slice(0, 4), slice(4, 8), 8


class Change(NamedTuple):
    """One change to an image.

    `strength` of shear_x, shear_y: pixels along for each pixel across; translate_x, translate_y: whole pixels;
    rotate: degrees; brightness, colour, contrast, sharpness: the factor less 1; posterize: bits kept;
    solarize: the level from which on values are inverted; blur: deviation in pixels. identity, autocontrast, equalize,
    invert and grey have none.
    """

    name: str
    strength: float


class _Strengths(NamedTuple):
    weakest: float
    strongest: float
    signed: bool = False
    """True where either sign is drawn with probability 1/2."""

    def at(self, step: float, negative: bool) -> float:
        size = self.weakest + (self.strongest - self.weakest) * step / STEPS
        return -size if negative and self.signed else size


def policy_changes(
    policy: Policy, count: int, magnitude: int, uniforms: NDArray[np.float64], size: Size
) -> list[list[Change]]:
    """Turn uniform numbers [n, POLICY_COLUMNS] into the changes to n images of `size` pixels.

    count, magnitude: of rand_augment, how many changes (up to 4) and how strong, 0 to 30.
    """
    if policy in ("none", "aug_mix"):
        return [[] for _ in uniforms]
    if policy == "three_augment":
        return [[_one_of_three(row[_CHANGES.start], row[_STEP])] for row in uniforms.tolist()]
    if policy == "auto_augment":
        return [_pair_of(row[_CHANGES], row[_SIGNS], size) for row in uniforms.tolist()]
    table = _rand_augment(size) if policy == "rand_augment" else _trivial_augment()
    names = list(table)
    steps = np.full(len(uniforms), magnitude)
    if policy == "trivial_augment":
        count, steps = 1, (uniforms[:, _STEP] * (STEPS + 1)).astype(int)
    drawn = (uniforms[:, _CHANGES][:, :count] * len(names)).astype(int)
    negative = uniforms[:, _SIGNS] < 0.5
    return [
        [
            _change(names[index], table[names[index]].at(int(step), bool(sign)))
            for index, sign in zip(indices, signs, strict=False)
        ]
        for step, indices, signs in zip(steps, drawn, negative, strict=True)
    ]


_PAIRS: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("colour", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("colour", 1.0, 2)),
    (("colour", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
    (("colour", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)
"""AutoAugment's 25 pairs for ImageNet, of its paper's table of them: change, probability, strength of 9."""


def _pair_of(numbers: list[float], signs: list[float], size: Size) -> list[Change]:
    """The changes that a drawn pair comes to; the first number draws the pair, the next two whether each is made."""
    table = {**_rand_augment(size), "invert": _Strengths(0, 0)}
    pair_drawn = _PAIRS[int(numbers[0] * len(_PAIRS))]
    return [
        _change(name, table[name].at(step * STEPS / 9, sign < 0.5))
        for (name, probability, step), number, sign in zip(pair_drawn, numbers[1:], signs, strict=False)
        if number < probability
    ]


def _one_of_three(kind: float, size: float) -> Change:
    return (Change("grey", 0), Change("solarize", 128), Change("blur", 0.1 + 1.9 * size))[int(3 * kind)]


CHAINS, LINKS = 3, 3
"""Chains of AugMix, and changes of each at most."""
CHAIN_COLUMNS = CHAINS + CHAINS + 3 * CHAINS * LINKS
"""Uniform numbers for each image: shares, lengths, and the kind, the strength and the sign of every change."""


class Chains(NamedTuple):
    """AugMix of an image: its `own` share, and chains of changes with theirs; they make 1."""

    own: float
    chains: list[tuple[float, list[Change]]]


def chains_of(magnitude: int, uniforms: NDArray[np.float64], size: Size) -> list[Chains]:
    """Turn uniform numbers [n, CHAIN_COLUMNS] into AugMix's chains for n images of `size` pixels.

    The paper's severity, of 10, is a third of `magnitude`; each change has a strength from 0.1 of 10 to it. The image's
    own share is even over 0..1 (Beta(1, 1)), those of the chains are even over all that make up the rest (Dirichlet).
    """
    down, right = pair(size)
    table = _table(shear=0.3, translate=(down / 3, right / 3), rotate=30, factor=0, bits=0)
    table |= {"posterize": _Strengths(4, 0), "solarize": _Strengths(256, 0)}
    names = [name for name in table if name not in ("identity", "brightness", "colour", "contrast", "sharpness")]

    def change(kind: float, strength: float, sign: float) -> Change:
        name = names[int(kind * len(names))]
        step = (0.1 + (magnitude / 3 - 0.1) * strength) * STEPS / 10
        return _whole(Change(name, table[name].at(step, sign < 0.5)))

    drawn = []
    for mixed, *numbers in uniforms.tolist():
        edges = [0.0, *sorted(numbers[: CHAINS - 1]), 1.0]
        shares = [mixed * (end - start) for start, end in pairwise(edges)]
        lengths = [1 + int(LINKS * number) for number in numbers[CHAINS - 1 : 2 * CHAINS - 1]]
        links = np.reshape(numbers[2 * CHAINS - 1 :], (CHAINS, LINKS, 3)).tolist()
        chains = zip(shares, lengths, links, strict=True)
        drawn.append(
            Chains(1 - mixed, [(share, [change(*link) for link in chain[:length]]) for share, length, chain in chains])
        )
    return drawn


def _whole(change: Change) -> Change:
    """The change as AugMix's own code cuts strengths off: degrees and pixels towards 0, bits and levels upwards."""
    name, strength = change
    if name.startswith("shear"):
        return change
    return Change(name, math.ceil(strength) if name in ("posterize", "solarize") else math.trunc(strength))


def mix_chains(image: Pixels, chains: Chains, fill: Fill) -> None:
    """Mix an RGB image [H, W, 3] in place with what each chain makes of it, rounding once."""
    mixed, total = image.astype(np.float32), chains.own
    for share, changes in chains.chains:
        changed, origin = image.copy(), moved(changes, as_size(*image.shape[:2]))
        if origin is not None:
            warp_into(image, origin[:2], fill, changed)
        for change in changes:
            change_colours(changed, change)
        total += share
        cv2.accumulateWeighted(changed, mixed, share / total)
    cv2.convertScaleAbs(mixed, dst=image)


def moved(changes: Sequence[Change], size: Size) -> Affine | None:
    """Compose the geometric changes: a matrix [3, 3] float64 from a point of the output, of `size`, to what it shows.

    None where no change is geometric. Shears keep the upper left corner, turns keep the centre.
    """
    matrices = [matrix for change in changes if (matrix := _origin(change, size)) is not None]
    if not matrices:
        return None
    composed = np.eye(3)
    for matrix in matrices:
        composed = composed @ matrix
    return composed


def _origin(change: Change, size: Size) -> Affine | None:
    name, strength = change
    if name == "shear_x":
        rows = [[1, strength, 0], [0, 1, 0]]
    elif name == "shear_y":
        rows = [[1, 0, 0], [strength, 1, 0]]
    elif name == "translate_x":
        rows = [[1, 0, strength], [0, 1, 0]]
    elif name == "translate_y":
        rows = [[1, 0, 0], [0, 1, strength]]
    elif name == "rotate":
        cosine, sine = math.cos(math.radians(strength)), math.sin(math.radians(strength))
        y, x = (side / 2 for side in pair(size))
        rows = [[cosine, -sine, x * (1 - cosine) + y * sine], [sine, cosine, y * (1 - cosine) - x * sine]]
    else:
        return None
    return np.array([*rows, [0, 0, 1]], np.float64)


def _change(name: str, strength: float) -> Change:
    if name.startswith("translate"):
        return Change(name, math.trunc(strength))
    return Change(name, round(strength)) if name == "posterize" else Change(name, strength)


def _rand_augment(size: Size) -> dict[str, _Strengths]:
    # The paper's ImageNet networks saw 331 pixels.
    down, right = (side * 150 / 331 for side in pair(size))
    return _table(shear=0.3, translate=(down, right), rotate=30, factor=0.9, bits=4)


def _trivial_augment() -> dict[str, _Strengths]:
    return _table(shear=0.99, translate=(32, 32), rotate=135, factor=0.99, bits=2)


def _table(
    shear: float, translate: tuple[float, float], rotate: float, factor: float, bits: int
) -> dict[str, _Strengths]:
    """The fourteen changes and their ranges; the strongest of each kind are given, of `translate` down and right."""
    nothing = _Strengths(0, 0)
    return {
        "identity": nothing,
        **dict.fromkeys(("shear_x", "shear_y"), _Strengths(0, shear, signed=True)),
        "translate_x": _Strengths(0, translate[1], signed=True),
        "translate_y": _Strengths(0, translate[0], signed=True),
        "rotate": _Strengths(0, rotate, signed=True),
        **dict.fromkeys(("brightness", "colour", "contrast", "sharpness"), _Strengths(0, factor, signed=True)),
        "posterize": _Strengths(8, bits),
        "solarize": _Strengths(255, 0),
        "autocontrast": nothing,
        "equalize": nothing,
    }


_LEVELS = np.arange(256)
_SMOOTHED = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
"""Pillow's filter SMOOTH."""


def change_colours(image: Pixels, change: Change) -> None:
    """Apply a change to an RGB image [H, W, 3] in place; identity and geometric changes do nothing here."""
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
    elif name == "invert":
        cv2.bitwise_not(image, dst=image)
    elif name == "grey":
        cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, dst=image)
    elif name == "blur":
        cv2.GaussianBlur(image, (0, 0), strength, dst=image, borderType=cv2.BORDER_REPLICATE)
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
        cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
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
