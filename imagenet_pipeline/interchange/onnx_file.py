"""ONNX files as read: nodes checked to be in order, arrays bounded by the file, nothing outside its folder opened."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.interchange.params import MOST_AXES, AnyArray

LARGEST_BYTES = 2**31
"""A protocol buffer ends there."""
MOST_NODES = 20_000
MOST_NAMES = 1_000
LONGEST_NAME = 4096
_TYPES = {
    1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8", 12: "<u4",
    13: "<u8", 16: "<u2",
}  # fmt: skip
"""ONNX's number of each type of array that a classifier may hold (onnx.proto's DataType)."""
_BFLOAT16, _BOOL = 16, 9
EXTERNAL = 1
_SMALLEST = 2
"""Bytes of a number, of half precision."""
MOST_COPIES = 16
"""Times that data beside the file may be read, where arrays share it."""
ABSENT = ""


def import_onnx_package() -> Any:
    """The onnx package. Raises BadRecipe where it is missing."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        advice = "pip install 'imagenet-pipeline[onnx]'"
        raise BadRecipe(f"the onnx package is not installed ({error})", advice=advice) from error
    return onnx


def read_model(path: Path) -> Any:
    """The model of a file, as onnx's ModelProto. Raises BadInput for what is none, or too large."""
    onnx = import_onnx_package()
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    with files.regular_file(path) as (stream, size):
        if size > LARGEST_BYTES:
            raise BadInput("too large for an ONNX file", where=path, expected=f"{LARGEST_BYTES:,} bytes", found=size)
        content = stream.read(size)
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError:
        raise BadInput("not an ONNX file", where=path, found="no protocol buffer of a model") from None
    graph = model.graph
    if not graph.node or not graph.output or not model.opset_import:
        raise BadInput("not an ONNX file", where=path, expected="a graph with nodes, outputs and a set of operators")
    if len(graph.node) > MOST_NODES:
        raise BadInput("too many nodes", where=path, expected=f"at most {MOST_NODES:,}", found=f"{len(graph.node):,}")
    _require_words([entry.name for entry in (*graph.input, *graph.output, *graph.initializer)], path)
    _require_words([word for entry in model.metadata_props for word in (entry.key, entry.value)], path, 2**24)
    for node in graph.node:
        names = [node.op_type, node.name, node.domain, *node.input, *node.output]
        _require_words([*names, *(attribute.name for attribute in node.attribute)], path)
        if len(names) > MOST_NAMES or not node.output:
            raise BadInput("a node has too many inputs, or no output", where=path, found=repr(node.name[:80]))
    return model


def _require_words(words: list[Any], path: Path, longest: int = LONGEST_NAME) -> None:
    # Bytes that are not UTF-8 come as bytes.
    odd = next((word for word in words if not isinstance(word, str) or len(word) > longest), None)
    if odd is not None:
        raise BadInput("a name is not UTF-8, or too long", where=path, found=ascii(odd[:80]))


def needed_nodes(graph: Any, output: str, known: Collection[str], path: Path) -> list[Any]:
    """The nodes that an output depends on, each behind all that it reads.

    Raises BadInput where nothing gives a name that is read, or nodes read each other in a circle.
    """
    makers: dict[str, Any] = {}
    for node in graph.node:
        for name in node.output:
            if name != ABSENT and (makers.setdefault(name, node) is not node or name in known):
                raise BadInput("two nodes have the same output", where=path, found=repr(name[:80]))
    ordered: dict[int, Any] = {}
    open_ones: dict[int, Iterator[str]] = {}
    stack = [_maker(makers, output, "the graph's output", path)]
    while stack:
        node = stack[-1]
        names = open_ones.setdefault(id(node), iter(names_read(node)))
        name = next((name for name in names if name not in known), None)
        if name is None:
            ordered.setdefault(id(node), stack.pop())
            continue
        maker = _maker(makers, name, f"{node.op_type} {node.name[:80]!r}", path)
        if id(maker) in ordered:
            continue
        if id(maker) in open_ones:
            raise BadInput("nodes read each other in a circle", where=path, found=repr(name[:80]))
        stack.append(maker)
    return list(ordered.values())


def names_read(node: Any) -> list[str]:
    """The names that a node reads, those of the branches of an If that they do not make themselves included."""
    names = [name for name in node.input if name != ABSENT]
    for attribute in node.attribute if node.op_type == "If" else ():
        made = {name for inner in attribute.g.node for name in inner.output}
        outputs = [value.name for value in attribute.g.output]
        inside = [*(name for inner in attribute.g.node for name in inner.input if name != ABSENT), *outputs]
        names += [name for name in inside if name not in made]
    return names


def _maker(makers: dict[str, Any], name: str, reader: str, path: Path) -> Any:
    if name not in makers:
        raise BadInput(f"{reader[:120]} reads {name[:80]!r}, which nothing in the file gives", where=path)
    return makers[name]


class Tensors:
    """Arrays of a model, and of the files of data beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside: dict[Path, int] = {}
        self._read = 0

    def most_numbers(self, initializers: Iterable[Any]) -> int:
        """Numbers that the file, and those of data that its arrays name, have room for."""
        names = {entry.value for tensor in initializers if tensor.data_location == EXTERNAL
                 for entry in tensor.external_data if entry.key == "location"}  # fmt: skip
        beside = [file for file in map(self._file, sorted(names)) if file is not None]
        return sum(file.stat().st_size for file in (self._path, *beside) if file.is_file()) // _SMALLEST

    def array(self, tensor: Any, name: str) -> AnyArray:
        """The numbers of a TensorProto. Raises BadInput where it is of another kind, damaged, or elsewhere."""
        where, shape = f"{self._path}: {name[:80]!r}", tuple(tensor.dims)
        if tensor.data_type not in _TYPES or len(shape) > MOST_AXES or min(shape, default=1) < 0:
            raise BadInput("the array holds no numbers that weights have", where=where,
                           found=f"type {tensor.data_type}, shape {shape}"[:200])  # fmt: skip
        kind = np.dtype(_TYPES[tensor.data_type])
        needed = math.prod(shape) * kind.itemsize
        if tensor.data_location == EXTERNAL:
            content = self._external(tensor, needed, where)
        elif tensor.HasField("raw_data"):
            content = tensor.raw_data
        else:
            return self._listed(tensor, shape, where)
        if len(content) != needed:
            found = f"{len(content):,} bytes"
            raise BadInput("the array's size is not that of its shape", where=where,
                           expected=f"{needed:,} for {shape}"[:200], found=found)  # fmt: skip
        numbers = np.frombuffer(content, kind)
        if tensor.data_type == _BOOL:
            numbers = np.frombuffer(content, np.uint8) != 0
        if tensor.data_type == _BFLOAT16:
            numbers = (numbers.astype("<u4") << 16).view("<f4")
        return numbers.reshape(shape)

    def _listed(self, tensor: Any, shape: tuple[int, ...], where: str) -> AnyArray:
        from onnx import numpy_helper

        numbers = max(len(tensor.float_data), len(tensor.int32_data), len(tensor.int64_data), len(tensor.double_data),
                      len(tensor.uint64_data))  # fmt: skip
        if numbers != math.prod(shape):
            expected = f"{math.prod(shape):,} numbers for {shape}"[:200]
            raise BadInput("the array's size is not that of its shape", where=where, expected=expected, found=numbers)
        try:
            array: AnyArray = numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise BadInput(f"the array is damaged ({ascii(str(error))[1:-1][:200]})", where=where) from None
        return array.astype(np.float32) if tensor.data_type == _BFLOAT16 else array

    def _external(self, tensor: Any, needed: int, where: str) -> bytes:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location, start, length = (entries.get(key, "") for key in ("location", "offset", "length"))
        if not all(text == "" or (text.isdecimal() and len(text) < 16) for text in (start, length)):
            raise BadInput("the place of its data is no number", where=where, found=f"{start[:40]} {length[:40]}")
        file = self._file(location)
        if file is None:
            what = "its data lies outside the file's folder"
            raise BadInput(what, where=where, found=repr(location[:200]), advice="put the file of data beside it")
        with files.regular_file(file) as (stream, size):
            begin, count = int(start or 0), int(length or needed)
            if count != needed or begin + count > size:
                found = f"{begin:,} to {begin + count:,} of {size:,} bytes"
                raise BadInput(
                    "its data is not in the file of data", where=where, expected=f"{needed:,} bytes", found=found
                )
            self._beside[file] = size
            self._read += count
            if self._read > MOST_COPIES * sum(self._beside.values()):
                raise BadInput("its arrays share their data too often", where=where, expected=f"{MOST_COPIES} times")
            stream.seek(begin)
            return stream.read(count)

    def _file(self, location: str) -> Path | None:
        """The file of data that a location names; None where it is not in the folder of the ONNX file."""
        folder = self._path.parent.resolve()
        if not location or "\0" in location:
            return None
        try:
            file = (folder / location).resolve()
        except OSError:
            return None
        return file if file.is_relative_to(folder) and file != folder else None
