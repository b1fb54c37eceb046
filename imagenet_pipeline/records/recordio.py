"""MXNet's RecordIO container, its index, and image record, byte for byte, in plain Python.

Container: dmlc-core `include/dmlc/recordio.h`. Image record: MXNet `src/io/image_recordio.h`.
Ours differ from stock in a single field: `id2`, which stock writes as 0 and never reads, holds a format
tag (upper 32 bits) and the CRC32C of the whole record with `id2` taken as 0 (lower 32 bits).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
RECORD_LIMIT_BYTES = 2**29
LABEL_LIMIT = 2**16
CHECKED_TAG = 0x49503143
INDEX_COLUMNS = 2
"""Key and offset, of an `.idx`."""
PIECE_BYTES = 2**20
"""Bytes of an index or a list that are parsed together."""
DIGITS = 18
"""Digits of the largest whole numbers that are surely an int64."""

Buffer = bytes | memoryview | mmap.mmap

_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_CHUNK = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_NO_ID2 = bytes(8)


class ImageRecord(NamedTuple):
    """One image with its labels; `checked` says that its checksum was there and right."""

    labels: tuple[float, ...]
    number: int
    content: bytes | memoryview
    """The encoded image, or a look at it where it was read: the loader copies nothing."""
    checked: bool

    @property
    def image(self) -> bytes:
        """The encoded image in bytes of its own."""
        return bytes(self.content)


def frame(data: bytes) -> bytes:
    """Wrap a record in its container: magic, length, payload, zero pad to a multiple of 4 bytes.

    Raises BadInput for a record of 2**29 bytes or more, which the format cannot hold.
    """
    if len(data) >= RECORD_LIMIT_BYTES:
        raise BadInput("the record is too long", expected=f"< {RECORD_LIMIT_BYTES:,} bytes", found=f"{len(data):,}")
    pad = bytes(-len(data) % 4)
    cuts = _aligned_magics(data)
    if not cuts:
        return b"".join((_chunk_head(_WHOLE, len(data)), data, pad))
    # The magic itself is left out of the payload at each cut; the reader puts it back between parts.
    starts = [0, *(cut + 4 for cut in cuts)]
    ends = [*cuts, len(data)]
    kinds = [_FIRST, *[_MIDDLE] * (len(cuts) - 1), _LAST]
    parts = [
        _chunk_head(kind, end - start) + data[start:end] for kind, start, end in zip(kinds, starts, ends, strict=True)
    ]
    return b"".join((*parts, pad))


def read_frame(buffer: Buffer, offset: int = 0) -> tuple[bytes | memoryview, int]:
    """Return the record whose frame starts at `offset`, and the offset just after it.

    Out of a memoryview it comes as a part of that, not copied, unless the record is split.
    Raises Damaged (without `where`; the caller knows the file) when the frame is not whole.
    """
    kind, end, following = _chunk_extent(buffer, offset)
    payload = buffer[offset + _CHUNK.size : end]
    if kind == _WHOLE:
        return payload, following
    if kind != _FIRST:
        raise Damaged("frame starts in the middle of a split record")
    parts = [payload]
    total_bytes = len(payload)
    while kind != _LAST:
        offset = following
        kind, end, following = _chunk_extent(buffer, offset)
        if kind not in (_MIDDLE, _LAST):
            raise Damaged("a split record has no end")
        parts.append(buffer[offset + _CHUNK.size : end])
        total_bytes += end - offset - _CHUNK.size + 4
        if total_bytes >= RECORD_LIMIT_BYTES:
            raise Damaged("a split record is longer than the format allows")
    return MAGIC_BYTES.join(parts), following


def whole_frame_head(buffer: bytes) -> tuple[int, int] | None:
    """Find where in a frame, of which these are the first bytes, its image begins and ends.

    None where these bytes cannot tell: for a split record, and for a record that is no image.
    """
    if len(buffer) < _CHUNK.size + _HEADER.size:
        return None
    magic, length = _CHUNK.unpack_from(buffer)
    labels = _HEADER.unpack_from(buffer, _CHUNK.size)[0]
    start, end = _CHUNK.size + _HEADER.size + 4 * labels, _CHUNK.size + length % 2**29
    return (start, end) if (magic, length >> 29) == (MAGIC, _WHOLE) and start <= end else None


def next_start(buffer: bytes | mmap.mmap, offset: int) -> int:
    """Find the first offset from `offset` on where a record may start: an aligned magic of a first chunk.

    Returns the buffer's length where there is none.
    """
    offset += -offset % 4
    while 0 <= (offset := buffer.find(MAGIC_BYTES, offset)) <= len(buffer) - _CHUNK.size:
        kind = buffer[offset + 7] >> 5
        if offset % 4 == 0 and kind in (_WHOLE, _FIRST):
            return offset
        offset += 1
    return len(buffer)


def skip_frame(buffer: Buffer, offset: int) -> int:
    """The offset just after the frame at `offset`, from its chunk heads alone. Raises as `read_frame`."""
    kind, _, offset = _chunk_extent(buffer, offset)
    if kind not in (_WHOLE, _FIRST):
        raise Damaged("frame starts in the middle of a split record")
    while kind not in (_WHOLE, _LAST):
        kind, _, offset = _chunk_extent(buffer, offset)
        if kind not in (_MIDDLE, _LAST):
            raise Damaged("a split record has no end")
    return offset


def number_columns(path: Path, columns: int) -> Iterator[NDArray[np.int64]]:
    """Yield the first two columns of an index or a list, [n, 2] each, a good deal quicker than a line at a time.

    Raises ValueError unless all lines have so many `columns`, with tabs between, of which these two are whole numbers
    of 1 to 18 digits: another index or list may be whole, too. Raises BadInput for a file that cannot be read.
    """
    with files.regular_file(path) as (stream, _):
        while piece := stream.read(PIECE_BYTES) + stream.readline():
            piece = piece.replace(b"\r\n", b"\n")
            yield _number_columns(piece if piece.endswith(b"\n") else piece + b"\n", columns)


def _number_columns(piece: bytes, columns: int) -> NDArray[np.int64]:
    letters = np.frombuffer(piece, np.uint8)
    marks = np.flatnonzero((letters == ord("\t")) | (letters == ord("\n")))
    if len(marks) != columns * piece.count(b"\n"):
        raise ValueError("another number of columns")
    marks = marks.reshape(-1, columns)
    starts = np.column_stack([np.append(0, marks[:-1, -1] + 1), marks[:, 0] + 1])
    lengths = marks[:, :2] - starts
    if (letters[marks[:, -1]] != ord("\n")).any() or lengths.min() < 1 or lengths.max() > DIGITS:
        raise ValueError("a line is too long or too short")
    numbers = np.zeros_like(starts)
    for place in range(int(lengths.max())):
        there = lengths > place
        digits = letters[starts + np.minimum(place, lengths - 1)] - np.uint8(ord("0"))
        if digits.max() > 9:  # what comes before 0 goes round to 255 and less
            raise ValueError("not a whole number")
        numbers = np.where(there, 10 * numbers + digits, numbers)
    return numbers


def pack(labels: Sequence[float], number: int, image: bytes, checked: bool = True) -> bytes:
    """Make an image record: 24-byte header, further labels, image bytes; in `id2` the checksum, or stock's 0.

    One label goes into the header (flag 0); any other number n follows it as n float32 (flag n).
    Number is the index in the list, 0..2**64-1. Raises BadInput for no labels or too many.
    """
    if not 1 <= len(labels) <= LABEL_LIMIT:
        raise BadInput("the number of labels is out of range", expected=f"1..{LABEL_LIMIT}", found=len(labels))
    if len(labels) == 1:
        head, body = struct.pack("<IfQ", 0, labels[0], number), image
    else:
        head = struct.pack("<IfQ", len(labels), 0.0, number)
        body = struct.pack(f"<{len(labels)}f", *labels) + image
    id2 = CHECKED_TAG << 32 | _checksum(head, body) if checked else 0
    return b"".join((head, struct.pack("<Q", id2), body))


def unpack(data: bytes | memoryview) -> ImageRecord:
    """Read an image record, ours or foreign; of a memoryview the image is a part, not copied.

    Raises Damaged when it is too short for its header or labels, or when its checksum is wrong.
    """
    if len(data) < _HEADER.size:
        raise Damaged("record too short", expected=f">= {_HEADER.size} bytes", found=len(data))
    flag, label, number, id2 = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    checked = id2 >> 32 == CHECKED_TAG
    if checked and id2 & 0xFFFFFFFF != _checksum(bytes(data[:16]), body):
        raise Damaged("checksum wrong")
    if flag == 0:
        return ImageRecord((label,), number, body, checked)
    if flag > LABEL_LIMIT or 4 * flag > len(body):
        raise Damaged("more labels than the record can hold", found=f"{flag:,} in {len(body):,} bytes")
    return ImageRecord(struct.unpack_from(f"<{flag}f", body), number, body[4 * flag :], checked)


def checksum(content: bytes) -> int:
    """CRC32C of bytes."""
    return int(google_crc32c.value(content))


def _checksum(head: bytes, body: bytes | memoryview) -> int:
    # The library takes bytes and arrays, but no memoryview.
    seen = body if isinstance(body, bytes) else np.frombuffer(body, np.uint8)
    return int(google_crc32c.extend(google_crc32c.value(head + _NO_ID2), seen))


def _chunk_head(kind: int, length_bytes: int) -> bytes:
    return _CHUNK.pack(MAGIC, kind << 29 | length_bytes)


def _chunk_extent(buffer: Buffer, offset: int) -> tuple[int, int, int]:
    """(kind, end of the payload, offset after its pad) of the chunk at `offset`."""
    if offset + _CHUNK.size > len(buffer):
        raise Damaged("file ends inside a frame")
    magic, word = _CHUNK.unpack_from(buffer, offset)
    if magic != MAGIC:
        raise Damaged("no record starts here", expected=f"magic {MAGIC:#x}", found=f"{magic:#x}")
    end = offset + _CHUNK.size + (word & 0x1FFFFFFF)
    following = end + -end % 4
    if following > len(buffer):
        raise Damaged("file ends inside a record", expected=f"{following - len(buffer):,} more bytes")
    return word >> 29, end, following


def _aligned_magics(data: bytes) -> list[int]:
    # A hundred times faster than bytes.find, which compares nearly every byte of coded pixels.
    words = np.frombuffer(data, "<u4", len(data) // 4)
    return [4 * int(place) for place in np.flatnonzero(words == MAGIC)]
