"""Photos several times as large as a network's input, decoded to a part of their size, their boxes averaged over areas.

libjpeg leaves out the higher frequencies of each block, which an average over areas as large loses, too. All coded data
is looked through as ever, so damage is found in any part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.loading.transforms import Pixels, resize_into
from imagenet_pipeline.records.image import (
    LEFT_FOR_RIGHT,
    LYING,
    REDUCTIONS,
    UPSIDE_DOWN,
    Box,
    Header,
    LazyImage,
    average,
    decode_file,
    turn,
)

Numbers = NDArray[np.float64]


class ReducedImage(LazyImage):
    """A photo of a half, a quarter or an eighth of its sides, in which boxes of the photo can be found.

    height, width: those of the photo itself, upright. `whole` has a pixel for `reduction` of them along each side.
    """

    def __init__(self, pixels: Pixels, header: Header) -> None:
        """Pixels as they lie, ceil(header.height / reduction) rows and as many columns."""
        self._upright = turn(pixels, header.orientation)
        self.reduction = next(part for part in REDUCTIONS if -(-header.height // part) == len(pixels))
        sides = header.height, header.width
        self.height, self.width = sides[::-1] if header.orientation in LYING else sides
        # The last column and row may reach beyond the photo; turned, they can be the first.
        rows, columns = self._upright.shape[:2]
        self._left = columns * self.reduction - self.width if header.orientation in LEFT_FOR_RIGHT else 0
        self._top = rows * self.reduction - self.height if header.orientation in UPSIDE_DOWN else 0

    def whole(self) -> Pixels:
        """All pixels, [ceil(height / reduction), ceil(width / reduction), 3]."""
        return self._upright

    def crop(self, box: Box) -> Pixels:
        """The pixels that a box of the photo touches."""
        left, top, width, height = self.reduced(box)
        return self._upright[int(top) : math.ceil(top + height), int(left) : math.ceil(left + width)]

    def reduced(self, box: Box) -> tuple[float, float, float, float]:
        """Left, top, width and height of a box of the photo, in pixels of `whole` and parts of them."""
        left, top = box.left + self._left, box.top + self._top
        return left / self.reduction, top / self.reduction, box.width / self.reduction, box.height / self.reduction


def upright_image(
    data: bytes, damaged: Callable[[str], None] | None = None, least_edge: int | None = None
) -> LazyImage:
    """Decode an image file, turned as its EXIF tag says; with `least_edge` as `decode_file` does, to a ReducedImage.

    `damaged` is as for `decode_rgb`. Raises Rejected.
    """
    header, pixels = decode_file(data, damaged, least_edge)
    if pixels.shape[:2] == (header.height, header.width):
        return LazyImage.of(turn(pixels, header.orientation))
    return ReducedImage(pixels, header)


def resize_photo_into(image: LazyImage, box: Box, flip: bool, out: Pixels) -> None:
    """Resize a box as `resize_into` does; of a reduced image it is averaged over areas, with parts of its pixels."""
    if not isinstance(image, ReducedImage):
        resize_into(image, box, flip, out)
        return
    left, top, width, height = image.reduced(box)
    average_into(image.crop(box), (left % 1, top % 1, width, height), out)
    if flip:
        out[:] = out[:, ::-1]


def average_into(image: Pixels, box: tuple[float, float, float, float], out: Pixels) -> None:
    """Average a box inside the image (left, top, width, height, in parts of pixels) over equal areas into all of `out`.

    Each pixel counts by the share of it that lies in the area. Without the compiled `average` it is read from a
    summed-area table (Crow, SIGGRAPH 1984), linear between its points: slower, and within one grey level.
    """
    left, top, width, height = box
    if average is not None and height >= out.shape[0] and width >= out.shape[1]:
        average(image, out, *box)
        return
    # Whole numbers are several times quicker, up to sums of 2^31.
    depth = cv2.CV_32S if 255 * image.shape[0] * image.shape[1] < 2**31 else cv2.CV_64F
    table: NDArray[Any] = cv2.integral(image, sdepth=depth)
    table = _between(table, top + height * np.linspace(0, 1, out.shape[0] + 1))
    table = _between(table.swapaxes(0, 1), left + width * np.linspace(0, 1, out.shape[1] + 1))
    sums = np.diff(np.diff(table, axis=0), axis=1).swapaxes(0, 1)
    out[:] = np.rint(sums * (out.shape[0] * out.shape[1] / (width * height)))


def _between(table: NDArray[Any], rows: Numbers) -> Numbers:
    """The rows of a table at positions that need not be whole."""
    whole = np.minimum(rows.astype(np.intp), len(table) - 2)
    below = table[whole]
    between: Numbers = below + (rows - whole)[:, None, None] * (table[whole + 1] - below)
    return between
