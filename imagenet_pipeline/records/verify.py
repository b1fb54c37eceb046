"""Checking everything that was written: every record, index, list and digest; going on after damage.

A checksum says that a record is as it was written. Records of others have none, so their images are decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged, PipelineError, extent
from imagenet_pipeline.processes import available_processors
from imagenet_pipeline.records.finish import MARKERS
from imagenet_pipeline.records.image import calm, decode_rgb, refuse_damaged
from imagenet_pipeline.records.lists import read_list
from imagenet_pipeline.records.manifest import ForeignShard, Manifest, Shard, is_remote, read_data_set
from imagenet_pipeline.records.reader import (
    RecordSet,
    file_index,
    is_ours,
    require_record_file,
    salvaged_index,
    shard_index,
    written_keys,
)
from imagenet_pipeline.records.recordio import MAGIC_BYTES
from imagenet_pipeline.records.repair import markers_whole

if TYPE_CHECKING:
    from imagenet_pipeline.records.cache import ShardCache

RECORDS_TOGETHER = 256

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

    def note(self, records: RecordSet, position: int, what: str) -> None:
        """Note a problem of a record."""
        file, _, offset = records.location(position)
        self.add(file, what, position, offset)

    def add(self, file: object, what: str, record: int | None = None, offset: int | None = None) -> None:
        """Note a problem."""
        self.problems.append(Problem(str(file), record, offset, what))


Row = tuple[int, tuple[float, ...]]
Rows = list[Row]


def _silent(done: int, total: int) -> None:
    pass


def verify(path: Path, progress: Progress | None = None, decode: bool = True) -> VerifyReport:
    """Check a data set or a `.rec` file, ours or another's. Raises BadInput if there is neither.

    `decode`: decode the images of records without a checksum, too. `progress(done, total)` is called with record
    counts now and then.
    """
    calm()
    tell = progress or _silent
    if is_remote(path):
        data = read_data_set(path)
        report = VerifyReport(data.name)
        _check_data_set(report, data.folder, data.manifest, tell, data.cache)
        return report
    path = Path(path)
    report = VerifyReport(str(path))
    if os.path.isfile(path):
        require_record_file(path)
        _check_lone_file(report, path, tell, decode)
        _require_records(report, path)
        return report
    if not os.path.isdir(path):
        raise BadInput("no such data set or record file", where=path)
    try:
        manifest = Manifest.read(path)
    except Damaged as error:
        report.add(path / "manifest.json", error.what)
        for record_file in sorted(path.glob("*.rec")):
            _check_lone_file(report, record_file, tell, decode)
        return report
    _check_data_set(report, path, manifest, tell)
    return report


def _check_data_set(
    report: VerifyReport, folder: Path, manifest: Manifest, tell: Progress, cache: ShardCache | None = None
) -> None:
    total = sum(split.records for split in manifest.splits.values())
    for name, digest in manifest.files.items():
        _check_digest(report, folder / name, digest)
    if cache is None and not markers_whole(folder):
        report.add(folder / MARKERS, "has changed since it was written (SHA-256 differs)")
    for name, split in manifest.splits.items():
        rows: Rows = []
        for shard in split.shards:
            rows += _check_stored(report, folder, shard, lambda done, _: tell(done, total), cache)
        if len(rows) == split.records and not any(isinstance(shard, ForeignShard) for shard in split.shards):
            _check_list(report, folder / f"{name}.lst", rows, manifest.classes)


def _check_stored(report: VerifyReport, folder: Path, shard: Shard, tell: Progress, cache: ShardCache | None) -> Rows:
    """Check a shard, which in object storage is fetched for as long as that takes."""
    if cache is None:
        return _check_shard(report, folder, shard, tell)
    try:
        with cache.visited(shard):
            return _check_shard(report, folder, shard, tell)
    except Damaged as error:
        report.add(error.where, str(error.replaced(where=None)))
        return []


def _check_shard(report: VerifyReport, folder: Path, shard: Shard, tell: Progress) -> Rows:
    """Check a shard against the manifest and read all its records; returns their content."""
    path = folder / shard.file
    if not path.is_file():
        report.add(path, "record file is missing")
        return []
    if fault := _pointer(path):
        report.add(path, fault)
        return []
    index_whole = _check_digest(report, folder / shard.index_file, shard.index_sha256)
    found_before = len(report.problems)
    if isinstance(shard, ForeignShard):
        rows = _check_records(
            report, path, tell, checked=False, use_index=False, samples=shard if index_whole else None
        )
    else:
        rows = _check_records(report, path, tell, checked=True, use_index=index_whole)
    if len(rows) != shard.records and len(report.problems) == found_before:
        report.add(path, f"expected {shard.records} records, found {len(rows)}")
    if files.sha256_of(path) != shard.sha256 and len(report.problems) == found_before:
        report.add(path, "bytes between the records have changed")
    return rows


def _check_lone_file(report: VerifyReport, path: Path, tell: Progress, decode: bool) -> None:
    unchecked_before = report.unchecked
    use_index = path.with_suffix(".idx").is_file()
    read = _check_records(report, path, tell, checked=False, use_index=use_index, decode=decode)
    if 0 < report.unchecked - unchecked_before < len(read):
        report.add(path, "some records carry a checksum and some do not")


def _require_records(report: VerifyReport, path: Path) -> None:
    """Raise BadInput for a file that is no record file at all; note that a record file holds none."""
    if report.readable:
        return
    with open(path, "rb") as stream:
        head = stream.read(len(MAGIC_BYTES))
    if head not in (b"", MAGIC_BYTES):
        raise BadInput(
            "not a record file",
            where=path,
            expected=f"a file that starts with bytes {MAGIC_BYTES.hex()}",
            found=head.hex(),
        )
    report.add(path, "holds no record" + (" that can be read" if head else ""))


def _check_records(
    report: VerifyReport,
    path: Path,
    tell: Progress,
    checked: bool,
    use_index: bool,
    decode: bool = False,
    samples: ForeignShard | None = None,
) -> Rows:
    """Read every record of a file, noting the damaged ones; without a usable index, by the magic numbers.

    Of a file of another program those that are `samples`, where these are known.
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
    rows: dict[int, Row] = {}
    with (
        RecordSet(path.name, [path], checked, checked and use_index, indices) as records,
        ThreadPoolExecutor(available_processors(), "verifying") as pool,
    ):
        for start in range(0, len(records), RECORDS_TOGETHER):
            tell(report.records + start, report.records + len(records))
            together = range(start, min(start + RECORDS_TOGETHER, len(records)))
            images = _read_together(report, records, together, rows)
            if decode:
                _check_images(report, records, images, pool)
        if use_index and not checked:
            _compare_keys(report, records, path, rows)
        report.records += len(records)
    report.readable += len(rows)
    report.problems[found_before:] = sorted(report.problems[found_before:], key=lambda problem: problem.offset or 0)
    return list(rows.values())


def _read_together(
    report: VerifyReport, records: RecordSet, positions: range, rows: dict[int, Row]
) -> list[tuple[int, bytes]]:
    """Read some records, adding to `rows` what they say of themselves; the images of those without a checksum."""
    images = []
    for position in positions:
        try:
            record = records.read(position)
        except (BadInput, Damaged) as error:
            report.note(records, position, _plain(error))
            continue
        rows[position] = record.number, record.labels
        if not record.checked:
            report.unchecked += 1
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


def _compare_keys(report: VerifyReport, records: RecordSet, path: Path, rows: dict[int, Row]) -> None:
    """Hold the numbers in the records against the keys of the index, where both are those of the list."""
    keys = written_keys(path)
    if keys is None or len({number for number, _ in rows.values()}) < len(rows):
        return  # many writers leave the number 0
    differing = [position for position, (number, _) in rows.items() if number != keys[position]]
    if differing and keys == list(range(len(keys))):
        return  # it counts the records, as MXNet's rec2idx.py does whatever their numbers
    report.compared += len(rows)
    for position in differing:
        number = rows[position][0]
        report.note(records, position, f"its number is {number}, its key in the .idx {keys[position]}")


def _check_list(report: VerifyReport, path: Path, rows: Rows, classes: int) -> None:
    try:
        listed = [(row.index, row.labels) for row in read_list(path)]
    except BadInput as error:
        report.add(path, error.what)
        return
    if len(listed) != len(rows):
        report.add(path, f"expected {len(rows)} rows as there are records, found {len(listed)}")
    for i, (row, other) in enumerate(zip(listed, rows, strict=False)):
        if row != other:
            report.add(path, f"row {i + 1} says {row}, the record {other}", record=i)
    outside = sum(not 0 <= label < classes for _, labels in rows for label in labels)
    if outside:
        report.add(path, f"labels outside {extent(0, classes - 1)}: {outside:,}")


def _check_digest(report: VerifyReport, path: Path, digest: str) -> bool:
    try:
        same = files.sha256_of(path) == digest
    except OSError as error:
        report.add(path, f"cannot be read ({error.strerror})")
        return False
    if not same:
        report.add(path, _pointer(path) or "has changed since it was written (SHA-256 differs)")
    return same


def _pointer(path: Path) -> str:
    """Name the problem of a file that Git LFS has not fetched; empty for any other."""
    try:
        files.require_fetched(path)
    except BadInput as error:
        return f"{error.what}; {error.advice}"
    return ""


def _plain(error: PipelineError) -> str:
    return str(error.replaced(where=None, advice=None))
