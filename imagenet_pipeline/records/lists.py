"""The `.lst` text lists of im2rec: index TAB label (TAB label ...) TAB relative path."""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput

if TYPE_CHECKING:
    from imagenet_pipeline.records.manifest import DataSet

LINE_LIMIT_BYTES, VECTOR_LINE_LIMIT_BYTES = 4096, 2**22
"""Bytes of a line with a single label, and of any line: of a vector each number has a column."""
PATH_LIMIT_BYTES = 4000
COLUMNS = 3
"""Number, label and path, of a list with one label each."""


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
    return [*rows_of(path)]


def rows_of(path: Path) -> Iterator[Row]:
    """Yield the lines of a list as they are read; raises as `read_list`."""
    with files.regular_file(path) as (stream, _):
        for number, line in enumerate(iter(lambda: stream.readline(VECTOR_LINE_LIMIT_BYTES + 1), b""), 1):
            if number == 1:
                line = line.removeprefix(BOM_UTF8)
                if files.is_pointer(line):
                    raise BadInput(files.POINTER, where=path, advice=files.POINTER_ADVICE)
            if line.strip():
                yield _row(line.removesuffix(b"\n"), path, number)


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


def path_inside(name: str, root: Path, where: object) -> str:
    """The path relative to the root. Symbolic links are looked at when the file is read.

    Raises BadInput for one that leads outside.
    """
    inside = os.path.join(os.path.abspath(root), "")
    full = os.path.normpath(os.path.join(inside, name))
    if full == inside or not full.startswith(inside):
        raise BadInput("the path leads outside the root folder", where=where, found=name)
    return full.removeprefix(inside)


Label = int | Sequence[float]
"""The number of a class, or the labels of a vector, each a float32."""


def write_list(path: Path, indices: Iterable[int], labels: Iterable[Label], paths: Sequence[str]) -> None:
    """Write a list of single whole-number labels, or of vectors."""
    rows = zip(indices, labels, paths, strict=True)
    content = "".join([f"{index}\t{_columns(label)}\t{name}\n" for index, label, name in rows])
    files.write_whole(path, content)


def _columns(label: Label) -> str:
    """A label as it stands in a line; of a float32 the fewest digits that mean it."""
    if isinstance(label, int):
        return str(label)
    return "\t".join(f"{int(value)}" if value in (0, 1) else str(np.float32(value)) for value in label)


def _row(line: bytes, path: Path, number: int) -> Row:
    limit_bytes = LINE_LIMIT_BYTES if line.count(b"\t") < COLUMNS else VECTOR_LINE_LIMIT_BYTES
    if len(line) > limit_bytes:
        expected = f"<= {limit_bytes} bytes"
        raise BadInput("the line is too long", where=f"{path}:{number}", expected=expected, found=len(line))
    try:
        first, *labels, name = line.decode().rstrip("\r").split("\t")
        row = Row(int(first), tuple(map(float, labels)), name.strip(), number)
    except ValueError:
        row = Row(-1, (), "")
    if row.index < 0 or not row.labels or not row.path or "\0" in row.path:
        expected = "index TAB label(s) TAB path"
        raise BadInput("the line is malformed", where=f"{path}:{number}", expected=expected, found=repr(line[:80]))
    return row
