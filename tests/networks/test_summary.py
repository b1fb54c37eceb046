"""The two tables of the verb `networks`."""

import dataclasses
import json

import pytest

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import (
    Activation,
    Constant,
    Conv,
    Elementwise,
    Graph,
    Join,
    Residual,
    stack,
)
from imagenet_pipeline.networks.summary import graph_inputs, network_rows, network_table


def test_every_network_has_its_row():
    rows = {row.name: row for row in network_rows()}
    assert tuple(rows) == catalog.names()
    assert (rows["resnet50"].input_size, rows["resnet50"].parameters) == (224, 25_557_032)


def test_a_network_that_cannot_take_the_input_has_a_row_without_counts():
    rows = {row.name: row for row in network_rows(classes=10, input_size=32)}
    assert (rows["alexnet"].parameters, rows["alexnet"].multiply_adds) == (None, None)
    assert rows["lenet"].parameters is not None


def test_the_layers_add_up_and_are_written_as_in_the_source():
    table = network_table("alexnet")
    assert table.parameters == sum(row.parameters for row in table.layers) == 60_965_224
    assert table.multiply_adds == sum(row.multiply_adds for row in table.layers)
    first = table.layers[0]
    assert (first.path, first.layer, first.output_shape) == ("conv1", "Conv(96, 11, stride=4)", (96, 55, 55))
    assert json.loads(json.dumps(dataclasses.asdict(table)))["layers"][0]["parameters"] == 34_944


def test_auxiliary_classifiers_are_marked_and_counted_apart():
    table = network_table("googlenet")
    marked = {row.path.partition(".")[0] for row in table.layers if row.auxiliary}
    assert marked == {"auxiliary4a", "auxiliary4d"}
    assert table.parameters == sum(row.parameters for row in table.layers if not row.auxiliary) == 6_998_552
    assert table.auxiliary_parameters == sum(row.parameters for row in table.layers if row.auxiliary) == 6_379_728
    assert network_table("googlenet_book").auxiliary_parameters == 0


def test_one_network_says_why_it_cannot_take_an_input():
    with pytest.raises(BadRecipe, match="at least 67x67"):
        network_table("alexnet", input_size=32)


def test_layers_of_a_graph_say_what_they_read_where_it_is_not_the_layer_before():
    inner = Graph((("c", Conv(2, 1)), ("d", Conv(3, 1)), ("e", Join())), (("",), ("",), ("d", "c")))
    unit = Residual(stack(conv=Conv(4, 1)), stack(conv=Conv(4, 1)))
    items = (("a", stack(conv=Conv(4, 1), relu=Activation("relu"))), ("number", Constant((4, 1, 1))),
             ("b", unit), ("sum", Elementwise("add")), ("inner", inner))  # fmt: skip
    graph = Graph(items, (("",), (), ("",), ("a", "b", "number"), ("",)))
    assert graph_inputs(stack(block=graph, last=Conv(1, 1))) == {
        "block.number": (), "block.b.conv": ("",), "block.b.shortcut.conv": ("",), "block.b": ("block.b.conv",
        "block.b.shortcut.conv"), "block.sum": ("block.a.relu", "block.b", "block.number"), "block.inner.c": ("",),
        "block.inner.d": ("",), "block.inner.e": ("block.inner.d", "block.inner.c"),
    }  # fmt: skip
    assert not any(row.inputs for row in network_table("googlenet").layers)
