"""Checking a record file, from its first byte to its last: what is wrong with it, and what its records say."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged, PipelineError
from imagenet_pipeline.processes import available_processors
from imagenet_pipeline.records.image import decode_rgb, refuse_damaged
from imagenet_pipeline.records.manifest import ForeignShard
from imagenet_pipeline.records.reader import (
    Numbers,
    RecordSet,
    file_index,
    is_ours,
    salvaged_index,
    shard_index,
)
from imagenet_pipeline.records.recordio import INDEX_COLUMNS, ImageRecord, number_columns

RECORDS_TOGETHER = 256
BLOCK_BYTES = 2**22
"""Bytes of a file that are read and digested at a time."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """Something wrong: in which file, at which record (from 0 in that file) and byte offset, and what."""

    file: str
    record: int | None
    offset: int | None
    what: str


@dataclass
class VerifyReport:
    """Counts of what was checked.

    Of `records`, `readable` ones could be read, and of these `unchecked` ones carry no checksum: the images of
    `decoded` were decoded, `without_image` have none. Of `compared`, the number was held against the key in the `.idx`.
    """

    path: str
    files: int = 0
    records: int = 0
    readable: int = 0
    unchecked: int = 0
    decoded: int = 0
    without_image: int = 0
    compared: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """True where nothing is wrong."""
        return not self.problems

    def take_in(self, other: VerifyReport) -> None:
        """Add the counts and problems of a part."""
        for name in (each.name for each in fields(self) if each.name != "path"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def note(self, records: RecordSet, position: int, what: str) -> None:
        """Note a problem of a record."""
        file, _, offset = records.location(position)
        self.add(file, what, position, offset)

    def add(self, file: object, what: str, record: int | None = None, offset: int | None = None) -> None:
        """Note a problem."""
        self.problems.append(Problem(str(file), record, offset, what))


@dataclass
class Rows:
    """Columns of the records that could be read, in order: position in their file, number, first label.

    `several` are the labels of those that have not a single one, by their place here.
    """

    positions: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    labels: array[float] = field(default_factory=lambda: array("f"))
    several: dict[int, array[float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> tuple[int, tuple[float, ...]]:
        """Number and labels of a record."""
        return self.numbers[row], tuple(self.several.get(row, (self.labels[row],)))

    def add(self, position: int, record: ImageRecord, labelled: bool) -> None:
        """Add a record; more labels than one are kept where it is to be `labelled`."""
        if labelled and len(record.labels) != 1:
            self.several[len(self)] = array("f", record.labels)
        self.positions.append(position)
        self.numbers.append(record.number)
        self.labels.append(record.labels[0] if record.labels else 0.0)

    def extend(self, other: Rows) -> None:
        """Add the records of the next file, but for their positions in it."""
        self.several |= {len(self) + row: labels for row, labels in other.several.items()}
        self.numbers.extend(other.numbers)
        self.labels.extend(other.labels)


class FileInOrder:
    """A file read once, from its first byte to its last: for records in their order, and for its SHA-256."""

    def __init__(self, path: Path, block_bytes: int = BLOCK_BYTES) -> None:
        """Raises Damaged where it cannot be opened."""
        self._path, self._block_bytes = path, block_bytes
        try:
            self._stream = files.open_regular(path)
        except OSError as error:
            raise Damaged(f"cannot be read ({error.strerror or error})", where=path) from error
        self._digest = hashlib.sha256()
        self._start, self._window = 0, b""
        self._failed = False

    def read(self, file: int, size_bytes: int, offset: int) -> bytes:
        """Up to so many bytes at an offset that is not before the last one. Raises OSError."""
        try:
            while offset + size_bytes > self._start + len(self._window) and self._advance(offset, size_bytes):
                pass
        except OSError:
            self._failed = True  # other records may lie where the disk is whole
        if self._failed:
            return files.read_at(self._stream.fileno(), size_bytes, offset)
        first = offset - self._start
        return self._window[first : first + size_bytes]

    def _advance(self, offset: int, size_bytes: int) -> bool:
        """Read on, letting go of what lies before `offset`; False at the end of the file."""
        block = self._stream.read(max(self._block_bytes, size_bytes))
        self._digest.update(block)
        done = min(offset - self._start, len(self._window))
        self._start, self._window = self._start + done, self._window[done:] + block
        return bool(block)

    def sha256(self) -> str:
        """SHA-256 of the whole file, of which the rest is read. Raises Damaged."""
        try:
            if self._failed:
                return files.sha256_of(self._path)
            while block := self._stream.read(self._block_bytes):
                self._digest.update(block)
        except OSError as error:
            raise Damaged(f"cannot be read ({error.strerror})", where=self._path) from error
        return self._digest.hexdigest()

    def close(self) -> None:
        """Nothing: it stays open, for the digest, to the end of its block."""

    def __enter__(self) -> FileInOrder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


def silent(done: int, total: int) -> None:
    """Show no progress."""


def check_records(
    report: VerifyReport,
    path: Path,
    tell: Progress,
    checked: bool,
    use_index: bool,
    decode: bool = False,
    samples: ForeignShard | None = None,
    opened: FileInOrder | None = None,
) -> Rows:
    """Read every record of a file, noting the damaged ones; without a usable index, by the magic numbers.

    Of a file of another program those that are `samples`, where these are known. `opened` is read in place of `path`.
    With `decode` the images of records without a checksum are decoded, of a file that is `checked` those of all.
    """
    report.files += 1
    found_before = len(report.problems)
    try:
        if samples:
            indices = [shard_index(path.parent, samples)]
        else:
            indices = [file_index(path, checked or is_ours(path)) if use_index else salvaged_index(path)]
    except (BadInput, Damaged) as error:
        report.add(path, str(error))
        indices, use_index = [salvaged_index(path)], False
    rows = Rows()
    with (
        RecordSet(path.name, [path], checked, checked and use_index, indices, opened=opened) as records,
        ThreadPoolExecutor(available_processors(), "verifying") as pool,
    ):
        for start in range(0, len(records), RECORDS_TOGETHER):
            tell(report.records + start, report.records + len(records))
            together = range(start, min(start + RECORDS_TOGETHER, len(records)))
            images = _read_together(report, records, together, rows, labelled=checked, every=checked and decode)
            if decode:
                _check_images(report, records, images, pool)
        if use_index and not checked:
            _compare_keys(report, records, path, rows)
        report.records += len(records)
    report.readable += len(rows)
    report.problems[found_before:] = sorted(report.problems[found_before:], key=lambda problem: problem.offset or 0)
    return rows


def _read_together(
    report: VerifyReport, records: RecordSet, positions: range, rows: Rows, labelled: bool, every: bool
) -> list[tuple[int, bytes]]:
    """Read some records, adding to `rows` what they say of themselves; the images of `every` or without a checksum."""
    images = []
    for position in positions:
        try:
            record = records.read(position)
        except (BadInput, Damaged) as error:
            report.note(records, position, _plain(error))
            continue
        rows.add(position, record, labelled)
        report.unchecked += not record.checked
        if every or not record.checked:
            images.append((position, record.image))
    return images


def _check_images(
    report: VerifyReport, records: RecordSet, images: list[tuple[int, bytes]], pool: ThreadPoolExecutor
) -> None:
    report.without_image += sum(not image for _, image in images)
    images = [(position, image) for position, image in images if image]
    report.decoded += len(images)
    for (position, _), fault in zip(images, pool.map(_image_fault, [image for _, image in images]), strict=True):
        if fault:
            report.note(records, position, fault)


def _image_fault(image: bytes) -> str:
    """Explain why the loader would refuse this image; empty where it would not."""
    try:
        decode_rgb(image, refuse_damaged)
    except BadInput as error:
        return error.what
    return ""


def _compare_keys(report: VerifyReport, records: RecordSet, path: Path, rows: Rows) -> None:
    """Hold the numbers in the records against the keys of the index, where both are those of the list."""
    keys, numbers = _written_keys(path.with_suffix(".idx")), np.array(rows.numbers, np.uint64)
    if keys is None or len(np.unique(numbers)) < len(rows):
        return  # many writers leave the number 0
    differing = np.flatnonzero(numbers != keys[np.array(rows.positions, np.int64)].astype(np.uint64))
    if len(differing) and np.array_equal(keys, np.arange(len(keys))):
        return  # it counts the records, as MXNet's rec2idx.py does whatever their numbers
    report.compared += len(rows)
    for row in differing:
        position = rows.positions[row]
        report.note(records, position, f"its number is {numbers[row]}, its key in the .idx {keys[position]}")


def _written_keys(path: Path) -> Numbers | None:
    """The keys in an `.idx`, in the order of the records; None unless all are whole numbers."""
    try:
        pairs = np.concatenate([np.empty((0, 2), np.int64), *number_columns(path, INDEX_COLUMNS)])
    except ValueError:
        return None
    keys: Numbers = pairs[np.lexsort(pairs.T), 0]
    return keys


def _plain(error: PipelineError) -> str:
    return str(error.replaced(where=None, advice=None))
