"""The `.lst` text lists of im2rec: index TAB label (TAB label ...) TAB relative path."""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput

if TYPE_CHECKING:
    from imagenet_pipeline.records.manifest import DataSet

LINE_LIMIT_BYTES = 4096


@dataclass(frozen=True)
class Row:
    """One line of a list."""

    index: int
    labels: tuple[float, ...]
    path: str
    line: int = field(default=0, compare=False)
    """Its line in the file, from 1."""


def read_list(path: Path) -> list[Row]:
    """Read a list with any number of labels; columns are separated by tabs, stray blanks allowed as in im2rec.

    Raises BadInput naming the line that is malformed.
    """
    with files.regular_file(path) as (stream, _):
        content = stream.read().removeprefix(BOM_UTF8)
    if files.is_pointer(content):
        raise BadInput(files.POINTER, where=path, advice=files.POINTER_ADVICE)
    lines = content.split(b"\n")
    return [_row(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def photos_of(data: DataSet, split: str) -> Iterator[tuple[int, str, Path]]:
    """The number of each record of a split, its photo's name, empty where nobody said it, and the file that says so.

    Raises BadInput for a lone record file, which names no photo.
    """
    if data.samples is not None:
        raise BadInput("a record file names no photos", where=data.folder, advice="build records --list names them")
    if data.manifest.labels is None:  # records of ours
        path = data.folder / f"{split}.lst"
        yield from ((row.index, row.path, path) for row in read_list(path))
        return
    for shard in data.manifest.splits[split].shards:
        path = data.folder / shard.index_file
        for line in files.read_regular(path).decode().splitlines():
            *_, number, name = line.split("\t")
            yield int(number), name, path


def require_no_backslashes(names: Iterable[str], root: Path, where: Path) -> None:
    """Raise BadInput at a path with backslashes, as Windows writes them, where no such file is in `root`."""
    name = next((name for name in names if "\\" in name), None)
    if name is not None and not os.path.lexists(os.path.join(root, name)):
        raise BadInput(
            "the path has backslashes", where=where, found=name, expected="a/b.jpg", advice=r"write / for every \ there"
        )


def write_list(path: Path, indices: Iterable[int], labels: Iterable[int], paths: Sequence[str]) -> None:
    """Write a list of single whole-number labels."""
    rows = zip(indices, labels, paths, strict=True)
    content = "".join([f"{index}\t{label}\t{name}\n" for index, label, name in rows])
    files.write_whole(path, content)


def _row(line: bytes, path: Path, number: int) -> Row:
    where = f"{path}:{number}"
    if len(line) > LINE_LIMIT_BYTES:
        raise BadInput("the line is too long", where=where, expected=f"<= {LINE_LIMIT_BYTES} bytes", found=len(line))
    try:
        first, *labels, name = line.decode().rstrip("\r").split("\t")
        row = Row(int(first), tuple(map(float, labels)), name.strip(), number)
    except ValueError:
        row = Row(-1, (), "")
    if row.index < 0 or not row.labels or not row.path or "\0" in row.path:
        raise BadInput(
            "the line is malformed", where=where, expected="index TAB label(s) TAB path", found=repr(line[:80])
        )
    return row
