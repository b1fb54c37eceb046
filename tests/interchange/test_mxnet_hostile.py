"""Graphs and parameters that are damaged, or meant to do harm: layers or one line, in bounded time and memory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput, PipelineError
from imagenet_pipeline.interchange.mxnet_import import import_mxnet
from imagenet_pipeline.interchange.mxnet_layers import Layered, layered, with_output
from imagenet_pipeline.interchange.params import write_params
from imagenet_pipeline.interchange.symbol import Node, Symbol, symbol_of_json, symbol_text

MUTATIONS = 20_000 if os.environ.get("IMAGENET_PIPELINE_LONG") == "1" else 600
SLOWEST_SECONDS = 20.0  # on a loaded machine; about a tenth of it on a free one
PATHS = Path("m-symbol.json"), Path("m.params")

Step = tuple[str, dict[str, str], tuple[int, ...]]


def graph(*steps: Step | str, heads: tuple[int, ...] = ()) -> Symbol:
    """A graph of data, then of variables (a name) and operators (op, attributes, inputs); the last one leaves it."""
    nodes = [Node("null", "data", (), {})]
    for step in steps:
        if isinstance(step, str):
            nodes.append(Node("null", step, (), {}))
        else:
            op, attributes, inputs = step
            nodes.append(Node(op, f"{op.lower()}{len(nodes)}", tuple((index, 0) for index in inputs), attributes))
    return Symbol(tuple(nodes), tuple((head, 0) for head in heads) or ((len(nodes) - 1, 0),))


def read(symbol: Symbol, params: Mapping[str, Any] | None = None, size: int | None = 8) -> Layered:
    return layered(symbol, params or {}, size, PATHS)


def refusal(symbol: Symbol | bytes, params: Mapping[str, Any], size: int | None) -> str:
    """The line that a graph is refused with; "" where it becomes layers."""
    try:
        read(symbol_of_json(symbol, "m") if isinstance(symbol, bytes) else symbol, params, size)
    except PipelineError as error:
        return str(error)
    return ""


FLOAT = np.float32
ONES = np.ones((4, 3, 3, 3), FLOAT)
CONV: tuple[str | Step, ...] = (
    "w",
    ("Convolution", {"kernel": "(3, 3)", "num_filter": "4", "no_bias": "True"}, (0, 1)),
)


def test_a_layer_has_its_own_values_and_the_name_of_its_node() -> None:
    found = read(graph(*CONV, ("Pooling", {"global_pool": "True", "pool_type": "avg"}, (2,))), {"w": ONES})
    assert [name for name, _ in found.network.items] == ["convolution2", "pooling3", "flatten_scores"]
    assert (found.classes, found.size, found.sources) == (4, 8, {"convolution2.weight": "w"})


@pytest.mark.parametrize(
    ("steps", "params", "words"),
    [
        (CONV, {}, r"m.params: values are missing; found no 'w', of m-symbol.json: 'convolution2'"),
        (CONV, {"w": ONES[:3]}, "'convolution2', array 'w': the array does not fit; expected shape \\(4, 3, 3, 3\\)"),
        (CONV, {"w": ONES * np.nan}, "array 'w': holds numbers that are not finite"),
        (CONV, {"w": np.full_like(ONES, np.inf)}, "not finite"),
        (CONV, {"w": ONES.astype(np.int32)}, "no floating-point numbers"),
        (CONV, {"w": np.ones((4, 4, 3, 3), FLOAT)}, "reads images of 4 channels; expected 3, or 1"),
        ((("Embedding", {}, (0,)),), {}, "'embedding1': our layers have nothing like operator 'Embedding'"),
        ((("Convolutio", {}, (0,)),), {}, "nothing like operator 'Convolutio'; did you mean Convolution"),
        ((("Custom", {"op_type": "x"}, (0,)),), {}, "nothing like operator 'Custom'"),
        ((("Flatten", {}, (0,)), ("RNN", {}, (1,))), {}, "nothing like operator 'RNN'"),
        ((("mean", {}, (0,)),), {}, "over everything mixes images"),
        ((("mean", {"axis": "0"}, (0,)),), {}, "works along the batch"),
        ((("Reshape", {"shape": "(-3, 0, 0)"}, (0,)),), {}, "the reshape mixes images"),
        ((("Reshape", {"shape": "(2, -1)"}, (0,)),), {}, "the reshape mixes images, or fixes how many"),
        ((("Reshape", {"shape": "(0, 7)"}, (0,)),), {}, "the reshape does not fit"),
        ((("Reshape", {"shape": "(0, -4, 0, -1)"}, (0,)),), {}, "the reshape does not fit"),
        ((("transpose", {"axes": "(1, 0, 2, 3)"}, (0,)),), {}, "moves the axis of the batch"),
        ((("transpose", {}, (0,)),), {}, "moves the axis of the batch"),
        ((("Concat", {"dim": "0"}, (0, 0)),), {}, "works along the batch"),
        ((("slice", {"begin": "(1,)", "end": "(2,)"}, (0,)),), {}, "takes some of the images"),
        ((("SliceChannel", {"num_outputs": "2"}, (0,)),), {}, "2 parts do not divide"),
        ((("Convolution", {"kernel": "(3,)", "num_filter": "1"}, (0,)),), {}, r"Convolution over 1 axes \(1-D\)"),
        ((("Convolution", {"kernel": "(3, 3, 3)", "num_filter": "1"}, (0,)),), {}, r"\(3-D\)"),
        ((("Convolution", {"kernel": "(3, 3)", "num_filter": "0"}, (0,)),), {}, "'num_filter'; expected 1 or above"),
        ((("Convolution", {"kernel": "(99, 9)", "num_filter": "4"}, (0,)),), {}, "the image is too small|reads other"),
        ((("Pooling", {"pool_type": "lp", "p_value": "3", "kernel": "(2, 2)"}, (0,)),), {}, "no pooling 'lp'"),
        ((("Pooling", {"pooling_convention": "same", "kernel": "(2, 2)"}, (0,)),), {}, "the convention 'same'"),
        ((("softmax", {}, (0,)),), {}, "no layers between its input and its output"),
        ((), {}, "no layers between its input and its output"),
        ((("relu", {}, (0,)),), {}, "its output is not a vector of scores; found 3x8x8"),
        (("v", ("relu", {}, (1,))), {"v": ONES}, "computes with 'v', which is not made of the image"),
        (("v", ("relu", {}, (1,))), {}, "computes with 'v', which is not made of the image"),
        (("v", ("broadcast_add", {}, (0, 1))), {"v": ONES}, "has numbers for each image of a batch"),
        (("v", ("broadcast_add", {}, (0, 1))), {"v": np.ones((5, 1, 1), FLOAT)}, "inputs of unequal size"),
        (("v", ("broadcast_add", {}, (1, 1))), {"v": ONES}, "computes with parameters alone"),
        ((("Flatten", {}, (0,)), ("broadcast_add", {}, (0, 1))), {}, "different numbers of axes"),
        ((("relu", {}, ()),), {}, "reads too little"),
        ((("UpSampling", {"scale": "99999", "sample_type": "nearest"}, (0,)),), {}, "larger than any memory"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(steps: tuple[Any, ...], params: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        read(graph(*steps), params)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_outputs_are_chosen_by_their_names() -> None:
    symbol = graph(
        ("Flatten", {}, (0,)), ("SliceChannel", {"num_outputs": "2"}, (1,)), ("relu", {}, (2,)), heads=(3, 1)
    )
    with pytest.raises(BadInput, match=r"several outputs; found relu3_output, flatten1_output \(2 in all\); --output"):
        with_output(symbol, None, PATHS[0])
    for name, head in {"relu3": (3, 0), "relu3_output": (3, 0), "slicechannel2_output1": (2, 1)}.items():
        assert with_output(symbol, name, PATHS[0]).heads == (head,)
    with pytest.raises(BadInput, match="no output 'rely3'; did you mean relu3"):
        with_output(symbol, "rely3", PATHS[0])
    assert read(with_output(symbol, "slicechannel2_output1", PATHS[0])).classes == 96
    assert read(with_output(symbol, "flatten1", PATHS[0])).classes == 192


def test_weights_of_two_layers_are_copied_and_said_to_be() -> None:
    attributes = {"kernel": "(1, 1)", "num_filter": "3", "no_bias": "True"}
    symbol = graph("w", ("Convolution", attributes, (0, 1)), ("Convolution", attributes, (2, 1)), ("Flatten", {}, (3,)))
    found = read(symbol, {"w": np.ones((3, 3, 1, 1), FLOAT)})
    assert found.notes == ("convolution2 and convolution3 share 'w': each has a copy of its own now",)


def test_arithmetic_on_the_input_is_split_off_only_where_all_of_it_is_scaled() -> None:
    scaled = graph(
        ("_minus_scalar", {"scalar": "100"}, (0,)), ("_div_scalar", {"scalar": "50"}, (1,)), ("Flatten", {}, (2,))
    )
    assert read(scaled).normalisation == ((100.0,) * 3, (50.0,) * 3)
    both = graph(("_div_scalar", {"scalar": "50"}, (0,)), ("elemwise_add", {}, (0, 1)), ("Flatten", {}, (2,)))
    found = read(both)
    assert found.normalisation is None
    assert [name for name, _ in found.network.items] == ["block1", "flatten3"]


def test_a_grey_network_reads_the_grey_of_a_photo() -> None:
    symbol = graph(("_div_scalar", {"scalar": "255"}, (0,)), "w",
                   ("Convolution", {"kernel": "(8, 8)", "num_filter": "4", "no_bias": "True"}, (1, 2)))  # fmt: skip
    found = read(symbol, {"w": np.ones((4, 1, 8, 8), FLOAT)})
    assert found.network.items[0][0] == "greyscale"
    assert found.normalisation == ((0.0,) * 3, (255.0,) * 3)
    assert found.notes == ("reads images of one channel: the grey of photos (ITU-R BT.601)",)


@pytest.mark.parametrize(
    ("op", "attributes", "inputs"),
    [("Concat", {"dim": "1"}, 2), ("elemwise_add", {}, 2), ("Flatten", {}, 1), ("Concat", {"dim": "2"}, 9),
     ("UpSampling", {"scale": "2"}, 1), ("expand_dims", {"axis": "1"}, 1), ("Dropout", {}, 1)],
)  # fmt: skip
def test_the_same_over_and_over_ends_soon(op: str, attributes: dict[str, str], inputs: int) -> None:
    steps = [(op, attributes, (index,) * inputs) for index in range(1000)]
    start = time.monotonic()
    assert len(refusal(graph(*steps), {}, None)) < 400
    assert time.monotonic() - start < SLOWEST_SECONDS


def test_values_shared_beyond_all_bounds_are_refused_in_time() -> None:
    slopes = {"g": np.ones(1, FLOAT)}
    flat: list[Any] = ["g", ("Flatten", {}, (0,)), ("LeakyReLU", {"act_type": "prelu"}, (2, 1))]
    flat += [("LeakyReLU", {"act_type": "prelu"}, (index, 1)) for index in range(3, 3000)]
    assert refusal(graph(*flat), slopes, 500).endswith("its layers share their values too often")
    resize = {"height": "4096", "width": "4096"}
    resizes: list[Any] = [("_contrib_BilinearResize2D", resize, (index,)) for index in range(50)]
    assert refusal(graph(*resizes), {}, 8).endswith("its layers share their values too often")


WORDS = [
    b"0", b"-1", b"9999999999", b"(0, 0)", b"()", b"True", b"Concat", b"elemwise_add", b"null", b'"', b"[", b"}",
    b"Reshape", b"slice_axis", b"mean", b"(1, 2)", b"Deconvolution", b"_mul_scalar", b"None", b"99999", b"full",
]  # fmt: skip


def seed_graph() -> tuple[bytes, dict[str, Any]]:
    """A graph with a bit of everything, and its values."""
    deconvolution = {"kernel": "(2, 2)", "num_filter": "4", "stride": "(2, 2)", "no_bias": "True"}
    symbol = graph(
        *CONV,
        ("Pooling", {"kernel": "(2, 2)", "stride": "(2, 2)", "pad": "(1, 1)", "pool_type": "max"}, (2,)),
        "d", ("Deconvolution", deconvolution, (3, 4)),
        ("Reshape", {"shape": "(0, -4, 2, -1, -2)"}, (5,)),
        ("SwapAxis", {"dim1": "1", "dim2": "2"}, (6,)),
        ("Reshape", {"shape": "(0, -3, -2)"}, (7,)),
        ("slice", {"begin": "(None, 1)", "end": "(None, 3)"}, (8,)),
        "v", ("broadcast_mul", {}, (9, 10)),
        ("LeakyReLU", {"act_type": "elu", "slope": "0.5"}, (11,)),
        ("mean", {"axis": "(2, 3)", "keepdims": "True"}, (12,)),
        ("broadcast_add", {}, (12, 13)),
        ("pad", {"mode": "edge", "pad_width": "(0, 0, 0, 0, 1, 1, 1, 1)"}, (14,)),
        ("Flatten", {}, (15,)), "f", ("FullyConnected", {"num_hidden": "5", "no_bias": "True"}, (16, 17)),
        "y", ("SoftmaxOutput", {}, (18, 19)),
    )  # fmt: skip
    side = 8 + 2
    values = {"w": ONES, "d": np.ones((4, 4, 2, 2), FLOAT), "v": np.ones((1, 2, 1, 1), FLOAT),
              "f": np.ones((5, 2 * side * side), FLOAT)}  # fmt: skip
    return symbol_text(symbol).encode(), values


def test_no_mutation_of_a_graph_gives_anything_but_layers_or_one_line() -> None:
    whole, values = seed_graph()
    assert read(symbol_of_json(whole, "m"), values).classes == 5
    random, refused, start = np.random.default_rng(0), 0, time.monotonic()
    for _ in range(MUTATIONS):
        copy = bytearray(whole)
        for _ in range(int(random.integers(1, 4))):
            place = int(random.integers(len(copy)))
            copy[place : place + int(random.integers(0, 9))] = WORDS[int(random.integers(len(WORDS)))]
        line = refusal(bytes(copy), values, 8)
        refused += line != ""
        assert "\n" not in line
    assert MUTATIONS / 4 < refused < MUTATIONS
    assert time.monotonic() - start < MUTATIONS * SLOWEST_SECONDS / 600


def swapped(whole: Any, random: np.random.Generator) -> Any:
    """A graph with some of its operators, attributes or inputs exchanged for others of its own."""
    changed = json.loads(json.dumps(whole))
    nodes = [node for node in changed["nodes"] if node["op"] != "null"]
    for _ in range(int(random.integers(1, 4))):
        one, other = (nodes[int(random.integers(len(nodes)))] for _ in range(2))
        key = str(random.choice(["op", "attrs", "inputs"]))
        if key in one and key in other:
            one[key], other[key] = other[key], one[key]
    return changed


def test_no_exchange_within_a_graph_gives_anything_but_layers_or_one_line() -> None:
    whole, values = seed_graph()
    random = np.random.default_rng(1)
    for _ in range(MUTATIONS):
        content = json.dumps(swapped(json.loads(whole), random)).encode()
        assert "\n" not in refusal(content, values, 8 if random.integers(8) else None)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    symbol, params = tmp_path / "m-symbol.json", tmp_path / "m.params"
    content, values = seed_graph()
    symbol.write_bytes(content)
    write_params(params, values)
    assert import_mxnet(symbol, params, input_size=8).network == "m"
    for content in (b"\x80\x04\x95 pickle", b"PK\x03\x04", b"", b"{}"):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(BadInput):
            import_mxnet(symbol, tmp_path / "other")
        with pytest.raises(BadInput):
            import_mxnet(tmp_path / "other", params)
