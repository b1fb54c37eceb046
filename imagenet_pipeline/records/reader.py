"""Random access to the records of one split, safe to share between threads.

Records are fetched with `pread`: unlike a memory map it lets other threads run while the disk works, and a
file cut short by someone else is an error instead of a SIGBUS.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput, Damaged, PipelineError
from imagenet_pipeline.records import recordio
from imagenet_pipeline.records.manifest import Manifest
from imagenet_pipeline.records.recordio import ImageRecord

Offsets = NDArray[np.int64]


class RecordSet:
    """The records of one or many `.rec` files, by position 0..len-1 in file order."""

    def __init__(self, name: str, paths: Sequence[Path], ours: bool) -> None:
        """Use `RecordSet.open`. `ours`: every record must carry a checksum and the number its index says."""
        self.name = name
        self.files = list(paths)
        self._ours = ours
        self._descriptors: list[int] = []
        try:
            self._descriptors.extend(os.open(path, os.O_RDONLY) for path in paths)
            indices = [_index(path) for path in paths]
        except OSError as error:
            self.close()
            raise Damaged(f"cannot be read ({error.strerror})", where=error.filename) from error
        except PipelineError:
            self.close()
            raise
        self._keys = [keys for keys, _ in indices]
        self._edges = [edges for _, edges in indices]
        self._starts = np.cumsum([0, *(len(keys) for keys in self._keys)])

    @classmethod
    def open(cls, path: Path, split: str | None = None) -> RecordSet:
        """Open one split of a data set folder, or a `.rec` file (ours or another's, with or without `.idx`).

        Raises BadInput where there is no such thing, Damaged where files are missing or cut.
        """
        path = Path(path)
        if not path.is_dir():
            if not path.is_file():
                raise BadInput("no such data set or record file", where=path)
            return cls(path.name, [path], ours=_starts_checked(path))
        splits = Manifest.read(path).splits
        if split is None or split not in splits:
            raise BadInput("no such split", where=path, expected=" or ".join(splits), found=split)
        for shard in splits[split].shards:
            found = (path / shard.file).stat().st_size if (path / shard.file).is_file() else "nothing"
            if found != shard.bytes:
                raise Damaged("record file cut", where=path / shard.file, expected=shard.bytes, found=found)
        records = cls(f"{path}:{split}", [path / shard.file for shard in splits[split].shards], ours=True)
        if len(records) != splits[split].records:
            records.close()
            raise Damaged("index has another count", where=path, expected=splits[split].records, found=len(records))
        return records

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, position: int) -> ImageRecord:
        """Fetch and check one record. Raises Damaged naming file, record and offset."""
        file, row = self._locate(position)
        start, end = (int(edge) for edge in self._edges[file][row : row + 2])
        try:
            data, _ = recordio.read_frame(os.pread(self._descriptors[file], end - start, start))
            record = recordio.unpack(data)
            if self._ours and not record.checked:
                raise Damaged("checksum missing")
            if self._ours and record.number != self._keys[file][row]:
                raise Damaged("another record", expected=int(self._keys[file][row]), found=record.number)
        except Damaged as error:
            where = f"{self.files[file]}, record {position}, offset {start}"
            raise Damaged(error.what, where=where, expected=error.expected, found=error.found) from error
        return record

    def place(self, position: int) -> tuple[Path, int, int]:
        """Where a record lies: (file, key in its index, offset)."""
        file, row = self._locate(position)
        return self.files[file], int(self._keys[file][row]), int(self._edges[file][row])

    def close(self) -> None:
        """Close the files; reading is over."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> RecordSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _locate(self, position: int) -> tuple[int, int]:
        if not 0 <= position < len(self):
            raise IndexError(f"record {position} of {len(self)} in {self.name}")
        file = int(np.searchsorted(self._starts, position, side="right")) - 1
        return file, position - int(self._starts[file])


def _index(path: Path) -> tuple[Offsets, Offsets]:
    """(keys [n], frame edges [n + 1]) in file order, from the `.idx` if there is one, else from the frames."""
    index = path.with_suffix(".idx")
    size_bytes = path.stat().st_size
    if size_bytes % 4:
        raise Damaged("record file cut", where=path, expected="a multiple of 4 bytes", found=f"{size_bytes:,}")
    if index.is_file():
        keys, offsets = read_index(index)
    else:
        offsets = scan_offsets(path)
        keys = np.arange(len(offsets))
    order = np.argsort(offsets, kind="stable")
    keys, offsets = keys[order], offsets[order]
    edges = np.append(offsets, size_bytes)
    if len(offsets) and (offsets[0] != 0 or (np.diff(edges) <= 0).any() or (offsets % 4).any()):
        raise Damaged("index does not belong to these records", where=index, advice="delete a foreign .idx to scan")
    return keys, edges


def read_index(path: Path) -> tuple[Offsets, Offsets]:
    """(keys, offsets) of an `.idx` file, as they stand. Raises Damaged where it is not two columns of numbers."""
    try:
        table = np.array([int(number) for number in path.read_bytes().split()], np.int64).reshape(-1, 2)
    except (ValueError, OverflowError) as error:
        raise Damaged("index is not lines of KEY TAB OFFSET", where=path) from error
    return table[:, 0], table[:, 1]


def scan_offsets(path: Path) -> Offsets:
    """The offset of every record of a file that has no index. Raises Damaged where frames are not whole."""
    if path.stat().st_size == 0:
        return np.empty(0, np.int64)
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        offsets, offset = [], 0
        view = memoryview(buffer)
        try:
            while offset < len(view):
                offsets.append(offset)
                offset = recordio.skip_frame(view, offset)
        except Damaged as error:
            raise Damaged(error.what, where=f"{path}, record {len(offsets) - 1}, offset {offset}") from error
        finally:
            view.release()
    return np.array(offsets, np.int64)


def _starts_checked(path: Path) -> bool:
    """Whether the first record's header has our tag: then all must."""
    with open(path, "rb") as stream:
        head = stream.read(32)
    return len(head) == 32 and int.from_bytes(head[28:], "little") == recordio.CHECKED_TAG
