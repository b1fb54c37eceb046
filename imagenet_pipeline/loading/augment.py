"""What happens to an image on its way to the network: one geometric transform, then colours, then erasing.

The images of one training batch: random changes that follow from their positions, then pairs mixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.config import require_even_batch
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading.auto_augment import POLICY_COLUMNS, Change, Policy, change_colours, moved, policy_changes
from imagenet_pipeline.loading.mixup import MIXING_COLUMNS, Mix, mix_pair, mixed_target, mixtures
from imagenet_pipeline.loading.order import SECOND_UNIFORMS, uniforms
from imagenet_pipeline.loading.random_erasing import ERASING_COLUMNS, Erasure, erase, erasures
from imagenet_pipeline.loading.transforms import (
    Box,
    Distortion,
    Pixels,
    colour_matrix,
    mean_grey,
    recolour,
    resample,
    resample_moved,
    resize_into,
)

COLUMNS = 40
"""Uniform numbers for each image, used or not: switching one change on leaves the others' draws alone."""

_AREAS, _ASPECTS = slice(0, 10), slice(10, 20)
_LEFT, _TOP, _FLIP, _ROTATION, _SHEAR, _ZOOM, _SHIFT_X, _SHIFT_Y = range(20, 28)
_BRIGHTNESS, _CONTRAST, _SATURATION = range(28, 31)
_LIGHTING = slice(32, 36)  # 31 and 36 to 39 are free

Range = tuple[float, float]


class Draw(NamedTuple):
    """One image's random choices, before its own size is known."""

    areas: list[float]
    """Ten tries of the crop's share of the image."""
    aspects: list[float]
    """Ten tries of the crop's width over height."""
    left: float
    top: float
    """Where the crop lies within its room to move, 0 to 1."""
    flip: bool
    distortion: Distortion
    brightness: float
    contrast: float
    saturation: float
    lighting: NDArray[np.float64]
    """Steps along the three principal colours, in deviations: float64 [3]."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a training image; all but the crop and the flip are off by default."""

    crop: Literal["resized", "random", "centre"] = "resized"
    """"resized": a random share and shape of the image, scaled to the input (Szegedy et al. 2015, "Going deeper
    with convolutions"). "random": a window of just the input's size at a random place; from a smaller image, the
    largest square. "centre": the largest centred square."""
    area: Range = (0.08, 1.0)
    """Share of the image that "resized" takes."""
    aspect: Range = (3 / 4, 4 / 3)
    """Width over height of what "resized" takes, even in its logarithm."""
    flip: float = 0.5
    """Probability of mirroring left to right."""
    rotation_degrees: float = 0.0
    """Turn by up to this much either way."""
    shear: float = 0.0
    """Move rows sideways by up to this much of their height, either way."""
    zoom: Range = (1.0, 1.0)
    """Enlargement about the centre, even in its logarithm."""
    shift: float = 0.0
    """Move by up to this share of the side, in each direction."""
    pad: int = 0
    """Pixels the image is widened by on each side before it is cropped."""
    brightness: float = 0.0
    """Factor from 1 - x to 1 + x; so are the next two (see `colour_matrix`)."""
    contrast: float = 0.0
    saturation: float = 0.0
    lighting: float = 0.0
    """Standard deviation of AlexNet's colour noise; 0.1 in its paper."""
    fill: int = 128
    """Grey level, 0 to 255, of what lies outside the image."""

    policy: Policy = "none"
    """Random changes out of a published list: `policy_changes` of strength `policy_magnitude` (of 30), or one of a
    random strength (see `policy.py`)."""
    policy_changes: int = 2
    policy_magnitude: int = 9
    erasing: float = 0.0
    """Probability of a rectangle of noise (see `erasing.py`)."""
    mixup: float = 0.0
    """Alpha of mixup, and next that of CutMix (see `mixing.py`); 0 is off."""
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether each image becomes a mixture of two."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def draws_more(self) -> bool:
        """Whether anything needs random numbers beyond COLUMNS."""
        return self.policy != "none" or self.erasing > 0 or self.mixes

    @property
    def recolours(self) -> bool:
        """Whether any colour can change."""
        return any((self.brightness, self.contrast, self.saturation, self.lighting))

    def draws(self, uniforms: NDArray[np.float64]) -> list[Draw]:
        """Turn uniform numbers [n, COLUMNS] into the choices for n images."""
        signed = 2 * uniforms - 1
        areas = _between(self.area, uniforms[:, _AREAS])
        aspects = _between_logarithms(self.aspect, uniforms[:, _ASPECTS])
        zooms = _between_logarithms(self.zoom, uniforms[:, _ZOOM])
        normals = self.lighting * _normals(uniforms[:, _LIGHTING])
        return [
            Draw(
                areas=areas[row].tolist(),
                aspects=aspects[row].tolist(),
                left=float(uniforms[row, _LEFT]),
                top=float(uniforms[row, _TOP]),
                flip=bool(uniforms[row, _FLIP] < self.flip),
                distortion=Distortion(
                    degrees=self.rotation_degrees * float(signed[row, _ROTATION]),
                    shear=self.shear * float(signed[row, _SHEAR]),
                    zoom=float(zooms[row]),
                    shift_x=self.shift * float(signed[row, _SHIFT_X]),
                    shift_y=self.shift * float(signed[row, _SHIFT_Y]),
                ),
                brightness=1 + self.brightness * float(signed[row, _BRIGHTNESS]),
                contrast=1 + self.contrast * float(signed[row, _CONTRAST]),
                saturation=1 + self.saturation * float(signed[row, _SATURATION]),
                lighting=normals[row],
            )
            for row in range(len(uniforms))
        ]


def training_transform(
    image: Pixels,
    augmentation: Augmentation,
    draw: Draw,
    out: Pixels,
    changes: Sequence[Change] = (),
    erasure: Erasure | None = None,
) -> None:
    """Write the changed image [H, W, 3] to all of `out` [S, S, 3], one row of a batch.

    Geometry first (crop, flip, distortion, then what of `changes` is geometric), then the other `changes`, then
    brightness, contrast, saturation and lighting, then erasing.
    """
    height, width = image.shape[:2]
    box = training_box(augmentation, draw, height, width, out.shape[0])
    origin = moved(changes, out.shape[0])
    if origin is None:
        resample(image, box, draw.flip, draw.distortion, augmentation.fill, out)
    else:
        resample_moved(image, box, draw.flip, draw.distortion, origin, augmentation.fill, out)
    for change in changes:
        change_colours(out, change)
    if augmentation.recolours:
        grey = mean_grey(out) if augmentation.contrast else 0.0
        recolour(out, colour_matrix(draw.brightness, draw.contrast, draw.saturation, draw.lighting, grey))
    if erasure is not None:
        erase(out, erasure)


def training_box(augmentation: Augmentation, draw: Draw, height: int, width: int, size: int) -> Box:
    """The crop of an image of this height and width; with `pad` it may reach beyond the image."""
    pad = augmentation.pad
    height, width = height + 2 * pad, width + 2 * pad
    if augmentation.crop == "resized":
        left, top, crop_width, crop_height = _resized_crop(augmentation.aspect, draw, height, width)
    elif augmentation.crop == "random":
        side = min(height, width, size)
        left, top, crop_width, crop_height = _placed(draw, height, width, side, side)
    else:
        left, top, crop_width, crop_height = _centred(height, width, min(height, width), min(height, width))
    return Box(left - pad, top - pad, crop_width, crop_height)


def evaluation_transform(image: Pixels, crop_fraction: float, out: Pixels) -> None:
    """Write an image [H, W, 3] to all of `out` [crops, S, S, 3] as `evaluation_boxes` says, mirrors last.

    Each box is resampled once; its mirror is the same pixels mirrored.
    """
    height, width = image.shape[:2]
    boxes = evaluation_boxes(height, width, crop_fraction, len(out))
    for place, box in enumerate(boxes):
        resize_into(image, box, False, out[place])
    for place in range(len(boxes), len(out)):
        cv2.flip(out[place - len(boxes)], 1, dst=out[place])


def evaluation_boxes(height: int, width: int, crop_fraction: float, crops: int) -> list[Box]:
    """The squares an image is scored on, of side `crop_fraction` of its shorter edge (1 pixel at least).

    crops 1 and 2: the centre (2 adds its mirror). crops 10: upper left, upper right, lower left, lower right,
    centre, and then the mirrors in that order (Krizhevsky et al. 2012, but at the corners of the whole
    image).
    """
    side = max(1, round(crop_fraction * min(height, width)))
    centre = _centred(height, width, side, side)
    if crops != 10:
        return [centre]
    right, bottom = width - side, height - side
    corners = [Box(left, top, side, side) for top in (0, bottom) for left in (0, right)]
    return [*corners, centre]


def _resized_crop(aspect: Range, draw: Draw, height: int, width: int) -> Box:
    for area, proportion in zip(draw.areas, draw.aspects, strict=True):
        pixels = area * height * width
        crop_width, crop_height = round(math.sqrt(pixels * proportion)), round(math.sqrt(pixels / proportion))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return _placed(draw, height, width, crop_height, crop_width)
    # No try fitted a very long or very small image: the largest centred crop whose proportions are allowed.
    narrowest, widest = aspect
    crop_width = min(width, max(1, round(height * widest)))
    crop_height = min(height, max(1, round(width / narrowest)))
    return _centred(height, width, crop_height, crop_width)


def _placed(draw: Draw, height: int, width: int, crop_height: int, crop_width: int) -> Box:
    left = int(draw.left * (width - crop_width + 1))
    return Box(left, int(draw.top * (height - crop_height + 1)), crop_width, crop_height)


def _centred(height: int, width: int, crop_height: int, crop_width: int) -> Box:
    return Box((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)


def _between(limits: Range, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = limits
    return low + (high - low) * uniforms


def _between_logarithms(limits: Range, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = limits
    return low * (high / low) ** uniforms


def _normals(uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Three standard normal numbers from four uniform ones (Box and Muller, 1958): [n, 4] to [n, 3]."""
    radius = np.sqrt(-2 * np.log1p(-uniforms[:, :2]))
    angle = 2 * np.pi * uniforms[:, 2:]
    return np.column_stack([radius * np.cos(angle), radius[:, 0] * np.sin(angle[:, 0])])


_POLICY = slice(0, POLICY_COLUMNS)
_ERASING = slice(16, 16 + ERASING_COLUMNS)
_MIXING = slice(40, 40 + MIXING_COLUMNS)
SECOND_COLUMNS = 64
"""Uniform numbers for each image from the second stream, used or not; 44 to 63 are free."""


class Plan(NamedTuple):
    """What happens to one training image."""

    draw: Draw
    changes: Sequence[Change] = ()
    erasure: Erasure | None = None
    mix: Mix | None = None


class TrainingImages:
    """Writes the images of consecutive positions of an epoch into the rows of `images` [n, S, S, 3].

    `labels` [n] are there when rows are finished; `targets` [n, classes] are written then. Positions that are
    mixed begin and end with a pair.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        seed: int,
        epoch: int,
        positions: range,
        images: Pixels,
        labels: NDArray[np.int64],
        targets: NDArray[np.float32] | None,
    ) -> None:
        self._augmentation = augmentation
        self._images, self._labels, self._targets = images, labels, targets
        self._plans = training_plans(augmentation, seed, epoch, positions, images.shape[1])

    def write(self, image: Pixels, place: int) -> None:
        """Change an image [H, W, 3] and put it into its row."""
        plan = self._plans[place]
        training_transform(image, self._augmentation, plan.draw, self._images[place], plan.changes, plan.erasure)

    def finish(self, places: range) -> None:
        """Mix the pairs in these rows, which are written."""
        if self._targets is None:
            return
        for first, second in zip(places[::2], places[1::2], strict=True):
            mixed = self._plans[first].mix, self._plans[second].mix
            if mixed[0] and mixed[1]:
                mix_pair(self._images[first], self._images[second], mixed[0], mixed[1])
                labels = int(self._labels[first]), int(self._labels[second])
                mixed_target(self._targets[first], *labels, mixed[0])
                mixed_target(self._targets[second], *labels[::-1], mixed[1])


def require_fit(augmentation: Augmentation, batch_size: int, ranks: int, classes: int | None) -> None:
    """Raise BadRecipe for a batch the ranks cannot share evenly, and mixing of an unknown number of classes."""
    require_even_batch(batch_size, ranks, mixes=augmentation.mixes)
    if augmentation.mixes and classes is None:
        raise BadRecipe("mixing needs the number of classes", where="loader", expected="classes", found=None)


def training_plans(augmentation: Augmentation, seed: int, epoch: int, positions: range, size: int) -> list[Plan]:
    """What happens to the images of consecutive positions of an epoch, `size` x `size` in the end."""
    draws = augmentation.draws(uniforms(seed, epoch, positions, COLUMNS))
    if not augmentation.draws_more:
        return [Plan(draw) for draw in draws]
    numbers = uniforms(seed, epoch, positions, SECOND_COLUMNS, SECOND_UNIFORMS)
    return [
        Plan(*choices)
        for choices in zip(
            draws,
            policy_changes(
                augmentation.policy,
                augmentation.policy_changes,
                augmentation.policy_magnitude,
                numbers[:, _POLICY],
                size,
            ),
            erasures(augmentation.erasing, numbers[:, _ERASING]),
            mixtures(augmentation.mixup, augmentation.cutmix, numbers[:, _MIXING], size),
            strict=True,
        )
    ]
