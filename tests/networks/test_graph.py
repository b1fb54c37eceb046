"""Graphs of layers: what they may hold, and how they are arranged as networks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.networks.graph import arrange
from imagenet_pipeline.networks.layers import Activation, Constant, Conv, Elementwise, Graph, Join, follow, walk
from imagenet_pipeline.networks.shapes import output_shapes

RELU, ADD = Activation("relu"), Elementwise("add")


def graph_of(**items):
    """A Graph out of NAME=(layer, names of its inputs)."""
    return Graph(tuple((name, layer) for name, (layer, *_) in items.items()),
                 tuple(tuple(links) for _, *links in items.values()))  # fmt: skip


def test_a_chain_becomes_a_sequence():
    network = arrange(graph_of(conv=(Conv(4, 3), ""), relu=(RELU, "conv")))
    assert network.items == (("conv", Conv(4, 3)), ("relu", RELU))


def test_what_branches_becomes_a_block_between_plain_layers():
    residual = graph_of(
        first=(Conv(3, 1), ""), a=(Conv(3, 1), "first"), b=(RELU, "a"), plus=(ADD, "b", "first"), last=(RELU, "plus")
    )
    network = arrange(residual)
    assert [name for name, _ in network.items] == ["first", "block1", "last"]
    assert dict(network.items)["block1"] == graph_of(a=(Conv(3, 1), ""), b=(RELU, "a"), plus=(ADD, "b", ""))


def test_what_nothing_needs_is_left_out_and_a_constant_stands_where_it_is_read():
    network = arrange(
        graph_of(number=(Constant((3, 1, 1)),), idle=(RELU, ""), a=(RELU, ""), b=(RELU, "a"), sum=(ADD, "b", "number"))
    )
    assert [name for name, _ in network.items] == ["a", "b", "block1"]
    assert [path for path, _ in walk(network)] == ["a", "b", "block1", "block1.number", "block1.sum"]


def test_names_of_blocks_avoid_those_of_layers():
    network = arrange(graph_of(block1=(RELU, ""), twice=(ADD, "block1", "block1")))
    assert [name for name, _ in network.items] == ["block1", "block2"]


def test_a_product_with_its_own_sigmoid_is_a_swish():
    sigmoid, product = Activation("sigmoid"), Elementwise("multiply")
    for links in (("a", "s"), ("s", "a")):
        network = arrange(graph_of(a=(Conv(3, 1), ""), s=(sigmoid, "a"), p=(product, *links), b=(RELU, "p")))
        assert network.items == (("a", Conv(3, 1)), ("p", Activation("swish")), ("b", RELU))
    for others in (
        {"s": (sigmoid, "a"), "p": (product, "", "s")},
        {"s": (RELU, "a"), "p": (product, "a", "a")},
        {"s": (sigmoid, "a"), "m": (product, "a", "s"), "p": (ADD, "m", "s")},
    ):
        graph = graph_of(a=(Conv(3, 1), ""), **others)
        assert follow(arrange(graph), "", "x", _expression) == follow(graph, "", "x", _expression)


def test_a_product_with_another_gate_of_its_own_is_a_hard_swish_or_a_mish():
    product = Elementwise("multiply")
    hard = graph_of(a=(Conv(3, 1), ""), s=(Activation("hard_sigmoid"), "a"), p=(product, "s", "a"))
    assert arrange(hard).items == (("a", Conv(3, 1)), ("p", Activation("hard_swish")))
    bent = {"a": (Conv(3, 1), ""), "s": (Activation("softplus"), "a"), "t": (Activation("tanh"), "s")}
    assert arrange(graph_of(**bent, p=(product, "a", "t"))).items == (("a", Conv(3, 1)), ("p", Activation("mish")))
    for others in ({"p": (product, "", "t")}, {"p": (product, "a", "t"), "q": (ADD, "p", "s")}):
        graph = graph_of(**bent, **others)
        assert follow(arrange(graph), "", "x", _expression) == follow(graph, "", "x", _expression)


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ({"a": (RELU, "b"), "b": (RELU, "a")}, "no earlier item"),
        ({"a": (RELU,)}, "0 inputs"),
        ({"a": (ADD, "")}, "1 inputs"),
        ({"a.b": (RELU, "")}, "plain words"),
    ],
)
def test_graphs_that_nothing_can_follow_are_refused(items, text):
    with pytest.raises(ValueError, match=text):
        graph_of(**items)


@st.composite
def graphs(draw):
    """Graphs of ReLUs, sums and joins over earlier outputs."""
    items, known = {}, [""]
    for number in range(draw(st.integers(1, 12))):
        layer = draw(st.sampled_from([RELU, ADD, Join(0)]))
        count = 1 if layer is RELU else draw(st.integers(2, 3))
        links = draw(st.lists(st.sampled_from(known[-4:]), min_size=count, max_size=count))
        items[f"n{number}"] = (layer, *links)
        known.append(f"n{number}")
    return graph_of(**items)


def _expression(layer, path, inputs):
    return f"{type(layer).__name__}:{path.rpartition('.')[2]}({','.join(inputs)})"


@given(graphs())
def test_an_arranged_graph_computes_the_same(graph):
    assert follow(arrange(graph), "", "x", _expression) == follow(graph, "", "x", _expression)


def test_shapes_follow_the_links():
    graph = graph_of(a=(Conv(5, 3), ""), b=(Conv(2, 3), ""), both=(Join(0), "a", "b"))
    assert output_shapes(arrange(graph), (3, 8, 8))["block1.both"] == (7, 6, 6)
