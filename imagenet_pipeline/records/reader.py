"""Random access to the records of a split, safe to share between threads.

Records are fetched with `pread`: unlike a memory map it lets other threads run while the disk works, and a
file cut short by someone else is an error instead of a SIGBUS.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged, PipelineError
from imagenet_pipeline.records import recordio
from imagenet_pipeline.records.manifest import (
    REBUILD,
    DataSet,
    ForeignShard,
    Manifest,
    Shard,
    is_remote,
    no_split,
    read_data_set,
)
from imagenet_pipeline.records.recordio import ImageRecord

if TYPE_CHECKING:
    from imagenet_pipeline.records.cache import ShardCache

Numbers = NDArray[np.int64]

_OUR_INDEX_LINE = re.compile(rb"(\d{1,18})\t(\d{1,18})")
_ANY_INDEX_LINE = re.compile(rb"([^\t]*)\t(\d{1,18})\s*")


@dataclass(frozen=True)
class Index:
    """Offsets of a file's records, in file order, int64 [n] each: keys, first bytes, and the bytes after the last.

    Of samples in a file of another program also what stands for their own: `classes` for labels, and `checksums`,
    CRC32C of the whole frame.
    """

    keys: Numbers
    starts: Numbers
    ends: Numbers
    classes: Numbers | None = None
    checksums: Numbers | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of_edges(cls, keys: Numbers, edges: Numbers) -> Index:
        """The index of records without gaps between them; edges [n + 1]."""
        return cls(keys, edges[:-1], edges[1:])


class RecordFiles(Protocol):
    """Record files, numbered, as a source of bytes that threads share."""

    def read(self, file: int, size_bytes: int, offset: int) -> bytes:
        """Up to so many bytes of a file. Raises OSError."""

    def close(self) -> None: ...


class CachedFiles(RecordFiles, Protocol):
    """Record files of a data set in object storage, which come into a cache as they are needed."""

    def ahead(self, order: Numbers) -> AbstractContextManager[RecordFiles]:
        """Fetch files [n], while the block runs, in the order in which the reads of a pass will need them."""


class OpenFiles:
    """Files of this machine, all of them open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises Damaged, naming the first that cannot be read."""
        self._descriptors: list[int] = []
        try:
            self._descriptors.extend(os.open(path, files.READING) for path in paths)
        except OSError as error:
            self.close()
            raise Damaged(f"cannot be read ({error.strerror})", where=error.filename) from error

    def read(self, file: int, size_bytes: int, offset: int) -> bytes:
        return files.read_at(self._descriptors[file], size_bytes, offset)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


class RecordSet:
    """The records of `.rec` files, by position 0..len-1 in file order."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        checked: bool = False,
        numbered: bool = False,
        indices: Sequence[Index] | None = None,
        cached: CachedFiles | None = None,
        opened: RecordFiles | None = None,
    ) -> None:
        """Use `RecordSet.open`.

        `checked`: the files are ours, every record must carry a checksum; `numbered`: and the number its
        index says. `indices` stand in for the `.idx` files, `cached` for files that may not be there yet;
        `opened` is read in place of the files.
        """
        self.name = name
        self.files = list(paths)
        self._checked, self._numbered = checked, numbered
        self._indices = [file_index(path, checked) for path in paths] if indices is None else indices
        self._starts: list[int] = np.cumsum([0, *map(len, self._indices)]).tolist()
        self._cached = cached
        self._opened: RecordFiles = opened or cached or OpenFiles(paths)

    @classmethod
    def open(cls, path: Path, split: str | None = None) -> RecordSet:
        """Open a split of a data set, or a `.rec` file (ours or another's, with or without `.idx`).

        Raises BadInput where there is no such thing, BadRecipe for a split there is not, Damaged where files
        are missing or cut (BadInput where the file is another's).
        """
        if is_remote(path):
            return cls.of(read_data_set(path), split)
        path = Path(path)
        if path.is_file():
            require_record_file(path)
            return cls(path.name, [path], checked=is_ours(path))
        if not os.path.isdir(path):
            raise BadInput("no such data set or record file", where=path)
        return cls._of_split(path, split, Manifest.read(path), str(path), None)

    @classmethod
    def of(cls, data: DataSet, split: str | None) -> RecordSet:
        """Open a split of a data set, or a lone file's samples. Raises as `open`."""
        if data.samples is not None:
            return cls(str(data.folder), [data.folder], indices=[data.samples])
        return cls._of_split(data.folder, split, data.manifest, data.name, data.cache)

    @classmethod
    def _of_split(
        cls, folder: Path, split: str | None, manifest: Manifest, name: str, cache: ShardCache | None
    ) -> RecordSet:
        if split is None or split not in manifest.splits:
            raise no_split(name, split, manifest.splits)
        shards, count = manifest.splits[split].shards, manifest.splits[split].records
        if cache is None:
            for shard in shards:
                shard.require_size(folder)
        indices = [shard_index(folder, shard) for shard in shards]
        own = not any(isinstance(shard, ForeignShard) for shard in shards)
        cached = None if cache is None else cache.files(shards)
        records = cls(f"{name}:{split}", [folder / shard.file for shard in shards], own, own, indices, cached)
        if len(records) != count:
            records.close()
            what = "the index has another number of records"
            raise Damaged(what, where=name, expected=count, found=len(records), advice=REBUILD)
        return records

    @property
    def sizes(self) -> list[int]:
        """Number of records in each file."""
        return list(map(len, self._indices))

    @contextmanager
    def ahead(self, positions: Numbers) -> Iterator[RecordSet]:
        """Yield these records for a pass that reads `positions` in about this order, and no others.

        Files that come into a cache are fetched ahead of it; an error of that is raised by the first read it concerns.
        """
        if self._cached is None:
            yield self
            return
        with self._cached.ahead(np.searchsorted(self._starts, positions, side="right") - 1) as opened:
            records = copy(self)
            records._opened = opened
            yield records

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, position: int) -> ImageRecord:
        """Fetch and check a record. Raises Damaged (BadInput if another's) naming file, record and offset."""
        file, row = self._locate(position)
        index = self._indices[file]
        start, end = index.starts.item(row), index.ends.item(row)
        try:
            framed = self._opened.read(file, end - start, start)
        except OSError as error:
            raise self._at(file, row, Damaged(f"cannot be read ({error.strerror})")) from error
        try:
            return self._unpacked(framed, file, row, end - start)
        except Damaged as error:
            raise self._at(file, row, error) from error

    def location(self, position: int) -> tuple[Path, int, int]:
        """Locate a record: (file, key in its index, or row where that is another's, offset in bytes)."""
        file, row = self._locate(position)
        return self.files[file], int(self._indices[file].keys[row]), int(self._indices[file].starts[row])

    def first_labels(self) -> NDArray[np.float32]:
        """The first label of every record, float32 [len], from the headers alone (no checksum is read)."""
        labels, known = np.zeros(len(self), np.float32), [index.classes is not None for index in self._indices]
        for index, start in zip(self._indices, self._starts, strict=False):
            if index.classes is not None:
                labels[start : start + len(index)] = index.classes
        unknown = np.flatnonzero(~np.repeat(known, self.sizes))
        for position, head in zip(unknown, self._heads(unknown, 36), strict=True):
            flag, label = struct.unpack_from("<If", head.ljust(36, b"\0"), 8)
            labels[position] = struct.unpack_from("<f", head, 32)[0] if flag and len(head) == 36 else label
        return labels

    def numbers(self) -> list[int]:
        """The number of every record, from the headers alone (no checksum is read)."""
        heads = self._heads(np.arange(len(self)), 24)
        return [struct.unpack_from("<Q", head.ljust(24, b"\0"), 16)[0] for head in heads]

    def _heads(self, positions: Numbers, size_bytes: int) -> Iterator[bytes]:
        """Yield the first bytes of records, one after the other."""
        with self.ahead(positions) as records:
            for position in positions:
                file, row = self._locate(int(position))
                yield records._opened.read(file, size_bytes, int(self._indices[file].starts[row]))

    def image_head(self, position: int, limit_bytes: int) -> tuple[bytes, int]:
        """Read the first bytes of a record's image, and their number in all, by a short read (no checksum is read).

        Of a record that is split because it holds the magic number, the whole image. Raises as `read`.
        """
        file, row = self._locate(position)
        framed = self._opened.read(file, limit_bytes, int(self._indices[file].starts[row]))
        head = recordio.whole_frame_head(framed)
        if head is None:
            image = self.read(position).image
            return image, len(image)
        start, end = head
        return framed[start:end], end - start

    def close(self) -> None:
        """Close the files; reading is over."""
        self._opened.close()

    def __enter__(self) -> RecordSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _at(self, file: int, row: int, error: Damaged) -> PipelineError:
        index = self._indices[file]
        kept = index.checksums is not None
        advice = REBUILD if self._numbered or kept else None
        if self._cached is not None:
            advice = "remove the file, and it is fetched again"
        where = f"{self.files[file]}, record {row}, offset {int(index.starts[row])}"
        return _at(where, error, self._checked or kept, advice)

    def _unpacked(self, framed: bytes, file: int, row: int, size_bytes: int) -> ImageRecord:
        index = self._indices[file]
        if index.checksums is not None and recordio.checksum(framed) != index.checksums[row]:
            raise Damaged("checksum wrong")
        data, length = recordio.read_frame(memoryview(framed))
        if length != size_bytes:
            raise Damaged(
                "the record and the index differ in length", expected=f"{size_bytes} bytes", found=f"{length}"
            )
        record = recordio.unpack(data)
        if self._checked and not record.checked:
            raise Damaged("the record has no checksum")
        if self._numbered and record.number != index.keys.item(row):
            raise Damaged(
                "the record has another number than the index", expected=int(index.keys[row]), found=record.number
            )
        if index.classes is None:
            return record
        own = record.checked or index.checksums is not None
        return record._replace(labels=(float(index.classes[row]),), checked=own)

    def _locate(self, position: int) -> tuple[int, int]:
        if not 0 <= position < len(self):
            raise IndexError(f"record {position} of {len(self)} in {self.name}")
        file = bisect_right(self._starts, position) - 1
        return file, position - self._starts[file]


def require_record_file(path: Path) -> None:
    """Raise BadInput for the files beside a record file that are taken for it, and for a Git LFS pointer."""
    kind = {".lst": "a list", ".idx": "an index"}.get(path.suffix)
    if kind is not None:
        raise BadInput(f"{kind}, not a record file", where=path, expected="a .rec file")
    files.require_fetched(path)


def is_ours(path: Path) -> bool:
    """True where the first record's header has our tag: then all must."""
    with files.open_regular(path) as stream:
        head = stream.read(32)
    return len(head) == 32 and int.from_bytes(head[28:], "little") == recordio.CHECKED_TAG


def shard_index(folder: Path, shard: Shard) -> Index:
    """The index of a data set's record file. Raises Damaged where it cannot belong to the file."""
    if isinstance(shard, ForeignShard):
        return _read_samples(folder / shard.index_file, shard)
    return file_index(folder / shard.file, ours=True, size_bytes=shard.bytes)


def _read_samples(path: Path, shard: ForeignShard) -> Index:
    """The samples of a record file of another program: OFFSET BYTES CRC32C CLASS NUMBER NAME, tabs between."""
    try:
        with files.open_regular(path) as stream:
            if not stream.peek(1):
                raise ValueError("empty")
            # The number stands after what is used, so that a line cut within that is no line.
            table = np.loadtxt(
                stream, np.int64, comments=None, delimiter="\t", usecols=range(5), ndmin=2, encoding="utf-8"
            )
    except (OSError, ValueError, IndexError) as error:
        raise Damaged(f"cannot be read ({str(error)[:80]})", where=path, advice=REBUILD) from error
    starts, sizes, checksums, classes, _ = table.T
    ends = starts + sizes
    if len(table) != shard.records or (sizes <= 0).any() or (starts[1:] < ends[:-1]).any() or ends[-1] > shard.bytes:
        raise Damaged("the list of samples does not belong to these records", where=path, advice=REBUILD)
    return Index(np.arange(len(table)), starts, ends, classes, checksums)


def file_index(path: Path, ours: bool, size_bytes: int | None = None) -> Index:
    """The index of a record file of that size, from the `.idx` beside it if there is any, else from the frames.

    Raises Damaged (BadInput unless the file is `ours`) where the `.idx` cannot belong to the file, or the
    frames are not whole.
    """
    index = path.with_suffix(".idx")
    if not index.is_file():
        scanned, damage = _scanned(path)
        if damage is not None:
            raise _at(str(damage.where), damage, ours)
        return scanned
    keys, offsets = _read_index(index, ours)
    order = np.argsort(offsets, kind="stable")
    keys, edges = keys[order], np.append(offsets[order], path.stat().st_size if size_bytes is None else size_bytes)
    if edges[0] != 0 or (np.diff(edges) <= 0).any() or (edges % 4).any():
        raise _failure(ours)(
            "index does not belong to these records, or they were cut",
            where=index,
            advice="without the .idx a whole record file can be read, too",
        )
    return Index.of_edges(keys, edges)


def salvaged_index(path: Path) -> Index:
    """The index of a record file by its magic numbers, going on after damaged frames."""
    return _scanned(path)[0]


def _read_index(path: Path, ours: bool) -> tuple[Numbers, Numbers]:
    """Keys and offsets, int64 [n] each. The keys of others may be anything: rows 0..n-1 stand for them."""
    files.require_fetched(path)
    try:
        pairs = _plain_pairs(path)
    except ValueError:
        pairs = np.array([*_index_lines(path, ours)], np.int64).reshape(-1, 2)
    keys, offsets = pairs.T if ours else (np.arange(len(pairs)), pairs[:, 1])
    if not (np.diff(keys) > 0).all() and len(np.unique(keys)) < len(keys):
        raise Damaged("a key is given twice", where=path)
    return keys, offsets


def _plain_pairs(path: Path) -> Numbers:
    """Keys and offsets, int64 [n, 2]. Raises ValueError unless all are whole numbers."""
    return np.concatenate([np.empty((0, 2), np.int64), *recordio.number_columns(path, recordio.INDEX_COLUMNS)])


def _index_lines(path: Path, ours: bool) -> Iterator[tuple[int, int]]:
    """Yield key, or row, and offset of each line, whatever the key may be where the index is another's."""
    pattern = _OUR_INDEX_LINE if ours else _ANY_INDEX_LINE
    for row, line in enumerate(path.read_bytes().splitlines()):
        match = pattern.fullmatch(line)
        if match is None:
            where, found = f"{path}:{row + 1}", repr(line[:80])
            raise _failure(ours)("malformed line", where=where, expected="KEY TAB OFFSET", found=found)
        yield int(match[1]) if ours else row, int(match[2])


def _scanned(path: Path) -> tuple[Index, PipelineError | None]:
    """The index of a file found by walking its frames, and the first damage met."""
    size_bytes = path.stat().st_size
    offsets = array("q")
    damage = None
    if size_bytes:
        with files.open_regular(path) as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            offset = 0
            while offset < size_bytes:
                offsets.append(offset)
                try:
                    offset = recordio.skip_frame(buffer, offset)
                except Damaged as error:
                    where = f"{path}, record {len(offsets) - 1}, offset {offset}"
                    damage = damage or _at(where, error, ours=True)
                    offset = recordio.next_start(buffer, offset + 4)
    edges = np.append(np.frombuffer(offsets, np.int64), size_bytes)
    return Index.of_edges(np.arange(len(offsets)), edges), damage


def _at(where: str, error: PipelineError, ours: bool, advice: str | None = None) -> PipelineError:
    return _failure(ours)(error.what, where=where, expected=error.expected, found=error.found, advice=advice)


def _failure(ours: bool) -> type[BadInput] | type[Damaged]:
    return Damaged if ours else BadInput
