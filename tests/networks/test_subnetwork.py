"""A network's beginning up to a layer: names, shapes and what is left out."""

from __future__ import annotations

import pytest

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import (
    Activation,
    Concat,
    Constant,
    Conv,
    Dense,
    Elementwise,
    Flatten,
    GlobalAveragePool,
    Graph,
    Join,
    Residual,
    Sequential,
    Tap,
    stack,
)
from imagenet_pipeline.networks.shapes import describe, output_shape, parameters
from imagenet_pipeline.networks.subnetwork import last_map, until

SHAPE = (3, 16, 16)
NETWORK = stack(
    stem=Conv(4, 3, pad=1),
    unit=Residual(stack(conv1=Conv(4, 3, pad=1), relu=Activation("relu"), conv2=Conv(6, 1)), stack(conv=Conv(6, 1))),
    tap=Tap(stack(pool=GlobalAveragePool(), flatten=Flatten(), classifier=Dense(5)), 0.3),
    mixed=Concat((("one", stack(conv=Conv(2, 1), relu=Activation("relu"))), ("three", Conv(3, 3, pad=1)))),
    pool=GlobalAveragePool(),
    flatten=Flatten(),
    classifier=Dense(5),
)


@pytest.mark.parametrize(
    "name", ["lenet", "googlenet_bn", "inception_v3", "resnet50_d", "densenet121", "squeezenet1_1"]
)
def test_every_layer_that_networks_shows_ends_a_network_of_the_same_parameters(name: str) -> None:
    network, shape = catalog.entry(name).build(7), (3, catalog.entry(name).input_size, catalog.entry(name).input_size)
    whole = parameters(network, shape)
    for report in describe(network, shape)[::5]:
        cut = describe(until(network, report.path), shape)
        assert (cut[-1].path, cut[-1].output_shape) == (report.path, report.output_shape)
        assert not any(one.auxiliary for one in cut)
        found = parameters(until(network, report.path), shape)
        assert found.items() <= whole.items()
        assert {parameter.name for parameter in report.parameters} <= found.keys()


@pytest.mark.parametrize(
    ("path", "layers", "output"),
    [
        ("stem", ["stem"], (4, 16, 16)),
        ("unit.relu", ["stem", "unit.conv1", "unit.relu"], (4, 16, 16)),
        ("unit.shortcut", ["stem", "unit.shortcut.conv"], (6, 16, 16)),
        ("unit", ["stem", "unit.conv1", "unit.relu", "unit.conv2", "unit.shortcut.conv"], (6, 16, 16)),
        ("mixed.three", [*["stem", "unit.conv1", "unit.relu", "unit.conv2", "unit.shortcut.conv"], "mixed.three"],
         (3, 16, 16)),
        ("tap.flatten", ["stem", "unit.conv1", "unit.relu", "unit.conv2", "unit.shortcut.conv", "tap.pool",
                         "tap.flatten"], (6,)),
    ],
)  # fmt: skip
def test_only_what_leads_to_the_layer_stays(path: str, layers: list[str], output: tuple[int, ...]) -> None:
    reports = describe(until(NETWORK, path), SHAPE)
    assert [report.path for report in reports] == layers
    cut = until(NETWORK, path)
    assert describe(stack(**dict(cut.items), flat_end=Flatten()), SHAPE)[-1].input_shape == output


def test_the_last_layer_ends_the_network_as_it_scores() -> None:
    assert "tap" not in dict(until(NETWORK, "classifier").items)
    assert list(dict(until(NETWORK, "classifier").items))[-1] == "classifier"
    assert [report.path for report in describe(until(NETWORK, "tap"), SHAPE)][-1] == "tap.classifier"


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("unit.conv3", "unit.conv"),
        ("clasifier", "did you mean classifier"),
        ("mixed.one.conf", "mixed.one.conv"),
        ("", "networks NAME` lists them"),
        ("stem.conv", "no layer is called 'stem.conv'"),
        ("unit..relu", "did you mean unit.relu"),
    ],
)
def test_a_wrong_path_is_met_with_the_nearest_names(path: str, near: str) -> None:
    with pytest.raises(BadRecipe, match=r"^layer: no layer is called ") as caught:
        until(NETWORK, path)
    assert near in str(caught.value)


@pytest.mark.parametrize(
    ("name", "size", "path"),
    [
        ("resnet50", 224, "stage4.relu3"),
        ("googlenet", 224, "inception5b"),
        ("vgg16", 224, "block5.pool"),
        ("vgg16", 32, "block5.relu3"),
        ("alexnet", 227, "pool5"),
        ("squeezenet1_1", 224, "active10"),
        ("densenet121", 224, "relu"),
        ("lenet", 28, "pool2"),
    ],
)
def test_the_last_map_is_the_last_image_of_several_pixels_with_nothing_beside_it(
    name: str, size: int, path: str
) -> None:
    network, shape = catalog.entry(name).build(7), (3, size, size)
    assert last_map(network, shape) == path
    found = output_shape(until(network, path), shape)
    assert len(found) == 3
    assert found[1] * found[2] > 1


GRAPH = stack(
    stem=Conv(4, 3, pad=1),
    block=Graph(
        (("a", stack(conv=Conv(4, 1), relu=Activation("relu"))), ("number", Constant((4, 1, 1))), ("b", Conv(4, 1)),
         ("sum", Elementwise("add")), ("inner", Graph((("c", Conv(2, 1)), ("d", Conv(3, 1)), ("e", Join())),
                                                      (("",), ("",), ("d", "c")))),
         ("end", Join())),
        (("",), (), ("",), ("a", "number"), ("sum",), ("inner", "b")),
    ),
    pool=GlobalAveragePool(), flatten=Flatten(), classifier=Dense(5),
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "layers", "output"),
    [
        ("block.b", ["stem", "block.b"], 4),
        ("block.a.conv", ["stem", "block.a.conv"], 4),
        ("block.sum", ["stem", "block.a.conv", "block.a.relu", "block.number", "block.sum"], 4),
        ("block.inner.d", ["stem", *["block.a.conv", "block.a.relu", "block.number", "block.sum"], "block.inner.d"], 3),
        ("block.inner", ["stem", *["block.a.conv", "block.a.relu", "block.number", "block.sum"],
                         "block.inner.c", "block.inner.d", "block.inner.e"], 5),
    ],
)  # fmt: skip
def test_of_a_graph_stays_what_the_layer_depends_on(path: str, layers: list[str], output: int) -> None:
    cut = until(GRAPH, path)
    assert [report.path for report in describe(cut, SHAPE)] == layers
    assert output_shape(cut, SHAPE) == (output, 16, 16)
    assert parameters(cut, SHAPE).items() <= parameters(GRAPH, SHAPE).items()


def test_a_whole_graph_is_found_by_its_name_or_that_of_its_last_layer() -> None:
    assert until(GRAPH, "block") == until(GRAPH, "block.end") == Sequential(GRAPH.items[:2])
    with pytest.raises(BadRecipe, match=r"did you mean block\.number"):
        until(GRAPH, "block.numbre")


def test_what_leaves_a_graph_is_a_last_map_and_nothing_else_in_it() -> None:
    assert last_map(GRAPH, SHAPE) == "block.end"
    side = Graph((("big", Conv(4, 1)), ("small", GlobalAveragePool()), ("end", Join(1))), (("",), ("big",), ("small",)))
    assert last_map(stack(stem=Conv(4, 1), block=side), SHAPE) == "stem"
    ends = Graph((("a", Conv(4, 1)), ("b", stack(pool=Conv(4, 3), mean=GlobalAveragePool()))), (("",), ("a",)))
    assert last_map(stack(block=ends), SHAPE) == "block.b.pool"


def test_a_network_without_maps_has_no_last_one() -> None:
    assert last_map(stack(flatten=Flatten(), classifier=Dense(5)), SHAPE) is None
