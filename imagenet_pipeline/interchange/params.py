"""MXNet's NDArray list files (`.params`), read and written without MXNet.

The layout, from apache/mxnet's src/ndarray/ndarray.cc and include/mxnet/tuple.h; every number little-endian:

    list    u64 0x112   u64 reserved   u64 count, arrays   u64 count (0 where there are no names), names
    name    u64 length, bytes
    array   u32 word    shape   i32 device kind   i32 device number   i32 type   the numbers, last axis fastest

The word tells the form. V2 and V3 (NumPy shapes: no axes is a single number) have an i32 storage kind after it, and
V1 and later write a shape as i32 axes, i64 each; before V1 the word itself is the number of axes, u32 each.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput

AnyArray = npt.NDArray[Any]

LIST_MAGIC = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DENSE = 0
BFLOAT16 = 12
TYPES = {
    0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8", 7: "?", 8: "<i2", 9: "<u2", 10: "<u4",
    11: "<u8",
}  # fmt: skip
"""MXNet's number of each type (3rdparty/mshadow/mshadow/base.h). 7 to 12 came after 1.5."""
MOST_AXES = 32
MOST_NUMBERS = 2**62
"""Largest element count of an array, counted with at least 1 for every axis."""
SMALLEST_ARRAY = 20
"""Bytes of an array in the oldest form, before its numbers."""
LONGEST_NAME = 4096
MOST_ARRAYS = 100_000


def read_params(path: Path) -> dict[str, AnyArray]:
    """Every array of a file by name, in the file's order; by "0", "1", ... where the file has no names.

    Arrays keep their type, but bfloat16 becomes float32, of the same value. Nothing is allocated that the rest
    of the file could not fill. Raises BadInput for a file that is no such list, is damaged or cut short, names an
    array twice or by what cannot be printed, or holds a sparse or an empty array.
    """
    with files.regular_file(path) as (stream, size):
        return read_list(stream, size, path)


def read_list(stream: BinaryIO, size: int, where: object) -> dict[str, AnyArray]:
    """`read_params` from an open stream of `size` bytes."""
    reader = _Reader(stream, size, where)
    if reader.number("Q") != LIST_MAGIC:
        raise BadInput("not an MXNet .params file", where=where, expected=f"{LIST_MAGIC:#x} as its first number")
    reader.number("Q")
    arrays = [reader.array(number) for number in range(reader.count(SMALLEST_ARRAY, "arrays"))]
    names = [reader.name() for _ in range(reader.count(8, "names"))] or [str(number) for number in range(len(arrays))]
    if reader.left:
        raise BadInput("bytes follow the end of the list", where=where, found=f"{reader.left:,} of them")
    if len(names) != len(arrays):
        raise BadInput("the file does not name each array", where=where, expected=len(arrays), found=len(names))
    by_name = dict(zip(names, arrays, strict=True))
    if len(by_name) < len(names):
        raise BadInput("two arrays have the same name", where=where, found=repr(_first_repeated(names)))
    return by_name


def read_array(content: bytes, where: object) -> AnyArray:
    """An array that MXNet saved by itself, as its pickles hold them. Raises BadInput as `read_params` does."""
    reader = _Reader(io.BytesIO(content), len(content), where)
    array = reader.array(0)
    if reader.left:
        raise BadInput("bytes follow the end of the array", where=where, found=f"{reader.left:,} of them")
    return array


def write_params(path: Path, arrays: Mapping[str, AnyArray]) -> None:
    """Write arrays with their names in the form MXNet 1.0 and later read (V2), whole or not at all.

    Raises OutOfRoom when the disk is full, and ValueError for a type or a shape () that this form cannot hold.
    """
    with files.whole_file(path) as stream:
        write_list(stream, arrays)


def write_list(stream: BinaryIO, arrays: Mapping[str, AnyArray]) -> None:
    """`write_params` into an open stream."""
    stream.write(struct.pack("<QQQ", LIST_MAGIC, 0, len(arrays)))
    for name, array in arrays.items():
        kind = _type_number(array, name)
        stream.write(struct.pack(f"<Iii{array.ndim}q", V2, DENSE, array.ndim, *array.shape))
        stream.write(struct.pack("<iii", 1, 0, kind))
        stream.write(np.ascontiguousarray(array, TYPES[kind]).tobytes())
    stream.write(struct.pack("<Q", len(arrays)))
    for name in arrays:
        encoded = name.encode()
        stream.write(struct.pack("<Q", len(encoded)) + encoded)


def finite_float32(array: AnyArray, where: object) -> npt.NDArray[np.float32]:
    """The numbers as float32, last axis fastest. Raises BadInput where they are no reals, or not finite then."""
    if array.dtype.kind != "f":
        raise BadInput("the array holds no floating-point numbers", where=where, found=array.dtype)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(values).all():
        raise BadInput("holds numbers that are not finite", where=where)
    return values


class _Reader:
    """Takes a stream apart, never asking for more than is left of it."""

    def __init__(self, stream: BinaryIO, size: int, where: object) -> None:
        self._stream = stream
        self.left = size
        self._where = where

    def number(self, form: str) -> int:
        value: int = struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))[0]
        return value

    def count(self, smallest: int, what: str) -> int:
        """A number of things of at least `smallest` bytes each."""
        count = self.number("Q")
        if count * smallest > self.left or count > MOST_ARRAYS:
            raise self._bad(f"the file declares more {what} than it has room for", found=f"{count:,}")
        return count

    def name(self) -> str:
        length = self.number("Q")
        if length > LONGEST_NAME:
            raise self._bad("a name is too long", expected=f"at most {LONGEST_NAME} bytes", found=f"{length:,}")
        try:
            name = self._bytes(length).decode()
        except UnicodeDecodeError:
            raise self._bad("an array's name is not UTF-8") from None
        if not name.isprintable():
            raise self._bad("an array's name cannot be printed", found=ascii(name[:80]))
        return name

    def array(self, number: int) -> AnyArray:
        word = self.number("I")
        if word in (V2, V3) and (storage := self.number("i")) != DENSE:
            raise self._bad(f"array {number} is not stored dense", expected="storage kind 0", found=storage)
        shape = self._shape(number, word)
        if not shape and word != V3:
            raise self._bad(f"array {number} was saved before it had any values")
        self._bytes(8)  # the device it was on
        kind = self.number("i")
        if kind != BFLOAT16 and kind not in TYPES:
            raise self._bad(f"array {number} has an unknown number type", expected="0 to 12", found=kind)
        return self._values(number, shape, kind)

    def _shape(self, number: int, word: int) -> tuple[int, ...]:
        axes = self.number("i") if word in (V1, V2, V3) else word
        if not 0 <= axes <= MOST_AXES:
            raise self._bad(f"array {number} has an impossible shape", expected=f"0 to {MOST_AXES} axes", found=axes)
        form = f"<{axes}q" if word in (V1, V2, V3) else f"<{axes}I"
        shape: tuple[int, ...] = struct.unpack(form, self._bytes(struct.calcsize(form)))
        if min(shape, default=0) < 0 or math.prod(max(1, length) for length in shape) > MOST_NUMBERS // 8:
            raise self._bad(f"array {number} has an impossible shape", found=shape)
        return shape

    def _values(self, number: int, shape: tuple[int, ...], kind: int) -> AnyArray:
        stored = np.dtype("<u2" if kind == BFLOAT16 else TYPES[kind])
        needed = math.prod(shape) * stored.itemsize
        if needed > self.left:
            found = f"shape {shape} ({needed:,} bytes) with {self.left:,} left"
            raise self._bad(f"array {number} is larger than the rest of the file", found=found)
        values = np.frombuffer(self._bytes(needed), stored)
        if kind == BFLOAT16:
            values = (values.astype("<u4") << 16).view("<f4")
        elif stored == np.bool_:
            values = values.view(np.uint8) != 0
        return values.reshape(shape)

    def _bytes(self, count: int) -> bytearray:
        if count > self.left:
            raise self._bad("the file ends before its list does", advice="copy or download it again")
        content = bytearray(count)
        view, filled = memoryview(content), 0
        while filled < count:
            got = self._stream.readinto(view[filled:])  # type: ignore[attr-defined]
            if not got:
                raise self._bad("the file became shorter while it was read")
            filled += got
        self.left -= count
        return content

    def _bad(self, what: str, **details: Any) -> BadInput:
        return BadInput(what, where=self._where, **details)


def _type_number(array: AnyArray, name: str) -> int:
    wanted = array.dtype.newbyteorder("<")
    kind = next((number for number, dtype in TYPES.items() if np.dtype(dtype) == wanted), None)
    if kind is None or array.ndim == 0:
        raise ValueError(f"a .params file cannot hold {name}: {array.dtype} {array.shape}")
    return kind


def _first_repeated(names: list[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
