"""NumPy's archives of arrays (`.npz`), which MXNet 2 saves parameters in; no pickle in them is ever opened."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.params import MOST_ARRAYS, MOST_AXES, AnyArray

ENDING = ".npy"
MOST_EXPANSION = 16
"""Bytes unpacked for each byte of the file; weights hardly become smaller when they are packed."""
LONGEST_HEADER = 4096
_KINDS = "fiub"
_BROKEN = (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
           SyntaxError, TypeError, RecursionError, MemoryError)  # fmt: skip


def is_npz(path: Path) -> bool:
    """True for a zip archive with an array of NumPy's in it."""
    with files.regular_file(path) as (stream, _):
        try:
            with zipfile.ZipFile(stream) as archive:
                return any(name.endswith(ENDING) for name in archive.namelist())
        except _BROKEN:
            return False


def read_npz(path: Path) -> dict[str, AnyArray]:
    """Every array of an archive by name, in the archive's order.

    Raises BadInput for a file that is no such archive, is damaged, unpacks to more than 16 times its size, or holds
    something else than arrays of numbers.
    """
    with files.regular_file(path) as (stream, size):
        try:
            with zipfile.ZipFile(stream) as archive:
                return _arrays(archive, size, path)
        except _BROKEN as error:
            reason = ascii(str(error))[1:-1][:200]
            raise BadInput(f"the archive is damaged ({reason})", where=path, expected="NumPy's .npz") from None


def _arrays(archive: zipfile.ZipFile, size: int, path: Path) -> dict[str, AnyArray]:
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if len(members) > MOST_ARRAYS or unpacked > MOST_EXPANSION * size:
        expected = f"at most {MOST_ARRAYS:,} arrays, unpacked {MOST_EXPANSION} times the file's {size:,} bytes"
        found = f"{len(members):,} arrays of {unpacked:,} bytes"
        raise BadInput("the archive declares more than it can hold", where=path, expected=expected, found=found)
    arrays: dict[str, AnyArray] = {}
    for member in members:
        name = member.filename.removesuffix(ENDING)
        if name in arrays:
            raise BadInput("two arrays have the same name", where=path, found=ascii(name[:80]))
        if name == member.filename or not name.isprintable():
            what, found = "the archive holds something else than arrays", ascii(member.filename[:80])
            raise BadInput(what, where=path, expected=f"names that end in {ENDING}", found=found)
        with archive.open(member) as stream:
            arrays[name] = _array(stream, member.file_size, f"{path}: {name[:80]!r}")
    return arrays


def _array(stream: IO[bytes], size: int, where: str) -> AnyArray:
    shape, is_reversed, kind, header = _header(stream)
    if kind.kind not in _KINDS or len(shape) > MOST_AXES or min(shape, default=1) < 0:
        expected = "numbers, no objects"
        raise BadInput("the array holds no numbers", where=where, expected=expected, found=f"{kind} {shape}"[:80])
    needed = math.prod(shape) * kind.itemsize
    if needed != size - header:
        what, found = "the array's size is not that of its shape", f"{size - header:,} bytes"
        raise BadInput(what, where=where, expected=f"{needed:,} bytes for {shape}"[:200], found=found)
    content = stream.read()
    if len(content) != needed:
        raise BadInput("the array is cut short", where=where, expected=f"{needed:,} bytes", found=f"{len(content):,}")
    numbers = np.frombuffer(content, kind)
    return numbers.reshape(shape[::-1]).T if is_reversed else numbers.reshape(shape)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether the first axis is the fastest, type, and the bytes that said so. Raises ValueError."""
    version = npy.read_magic(stream)  # type: ignore[no-untyped-call]
    forms: dict[tuple[int, int], Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    read = forms.get(version)
    if read is None:
        raise ValueError(f"version {version} of NumPy's format")
    shape, is_reversed, kind = read(stream, LONGEST_HEADER)
    return shape, is_reversed, kind, stream.tell()
