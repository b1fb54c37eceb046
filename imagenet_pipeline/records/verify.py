"""Checking everything that was written: every record, index, list and digest; going on after damage."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged, PipelineError
from imagenet_pipeline.records.finish import MARKERS
from imagenet_pipeline.records.lists import read_list
from imagenet_pipeline.records.manifest import Manifest, Shard
from imagenet_pipeline.records.reader import RecordSet, file_index, is_ours, require_record_file, salvaged_index
from imagenet_pipeline.records.repair import markers_whole

LIST_PROBLEMS_SHOWN = 20
RECORDS_BETWEEN_REPORTS = 256

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
    """What was looked at. `unchecked` records are whole as far as one can see but carry no checksum."""

    path: str
    files: int = 0
    records: int = 0
    unchecked: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def add(self, file: Path, what: str, record: int | None = None, offset: int | None = None) -> None:
        """Note a problem."""
        self.problems.append(Problem(str(file), record, offset, what))


Rows = list[tuple[int, tuple[float, ...]]]


def _silent(done: int, total: int) -> None:
    pass


def verify(path: Path, progress: Progress | None = None) -> VerifyReport:
    """Check a data set folder or one `.rec` file, ours or another's. Raises BadInput if there is neither.

    `progress(done, total)` is called with record counts now and then.
    """
    path = Path(path)
    tell = progress or _silent
    report = VerifyReport(str(path))
    if os.path.isfile(path):
        require_record_file(path)
        _check_lone_file(report, path, tell)
        return report
    if not os.path.isdir(path):
        raise BadInput("no such data set or record file", where=path)
    try:
        manifest = Manifest.read(path)
    except Damaged as error:
        report.add(path / "manifest.json", error.what)
        for record_file in sorted(path.glob("*.rec")):
            _check_lone_file(report, record_file, tell)
        return report
    _check_data_set(report, path, manifest, tell)
    return report


def _check_data_set(report: VerifyReport, folder: Path, manifest: Manifest, tell: Progress) -> None:
    total = sum(split.records for split in manifest.splits.values())
    for name, digest in manifest.files.items():
        _check_digest(report, folder / name, digest)
    if not markers_whole(folder):
        report.add(folder / MARKERS, "has changed since it was written (SHA-256 differs)")
    for name, split in manifest.splits.items():
        rows: Rows = []
        for shard in split.shards:
            rows += _check_shard(report, folder, shard, lambda done, _: tell(done, total))
        if len(rows) == split.records:
            _check_list(report, folder / f"{name}.lst", rows, manifest.classes)


def _check_shard(report: VerifyReport, folder: Path, shard: Shard, tell: Progress) -> Rows:
    """Check one shard against the manifest and read all its records; returns what they say of themselves."""
    path = folder / shard.file
    if not path.is_file():
        report.add(path, "record file is missing")
        return []
    index_whole = _check_digest(report, folder / shard.index_file, shard.index_sha256)
    found_before = len(report.problems)
    rows = _check_records(report, path, tell, checked=True, use_index=index_whole)
    if len(rows) != shard.records and len(report.problems) == found_before:
        report.add(path, f"expected {shard.records} records, found {len(rows)}")
    if files.sha256_of(path) != shard.sha256 and len(report.problems) == found_before:
        report.add(path, "bytes between the records have changed")
    return rows


def _check_lone_file(report: VerifyReport, path: Path, tell: Progress) -> None:
    unchecked_before = report.unchecked
    read = _check_records(report, path, tell, checked=False, use_index=path.with_suffix(".idx").is_file())
    if 0 < report.unchecked - unchecked_before < len(read):
        report.add(path, "some records carry a checksum and some do not")


def _check_records(report: VerifyReport, path: Path, tell: Progress, checked: bool, use_index: bool) -> Rows:
    """Read every record of a file, noting the damaged ones; without a usable index, by the magic numbers."""
    report.files += 1
    try:
        indices = [file_index(path, checked or is_ours(path)) if use_index else salvaged_index(path)]
    except (BadInput, Damaged) as error:
        report.add(path, str(error))
        indices, use_index = [salvaged_index(path)], False
    records = RecordSet(path.name, [path], checked, checked and use_index, indices)
    rows: Rows = []
    with records:
        for position in range(len(records)):
            if position % RECORDS_BETWEEN_REPORTS == 0:
                tell(report.records + position, report.records + len(records))
            try:
                record = records.read(position)
            except (BadInput, Damaged) as error:
                report.add(path, _plain(error), position, records.place(position)[2])
                continue
            rows.append((record.number, record.labels))
            report.unchecked += not record.checked
        report.records += len(records)
    return rows


def _check_list(report: VerifyReport, path: Path, rows: Rows, classes: int) -> None:
    try:
        listed = [(row.index, row.labels) for row in read_list(path)]
    except BadInput as error:
        report.add(path, error.what)
        return
    if len(listed) != len(rows):
        report.add(path, f"expected {len(rows)} rows as there are records, found {len(listed)}")
    differing = [i for i, (row, other) in enumerate(zip(listed, rows, strict=False)) if row != other]
    for i in differing[:LIST_PROBLEMS_SHOWN]:
        report.add(path, f"row {i + 1} says {listed[i]}, the record {rows[i]}", record=i)
    outside = sum(not 0 <= label < classes for _, labels in rows for label in labels)
    if outside:
        report.add(path, f"{outside} labels are outside 0..{classes - 1}")


def _check_digest(report: VerifyReport, path: Path, digest: str) -> bool:
    try:
        same = files.sha256_of(path) == digest
    except OSError as error:
        report.add(path, f"cannot be read ({error.strerror})")
        return False
    if not same:
        report.add(path, "has changed since it was written (SHA-256 differs)")
    return same


def _plain(error: PipelineError) -> str:
    return str(Damaged(error.what, expected=error.expected, found=error.found))
