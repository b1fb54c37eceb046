"""MXNet's symbol files (`-symbol.json`): a network as a list of nodes, read and written without MXNet.

    {"nodes": [{"op": "Convolution", "name": "conv1", "attrs": {"kernel": "(3, 3)", ...},
                "inputs": [[0, 0, 0], [1, 0, 0]]}, ...], "arg_nodes": [...], "heads": [[118, 0, 0]]}

`op` "null" is a variable. Attributes are strings ("True", "1e-05", "(3, 3)", "(3L, 3L)"), called "attrs" since MXNet
1.0, "attr" in 0.9 to 0.12, and "param" (with "attr" beside it) before. An input is [node, its output, version]; a
node's inputs come before it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput

VARIABLE = "null"
MXNET_VERSION = 10901
MOST_BYTES = 8 * 2**20
MOST_NODES = 20_000
MOST_INPUTS = 1_000
LONGEST_WORD = 4096
_NORM_INPUTS = ("gamma", "beta", "moving_mean", "moving_var")

Output = tuple[int, int]
"""(node, which of its outputs)."""


@dataclass(frozen=True)
class Node:
    """One operation, or a variable; `inputs` point at earlier nodes."""

    op: str
    name: str
    inputs: tuple[Output, ...]
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class Symbol:
    """A graph: nodes in order of computation, and which of their outputs are the graph's own."""

    nodes: tuple[Node, ...]
    heads: tuple[Output, ...]


def read_symbol(path: Path) -> Symbol:
    """Read a symbol file. Raises BadInput for whatever is not a graph of bounded size."""
    with files.regular_file(path) as (stream, _):
        content = stream.read(MOST_BYTES + 1)
    return symbol_of_json(content, path)


def symbol_of_json(content: bytes, where: object) -> Symbol:
    """The graph that the content of a symbol file describes. Raises BadInput."""
    if len(content) > MOST_BYTES:
        raise BadInput("the file is too large for a symbol", where=where, expected=f"at most {MOST_BYTES:,} bytes")
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not a JSON file ({error})", where=where) from None
    reader = _Reader(where)
    nodes = reader.field(whole, "nodes", list, "the file")
    if not 1 <= len(nodes) <= MOST_NODES:
        raise BadInput(
            "the number of nodes is impossible", where=where, expected=f"1 to {MOST_NODES:,}", found=len(nodes)
        )
    for node in nodes:
        reader.read(node)
    heads = tuple(reader.output(head, "a head") for head in reader.field(whole, "heads", list, "the file"))
    if not heads:
        raise BadInput("the graph names no output (heads)", where=where)
    return Symbol(tuple(reader.nodes), heads)


def symbol_text(symbol: Symbol) -> str:
    """The content of a symbol file, as MXNet 1.9.1 lays it out."""
    nodes = [
        {
            "op": node.op,
            "name": node.name,
            **({"attrs": dict(node.attributes)} if node.attributes else {}),
            "inputs": [[*output, 0] for output in node.inputs],
        }
        for node in symbol.nodes
    ]
    whole = {
        "nodes": nodes,
        "arg_nodes": [index for index, node in enumerate(symbol.nodes) if node.op == VARIABLE],
        "node_row_ptr": list(range(len(nodes) + 1)),
        "heads": [[*head, 0] for head in symbol.heads],
        "attrs": {"mxnet_version": ["int", MXNET_VERSION]},
    }
    return json.dumps(whole, indent=2) + "\n"


class _Reader:
    """Checks the nodes in order; `nodes` are those found good."""

    def __init__(self, where: object) -> None:
        self._where = where
        # A node of an old file can bring variables of its own: they shift the positions of later nodes.
        self._positions: list[int] = []
        self.nodes: list[Node] = []

    def read(self, value: Any) -> None:
        """Append a node, and before it the variables that files older than MXNet 0.9 leave out."""
        where = f"node {len(self._positions)}"
        op, name = (self._word(self.field(value, key, str, where), where) for key in ("op", "name"))
        listed = self.field(value, "inputs", list, where)
        if len(listed) > MOST_INPUTS:
            raise self._bad(f"{where} has too many inputs", expected=f"at most {MOST_INPUTS}", found=len(listed))
        inputs = tuple(self.output(item, where) for item in listed)
        if op == VARIABLE and inputs:
            raise self._bad(f"{where} is a variable with inputs")
        if op == "BatchNorm" and len(inputs) < 5:
            inputs += self._missing(name, len(inputs))
        attributes = self._attributes(value, where)
        if op == "Pooling" and "param" in value and "pooling_convention" not in attributes:
            # Before MXNet had two conventions, windows reached beyond the image, as in what it kept as Pooling_v1.
            op, attributes = "Pooling_v1", {**attributes, "pooling_convention": "full"}
        self._positions.append(len(self.nodes))
        self.nodes.append(Node(op, name, inputs, attributes))

    def output(self, value: Any, where: str) -> Output:
        """An input or a head, checked to point at a node already read."""
        numbers = isinstance(value, list) and 2 <= len(value) <= 3 and all(type(number) is int for number in value)
        if not numbers or not (0 <= value[0] < len(self._positions) and 0 <= value[1] < MOST_INPUTS):
            advice = "[node, output] of an earlier node"
            raise self._bad(f"{where} refers to no earlier node", expected=advice, found=repr(value)[:80])
        return self._positions[value[0]], value[1]

    def field(self, value: Any, key: str, kind: type, where: str) -> Any:
        """`value[key]`, which must be a `kind`."""
        found = value.get(key) if isinstance(value, dict) else None
        if not isinstance(found, kind):
            raise self._bad(f"{where} has no {kind.__name__} {key!r}", found=repr(found)[:80])
        return found

    def _missing(self, name: str, given: int) -> tuple[Output, ...]:
        added = _NORM_INPUTS[max(0, given - 1) :]
        first = len(self.nodes)
        self.nodes += [Node(VARIABLE, f"{name}_{suffix}", (), {}) for suffix in added]
        return tuple((first + number, 0) for number in range(len(added)))

    def _attributes(self, value: dict[str, Any], where: str) -> dict[str, str]:
        merged: dict[str, str] = {}
        for key in ("attr", "attrs", "param"):
            found = value.get(key, {})
            whole = isinstance(found, dict) and all(isinstance(word, str) for word in found.values())
            if not whole or any(len(word) > LONGEST_WORD for pair in found.items() for word in pair):
                raise self._bad(f"{where} has attributes that are not short texts", found=repr(found)[:80])
            merged |= found
        return merged

    def _word(self, word: str, where: str) -> str:
        if len(word) > LONGEST_WORD:
            raise self._bad(f"{where} has too long a name", found=f"{len(word):,} characters")
        return word

    def _bad(self, what: str, **details: Any) -> BadInput:
        return BadInput(what, where=self._where, **details)


_INTEGER = re.compile(r"[+-]?[0-9]{1,9}L?")
_REAL = re.compile(r"[+-]?([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")
_FLAGS = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
_ABSENT = ("", "None")


class Attributes:
    """Reads a node's attributes; `where` names the node in messages. Every method raises BadInput."""

    def __init__(self, texts: Mapping[str, str], where: str) -> None:
        self._texts = texts
        self._where = where

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        text = self._text(name)
        if text in _ABSENT:
            return default
        if text not in _FLAGS:
            raise self._bad(name, "True or False")
        return _FLAGS[text]

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number; without a `default` it must be there."""
        text = self._text(name)
        if text in _ABSENT and default is not None:
            return default
        if not _INTEGER.fullmatch(text):
            raise self._bad(name, "a whole number")
        return int(text.rstrip("L"))

    def real(self, name: str, default: float | None = None) -> float:
        """A finite number; without a `default` it must be there."""
        text = self._text(name)
        if text in _ABSENT and default is not None:
            return default
        if not _REAL.fullmatch(text) or not math.isfinite(float(text)):
            raise self._bad(name, "a number")
        return float(text)

    def integers(self, name: str) -> tuple[int, ...]:
        """Whole numbers in brackets, or a number without; () where there is no such attribute."""
        text = self._text(name)
        if text in _ABSENT:
            return ()
        inner = text[1:-1] if (text[0], text[-1]) in (("(", ")"), ("[", "]")) else text
        words = [word.strip() for word in inner.split(",")]
        if words and words[-1] == "":
            words.pop()
        if not all(_INTEGER.fullmatch(word) for word in words):
            raise self._bad(name, "whole numbers in brackets")
        return tuple(int(word.rstrip("L")) for word in words)

    def bounds(self, name: str) -> tuple[int | None, ...]:
        """Whole numbers in brackets, any of them "None"; () where there is no such attribute."""
        words = [word.strip() for word in self._text(name).strip("()[] ").split(",")]
        if words[-1] == "":
            words.pop()
        if not all(word == "None" or _INTEGER.fullmatch(word) for word in words):
            raise self._bad(name, "whole numbers, or None, in brackets")
        return tuple(None if word == "None" else int(word.rstrip("L")) for word in words)

    def pair(self, name: str, default: tuple[int, int] | None, least: int) -> tuple[int, int]:
        """(height, width), each at least `least`."""
        numbers = self.integers(name)
        if not numbers and default is not None:
            return default
        if len(numbers) != 2 or min(numbers) < least:
            raise self._bad(name, f"(height, width) of at least {least}")
        return numbers[0], numbers[1]

    def word(self, name: str, default: str) -> str:
        """A plain word."""
        text = self._text(name)
        return default if text in _ABSENT else text

    def _text(self, name: str) -> str:
        return self._texts.get(name, "").strip()

    def _bad(self, name: str, expected: str) -> BadInput:
        found = repr(self._text(name)[:80]) if name in self._texts else "no such attribute"
        return BadInput(f"invalid attribute {name!r}", where=self._where, expected=expected, found=found)
