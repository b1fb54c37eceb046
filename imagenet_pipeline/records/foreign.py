"""Record files of other programs, by their frames and headers alone: where samples lie, their numbers and labels.

No `.idx` is needed, nor believed: frames are walked in the order of the file, past whatever is damaged. Records without
an image, as the headers of face sets are (insightface), are no samples.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged, counted
from imagenet_pipeline.records import image, recordio
from imagenet_pipeline.records.plan import LARGEST_EXACT_LABEL, Plan
from imagenet_pipeline.records.reader import Numbers, require_record_file

RECORD_LIMIT_BYTES = image.FILE_LIMIT_BYTES + 4 * recordio.LABEL_LIMIT + 1024
"""The longest frame that is read: the largest image, the most labels, and the heads of its chunks."""
_SHOW_EVERY = 4096
_PIECE_BYTES = 2**24
_SHOWN_LABELS = 6
_HEADER = struct.Struct("<IfQQ")
_ARRAY = b"\x93NUMPY"

Progress = Callable[[int, int], None]


class Damage(NamedTuple):
    """A record that cannot be read: its position among all frames of the file, its offset, and the reason."""

    position: int
    offset: int
    reason: str


@dataclass(frozen=True)
class RecordFile:
    """The samples of a record file, in its order: int64 [n] each but `numbers`, uint64 [n].

    `positions` are those among all its records. `state` is the file's size in bytes and time of the last change, ns.
    """

    path: Path
    positions: Numbers
    starts: Numbers
    ends: Numbers
    labels: Numbers
    numbers: NDArray[np.uint64]
    without_image: int
    damage: list[Damage]
    state: tuple[int, int]
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class RecordsPlan(Plan):
    """A plan whose images lie in record files that stay as they are, `record_files` by split.

    The files are linked or copied into the data set, or are there already (`in_place`). Class i has the label
    `original_labels[i]` in their bytes.
    """

    record_files: Mapping[str, Sequence[RecordFile]] = field(default_factory=dict)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    original_labels: tuple[int, ...] = ()
    in_place: bool = False

    @cached_property
    def by_name(self) -> dict[str, RecordFile]:
        """The record files, by their names in the data set."""
        pairs = [zip(self.names[split], found, strict=True) for split, found in self.record_files.items()]
        return {name: file for split_pairs in pairs for name, file in split_pairs}


def state_of(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns of a file."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def scan(path: Path, label_column: int | None = None, progress: Progress | None = None) -> RecordFile:
    """Find the samples of a record file, and the label of each: of several the one in `label_column`, from 0.

    `progress(done, total)` is called with bytes. Raises BadInput where there is no record file or no sample, where a
    label is no whole number, or there are several and none was chosen.
    """
    _require_records(path)
    state = state_of(path)
    positions, starts, ends, labels, numbers = (array(kind) for kind in "qqqqQ")
    without_image, damage = 0, []
    with _mapped(path) as buffer:
        for position, (start, end, found) in enumerate(_frames(buffer, progress)):
            if isinstance(found, str):
                damage.append(Damage(position, start, found))
                continue
            if not found.has_image:
                without_image += 1
                continue
            if not starts:
                _require_image(path, buffer, start)
            labels.append(_label(found.labels, label_column, f"{path}, record {position}, offset {start}"))
            for column, value in ((positions, position), (starts, start), (ends, end), (numbers, found.number)):
                column.append(value)
    if not starts:
        found_words = f"{without_image:,} without an image, {len(damage):,} damaged"
        raise BadInput("holds no record with an image", where=path, found=found_words)
    return RecordFile(
        path,
        np.array(positions, np.int64),
        np.array(starts, np.int64),
        np.array(ends, np.int64),
        np.array(labels, np.int64),
        np.array(numbers, np.uint64),
        without_image,
        damage,
        state,
    )


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a file; headers alone are read: a page of each record, and not all that lies between."""
    try:
        stream = files.open_regular(path)
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror or error})", where=path) from error
    with stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        if hasattr(buffer, "madvise"):
            buffer.madvise(mmap.MADV_RANDOM)
        yield buffer


class _Header(NamedTuple):
    labels: tuple[float, ...]
    number: int
    has_image: bool


def _frames(buffer: mmap.mmap, progress: Progress | None) -> Iterator[tuple[int, int, _Header | str]]:
    """Walk the frames: first byte, the byte after the last, and the record's header, or why it cannot be read."""
    offset, count = 0, 0
    while offset < len(buffer):
        start = offset
        found: _Header | str
        try:
            offset = recordio.skip_frame(buffer, start)
            found = _header(buffer, start, offset)
        except Damaged as error:
            found = str(error.replaced(where=None, advice=None))
            if offset == start:
                offset = _next_start(buffer, start + 4)
        yield start, offset, found
        count += 1
        if count % _SHOW_EVERY == 0:
            _forget(buffer)
            if progress is not None:
                progress(offset, len(buffer))


def _next_start(buffer: mmap.mmap, offset: int) -> int:
    """Find where the next record may start, in pieces."""
    offset += -offset % 4
    while offset < len(buffer):
        piece = buffer[offset : offset + _PIECE_BYTES + 8]  # so that a chunk's head on the edge is in both
        found = recordio.next_start(piece, 0)
        if found < min(len(piece), _PIECE_BYTES + 1):
            return offset + found
        offset += _PIECE_BYTES
        _forget(buffer)
    return len(buffer)


def _forget(buffer: mmap.mmap) -> None:
    """Let go of what was read of a file: it would count as memory of this process."""
    if hasattr(mmap, "MADV_DONTNEED"):
        buffer.madvise(mmap.MADV_DONTNEED)


def _header(buffer: mmap.mmap, start: int, end: int) -> _Header:
    """Read the header of the record in a frame. Raises Damaged where it holds none, or is longer than any image."""
    if end - start > RECORD_LIMIT_BYTES:
        raise Damaged(f"record of {end - start:,} bytes, more than {RECORD_LIMIT_BYTES:,}")
    head = recordio.whole_frame_head(buffer[start : start + 32])
    if head is None or head[1] + -head[1] % 4 != end - start:  # split, short, or of more labels than fit
        record = recordio.unpack(recordio.read_frame(buffer[start:end])[0])
        return _Header(record.labels, record.number, len(record.image) > 0)
    flag, label, number, _ = _HEADER.unpack_from(buffer, start + 8)
    if flag > recordio.LABEL_LIMIT:
        raise Damaged("more labels than a record has", found=f"{flag:,}")
    labels = struct.unpack_from(f"<{flag}f", buffer, start + 32) if flag else (label,)
    return _Header(labels, number, head[0] < head[1])


def _label(labels: tuple[float, ...], column: int | None, where: str) -> int:
    """The label that is a sample's class. Raises BadInput where there is no saying which, or it is no whole number."""
    if column is None and len(labels) > 1:
        raise BadInput(
            "the record has several labels", where=where, expected="a class", found=_words(labels),
            advice=f"say which of them, from 0, is the class: build records --label-column K{_detection(labels)}",
        )  # fmt: skip
    if (column or 0) >= len(labels):
        raise BadInput(f"the record has no label {column}", where=where, found=_words(labels))
    label = labels[column or 0]
    if not label.is_integer() or abs(label) > LARGEST_EXACT_LABEL:
        expected = f"a whole number up to {LARGEST_EXACT_LABEL:,}"
        advice = "where the class is another of several labels, from 0: build records --label-column K"
        raise BadInput("the label is not a class", where=where, expected=expected, found=f"{label:g}", advice=advice)
    return int(label)


def _words(labels: tuple[float, ...]) -> str:
    shown = " ".join(f"{label:g}" for label in labels[:_SHOWN_LABELS])
    return f"{counted(len(labels), 'number')}, {shown}{' ...' if len(labels) > _SHOWN_LABELS else ''}"


def _detection(labels: tuple[float, ...]) -> str:
    """Advice on a label of object detection: its own length, the numbers of an object, ..., then object by object."""
    head, width = labels[:2]
    if not (head.is_integer() and width.is_integer() and 2 <= head < len(labels) and width >= 5):
        return ""
    if (len(labels) - head) % width:
        return ""
    objects = int((len(labels) - head) // width)
    return (
        f" (as in object detection: {int(head)} numbers of header, then {objects} of {int(width)}, class first: "
        f"{int(head)} is the class of the first object)"
    )


def _require_records(path: Path) -> None:
    """Raise BadInput, saying what it is, for anything but a file that begins with a record's magic number."""
    if path.is_dir():
        raise BadInput("a folder, not a record file", where=path, expected="a .rec file")
    if not path.exists():
        raise BadInput("no such record file", where=path)
    require_record_file(path)
    with files.regular_file(path) as (stream, size_bytes):
        head = stream.read(len(recordio.MAGIC_BYTES))
    if not size_bytes:
        raise BadInput("holds no record", where=path, found="an empty file")
    if head != recordio.MAGIC_BYTES:
        expected = f"a file that starts with bytes {recordio.MAGIC_BYTES.hex()}"
        raise BadInput("not a record file", where=path, expected=expected, found=head.hex())


def _require_image(path: Path, buffer: mmap.mmap, start: int) -> None:
    """Raise BadInput where the first image is an array, which is what im2rec.py writes with --encoding .npy."""
    head = recordio.whole_frame_head(buffer[start : start + 32])
    if head is not None and buffer[start + head[0] : start + head[0] + len(_ARRAY)] == _ARRAY:
        advice = "pack the photos with --encoding .jpg or .png"
        raise BadInput("the records hold NumPy arrays, not images", where=path, found="encoding .npy", advice=advice)
