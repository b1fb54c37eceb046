"""The marker structure of a JPEG: what it would cost to decode, and whether all of its picture is there.

A progressive JPEG comes in scans, each of which may pass over the whole picture and take a dozen bytes: 100 KB can
keep a decoder busy for a minute. libjpeg-turbo leaves the bound to the application (its "Two Issues with the JPEG
Standard"), so it is held here, by the markers alone, before anything is decoded.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import simplejpeg

Encoded = bytes | memoryview
"""The bytes of an image file, or a look at them where they lie."""
START = b"\xff\xd8"
SEGMENT_LIMIT = 4096
"""Segments before the first scan. The largest file taken holds a thousand full ones; Pillow walks them in Python."""
SCAN_LIMIT = 500
"""Scans of a picture: what libjpeg-turbo's own tools allow where they are told to limit them. Photos have 1 to 20."""
VISIT_LIMIT = 25_000_000
"""Blocks that all scans together pass over, at about 0.05 microseconds each. The usual ten scans of the largest
picture taken, 50 megapixels without subsampling, pass over 11 million."""
STRAY_LIMIT_BYTES = 2**16
"""Bytes before the first scan that belong to no segment; odd photos have a few."""
USUAL_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
"""Baseline, extended and progressive, of Huffman codes: what every reader of records can decode."""

_START_OF_SCAN = 0xDA
_END = b"\xff\xd9"
_SEQUENTIAL = frozenset((0xC0, 0xC1))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_COSTLY = {0xC3: 8, 0xC9: 4, 0xCA: 4}
"""Frames whose blocks take as long as several: lossless ones and those coded arithmetically."""
_SEGMENTS = _FRAMES | {0xC4, 0xCC, 0xDA, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
_PICTURE_SEGMENTS = _FRAMES | {0xC4, 0xCC, 0xDB, 0xDD}
_FRAME = struct.Struct(">HHB")
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""Any but those that stand within coded data (restarts) or that libjpeg takes for none."""


class Head(NamedTuple):
    """The frame of a JPEG as told before its first scan; `single_scan`: that scan is all there can be."""

    height: int
    width: int
    components: int
    single_scan: bool


def read_head(data: Encoded) -> Head | None:
    """Read up to the first scan; None where that is not plain: other bytes between segments, or no JPEG.

    The loader does this for every image, by the compiled `jpeg_crop.read_head` where that is there.
    """
    if data[:2] != START:
        return None
    frame, position = 0, len(START)
    try:
        for _ in range(SEGMENT_LIMIT):
            if data[position] != 0xFF:
                return None
            marker = data[position + 1]
            if marker == _START_OF_SCAN:
                return _head(data, frame, data[position + 4]) if frame else None
            if marker in _FRAMES:
                if frame:
                    return None
                frame = position
            elif marker not in _SEGMENTS:
                return None
            position += 2 + (data[position + 2] << 8 | data[position + 3])
    except (IndexError, struct.error):  # it ends before a scan begins, or within a frame that is too short
        return None
    return None


def _head(data: Encoded, frame: int, in_scan: int) -> Head:
    height, width, components = _size(data, frame)
    return Head(height, width, components, data[frame + 1] in _SEQUENTIAL and in_scan == components)


def frame_marker(data: Encoded) -> int:
    """The marker (0xC0..0xCF) of the first frame header, 0 where none is found in order."""
    position = len(START)
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _FRAMES:
            return marker
        position += 1 if marker == 0xFF else 2 + _length(data, position)
    return 0


def excess(data: Encoded, head: Head | None) -> str:
    """Explain why this JPEG would take too long to read or decode; empty where it would not, and of other formats."""
    if (head and head.single_scan) or data[:2] != START:
        return ""
    if head is None and _crowded(data):
        return f"more than {SEGMENT_LIMIT:,} segments, or {STRAY_LIMIT_BYTES:,} stray bytes, before the picture"
    blocks, scans, visits = 0, 0, 0
    for marker, position in _segments(data):
        if marker in _FRAMES:
            blocks = blocks or _blocks(data, position)
        elif marker == _START_OF_SCAN:
            scans += 1
            visits += blocks * min(data[position + 4], 4)
            if scans > SCAN_LIMIT or visits > VISIT_LIMIT:
                return f"{scans} or more scans over {blocks:,} blocks, which would take too long to decode"
    return ""


def damage(data: Encoded) -> str:
    """libjpeg's words on a JPEG part of whose picture is lost; empty where all of it is there.

    libjpeg stops at its first complaint, and those about segments that add nothing to the picture (a bad colour
    profile, a JFIF revision of its own, stray bytes between segments) would hide the next: these are left out.
    Odd subsampling that TurboJPEG does not know cannot be looked into, and counts as whole.
    """
    try:
        simplejpeg.decode_jpeg(_picture_alone(data), "RGB")
    except ValueError as error:
        words = str(error)
        return "" if words.startswith("tj") else words
    return ""


def has_end(data: bytes) -> bool:
    """Tell whether the end marker stands behind the beginning of the first scan, in which it cannot occur."""
    if data.endswith(_END):
        return True
    for marker, position in _segments(data):
        if marker == _START_OF_SCAN:
            return data.rfind(_END) > position
    return False


def _crowded(data: Encoded) -> bool:
    stray_bytes, expected = 0, len(START)
    for number, (marker, position) in enumerate(_segments(data), 1):
        stray_bytes += position - expected
        if number > SEGMENT_LIMIT or stray_bytes > STRAY_LIMIT_BYTES:
            return True
        if marker == _START_OF_SCAN:
            return False
        expected = position + 2 + _length(data, position)
    return stray_bytes + len(data) - expected > STRAY_LIMIT_BYTES


def _picture_alone(data: Encoded) -> Encoded:
    parts: list[Encoded] = [START]
    for marker, position in _segments(data):
        if marker == _START_OF_SCAN:
            return b"".join((*parts, data[position:]))
        if marker in _PICTURE_SEGMENTS:
            parts.append(data[position : position + 2 + _length(data, position)])
    return data


def _segments(data: Encoded) -> Iterator[tuple[int, int]]:
    """(marker, offset) of the segments of a JPEG's first picture, met as libjpeg meets them, past stray bytes."""
    position = len(START)
    while (found := _MARKER.search(data, position)) and found.end() + 8 <= len(data):
        position = found.start()
        marker = data[position + 1]
        if marker in (0xD8, 0xD9):
            return
        yield marker, position
        position += 2 + max(2, _length(data, position))


def _length(data: Encoded, position: int) -> int:
    return int.from_bytes(data[position + 2 : position + 4], "big")


def _size(data: Encoded, frame: int) -> tuple[int, int, int]:
    """Height and width in pixels, and the number of components."""
    height, width, components = _FRAME.unpack_from(data, frame + 5)
    return int(height), int(width), int(components)


def _blocks(data: Encoded, position: int) -> int:
    """Blocks of 8 x 8 in a component that is not subsampled, whole MCUs, at the cost of the frame's kind."""
    height, width, components = _size(data, position)
    sampling = data[position + 11 : position + 10 + 3 * components : 3]
    across = max(1, *(factor >> 4 for factor in sampling), 1)
    down = max(1, *(factor & 15 for factor in sampling), 1)
    columns = -(-width // (8 * across)) * across
    rows = -(-height // (8 * down)) * down
    return rows * columns * _COSTLY.get(data[position + 1], 1)
