"""The symbol reader: what MXNet wrote in its ages, and hostile files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.graph_operators import reduced
from imagenet_pipeline.interchange.symbol import (
    MOST_NODES,
    Attributes,
    Node,
    Symbol,
    read_symbol,
    symbol_of_json,
    symbol_text,
)

MUTATIONS = 100_000 if os.environ.get("IMAGENET_PIPELINE_LONG") == "1" else 400


def node(op: str = "null", name: str = "x", inputs: Any = (), **more: Any) -> dict[str, Any]:
    return {"op": op, "name": name, "inputs": list(inputs), **more}


def content(nodes: Any, heads: Any = ((0, 0, 0),)) -> bytes:
    return json.dumps({"nodes": nodes, "heads": heads}).encode()


def test_a_graph_reads_back_as_it_was_written() -> None:
    symbol = Symbol(
        (Node("null", "data", (), {}), Node("Flatten", "f", ((0, 0),), {"a": "(1, 2)"}), Node("x", "y", (), {})),
        ((1, 0), (2, 3)),
    )
    assert symbol_of_json(symbol_text(symbol).encode(), "x") == symbol


@pytest.mark.parametrize("form", ["attrs", "attr", "param"])
def test_attributes_of_every_age(form: str) -> None:
    nodes = [node(**{form: {"__shape__": "(2, 3)"}})]
    assert symbol_of_json(content(nodes), "x").nodes[0].attributes == {"__shape__": "(2, 3)"}


def test_a_real_file_of_before_0_9_gets_the_statistics_it_leaves_out(unpacked: Callable[[str], Path]) -> None:
    symbol = read_symbol(next(unpacked("mxnet_files_shared.tar.xz").rglob("inception-bn-28-symbol.json")))
    norm = next(one for one in symbol.nodes if one.op == "BatchNorm")
    names = [symbol.nodes[index].name for index, _ in norm.inputs]
    assert names[1:] == [f"batchnorm0_{word}" for word in ("gamma", "beta", "moving_mean", "moving_var")]
    assert norm.attributes == {"eps": "0.001", "fix_gamma": "True", "momentum": "0.9"}
    assert all(index < place for place, one in enumerate(symbol.nodes) for index, _ in one.inputs)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (b"", "not a JSON file"),
        (b"\xff\xfe", "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b'{"nodes": ' + b"[" * 100_000, "not a JSON file"),
        (b'{"nodes": [{"op": 1' + b"0" * 5000 + b"}]}", "not a JSON file"),
        (b"[]", "no list 'nodes'"),
        (content({}), "no list 'nodes'"),
        (content([]), "the number of nodes is impossible"),
        (content([node()] * (MOST_NODES + 1)), "the number of nodes is impossible"),
        (content([node()], heads=[]), "names no output"),
        (content([node()], heads=[[1, 0, 0]]), "refers to no earlier node"),
        (content([node()], heads=[[-1, 0, 0]]), "refers to no earlier node"),
        (content([node()], heads=[[True, 0, 0]]), "refers to no earlier node"),
        (content([node()], heads=[["0", 0]]), "refers to no earlier node"),
        (content([node()], heads=[[0, 10**30]]), "refers to no earlier node"),
        (content([node("Flatten", inputs=[[0, 0, 0]])]), "refers to no earlier node"),
        (content([node("a", inputs=[[1, 0, 0]]), node("b", inputs=[[0, 0, 0]])]), "refers to no earlier node"),
        (content([node(), node(inputs=[[0, 0, 0]])]), "a variable with inputs"),
        (content([node(), node("Concat", inputs=[[0, 0, 0]] * 2000)]), "too many inputs"),
        (content([node(op=3)]), "no str 'op'"),
        (content(["null"]), "no str 'op'"),
        (content([node(name="x" * 5000)]), "too long a name"),
        (content([node(attrs={"a": 1})]), "not short texts"),
        (content([node(attrs=["a"])]), "not short texts"),
        (b" " * (9 * 2**20), "too large"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(broken: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        symbol_of_json(broken, "x-symbol.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_folders_devices_pipes_and_absent_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "absent", tmp_path / "pipe"):
        with pytest.raises(BadInput, match="cannot be read"):
            read_symbol(path)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["nodes", "heads", "op", "name", "inputs", "attrs"]), x)))  # fmt: skip # noqa: E501
def test_any_json_is_a_graph_or_bad_input(value: Any) -> None:
    whole = {"nodes": value, "heads": value} if isinstance(value, list) else value
    with contextlib.suppress(BadInput):
        symbol_of_json(json.dumps(whole).encode(), "x")


def test_no_damage_to_a_real_file_crashes_reader_or_graph(unpacked: Callable[[str], Path]) -> None:
    whole = next(unpacked("mxnet_files_shared.tar.xz").rglob("helmet-detection-model-symbol.json")).read_bytes()
    assert reduced(symbol_of_json(whole, "x"), {}, (3, 224, 224)).root > 0
    random, refused = np.random.default_rng(0), 0
    words = [
        b"0",
        b"-1",
        b"9999999999",
        b"(0, 0)",
        b"()",
        b"True",
        b"Concat",
        b"elemwise_add",
        b"null",
        b'"',
        b"[",
        b"}",
    ]
    for _ in range(MUTATIONS):
        copy = bytearray(whole)
        for _ in range(int(random.integers(1, 4))):
            place = int(random.integers(len(copy)))
            copy[place : place + int(random.integers(0, 6))] = words[int(random.integers(len(words)))]
        try:
            reduced(symbol_of_json(bytes(copy), "x"), {}, (3, 224, 224))
        except BadInput:
            refused += 1
    assert refused > MUTATIONS / 2


@pytest.mark.parametrize(
    ("op", "attributes", "count"),
    [("Concat", {"dim": "1"}, 3_000), ("elemwise_add", {}, 3_000), ("Flatten", {}, 3_000)],
)
def test_doubling_over_and_over_stays_small(op: str, attributes: dict[str, str], count: int) -> None:
    inputs = 2 if op != "Flatten" else 1
    nodes = [node("null", "data")]
    nodes += [node(op, f"n{one}", [[one, 0, 0]] * inputs, attrs=attributes) for one in range(count)]
    expected = (
        pytest.raises(BadInput, match="the concatenation has too many inputs")
        if op == "Concat"
        else contextlib.nullcontext()
    )
    with expected:
        reduced(symbol_of_json(content(nodes, [[count, 0, 0]]), "x"), {}, (3, 1, 1))


def texts(text: str) -> Attributes:
    return Attributes({"a": text}, "node 'x'")


def test_attributes_are_read_in_the_ways_mxnet_writes_them() -> None:
    assert [texts(word).flag("a", False) for word in ("True", "1", "0", "False", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert [texts(word).real("a") for word in ("1e-05", "0.001", "-2", ".5", "9.99999975e-05")] == [
        1e-5, 1e-3, -2, 0.5, 9.99999975e-05,
    ]  # fmt: skip
    assert [texts(word).integers("a") for word in ("(3, 3)", "(3L, 3L)", "[1,-1]", "(64,)", "7", "None", "()")] == [
        (3, 3), (3, 3), (1, -1), (64,), (7,), (), (),
    ]  # fmt: skip
    assert texts("(2, 3)").pair("a", None, 1) == (2, 3)
    assert Attributes({}, "x").pair("a", (1, 1), 1) == (1, 1)


@pytest.mark.parametrize(
    "word", ["((1, 2), 3)", "(1, 2", "__import__('os')", "1e999", "nan", "9" * 30, "(1,,2)", "(0, 1)"]
)
def test_attributes_that_are_no_numbers_are_refused(word: str) -> None:
    for read in (
        lambda: texts(word).pair("a", None, 1),
        lambda: texts(word).integer("a"),
        lambda: texts(word).flag("a", True),
    ):
        with pytest.raises(BadInput, match="attribute 'a'"):
            read()
    if word[0] != "9":
        with pytest.raises(BadInput):
            texts(word).real("a")
