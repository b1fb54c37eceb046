"""The form in which a photo is stored: its own bytes where they will do, else a JPEG made of its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput, did_you_mean
from imagenet_pipeline.records import jpeg
from imagenet_pipeline.records.image import (
    DAMAGED,
    Box,
    Header,
    LazyImage,
    Rejected,
    average_areas,
    decode_as,
    encode_jpeg,
    read_header,
    shrink,
    turn,
)

_PNG_END = b"IEND\xaeB`\x82"
ResizeMode = Literal["shorter", "squash", "letterbox"]
Interpolation = Literal["area", "nearest", "linear", "cubic"]
_FILTERS = {"nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
LETTERBOX_GREY = 128
"""Shade beside a photo that does not fill its square."""


@dataclass(frozen=True)
class Resizing:
    """The size in which photos are stored, and the filter that makes it.

    mode: "shorter" has `side` pixels along the shorter edge of what is larger, and leaves smaller photos, or with 0
    all of them. "squash" presses every photo into a square of that side, "letterbox" fits it into one, grey beside it.
    interpolation: "area" averages over areas, and is linear where a side grows; the others are OpenCV's as they are.
    """

    side: int
    mode: ResizeMode = "shorter"
    interpolation: Interpolation = "area"

    def __post_init__(self) -> None:
        for name, words in (("resize_mode", get_args(ResizeMode)), ("interpolation", get_args(Interpolation))):
            value = getattr(self, name.removeprefix("resize_"))
            if value not in words:
                advice = did_you_mean(str(value), words, "") or None
                raise BadInput(f"no such {name}", expected=" or ".join(words), found=value, advice=advice)

    def changes(self, height: int, width: int) -> bool:
        """Tell whether a photo of this size, upright or lying, gets another."""
        if self.mode == "shorter":
            return 0 < self.side < min(height, width)
        return (height, width) != (self.side, self.side)

    def resized(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB pixels [H, W, 3] in the new size."""
        if self.mode == "shorter" and self.interpolation == "area":
            return shrink(pixels, self.side)
        if self.mode == "squash":
            return self._filtered(pixels, self.side, self.side)
        edges = pixels.shape[:2]
        scale = self.side / (min(edges) if self.mode == "shorter" else max(edges))
        height, width = (max(1, round(edge * scale)) for edge in edges)
        made = self._filtered(pixels, height, width)
        if self.mode == "shorter":
            return made
        square = np.full((self.side, self.side, 3), LETTERBOX_GREY, np.uint8)
        top, left = (self.side - height) // 2, (self.side - width) // 2
        square[top : top + height, left : left + width] = made
        return square

    def _filtered(self, pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        grows = height > pixels.shape[0] or width > pixels.shape[1]
        if self.interpolation == "area" and not grows:
            return average_areas(pixels, np.empty((height, width, 3), np.uint8))
        chosen = _FILTERS.get(self.interpolation, cv2.INTER_LINEAR)
        return np.asarray(cv2.resize(pixels, (width, height), interpolation=chosen), np.uint8)


@dataclass(frozen=True)
class Prepared:
    """Bytes to store, the RGB pixels they decode to (or none), and what was done: "kept", or conversions and "resized".

    DAMAGED stands beside those where part of the picture is lost.
    """

    data: bytes
    pixels: NDArray[np.uint8] | None
    actions: tuple[str, ...]


def prepare(
    data: bytes,
    resize: Resizing | int,
    quality: int,
    pass_through: bool,
    keep_damaged: bool = False,
    decoded: bool = True,
) -> Prepared:
    """Turn an image file into the JPEG to store, in the size that `resize` says: a number is a `Resizing` of that side.

    A JPEG that needs no change keeps its bytes. With `pass_through` nothing is resized, and any plain 8-bit
    JPEG or PNG keeps its bytes. Of 16-bit images the upper 8 bits are used; alpha is dropped.
    An image that can be decoded although part of its picture is lost is used with `keep_damaged` alone.
    Without `decoded` what is stored is not decoded: of bytes that are kept, and go on to their end marker, the header
    alone is looked at. Raises Rejected with the reason.
    """
    header = read_header(data)
    resizing = Resizing(resize) if isinstance(resize, int) else resize
    changes = not pass_through and resizing.changes(header.height, header.width)
    plain = header.traits == () or (pass_through and header.traits == ("png",))
    kept = plain and (pass_through or not changes)
    if kept and not decoded and _has_end(data):
        return Prepared(data, None, ("kept",))
    pixels, damage = _examined(data, header, keep_damaged)
    if kept:
        return Prepared(data, pixels if decoded else None, ("kept", *damage))
    pixels = turn(pixels, header.orientation)
    actions = (*header.traits, *damage)
    if changes:
        pixels = resizing.resized(pixels)
        actions += ("resized",)
    encoded = encode_jpeg(pixels, quality)
    return Prepared(encoded, _decoded(encoded, pixels) if decoded else None, actions)


def examine(data: bytes, keep_damaged: bool = False) -> tuple[Header, NDArray[np.uint8], tuple[str, ...]]:
    """Decode an image that is to be used: its header, its RGB pixels as they lie, and DAMAGED where some are lost.

    Raises Rejected with the reason, also for one that is damaged unless `keep_damaged`.
    """
    header = read_header(data)
    return header, *_examined(data, header, keep_damaged)


def _examined(data: bytes, header: Header, keep_damaged: bool) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    damage: list[str] = []
    pixels = decode_as(header, data, damage.append)
    if damage and not keep_damaged:
        raise Rejected(f"{DAMAGED}: {damage[0]}")
    return pixels, (DAMAGED,) if damage else ()


def _decoded(encoded: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode what was encoded just now, which cannot be damaged: as a crop of all of it, the quickest way there is."""
    height, width = pixels.shape[:2]
    return LazyImage(encoded).crop(Box(0, 0, width, height))


def _has_end(data: bytes) -> bool:
    """Tell whether a JPEG or PNG goes on to its end marker: what was cut short has none."""
    if data.startswith(jpeg.START):
        return jpeg.has_end(data)
    return data.endswith(_PNG_END)
