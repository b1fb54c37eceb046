"""The form in which a photo is stored: its own bytes where they will do, else a JPEG made of its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.records import jpeg
from imagenet_pipeline.records.image import (
    DAMAGED,
    Box,
    Header,
    LazyImage,
    Rejected,
    decode_as,
    encode_jpeg,
    read_header,
    shrink,
    turn,
)

_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Prepared:
    """Bytes to store, the RGB pixels they decode to (or none), and what was done: "kept", or conversions and "resized".

    DAMAGED stands beside those where part of the picture is lost.
    """

    data: bytes
    pixels: NDArray[np.uint8] | None
    actions: tuple[str, ...]


def prepare(
    data: bytes, resize: int, quality: int, pass_through: bool, keep_damaged: bool = False, decoded: bool = True
) -> Prepared:
    """Turn an image file into the JPEG to store: short edge `resize` pixels (0 = as it is), never enlarged.

    A JPEG that needs no change keeps its bytes. With `pass_through` nothing is resized, and any plain 8-bit
    JPEG or PNG keeps its bytes. Of 16-bit images the upper 8 bits are used; alpha is dropped.
    An image that can be decoded although part of its picture is lost is used with `keep_damaged` alone.
    Without `decoded` what is stored is not decoded: of bytes that are kept, and go on to their end marker, the header
    alone is looked at. Raises Rejected with the reason.
    """
    header = read_header(data)
    larger = not pass_through and 0 < resize < min(header.width, header.height)
    plain = header.traits == () or (pass_through and header.traits == ("png",))
    kept = plain and (pass_through or not larger)
    if kept and not decoded and _has_end(data):
        return Prepared(data, None, ("kept",))
    pixels, damage = _examined(data, header, keep_damaged)
    if kept:
        return Prepared(data, pixels if decoded else None, ("kept", *damage))
    pixels = turn(pixels, header.orientation)
    actions = (*header.traits, *damage)
    if larger:
        pixels = shrink(pixels, resize)
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
