"""The ways through a tree of layers, on one that has every kind of group."""

from __future__ import annotations

import pytest

from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import (
    Concat,
    Conv,
    Dense,
    Flatten,
    Layer,
    Residual,
    Tap,
    fold,
    follow,
    stack,
    walk,
)
from imagenet_pipeline.networks.shapes import describe, output_shapes

CONV = Conv(2, 1)
NETWORK = stack(
    first=CONV,
    unit=Residual(stack(a=CONV, b=CONV), stack(c=CONV)),
    mixed=Concat((("same", stack()), ("inner", stack(d=CONV)))),
    aside=Tap(stack(flatten=Flatten(), dense=Dense(3)), 0.3),
    last=Residual(stack(e=CONV)),
)


def test_a_walk_meets_every_layer_and_group_once_by_its_path() -> None:
    assert [path for path, _ in walk(NETWORK)] == [
        "first", "unit", "unit.shortcut", "unit.shortcut.c", "unit.a", "unit.b", "mixed", "mixed.same", "mixed.inner",
        "mixed.inner.d", "aside", "aside.flatten", "aside.dense", "last", "last.e",
    ]  # fmt: skip


def test_a_fold_makes_the_inner_before_the_outer() -> None:
    def written(layer: Layer, path: str, parts: dict[str, str]) -> str:
        return f"{path.rpartition('.')[2]}({' '.join(parts.values())})" if parts else path

    assert fold(NETWORK, "", written) == (
        "(first unit(shortcut(unit.shortcut.c) unit.a unit.b) mixed(mixed.same inner(mixed.inner.d)) "
        "aside(aside.flatten aside.dense) last(last.e))"
    )


def test_what_is_followed_goes_around_and_beside() -> None:
    def written(layer: Layer, path: str, inputs: list[str]) -> str:
        met.append(path)
        return f"{path[-1]}({' '.join(inputs)})"

    met: list[str] = []
    unit = "t(b(a(t(x))) c(t(x)))"
    mixed = f"d({unit} d({unit}))"
    assert follow(NETWORK, "", "x", written) == f"t(e({mixed}) {mixed})"
    assert met == [
        "first", "unit.a", "unit.b", "unit.shortcut.c", "unit", "mixed.inner.d", "mixed", "aside.flatten",
        "aside.dense", "last.e", "last",
    ]  # fmt: skip


@pytest.mark.parametrize("name", catalog.names())
def test_all_ways_lead_past_the_same_layers(name: str) -> None:
    network, size = catalog.build(name, 7), catalog.entry(name).input_size
    folded: list[str] = []
    fold(network, "", lambda layer, path, parts: folded.append(path))
    walked = [path for path, _ in walk(network)]
    assert sorted(folded) == sorted(["", *walked])
    reports = describe(network, (3, size, size))
    assert {report.path for report in reports} <= set(walked)
    shapes = output_shapes(network, (3, size, size))
    assert set(shapes) <= {"", *walked}
    assert shapes[""] == (7,)
    assert all(shapes[report.path] == report.output_shape for report in reports)
