"""A table in a MATLAB file of version 5: a struct array whose fields are numbers or texts, read without SciPy.

`scipy.io.loadmat` ends the process (SIGSEGV) at some damaged files. Format: MathWorks, "MAT-File Format",
level 5: elements of a type, a length and that many bytes, padded to 8; arrays are elements of elements.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

Value = float | str | None
"""A number, a text, or None for whatever else a field may hold."""

HEADER_BYTES = 128
UNPACKED_LIMIT_BYTES = 2**24

_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_MATRIX, _COMPRESSED = 14, 15
_STRUCT_CLASS, _TEXT_CLASS = 2, 4
_NUMBER_CLASSES = range(6, 16)

Element = tuple[int, memoryview]
"""The type of an element and its bytes."""


def read_table(content: bytes, name: str) -> tuple[list[str], list[dict[str, Value]]]:
    """The fields and the rows of the struct array called `name`. Raises ValueError, struct.error or zlib.error."""
    if content[126:128] != b"IM" or content[124:126] != b"\0\1":
        raise ValueError("not a MATLAB file of version 5, little-endian")
    for kind, data in _elements(memoryview(content)[HEADER_BYTES:]):
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(data, UNPACKED_LIMIT_BYTES)
            kind, data = next(_elements(memoryview(unpacked)), (0, data))
        if kind == _MATRIX:
            array_class, dimensions, found, parts = _array(data)
            if found == name and array_class == _STRUCT_CLASS:
                return _rows(dimensions, parts)
    raise ValueError(f"no struct array {name!r} here")


def _rows(dimensions: list[int], parts: Iterator[Element]) -> tuple[list[str], list[dict[str, Value]]]:
    width = struct.unpack("<i", _next(parts)[:4])[0]
    names = bytes(_next(parts))
    if width < 1:
        raise ValueError("fields without names")
    fields = [names[at : at + width].split(b"\0")[0].decode("ascii") for at in range(0, len(names), width)]
    rows = math.prod(dimensions)
    if not fields or not 0 <= rows <= UNPACKED_LIMIT_BYTES:
        raise ValueError(f"{rows} rows of {len(fields)} fields")
    table = []
    for _ in range(rows):  # a row that is not there ends it
        table.append({field: _value(_next(parts, _MATRIX)) for field in fields})
    return fields, table


def _value(data: memoryview) -> Value:
    if not data:
        return None
    array_class, dimensions, _, parts = _array(data)
    if array_class == _TEXT_CLASS:
        kind, content = next(parts, (1, memoryview(b"")))
        return bytes(content).decode(_TEXTS.get(kind, "ascii"))
    if array_class in _NUMBER_CLASSES and math.prod(dimensions) == 1:
        kind, content = next(parts, (0, data))
        if kind not in _NUMBERS:
            raise ValueError(f"a number of type {kind}")
        return float(np.frombuffer(content, _NUMBERS[kind], 1)[0])
    return None


def _array(data: memoryview) -> tuple[int, list[int], str, Iterator[Element]]:
    """Class, dimensions and name of an array, and the elements of what it holds."""
    parts = _elements(data)
    flags, dimensions, name = _next(parts), _next(parts), _next(parts)
    if not flags or len(dimensions) % 4:
        raise ValueError("an array without class or dimensions")
    return (
        flags[0],
        [length for (length,) in struct.iter_unpack("<i", dimensions)],
        bytes(name).decode("latin-1"),
        parts,
    )


def _next(parts: Iterator[Element], kind: int | None = None) -> memoryview:
    found, data = next(parts, (0, None))
    if data is None or (kind is not None and found != kind):
        raise ValueError("an array is cut")
    return data


def _elements(data: memoryview) -> Iterator[Element]:
    """The elements that fill some bytes; those of at most four bytes are stored within their own tag."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        start, end = at + 8, at + 8 + size
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = at + 4, at + 4 + size
            if size > 4:
                raise ValueError("a small element is too large")
        if end > len(data):
            raise ValueError(f"an element of {size:,} bytes is cut")
        yield kind, data[start:end]
        at = end if kind == _COMPRESSED else at + 8 if start == at + 4 else start + -(-size // 8) * 8
