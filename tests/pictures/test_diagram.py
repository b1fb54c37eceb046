"""What a diagram shows: every layer once, what repeats once with its number, branches as branches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.graph import arrange
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Clip,
    Concat,
    Constant,
    Conv,
    Dense,
    Elementwise,
    Flatten,
    GlobalAveragePool,
    Graph,
    Layer,
    Residual,
    Sequential,
    stack,
)
from imagenet_pipeline.networks.shapes import describe, output_shape, parameter_count
from imagenet_pipeline.pictures.diagram import LayerBox, LayerGraph, LayerGroup, Part, Parts, diagram


def steps(parts: Parts, times: int = 1) -> Iterator[tuple[LayerBox, int]]:
    """Every box, and for how many it stands with the groups it is in."""
    for part in parts:
        if isinstance(part, LayerBox):
            yield part, times * part.times
            continue
        for lane in [part.parts] if isinstance(part, LayerGraph) else part.lanes:
            yield from steps(lane, times * part.times)
        if isinstance(part, LayerGroup) and part.join is not None:
            yield part.join, times * part.times


def drawn(name: str, full: bool = False) -> tuple[Parts, Sequential, tuple[int, int, int]]:
    entry = catalog.entry(name)
    network, shape = entry.build(1000), (3, entry.input_size, entry.input_size)
    return diagram(network, shape, full), network, shape


def part_called(parts: Parts, path: str) -> Part:
    return next(part for part in parts if part.path == path)


@pytest.mark.parametrize("name", catalog.names())
def test_every_layer_is_drawn_once_for_each_time_it_is_there(name: str) -> None:
    parts, network, shape = drawn(name)
    counted: dict[Layer, int] = {}
    for report in describe(network, shape):
        counted[report.layer] = counted.get(report.layer, 0) + 1
    for step, times in steps(parts):
        for layer in step.layers:
            counted[layer] -= times
    assert set(counted.values()) == {0}


@pytest.mark.parametrize("name", catalog.names())
def test_in_full_each_layer_has_its_own_box_with_its_own_parameters(name: str) -> None:
    parts, network, shape = drawn(name, full=True)
    boxes = [step for step, times in steps(parts) if times == 1 and step.kind == "layer"]
    reports = {report.path: report for report in describe(network, shape)}
    assert len(boxes) == len(reports)
    assert all(len(step.layers) == 1 for step in boxes)
    assert sum(step.parameters[0] for step in boxes) == sum(one.parameter_count for one in reports.values())
    assert all(step.shapes[0] == step.shapes[1] for step in boxes)


@pytest.mark.parametrize("name", catalog.names())
def test_the_last_box_gives_the_network_s_output(name: str) -> None:
    parts, network, shape = drawn(name)
    last = parts[-1]
    assert isinstance(last, LayerBox)
    assert last.shapes[1] == output_shape(network, shape) == (1000,)


def test_a_residual_unit_has_its_body_its_shortcut_and_the_sum() -> None:
    stage = part_called(drawn("resnet50")[0], "stage2")
    assert isinstance(stage, LayerGroup)
    first, others = stage.lanes[0]
    assert isinstance(first, LayerGroup)
    assert isinstance(others, LayerGroup)
    body, shortcut = first.lanes
    assert [one.path for one in body] == [f"stage2.unit1.conv{number}" for number in (1, 2, 3)]
    assert [one.path for one in shortcut] == ["stage2.unit1.shortcut"]
    assert first.join is not None
    assert (first.join.kind, first.join.layers, first.join.shapes[0]) == ("add", (Activation("relu"),), (512, 28, 28))
    assert (others.path, others.last_path, others.times) == ("stage2.unit2", "stage2.unit4", 3)
    assert others.lanes[1] == ()


def test_an_inception_module_has_four_branches_and_auxiliary_heads_stand_aside() -> None:
    parts = drawn("googlenet")[0]
    module = part_called(parts, "inception4a")
    assert isinstance(module, LayerGroup)
    assert module.join is not None
    assert [len(lane) for lane in module.lanes] == [1, 2, 2, 2]
    assert [lane[0].path.split(".")[1] for lane in module.lanes] == ["branch1", "branch3", "branch5", "branch_pool"]
    assert (module.join.kind, module.join.shapes[0]) == ("concat", (512, 14, 14))
    assert [part.path for part in parts if isinstance(part, LayerGroup) and part.side] == ["auxiliary4a", "auxiliary4d"]


def test_what_repeats_with_growing_channels_spans_from_the_first_to_the_last() -> None:
    block = part_called(drawn("densenet121")[0], "block1")
    assert isinstance(block, LayerGroup)
    (units,) = block.lanes[0]
    assert isinstance(units, LayerGroup)
    assert units.join is not None
    assert (units.times, units.join.shapes) == (6, ((96, 56, 56), (256, 56, 56)))
    first = units.lanes[1][0]
    assert isinstance(first, LayerBox)
    assert first.parameters == (2 * 64, 2 * 224)


def test_neighbours_of_other_image_sizes_are_not_put_together() -> None:
    halving = stack(a=Conv(4, 3, stride=2, pad=1), b=Conv(4, 3, stride=2, pad=1), c=Conv(4, 1), d=Conv(4, 1))
    parts = diagram(halving, (4, 16, 16))
    assert [(part.path, part.times) for part in parts] == [("a", 1), ("b", 1), ("c", 2)]


def test_followers_share_a_box_and_lend_it_their_shape() -> None:
    network = stack(
        norm=BatchNorm(), relu=Activation("relu"), conv=Conv(4, 3), again=BatchNorm(),
        join=Residual(stack(body=Conv(4, 1))), flatten=Flatten(), dense=Dense(2),
    )  # fmt: skip
    parts = diagram(network, (3, 5, 5))
    assert [part.path for part in parts] == ["norm", "conv", "join", "dense"]
    join = parts[2]
    assert isinstance(join, LayerGroup)
    assert join.join is not None
    assert (join.join.layers, join.join.shapes[0]) == ((Flatten(),), (36,))


def test_branches_of_any_kind_are_lanes() -> None:
    inner = Concat((("left", Conv(2, 1)), ("right", Residual(stack(conv=Conv(3, 1))))))
    network = stack(outer=Concat((("plain", stack()), ("inner", inner))), pool=GlobalAveragePool(), flatten=Flatten())
    outer = diagram(network, (3, 4, 4))[0]
    assert isinstance(outer, LayerGroup)
    assert outer.join is not None
    assert (outer.lanes[0], outer.join.shapes[0]) == ((), (8, 4, 4))
    nested = outer.lanes[1][0]
    assert isinstance(nested, LayerGroup)
    assert [lane[0].path for lane in nested.lanes] == ["outer.inner.left", "outer.inner.right"]


def residual_units(count: int) -> Sequential:
    """A network as an importer makes it: flat layers of names that no two units share, then arranged."""
    items: list[tuple[str, Layer, tuple[str, ...]]] = [("conv", Conv(4, 3, pad=1), ("",))]
    for number in range(count):
        before = items[-1][0]
        items += [
            (f"conv{number}", Conv(4, 3, pad=1), (before,)),
            (f"norm{number}", BatchNorm(), (f"conv{number}",)),
            (f"plus{number}", Elementwise("add"), (f"norm{number}", before)),
            (f"relu{number}", Activation("relu"), (f"plus{number}",)),
        ]
    items += [("pool", GlobalAveragePool(), (items[-1][0],)), ("flatten", Flatten(), ("pool",))]
    return arrange(Graph(tuple((name, layer) for name, layer, _ in items), tuple(links for *_, links in items)))


def test_equal_stretches_of_a_graph_are_drawn_once_whatever_their_layers_are_called() -> None:
    _, unit, _ = diagram(residual_units(3), (4, 8, 8))
    assert isinstance(unit, LayerGraph)
    assert (unit.path, unit.last_path, unit.times, unit.links, unit.exit) == (
        "block1",
        "block3",
        3,
        ((-1,), (0, -1)),
        1,
    )
    conv, plus = unit.parts
    assert isinstance(conv, LayerBox)
    assert isinstance(plus, LayerBox)
    assert (conv.path, conv.layers) == ("block1.conv0", (Conv(4, 3, pad=1), BatchNorm()))
    assert plus.layers == (Elementwise("add"), Activation("relu"))


def test_a_graph_in_full_has_a_box_for_each_layer() -> None:
    network = residual_units(2)
    for full in (False, True):
        boxes = list(steps(diagram(network, (4, 8, 8), full)))
        counted = Counter(layer for box, times in boxes for layer in box.layers * times)
        assert counted == Counter(report.layer for report in describe(network, (4, 8, 8)))
    assert all(len(box.layers) == 1 for box, _ in boxes)


def test_followers_and_equal_neighbours_are_folded_within_a_graph_where_nothing_else_reads_them() -> None:
    relu, conv = Activation("relu"), Conv(3, 1)
    items = (("a", conv), ("b", relu), ("c", conv), ("d", relu), ("e", conv), ("f", relu), ("g", Constant((3, 1, 1))),
             ("h", Elementwise("multiply")), ("i", Clip(0, 1)))  # fmt: skip
    links = (("",), ("a",), ("b",), ("c",), ("d",), ("e",), (), ("f", "g", "e"), ("h",))
    (graph,) = diagram(stack(graph=Graph(items, links)), (3, 4, 4))
    assert isinstance(graph, LayerGraph)
    assert [(part.path, part.times) for part in graph.parts] == [
        ("graph.a", 2), ("graph.e", 1), ("graph.f", 1), ("graph.g", 1), ("graph.h", 1)]  # fmt: skip
    assert graph.links == ((-1,), (0,), (1,), (), (2, 3, 1))
    assert graph.exit == 4


def test_an_input_too_small_is_refused_as_describe_does() -> None:
    with pytest.raises(BadRecipe, match="too small"):
        diagram(catalog.entry("vgg16").build(10), (3, 8, 8))


def test_totals_are_those_of_the_network() -> None:
    parts, network, shape = drawn("resnet18", full=True)
    assert (
        sum(step.parameters[0] for step, _ in steps(parts)) == parameter_count(describe(network, shape)) == 11_689_512
    )
