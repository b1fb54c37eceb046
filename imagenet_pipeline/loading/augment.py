"""The transforms of training and evaluation, from a decoded image to its row of a batch.

In training: a geometric transform, then colours, then erasing, then pairs mixed, all of them drawn from the image's
position in the epoch. In evaluation: the centre crop, or several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.config import Augmentation, Size, as_size, pair, require_even_batch
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading.auto_augment import (
    CHAIN_COLUMNS,
    POLICY_COLUMNS,
    Chains,
    Change,
    chains_of,
    change_colours,
    mix_chains,
    moved,
    policy_changes,
)
from imagenet_pipeline.loading.mixup import MIXING_COLUMNS, Mix, mix_pair, mix_vectors, mixed_target, mixtures
from imagenet_pipeline.loading.order import SECOND_UNIFORMS, THIRD_UNIFORMS, uniforms
from imagenet_pipeline.loading.random_erasing import ERASING_COLUMNS, Erasure, erase, erasures
from imagenet_pipeline.loading.transforms import (
    UNDISTORTED,
    Distortion,
    Pixels,
    colour_matrix,
    grey_into,
    mean_grey,
    recolour,
    resample,
    resample_moved,
    resize_into,
    turn_hue,
)
from imagenet_pipeline.records.image import Box, LazyImage

RGB = 3
"""Channels of a decoded image."""
COLUMNS = 40
"""Uniform numbers for each image, used or not: switching a change on leaves the others' draws alone."""

_AREAS, _ASPECTS = slice(0, 10), slice(10, 20)
_LEFT, _TOP, _FLIP, _ROTATION, _SHEAR, _ZOOM, _SHIFT_X, _SHIFT_Y = range(20, 28)
_BRIGHTNESS, _CONTRAST, _SATURATION = range(28, 31)
_HUE, _LIGHTING, _FLIP_VERTICAL = 31, slice(32, 36), 36  # 37 to 39 are free

Range = tuple[float, float]


class Draw(NamedTuple):
    """Random choices for an image's geometry and colours, before its own size is known."""

    areas: list[float]
    """Ten tries of the crop's share of the image."""
    aspects: list[float]
    """Ten tries of the crop's width over height, by that of the input."""
    left: float
    top: float
    """Position of the crop within its room to move, 0 to 1."""
    flip: bool
    distortion: Distortion
    brightness: float
    contrast: float
    saturation: float
    lighting: NDArray[np.float64]
    """Steps along the three principal colours, in deviations: float64 [3]."""
    hue: float = 0.0
    """Share of the colour circle that hues are turned by."""
    flip_vertical: bool = False


def draw_choices(augmentation: Augmentation, numbers: NDArray[np.float64]) -> list[Draw]:
    """Turn uniform numbers [n, COLUMNS] into the choices for n images."""
    columns = (
        _between(augmentation.area, numbers[:, _AREAS]).tolist(),
        _between_logarithms(augmentation.aspect, numbers[:, _ASPECTS]).tolist(),
        numbers[:, _LEFT].tolist(),
        numbers[:, _TOP].tolist(),
        (numbers[:, _FLIP] < augmentation.flip).tolist(),
        _distortions(augmentation, numbers),
        _about(1, augmentation.brightness, numbers[:, _BRIGHTNESS]),
        _about(1, augmentation.contrast, numbers[:, _CONTRAST]),
        _about(1, augmentation.saturation, numbers[:, _SATURATION]),
        augmentation.lighting * _normals(numbers[:, _LIGHTING]) if augmentation.lighting else repeat(_NO_LIGHTING),
        _about(0, augmentation.hue, numbers[:, _HUE]),
        (numbers[:, _FLIP_VERTICAL] < augmentation.flip_vertical).tolist(),
    )
    return list(map(Draw, *columns))


def training_transform(
    image: LazyImage,
    augmentation: Augmentation,
    draw: Draw,
    out: Pixels,
    changes: Sequence[Change] = (),
    erasure: Erasure | None = None,
    chains: Chains | None = None,
) -> None:
    """Write the changed image to all of `out` [H, W, 3], or its grey to [H, W, 1], a row of a batch.

    Geometry first (crop, flip, distortion, then what of `changes` is geometric, the vertical flip), then the other
    `changes`, or `chains` of them, then brightness, contrast, saturation and lighting, hue, then the grey of it all,
    then erasing.
    """
    height, width, channels = out.shape
    rgb = out if channels == RGB else np.empty((height, width, RGB), np.uint8)
    box = training_box(augmentation, draw, image.height, image.width, (height, width))
    origin = moved(changes, (height, width)) if changes else None
    if origin is None:
        resample(image, box, draw.flip, draw.distortion, augmentation.fill, rgb)
    else:
        resample_moved(image, box, draw.flip, draw.distortion, origin, augmentation.fill, rgb)
    if draw.flip_vertical:
        cv2.flip(rgb, 0, dst=rgb)
    for change in changes:
        change_colours(rgb, change)
    if chains is not None:
        mix_chains(rgb, chains, augmentation.fill)
    if augmentation.recolours:
        grey = mean_grey(rgb) if augmentation.contrast else 0.0
        recolour(rgb, colour_matrix(draw.brightness, draw.contrast, draw.saturation, draw.lighting, grey))
    if draw.hue:
        turn_hue(rgb, draw.hue)
    if channels != RGB:
        grey_into(rgb, out)
    if erasure is not None:
        erase(out, erasure)


def training_box(augmentation: Augmentation, draw: Draw, height: int, width: int, size: Size) -> Box:
    """Place the crop in an image of this height and width; with `pad` it may reach beyond the image."""
    pad = augmentation.pad
    height, width = height + 2 * pad, width + 2 * pad
    if augmentation.crop == "resized":
        box = _resized_crop(augmentation.aspect, draw, height, width, size)
    elif augmentation.crop == "random":
        rows, columns = pair(size)
        window = (rows, columns) if rows <= height and columns <= width else _largest_window(height, width, size)
        box = _placed(draw, height, width, *window)
    else:
        box = _centred(height, width, *_largest_window(height, width, size))
    return Box(box.left - pad, box.top - pad, box.width, box.height) if pad else box


def evaluation_transform(
    image: LazyImage,
    crop_fraction: float,
    out: Pixels,
    resize: Callable[[LazyImage, Box, bool, Pixels], None] = resize_into,
) -> None:
    """Write an image to all of `out` [crops, H, W, 3], or its grey to [crops, H, W, 1], as `evaluation_boxes` says.

    Each box is resampled once; its mirror is the same pixels mirrored, and these come last. The centre is decoded
    alone, ten crops together.
    """
    _, height, width, channels = out.shape
    boxes = evaluation_boxes(image.height, image.width, crop_fraction, len(out), (height, width))
    if len(boxes) > 1:
        image.whole()
    for crop, box in enumerate(boxes):
        rgb = out[crop] if channels == RGB else np.empty((height, width, RGB), np.uint8)
        resize(image, box, False, rgb)
        if channels != RGB:
            grey_into(rgb, out[crop])
    for crop in range(len(boxes), len(out)):
        cv2.flip(out[crop - len(boxes)], 1, dst=out[crop])


def evaluation_boxes(height: int, width: int, crop_fraction: float, crops: int, size: Size = 1) -> list[Box]:
    """List the windows an image is scored on, each `crop_fraction` of the largest of the input's shape.

    Of a square input: squares of that fraction of the shorter edge. A side has 1 pixel at least.

    crops 1 and 2: the centre (2 adds its mirror). crops 10: upper left, upper right, lower left, lower right,
    centre, and then the mirrors in that order (Krizhevsky et al. 2012, but at the corners of the whole
    image).
    """
    rows, columns = (max(1, round(crop_fraction * side)) for side in _largest_window(height, width, size))
    centre = _centred(height, width, rows, columns)
    if crops != 10:
        return [centre]
    right, bottom = width - columns, height - rows
    corners = [Box(left, top, columns, rows) for top in (0, bottom) for left in (0, right)]
    return [*corners, centre]


def _largest_window(height: int, width: int, size: Size) -> tuple[int, int]:
    """Height and width of the largest window of an image that has the proportions of `size`, to a pixel."""
    rows, columns = pair(size)
    if height * columns <= width * rows:
        return height, max(1, round(height * columns / rows))
    return max(1, round(width * rows / columns)), width


def _resized_crop(aspect: Range, draw: Draw, height: int, width: int, size: Size) -> Box:
    rows, columns = pair(size)
    for area, relative in zip(draw.areas, draw.aspects, strict=True):
        pixels, proportion = area * height * width, relative * (columns / rows)
        crop_width, crop_height = round(math.sqrt(pixels * proportion)), round(math.sqrt(pixels / proportion))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return _placed(draw, height, width, crop_height, crop_width)
    # No try fitted a very long or very small image: the largest centred crop whose proportions are allowed.
    narrowest, widest = (limit * (columns / rows) for limit in aspect)
    crop_width = min(width, max(1, round(height * widest)))
    crop_height = min(height, max(1, round(width / narrowest)))
    return _centred(height, width, crop_height, crop_width)


def _placed(draw: Draw, height: int, width: int, crop_height: int, crop_width: int) -> Box:
    left = int(draw.left * (width - crop_width + 1))
    return Box(left, int(draw.top * (height - crop_height + 1)), crop_width, crop_height)


def _centred(height: int, width: int, crop_height: int, crop_width: int) -> Box:
    return Box((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)


def _distortions(augmentation: Augmentation, numbers: NDArray[np.float64]) -> Iterable[Distortion]:
    turns = augmentation.rotation_degrees, augmentation.shear, augmentation.shift
    if not any(turns) and augmentation.zoom == (1, 1):
        return repeat(UNDISTORTED)
    return map(
        Distortion,
        _about(0, augmentation.rotation_degrees, numbers[:, _ROTATION]),
        _about(0, augmentation.shear, numbers[:, _SHEAR]),
        _between_logarithms(augmentation.zoom, numbers[:, _ZOOM]).tolist(),
        _about(0, augmentation.shift, numbers[:, _SHIFT_X]),
        _about(0, augmentation.shift, numbers[:, _SHIFT_Y]),
    )


_NO_LIGHTING = np.zeros(3)


def _about(centre: float, reach: float, uniforms: NDArray[np.float64]) -> Iterable[float]:
    """Numbers from `centre` - `reach` to `centre` + `reach`."""
    return (centre + reach * (2 * uniforms - 1)).tolist() if reach else repeat(float(centre))


def _between(limits: Range, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = limits
    return low + (high - low) * uniforms


def _between_logarithms(limits: Range, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = limits
    return low * (high / low) ** uniforms


def _normals(uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make three standard normal numbers of four uniform ones (Box and Muller, 1958): [n, 4] to [n, 3]."""
    radius = np.sqrt(-2 * np.log1p(-uniforms[:, :2]))
    angle = 2 * np.pi * uniforms[:, 2:]
    return np.column_stack([radius * np.cos(angle), radius[:, 0] * np.sin(angle[:, 0])])


_POLICY = slice(0, POLICY_COLUMNS)
_ERASING = slice(16, 16 + ERASING_COLUMNS)
_MIXING = slice(40, 40 + MIXING_COLUMNS)
SECOND_COLUMNS = 64
"""Uniform numbers for each image from the second stream, used or not; 44 to 63 are free."""


class ImageDraws(NamedTuple):
    """All random choices for a training image."""

    draw: Draw
    changes: Sequence[Change] = ()
    erasure: Erasure | None = None
    mix: Mix | None = None
    chains: Chains | None = None


class TrainingImages:
    """Writes the images of consecutive positions of an epoch into the rows of `images` [n, H, W, channels].

    `labels` [n] are there at the end; `targets` [n, classes] are written then. Where `labels` is None the targets are
    there, label vectors, and mixed. Positions that are mixed begin and end with a pair.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        seed: int,
        epoch: int,
        positions: range,
        images: Pixels,
        labels: NDArray[np.int64] | None,
        targets: NDArray[np.float32] | None,
    ) -> None:
        self._augmentation = augmentation
        self._images, self._labels, self._targets = images, labels, targets
        self._draws = training_draws(augmentation, seed, epoch, positions, as_size(*images.shape[1:3]))

    def write(self, image: LazyImage, row: int) -> None:
        """Change an image and write it to a row."""
        draws = self._draws[row]
        training_transform(
            image, self._augmentation, draws.draw, self._images[row], draws.changes, draws.erasure, draws.chains
        )

    def finish(self) -> None:
        """Mix the pairs, once all rows are written."""
        if self._targets is None or not self._augmentation.mixes:
            return
        rows = range(len(self._draws))
        for first, second in zip(rows[::2], rows[1::2], strict=True):
            mixed = self._draws[first].mix, self._draws[second].mix
            if mixed[0] and mixed[1]:
                mix_pair(self._images[first], self._images[second], mixed[0], mixed[1])
                if self._labels is None:
                    mix_vectors(self._targets[first], self._targets[second], mixed[0], mixed[1])
                    continue
                labels = int(self._labels[first]), int(self._labels[second])
                mixed_target(self._targets[first], *labels, mixed[0])
                mixed_target(self._targets[second], *labels[::-1], mixed[1])


def in_epoch(augmentation: Augmentation, epoch: int) -> Augmentation:
    """The augmentation of an epoch, counted from 0: behind `mix_epochs` it mixes nothing."""
    over = 0 < augmentation.mix_epochs <= epoch
    return augmentation.model_copy(update={"mixup": 0.0, "cutmix": 0.0}) if over else augmentation


def require_fit(augmentation: Augmentation, batch_size: int, ranks: int, classes: int | None) -> None:
    """Raise BadRecipe for a batch the ranks cannot share evenly, and mixing of an unknown number of classes."""
    require_even_batch(batch_size, ranks, mixes=augmentation.mixes)
    if augmentation.mixes and classes is None:
        raise BadRecipe("the loader needs the number of classes to mix images", expected="classes", found=None)


def training_draws(augmentation: Augmentation, seed: int, epoch: int, positions: range, size: Size) -> list[ImageDraws]:
    """Draw the choices for consecutive positions of an epoch; the images are of `size` in the end."""
    draws = draw_choices(augmentation, uniforms(seed, epoch, positions, COLUMNS))
    if augmentation.policy == "none" and not augmentation.erasing and not augmentation.mixes:
        return [ImageDraws(draw) for draw in draws]
    numbers = uniforms(seed, epoch, positions, SECOND_COLUMNS, SECOND_UNIFORMS)
    policy, magnitude = augmentation.policy, augmentation.policy_magnitude
    chains: Iterable[Chains | None] = [None] * len(positions)
    if policy == "aug_mix":
        chains = chains_of(magnitude, uniforms(seed, epoch, positions, CHAIN_COLUMNS, THIRD_UNIFORMS), size)
    return [
        ImageDraws(*choices)
        for choices in zip(
            draws,
            policy_changes(policy, augmentation.policy_changes, magnitude, numbers[:, _POLICY], size),
            erasures(augmentation.erasing, numbers[:, _ERASING]),
            mixtures(augmentation.mixup, augmentation.cutmix, numbers[:, _MIXING], size),
            chains,
            strict=True,
        )
    ]
