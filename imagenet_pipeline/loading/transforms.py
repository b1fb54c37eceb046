"""A geometric transform per image, a transform of its colours, and its grey.

Crop, flip, turn and shift are composed, then the image is resampled once; brightness, contrast, saturation and lighting
make a single 3 x 4 matrix, and hue is turned by itself. Coordinates are continuous, in pixels, (0, 0) the outer corner
of the upper left pixel; x runs right, y down.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.config import Fill, Size, as_size, pair
from imagenet_pipeline.records.image import Box, LazyImage, average_areas

Pixels = NDArray[np.uint8]
Affine = NDArray[np.float64]


class Distortion(NamedTuple):
    """A distortion of the output about its centre, after the crop has been scaled to it.

    degrees turns clockwise; shear moves a row sideways by `shear` per unit of height; zoom > 1 enlarges;
    shift_x, shift_y move the content right and down by a fraction of the output's width and height.
    """

    degrees: float = 0.0
    shear: float = 0.0
    zoom: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0

    @property
    def upright(self) -> bool:
        """True where rows stay rows and columns stay columns."""
        return self.degrees == 0 and self.shear == 0


UNDISTORTED = Distortion()


def resample(image: LazyImage, box: Box, flip: bool, distortion: Distortion, fill: Fill, out: Pixels) -> None:
    """Write what `box` shows of `image`, distorted, then mirrored if `flip`, to `out` [H, W, 3].

    An upright box inside the image is sliced and resized (see `resize_into`); anything else is a single bilinear
    affine warp, where the outside of the image has the grey `fill`, or the "nearest" pixel of its edge.
    """
    if distortion is UNDISTORTED or distortion.upright:
        if distortion is not UNDISTORTED:
            box = _seen_through(box, distortion)
        if _inside(box, image):
            resize_into(image, box, flip, out)
            return
        distortion = UNDISTORTED
    warp_into(image.whole(), affine(box, flip, distortion, as_size(*out.shape[:2])), fill, out)


def resample_moved(
    image: LazyImage, box: Box, flip: bool, distortion: Distortion, moved: Affine, fill: Fill, out: Pixels
) -> None:
    """As `resample`, but each point of `out` [H, W, 3] then shows what lay at `moved` [3, 3] of that point.

    Still a single warp. Since it is the finished crop that is moved, `fill` is what lies outside the box.
    """
    left, right = max(0, box.left), min(image.width, box.left + box.width)
    top, bottom = max(0, box.top), min(image.height, box.top + box.height)
    if left >= right or top >= bottom:
        if fill != "nearest":
            out[:] = fill
            return
        left, right = _nearest(left, right, image.width)
        top, bottom = _nearest(top, bottom, image.height)
    part = image.crop(Box(left, top, right - left, bottom - top))
    seen = Box(box.left - left, box.top - top, box.width, box.height)
    warp_into(part, affine(seen, flip, distortion, as_size(*out.shape[:2])) @ moved, fill, out)


def _nearest(start: int, stop: int, size: int) -> tuple[int, int]:
    """The part from `start` to `stop`, or where there is none of it in 0..`size` the nearest pixel."""
    return (start, stop) if start < stop else (min(start, size - 1), min(start, size - 1) + 1)


def resize_into(image: LazyImage, box: Box, flip: bool, out: Pixels) -> None:
    """Resize a box inside the image to all of `out`, mirrored left to right if `flip`.

    At equal size pixels are copied. They are interpolated linearly below a shrinking of 4/3 and averaged over
    areas from there on: up to 4/3 both are equally near to an ideal (Lanczos) filter, and the average takes
    four times longer.
    """
    part = image.crop(box)
    height, width, _ = out.shape
    both_shrink = box.height > height and box.width > width
    if both_shrink and box.height * box.width >= (4 / 3) ** 2 * height * width:
        average_areas(part, out)
    else:
        cv2.resize(part, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
    if flip:
        cv2.flip(out, 1, dst=out)


def warp_into(image: Pixels, matrix: Affine, fill: Fill, out: Pixels) -> None:
    """Fill `out` [H, W, 3] by bilinear interpolation of `image` where `matrix` [2, 3] sends each point of it.

    Bilinear interpolation skips pixels where two or more of them fall on the same output pixel; there the image is
    averaged over whole blocks first, which leaves a factor below two.
    """
    factor = int(math.sqrt(abs(np.linalg.det(matrix[:, :2]))) + 1e-6)
    if factor >= 2:
        height, width = image.shape[:2]
        reduced = (max(1, width // factor), max(1, height // factor))
        image = cv2.resize(image, reduced, interpolation=cv2.INTER_AREA)
        matrix = matrix * [[reduced[0] / width], [reduced[1] / height]]
    # OpenCV counts from pixel centres: half a pixel in at the output, half a pixel out at the source.
    index_matrix = matrix.copy()
    index_matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    cv2.warpAffine(
        image,
        index_matrix,
        (out.shape[1], out.shape[0]),
        dst=out,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE if fill == "nearest" else cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0) if fill == "nearest" else (fill, fill, fill),
    )


def affine(box: Box, flip: bool, distortion: Distortion, size: Size) -> Affine:
    """The map from points of the output, [0, width] x [0, height], to points of the image: float64 [2, 3].

    Read from the right: undo the flip, undo the distortion about the centre, go from the output to the box.
    """
    height, width = pair(size)
    turn = math.radians(distortion.degrees)
    turned = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    forward = distortion.zoom * turned @ [[1.0, distortion.shear], [0.0, 1.0]]
    scale = np.diag([box.width / width, box.height / height])
    mirror = np.diag([-1.0 if flip else 1.0, 1.0])
    linear = scale @ np.linalg.inv(forward)
    centre = np.array([width / 2, height / 2])
    moved = np.array([distortion.shift_x, distortion.shift_y]) * [width, height]
    origin = [box.left, box.top] + scale @ centre - linear @ (moved + mirror @ centre)
    return np.column_stack([linear @ mirror, origin])


def _seen_through(box: Box, distortion: Distortion) -> Box:
    """The part of the image that an upright distortion of the box shows, to whole pixels."""
    width, height = box.width / distortion.zoom, box.height / distortion.zoom
    left = box.left + (box.width - width) / 2 - distortion.shift_x * width
    top = box.top + (box.height - height) / 2 - distortion.shift_y * height
    return Box(round(left), round(top), max(1, round(width)), max(1, round(height)))


def _inside(box: Box, image: LazyImage) -> bool:
    left, top, width, height = box
    return left >= 0 and top >= 0 and left + width <= image.width and top + height <= image.height


# Principal components of RGB over ImageNet's pixels, 0..255, as published with fb.resnet.torch
# (datasets/imagenet.lua, there in 0..1) and used by MXNet and GluonCV; the method is section 4.1 of
# Krizhevsky et al., NIPS 2012 (AlexNet).
LIGHTING_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045]) * 255
LIGHTING_DIRECTIONS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])

GREY = np.array([0.299, 0.587, 0.114])
"""Share of R, G and B in an image's grey (ITU-R BT.601)."""


def grey_into(image: Pixels, out: Pixels) -> None:
    """Write the grey of an RGB image [H, W, 3] to all of `out` [H, W, 1].

    (9798 R + 19235 G + 3735 B + 16384) >> 15 of every pixel, exactly: GREY in 15 bits, rounded.
    """
    cv2.cvtColor(image, cv2.COLOR_RGB2GRAY, dst=out[:, :, 0])


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


def turn_hue(image: NDArray[np.uint8], turn: float) -> None:
    """Turn the hue of an RGB image in place by a share of the colour circle, in HSV; a grey pixel stays as it is."""
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] += np.float32(360 * (turn % 1))  # the way back takes degrees beyond the circle
    cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=hsv), dst=image)
