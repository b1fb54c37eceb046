"""Checking everything that was written: every record, index, list and digest; going on after damage.

A checksum says that a record is as it was written. Records of others have none, so their images are decoded. A data
set's shards are read once each, for their records and their digest together, by several processes where that pays.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged, WorkerLost, extent
from imagenet_pipeline.processes import available_processors, local_pool
from imagenet_pipeline.records import lists
from imagenet_pipeline.records.finish import MARKERS
from imagenet_pipeline.records.image import calm
from imagenet_pipeline.records.manifest import ForeignShard, Manifest, Shard, is_remote, read_data_set
from imagenet_pipeline.records.reader import require_record_file
from imagenet_pipeline.records.recordio import MAGIC_BYTES, number_columns
from imagenet_pipeline.records.repair import markers_whole
from imagenet_pipeline.records.verify_file import (
    FileInOrder,
    Problem,
    Progress,
    Rows,
    VerifyReport,
    check_records,
    silent,
)

if TYPE_CHECKING:
    from imagenet_pipeline.records.cache import ShardCache

FEW_RECORDS, FEW_BYTES = 50_000, 2**30
"""A smaller data set is checked sooner than worker processes are started."""
_Found = TypeVar("_Found")


def verify(
    path: Path, progress: Progress | None = None, decode: bool = True, workers: int | None = None
) -> VerifyReport:
    """Check a data set or a `.rec` file, ours or another's. Raises BadInput if there is neither, WorkerLost.

    `decode`: decode the images of records without a checksum, too, and all where `build --no-mean` did not.
    `progress(done, total)` is called with record counts now and then. `workers`: processes for the shards of a data
    set of this machine; for None it is one a processor, or this process alone where there is little to check.
    """
    calm()
    tell = progress or silent
    if is_remote(path):
        data = read_data_set(path)
        report = VerifyReport(data.name)
        _check_data_set(report, data.folder, data.manifest, tell, decode, 1, data.cache)
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
    _check_data_set(report, path, manifest, tell, decode, workers or _workers(manifest))
    return report


def _workers(manifest: Manifest) -> int:
    shards = manifest.shards
    few = sum(shard.records for shard in shards) < FEW_RECORDS and sum(shard.bytes for shard in shards) < FEW_BYTES
    return 1 if few else available_processors()


def _check_data_set(
    report: VerifyReport,
    folder: Path,
    manifest: Manifest,
    tell: Progress,
    decode: bool,
    workers: int,
    cache: ShardCache | None = None,
) -> None:
    # Whoever keeps damaged photos has asked not to hear of them.
    decode = decode and "no_mean" in manifest.options and "keep_damaged" not in manifest.options
    total = sum(split.records for split in manifest.splits.values())
    whole = {name for name, digest in manifest.files.items() if _check_digest(report, folder / name, digest)}
    if cache is None and not markers_whole(folder):
        report.add(folder / MARKERS, "has changed since it was written (SHA-256 differs)")

    def show(done: int, _: int) -> None:
        tell(report.records + done, total)

    workers = min(workers, len(manifest.shards))
    with closing(_checked(folder, manifest.shards, show, decode, workers, cache)) as checked:
        for name, split in manifest.splits.items():
            rows = Rows()
            for _, (part, read) in zip(split.shards, checked, strict=False):
                report.take_in(part)
                rows.extend(read)
                show(0, 0)
            if len(rows) == split.records and not any(isinstance(shard, ForeignShard) for shard in split.shards):
                _check_list(report, folder / f"{name}.lst", rows, f"{name}.lst" in whole)
                _check_labels(report, folder / f"{name}.lst", rows, manifest)


def _checked(
    folder: Path, shards: Sequence[Shard], show: Progress, decode: bool, workers: int, cache: ShardCache | None
) -> Generator[tuple[VerifyReport, Rows], None, None]:
    """Yield what was found in each shard and what its records say, in the order of the shards.

    In object storage each is fetched for as long as that takes.
    """
    if workers <= 1 or cache is not None:
        yield from (_check_stored(folder, shard, show, decode, cache) for shard in shards)
        return
    yield from over_shards(partial(_check_shard, folder, decode=decode), shards, workers, folder)


def over_shards(
    work: Callable[[Any], _Found], shards: Sequence[Shard | ForeignShard], workers: int, folder: Path
) -> Iterator[_Found]:
    """Yield what comes of each shard of a folder, in order, from several processes. Raises WorkerLost."""
    with local_pool(workers) as pool:
        try:
            yield from pool.map(work, shards)
        except BrokenExecutor as error:
            advice = "run the same command again, with fewer workers if memory ran out"
            raise WorkerLost("a worker process died", where=folder, advice=advice) from error


def _check_stored(
    folder: Path, shard: Shard, show: Progress, decode: bool, cache: ShardCache | None
) -> tuple[VerifyReport, Rows]:
    if cache is None:
        return _check_shard(folder, shard, show, decode)
    try:
        with cache.visited(shard):
            return _check_shard(folder, shard, show, decode)
    except Damaged as error:
        report = VerifyReport(str(folder))
        report.add(error.where, str(error.replaced(where=None)))
        return report, Rows()


def _check_shard(
    folder: Path, shard: Shard, show: Progress = silent, decode: bool = False
) -> tuple[VerifyReport, Rows]:
    """Check a shard against the manifest and read all its records; with `decode` their images, too."""
    report, path = VerifyReport(str(folder)), folder / shard.file
    if not path.is_file():
        report.add(path, "record file is missing")
        return report, Rows()
    if fault := _pointer(path):
        report.add(path, fault)
        return report, Rows()
    index_whole = _check_digest(report, folder / shard.index_file, shard.index_sha256)
    found_before = len(report.problems)
    with FileInOrder(path) as opened:
        if isinstance(shard, ForeignShard):
            samples = shard if index_whole else None
            rows = check_records(report, path, show, checked=False, use_index=False, samples=samples, opened=opened)
        else:
            rows = check_records(report, path, show, checked=True, use_index=index_whole, decode=decode, opened=opened)
        if len(rows) != shard.records and len(report.problems) == found_before:
            report.add(path, f"expected {shard.records} records, found {len(rows)}")
        if len(report.problems) == found_before and opened.sha256() != shard.sha256:
            report.add(path, "bytes between the records have changed")
    return report, rows


def _check_lone_file(report: VerifyReport, path: Path, tell: Progress, decode: bool) -> None:
    unchecked_before = report.unchecked
    use_index = path.with_suffix(".idx").is_file()
    read = check_records(report, path, tell, checked=False, use_index=use_index, decode=decode)
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


def _check_list(report: VerifyReport, path: Path, rows: Rows, whole: bool) -> None:
    """Hold the records of a split against its list, which is `whole` where its digest is right."""
    if not (whole and _same_columns(path, rows)):
        try:
            differing, listed = _differing_rows(path, rows)
        except BadInput as error:
            report.add(path, error.what)
            return
        if listed != len(rows):
            report.add(path, f"expected {len(rows)} rows as there are records, found {listed}")
        report.problems += differing


def _check_labels(report: VerifyReport, path: Path, rows: Rows, manifest: Manifest) -> None:
    """Note labels of a split that are none of the manifest's kind."""
    classes = manifest.classes
    if manifest.label_kind != "class":
        width = sum(len(rows[row][1]) != classes for row in range(len(rows)))
        values = np.concatenate([np.array(rows.labels), *rows.several.values()])
        fit = np.isfinite(values) if manifest.label_kind == "number" else np.isin(values, (0, 1))
        faults = {
            f"records of another number of labels than {classes}": width,
            "labels that are no number" if manifest.label_kind == "number" else "labels other than 0 and 1": (
                ~fit
            ).sum(),
        }
        for what, count in faults.items():
            if count:
                report.add(path, f"{what}: {count:,}")
        return
    labels = np.array(rows.labels)
    labels[list(rows.several)] = 0
    outside = int(np.count_nonzero(~((labels >= 0) & (labels < classes))))
    outside += sum(not 0 <= label < classes for several in rows.several.values() for label in several)
    if outside:
        report.add(path, f"labels outside {extent(0, classes - 1)}: {outside:,}")


def _same_columns(path: Path, rows: Rows) -> bool:
    """Tell quickly that a list has the numbers and labels of the records, one label each."""
    done, numbers, labels = 0, np.array(rows.numbers), np.array(rows.labels)
    with suppress(BadInput, ValueError):
        for columns in number_columns(path, lists.COLUMNS):
            following = slice(done, done + len(columns))
            if rows.several or not np.array_equal(columns.T, [numbers[following], labels[following]]):
                return False
            done += len(columns)
        return done == len(rows)
    return False


def _differing_rows(path: Path, rows: Rows) -> tuple[list[Problem], int]:
    """The lines of a list that differ from their records, and the number of its lines. Raises BadInput."""
    differing, listed = [], 0
    for i, row in enumerate(lists.rows_of(path)):
        listed += 1
        stated = (row.index, tuple(array("f", row.labels)))
        if i < len(rows) and stated != rows[i]:
            what = f"row {i + 1} says {stated}, the record {rows[i]}"
            differing.append(Problem(str(path), i, None, what))
    return differing, listed


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
