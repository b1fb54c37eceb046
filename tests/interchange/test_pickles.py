"""Pickles taken apart: plain values of every protocol, names of an allow-list, and nothing executed."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.pickles import LARGEST_KEY, Instance, Maker, Name, instance_of, read_pickle

PLAIN: dict[str, Maker | None] = {
    "_codecs.encode": lambda arguments: arguments[0].encode(arguments[1]),
    "builtins.bytearray": lambda arguments: bytes(arguments[0]) if arguments else b"",
    "__builtin__.bytearray": lambda arguments: bytes(arguments[0]) if arguments else b"",
    "builtins.bytes": lambda arguments: b"",
    "__builtin__.bytes": lambda arguments: b"",
}
KEYS = st.text() | st.integers(-LARGEST_KEY, LARGEST_KEY) | st.binary() | st.floats(allow_nan=False)
SCALARS = st.none() | st.booleans() | st.integers() | KEYS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.tuples(inner, inner, inner) | st.dictionaries(KEYS, inner),
)


class Point:
    """A class of no allow-list but the one of its own test."""

    def __init__(self) -> None:
        self.x = 3


class Command:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def read(content: bytes, known: Any = PLAIN) -> Any:
    value, length = read_pickle(memoryview(content + b"what follows"), "file", known)
    assert length == len(content)
    return value


@settings(max_examples=60)
@given(VALUES, st.integers(0, 5))
def test_values_come_back_as_pickle_wrote_them(value: Any, protocol: int) -> None:
    # Python 2's texts, which protocol 0 of Python 3 no longer writes, have a test of their own.
    with contextlib.suppress(ValueError):  # integers beyond 64 bytes
        if len(repr(value)) < 10**4:
            found = read(pickle.dumps(value, protocol))
            assert found == value
            assert repr(found) == repr(value)


def test_texts_of_python_2_are_their_bytes() -> None:
    assert read(b"(lp0\nS'a\\n\\xff'\np1\naS\"b'\"\naL12L\naI01\naV\\u20ac\na.") == [
        "a\n\xff",
        "b'",
        12,
        True,
        "\u20ac",
    ]
    assert read(b"\x80\x02U\x03a\xffbq\x00.") == "a\xffb"


def test_shared_and_cyclic_values_stay_so() -> None:
    shared: list[Any] = [1]
    first, second = read(pickle.dumps([shared, shared]))
    assert first is second
    shared.append(shared)
    found = read(pickle.dumps(shared))
    assert found[1] is found


def test_an_object_stays_in_pieces() -> None:
    name = f"{Point.__module__}.Point"
    made = read(pickle.dumps(Point(), 2), {name: instance_of(name), "copy_reg._reconstructor": None})
    assert made == Instance(name, (), {"x": 3})
    assert read(pickle.dumps(Point), {name: None}) == Name(name)
    with pytest.raises(BadInput, match=r"calls .*Point, which no file of weights does: nothing was executed"):
        read(pickle.dumps(Point(), 2), {name: None})


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({"weight": Command(tmp_path / "made")}, protocol)
    for known in ({}, PLAIN, {"builtins.eval": None}):
        with pytest.raises(BadInput) as caught:
            read(content, known)
        assert str(caught.value) == "file: holds posix.system, which no file of weights has: nothing was executed"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "ends before it is whole"),
        (b"N", "ends before it is whole"),
        (b".", "takes more from its stack"),
        (b"(.", "takes more from its stack"),
        (b"(q\x00.", "takes more from its stack"),
        (b"t.", "takes more from its stack"),
        (b"Na.", "adds to something that is no list"),
        (b"N]Ns.", "adds to something that is no dict"),
        (b"}(Nu.", "damaged"),
        (b"}(NNu.", "a key that is neither text nor number"),
        (b"}()Nu.", "a key that is neither text nor number"),
        (b"}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"Ns.", "an impossible number as a key"),
        (b"h\x07.", "damaged"),
        (b"Iseven\n.", "damaged"),
        (b"I" + b"9" * 5000 + b"\n.", "damaged"),
        (b"\x8a\xff" + bytes(255) + b".", "damaged"),
        (b"\x8b\xff\xff\xff\xff.", "ends before it is whole"),
        (b"\x8d" + b"\xff" * 8 + b".", "ends before it is whole"),
        (b"X\x01\x00\x00\x00\xff.", "damaged"),
        (b"\x80\x09N.", "newer protocol"),
        (b"NQ.", "refers to something outside"),
        (b"N)R.", "calls a NoneType"),
        (b"(iposix\nsystem\n.", "an opcode that no file of weights needs; found opcode 0x69"),
        (b"\x82\x01.", "an opcode that no file of weights needs"),
        (b"NN\x93.", "a name that is no text"),
        (b"NNb.", "sets attributes of a NoneType"),
        (b"c" + b"a" * 5000 + b"\nb\n.", r"holds a{80}\.\.\., which"),
    ],
)
def test_what_no_file_has_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        read_pickle(memoryview(content), "file", PLAIN)
    assert str(caught.value).isprintable()


def test_a_pickle_has_only_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte each could make dictionaries of a hundred times their length."""
    monkeypatch.setattr("imagenet_pipeline.interchange.pickles.MOST_STEPS", 1000)
    with pytest.raises(BadInput, match="too many steps; expected at most 1,000"):
        read(b"}" * 1001)


def test_what_is_nested_without_end_is_no_trouble() -> None:
    depth = 50_000
    value = read(b"N" + b"\x85" * depth + b".")
    assert isinstance(value, tuple)
    with pytest.raises(BadInput, match="refers to something outside"):
        read(b"N" + b"\x85" * depth + b"Q.")


@given(st.integers(0, 2**32))
def test_damage_gives_a_value_or_one_line(seed: int) -> None:
    draw = random.Random(seed)
    value = collections.OrderedDict(a=[1.5, (2, b"x")], b={"c": Point()})
    content = bytearray(pickle.dumps(value, draw.choice((0, 2, 4))))
    for _ in range(draw.randint(1, 5)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    name = f"{Point.__module__}.Point"
    known = {name: instance_of(name), "collections.OrderedDict": lambda arguments: {}}
    with contextlib.suppress(BadInput):
        read_pickle(memoryview(content), "file", known)


def test_no_import_happens() -> None:
    """A name is not even looked up: reading one of a module that is not loaded leaves it so."""
    program = (
        "import sys; from imagenet_pipeline.interchange.pickles import read_pickle\n"
        "read_pickle(memoryview(b'cantigravity\\ngeohash\\n.'), 'f', {'antigravity.geohash': None})\n"
        "assert 'antigravity' not in sys.modules and 'pickle' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
