"""Random access to the records of a split, safe to share between threads.

Records are fetched with `pread`: unlike a memory map it lets other threads run while the disk works, and a
file cut short by someone else is an error instead of a SIGBUS.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged, PipelineError
from imagenet_pipeline.records import recordio
from imagenet_pipeline.records.manifest import REBUILD, Manifest, no_split
from imagenet_pipeline.records.recordio import ImageRecord

Numbers = NDArray[np.int64]
Index = tuple[Numbers, Numbers]  # keys [n] and frame edges [n + 1] in bytes, both in file order

_OUR_INDEX_LINE = re.compile(rb"(\d{1,18})\t(\d{1,18})")
_ANY_INDEX_LINE = re.compile(rb"([^\t]*)\t(\d{1,18})\s*")


class RecordSet:
    """The records of `.rec` files, by position 0..len-1 in file order."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        checked: bool = False,
        numbered: bool = False,
        indices: Sequence[Index] | None = None,
    ) -> None:
        """Use `RecordSet.open`.

        `checked`: the files are ours, every record must carry a checksum; `numbered`: and the number its
        index says. `indices` stand in for the `.idx` files.
        """
        self.name = name
        self.files = list(paths)
        self._checked, self._numbered = checked, numbered
        known = [file_index(path, checked) for path in paths] if indices is None else indices
        self._keys = [keys for keys, _ in known]
        self._edges = [edges for _, edges in known]
        self._starts = np.cumsum([0, *(len(keys) for keys in self._keys)])
        self._descriptors: list[int] = []
        try:
            self._descriptors.extend(os.open(path, files.READING) for path in paths)
        except OSError as error:
            self.close()
            raise Damaged(f"cannot be read ({error.strerror})", where=error.filename) from error

    @classmethod
    def open(cls, path: Path, split: str | None = None) -> RecordSet:
        """Open a split of a data set folder, or a `.rec` file (ours or another's, with or without `.idx`).

        Raises BadInput where there is no such thing, BadRecipe for a split there is not, Damaged where files
        are missing or cut (BadInput where the file is another's).
        """
        path = Path(path)
        if os.path.isfile(path):
            require_record_file(path)
            return cls(path.name, [path], checked=is_ours(path))
        if not os.path.isdir(path):
            raise BadInput("no such data set or record file", where=path)
        splits = Manifest.read(path).splits
        if split is None or split not in splits:
            raise no_split(path, split, splits)
        for shard in splits[split].shards:
            shard.require_size(path)
        paths = [path / shard.file for shard in splits[split].shards]
        records = cls(f"{path}:{split}", paths, checked=True, numbered=True)
        if len(records) != (count := splits[split].records):
            records.close()
            raise Damaged(
                "the index has another number of records",
                where=path,
                expected=count,
                found=len(records),
                advice=REBUILD,
            )
        return records

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, position: int) -> ImageRecord:
        """Fetch and check a record. Raises Damaged (BadInput if another's) naming file, record and offset."""
        file, row = self._locate(position)
        start, end = (int(edge) for edge in self._edges[file][row : row + 2])
        try:
            return self._read(file, row, start, end)
        except Damaged as error:
            where = f"{self.files[file]}, record {row}, offset {start}"
            raise _at(where, error, self._checked, REBUILD if self._numbered else None) from error

    def location(self, position: int) -> tuple[Path, int, int]:
        """Locate a record: (file, key in its index, or row where that is another's, offset in bytes)."""
        file, row = self._locate(position)
        return self.files[file], int(self._keys[file][row]), int(self._edges[file][row])

    def first_labels(self) -> NDArray[np.float32]:
        """The first label of every record, float32 [len], from the headers alone (no checksum is read)."""
        labels = np.zeros(len(self), np.float32)
        for position in range(len(self)):
            file, row = self._locate(position)
            head = files.read_at(self._descriptors[file], 36, int(self._edges[file][row]))
            flag, label = struct.unpack_from("<If", head.ljust(36, b"\0"), 8)
            labels[position] = struct.unpack_from("<f", head, 32)[0] if flag and len(head) == 36 else label
        return labels

    def numbers(self) -> list[int]:
        """The number of every record, from the headers alone (no checksum is read)."""
        numbers: list[int] = []
        for position in range(len(self)):
            file, _ = self._locate(position)
            head = files.read_at(self._descriptors[file], 24, self.location(position)[2])
            numbers += struct.unpack_from("<Q", head.ljust(24, b"\0"), 16)
        return numbers

    def image_head(self, position: int, limit_bytes: int) -> tuple[bytes, int]:
        """Read the first bytes of a record's image, and their number in all, by a short read (no checksum is read).

        Of a record that is split because it holds the magic number, the whole image. Raises as `read`.
        """
        file, row = self._locate(position)
        framed = files.read_at(self._descriptors[file], limit_bytes, int(self._edges[file][row]))
        head = recordio.whole_frame_head(framed)
        if head is None:
            image = self.read(position).image
            return image, len(image)
        start, end = head
        return framed[start:end], end - start

    def close(self) -> None:
        """Close the files; reading is over."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> RecordSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, file: int, row: int, start: int, end: int) -> ImageRecord:
        try:
            framed = files.read_at(self._descriptors[file], end - start, start)
        except OSError as error:
            raise Damaged(f"cannot be read ({error.strerror})") from error
        data, length = recordio.read_frame(framed)
        if length != end - start:
            raise Damaged(
                "the record and the index differ in length", expected=f"{end - start} bytes", found=f"{length}"
            )
        record = recordio.unpack(data)
        if self._checked and not record.checked:
            raise Damaged("the record has no checksum")
        if self._numbered and record.number != self._keys[file][row]:
            raise Damaged(
                "the record has another number than the index", expected=int(self._keys[file][row]), found=record.number
            )
        return record

    def _locate(self, position: int) -> tuple[int, int]:
        if not 0 <= position < len(self):
            raise IndexError(f"record {position} of {len(self)} in {self.name}")
        file = int(np.searchsorted(self._starts, position, side="right")) - 1
        return file, position - int(self._starts[file])


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


def file_index(path: Path, ours: bool) -> Index:
    """The index of a record file, from the `.idx` beside it if there is any, else from the frames.

    Raises Damaged (BadInput unless the file is `ours`) where the `.idx` cannot belong to the file, or the
    frames are not whole.
    """
    index = path.with_suffix(".idx")
    if not index.is_file():
        keys_and_edges, damage = _scanned(path)
        if damage is not None:
            raise _at(str(damage.where), damage, ours)
        return keys_and_edges
    size_bytes = path.stat().st_size
    keys, offsets = _read_index(index, ours)
    order = np.argsort(offsets, kind="stable")
    keys, edges = keys[order], np.append(offsets[order], size_bytes)
    if edges[0] != 0 or (np.diff(edges) <= 0).any() or (edges % 4).any():
        raise _failure(ours)(
            "index does not belong to these records, or they were cut",
            where=index,
            advice="without the .idx a whole record file can be read, too",
        )
    return keys, edges


def written_keys(path: Path) -> list[int] | None:
    """The keys in the `.idx` beside a record file, in the order of its records; None unless all are whole numbers."""
    lines = path.with_suffix(".idx").read_bytes().splitlines()
    found = [match for line in lines if (match := _OUR_INDEX_LINE.fullmatch(line))]
    pairs = sorted((int(match[2]), int(match[1])) for match in found)
    return [key for _, key in pairs] if len(found) == len(lines) else None


def salvaged_index(path: Path) -> Index:
    """The index of a record file by its magic numbers, going on after damaged frames."""
    return _scanned(path)[0]


def _read_index(path: Path, ours: bool) -> tuple[Numbers, Numbers]:
    """Keys and offsets, int64 [n] each. The keys of others may be anything: rows 0..n-1 stand for them."""
    files.require_fetched(path)
    pattern = _OUR_INDEX_LINE if ours else _ANY_INDEX_LINE
    keys, offsets = [], []
    for row, line in enumerate(path.read_bytes().splitlines()):
        match = pattern.fullmatch(line)
        if match is None:
            where, found = f"{path}:{row + 1}", repr(line[:80])
            raise _failure(ours)("malformed line", where=where, expected="KEY TAB OFFSET", found=found)
        keys.append(int(match[1]) if ours else row)
        offsets.append(int(match[2]))
    if len(set(keys)) < len(keys):
        raise Damaged("a key is given twice", where=path)
    return np.array(keys, np.int64), np.array(offsets, np.int64)


def _scanned(path: Path) -> tuple[Index, PipelineError | None]:
    """The index of a file found by walking its frames, and the first damage met."""
    size_bytes = path.stat().st_size
    offsets: list[int] = []
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
    return (np.arange(len(offsets)), np.array([*offsets, size_bytes], np.int64)), damage


def _at(where: str, error: PipelineError, ours: bool, advice: str | None = None) -> PipelineError:
    return _failure(ours)(error.what, where=where, expected=error.expected, found=error.found, advice=advice)


def _failure(ours: bool) -> type[BadInput] | type[Damaged]:
    return Damaged if ours else BadInput
