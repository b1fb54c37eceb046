"""The unit of building: a worker makes a record file with its index, reads it back, and commits it."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged
from imagenet_pipeline.records import archives, image, recordio
from imagenet_pipeline.records.lists import Label
from imagenet_pipeline.records.prepare import Interpolation, ResizeMode, Resizing, prepare
from imagenet_pipeline.records.tasks import Task, note_progress, require_wanted


@dataclass(frozen=True)
class ShardTask(Task):
    """Everything a worker anywhere needs to make a shard, or a piece of it; numbers run from `first_number`.

    The photos whose numbers are multiples of `mean_every` count for mean and deviation. Of a piece nothing is synced.
    `spans` and `archive` are those of the plan; where `unpacked`, spans are in what is unpacked in the building folder.
    """

    folder: Path
    root: Path
    follow_links: bool
    first_number: int
    paths: Sequence[str]
    labels: Sequence[Label]
    resize: int
    quality: int
    pass_through: bool
    keep_damaged: bool = False
    spans: Sequence[Sequence[int]] | None = None
    archive: str = ""
    unpacked: bool = False
    mean_every: int = 1
    is_piece: bool = False
    resize_mode: ResizeMode = "shorter"
    interpolation: Interpolation = "area"

    @property
    def images(self) -> int:
        """Number of its photos."""
        return len(self.paths)

    @property
    def sources(self) -> Sequence[str]:
        """The file that each photo comes from: its own, or the archive that holds it."""
        return self.paths if self.spans is None else [self._archive_of(path) for path in self.paths]

    @property
    def first_file(self) -> Path:
        """The file that its first photo is read from."""
        return self.root / self.paths[0] if self.spans is None else self.archive_file(self.paths[0])

    def archive_file(self, path: str) -> Path:
        """The file in which the span of a photo is."""
        name = self._archive_of(path)
        return unpacked_file(self.building, name) if self.unpacked else self.root / name

    def _archive_of(self, path: str) -> str:
        return self.archive or path.partition("/")[0]

    def make(self) -> int:
        """As `make_shard`."""
        return make_shard(self)


def unpacked_file(building: Path, name: str) -> Path:
    """The file in the building folder that has what a file of the root holds compressed."""
    return building / f"{name}.unpacked"


@dataclass
class ColourSums:
    """Exact sums over pixels: count, and per channel R, G, B the sums of values and of their squares."""

    pixels: int = 0
    sums: list[int] = field(default_factory=lambda: [0, 0, 0])
    squares: list[int] = field(default_factory=lambda: [0, 0, 0])

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Count a uint8 image [height, width, 3]."""
        values = np.arange(256, dtype=np.int64)
        self.pixels += pixels.shape[0] * pixels.shape[1]
        for channel in range(3):
            histogram = _histogram(pixels, channel)
            self.sums[channel] += int(histogram @ values)
            self.squares[channel] += int(histogram @ values**2)

    def __add__(self, other: ColourSums) -> ColourSums:
        """The sums over the pixels of both."""
        sums = [own + others for own, others in zip(self.sums, other.sums, strict=True)]
        squares = [own + others for own, others in zip(self.squares, other.squares, strict=True)]
        return ColourSums(self.pixels + other.pixels, sums, squares)


@dataclass
class Contents:
    """The records of a shard or a piece, and what its marker keeps of how they were made.

    entries: number and offset of each record. rejects: number, path and reason. sampled: images in `colours`.
    photos: as of `source_states`.
    """

    photos: NDArray[np.int64]
    entries: list[tuple[int, int]] = field(default_factory=list)
    rejects: list[tuple[int, str, str]] = field(default_factory=list)
    actions: Counter[str] = field(default_factory=Counter)
    colours: ColourSums = field(default_factory=ColourSums)
    sampled: int = 0


def make_shard(task: ShardTask) -> int:
    """Make a shard and its commit marker; returns how many images were rejected.

    The record file gets its final name only after every record has been read back and checked.
    """
    image.calm()
    task.notes.unlink(missing_ok=True)
    contents = Contents(source_states(task))
    record_file = task.folder / f"{task.name}.rec"
    with files.whole_file(record_file, durable=not task.is_piece) as stream:
        _write_records(task, stream, contents)
        stream.flush()
        sha256 = _read_back(task, Path(stream.name), contents.entries)
        require_wanted(task)
    commit(task, record_file, contents, sha256, durable=not task.is_piece)
    return len(contents.rejects)


def commit(task: Task, record_file: Path, contents: Contents, sha256: str, durable: bool = True) -> None:
    """Write the index of a record file that is there, and the marker that says that both are finished."""
    index = "".join([f"{number}\t{offset}\n" for number, offset in contents.entries]).encode()
    files.write_whole(record_file.with_suffix(".idx"), index, durable)
    marker = {
        "key": task.key,
        "shard": {
            "file": record_file.name,
            "records": len(contents.entries),
            "bytes": record_file.stat().st_size,
            "sha256": sha256,
            "index_sha256": hashlib.sha256(index).hexdigest(),
        },
        "index_bytes": len(index),
        "actions": dict(contents.actions),
        "rejects": contents.rejects,
        "colours": vars(contents.colours),
        "photos": base64.b64encode(contents.photos.tobytes()).decode(),
    }
    if contents.sampled:
        marker["sampled"] = contents.sampled
    files.write_json(task.marker, marker, durable)


def is_finished(task: ShardTask, size_of: Callable[[str], int | None] | None = None) -> bool:
    """Check that the shard is committed, its files are there in full, and its photos are those it was made from.

    `size_of` says the size in bytes of a file elsewhere. A shard with rejects is looked at again.
    """
    try:
        marker = files.read_json(task.marker)
        names = [f"{task.name}{end}" for end in (".rec", ".idx")]
        sizes = [size_of(name) if size_of else (task.folder / name).stat().st_size for name in names]
        expected = [marker["shard"]["bytes"], marker["index_bytes"]]
        whole = bool(marker["key"] == task.key and sizes == expected and not marker["rejects"])
        return whole and not changed_sources(task, marker)
    except (Damaged, OSError, KeyError, TypeError):
        return False


def source_states(task: ShardTask) -> NDArray[np.int64]:
    """Size in bytes and time of the last change in ns of each photo's file, int64 [n, 2]; -1 where there is none."""
    known = {source: _state(task.root / source) for source in dict.fromkeys(task.sources)}
    return np.array([known[source] for source in task.sources], np.int64).reshape(-1, 2)


def _state(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def changed_sources(task: ShardTask, marker: Mapping[str, Any]) -> list[str]:
    """The files of photos whose size or time is no longer what it was when the shard was made, each once.

    None where the marker does not say, as those of earlier versions.
    """
    kept = np.frombuffer(base64.b64decode(marker.get("photos", "")), np.int64).reshape(-1, 2)
    if len(kept) != len(task.paths):
        return []
    changed = np.flatnonzero((kept != source_states(task)).any(axis=1))
    sources = task.sources
    return [*dict.fromkeys(sources[row] for row in changed)]


Folders = dict[str, Path]
"""Folders of photos, by their names, that were seen to lie inside the root."""


def read_image_file(root: Path, path: str, follow_links: bool, folders: Folders | None = None) -> bytes:
    """Read an image file of at most the size limit. Raises image.Rejected with the reason.

    `folders` are remembered between files, as of a shard.
    """
    try:
        full = root / path if follow_links else _contained(root, path, {} if folders is None else folders)
        status = os.stat(full)
        if not stat.S_ISREG(status.st_mode):
            raise image.Rejected("not a regular file")
        if status.st_size > image.FILE_LIMIT_BYTES:
            raise image.Rejected(f"file of {status.st_size:,} bytes, more than {image.FILE_LIMIT_BYTES:,}")
        return full.read_bytes()
    except BadInput as error:
        raise image.Rejected("path leads outside the root folder") from error
    except FileNotFoundError as error:
        raise image.Rejected("file is missing") from error
    except OSError as error:
        raise image.Rejected(f"file cannot be read ({error.strerror})") from error


def _contained(root: Path, path: str, folders: Folders) -> Path:
    """As `files.contained`, at a tenth of its calls to the system where many files are in a folder."""
    folder, _, name = path.rpartition("/")
    if folder in ("", ".") or name in ("", ".", "..") or "\0" in path:
        return files.contained(root, path)
    if folder not in folders:
        folders[folder] = files.contained(root, folder)
    full = folders[folder] / name
    return files.contained(root, path) if full.is_symlink() else full


def read_archived_image(archive: Path, span: archives.MemberSpan) -> bytes:
    """Read an image out of an archive. Raises image.Rejected with the reason."""
    if span[1] < 0:
        raise image.Rejected("file is missing")
    if archives.size_of(span) > image.FILE_LIMIT_BYTES:
        raise image.Rejected(f"file of {archives.size_of(span):,} bytes, more than {image.FILE_LIMIT_BYTES:,}")
    try:
        with files.regular_file(archive) as (stream, size_bytes):
            if size_bytes < span[0] + span[1]:
                raise image.Rejected("its archive is shorter than it was")
            return b"".join(archives.blocks(partial(files.read_at, stream.fileno()), span))
    except BadInput as error:
        raise image.Rejected(f"its archive {error.what}") from error
    except archives.BadMember as error:
        raise image.Rejected(f"its member of the archive {error}") from error


def _read_source(task: ShardTask, done: int, folders: Folders) -> bytes:
    if task.spans is None:
        return read_image_file(task.root, task.paths[done], task.follow_links, folders)
    return read_archived_image(task.archive_file(task.paths[done]), task.spans[done])


def _write_records(task: ShardTask, stream: BinaryIO, contents: Contents) -> None:
    offset, folders = 0, Folders()
    resizing = Resizing(task.resize, task.resize_mode, task.interpolation)
    for done, (path, label) in enumerate(zip(task.paths, task.labels, strict=True)):
        note_progress(task, done)
        number = task.first_number + done
        counts = number % task.mean_every == 0
        try:
            source = _read_source(task, done, folders)
            prepared = prepare(source, resizing, task.quality, task.pass_through, task.keep_damaged, counts)
        except image.Rejected as reason:
            contents.rejects.append((number, path, str(reason)))
            continue
        framed = recordio.frame(recordio.pack(_as_stored(label), number, prepared.data))
        stream.write(framed)
        contents.entries.append((number, offset))
        offset += len(framed)
        contents.actions.update(prepared.actions)
        if prepared.pixels is not None:
            contents.colours.add(prepared.pixels)
            contents.sampled += task.mean_every > 1


def _read_back(task: ShardTask, part: Path, entries: list[tuple[int, int]]) -> str:
    """Check that a file holds the records that were written; its SHA-256."""
    digest = hashlib.sha256()
    edges = [offset for _, offset in entries] + [part.stat().st_size]
    with open(part, "rb") as stream:
        for (number, offset), end in zip(entries, edges[1:], strict=True):
            framed = stream.read(end - offset)
            digest.update(framed)
            record = recordio.unpack(recordio.read_frame(framed)[0])
            labels = _as_stored(task.labels[number - task.first_number])
            if (record.number, record.labels, record.checked) != (number, labels, True):
                raise Damaged("the record does not read back as it was written", where=f"{part}, offset {offset}")
    return digest.hexdigest()


def _as_stored(label: Label) -> tuple[float, ...]:
    """The labels of a record: the number of its class, or the vector."""
    return (float(label),) if isinstance(label, int) else tuple(label)


def _histogram(pixels: NDArray[np.uint8], channel: int) -> NDArray[np.int64]:
    if pixels.shape[0] * pixels.shape[1] < 2**24:  # beyond it calcHist's float32 counts are not exact
        counts = cv2.calcHist([pixels], [channel], None, [256], [0, 256])
        return np.asarray(counts, np.int64).ravel()
    return np.bincount(pixels[:, :, channel].ravel(), minlength=256)
