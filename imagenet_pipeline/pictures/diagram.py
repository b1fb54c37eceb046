"""A diagram of a network as data: boxes for layers, groups for stages, units and branches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from imagenet_pipeline.networks.layers import (
    SHORTCUT,
    Activation,
    BatchNorm,
    Concat,
    Dropout,
    Flatten,
    Layer,
    LocalResponseNorm,
    Residual,
    Sequential,
    Tap,
    fold,
)
from imagenet_pipeline.networks.shapes import LayerReport, Shape, describe, output_shapes

FOLLOWERS = (BatchNorm, Activation, Dropout, Flatten, LocalResponseNorm)
"""Layers that share the box of the layer before them."""


@dataclass(frozen=True)
class LayerBox:
    """A box: a layer and its followers, or the junction where branches meet.

    A box that stands for several, `times`, has the output shape and the trained numbers of the first and of the last.
    """

    path: str
    kind: Literal["layer", "add", "concat"]
    layers: tuple[Layer, ...]
    shapes: tuple[Shape, Shape]
    parameters: tuple[int, int]
    times: int = 1
    last_path: str = ""


@dataclass(frozen=True)
class LayerGroup:
    """Boxes that belong together, in lanes side by side; an empty lane hands on what came in.

    `join` is where the lanes meet; a group of a single lane has none. A `side` group leads nowhere: an auxiliary
    classifier. A group may stand for several of the same form, `times`, from `path` to `last_path`.
    """

    path: str
    lanes: tuple[tuple[Part, ...], ...]
    join: LayerBox | None = None
    side: bool = False
    times: int = 1
    last_path: str = ""


Part = LayerBox | LayerGroup
Parts = tuple[Part, ...]


def diagram(network: Sequential, input_shape: Shape, full: bool = False) -> Parts:
    """The parts of a network's diagram for an input of [channels, height, width], in order of computation.

    Neighbours of the same description and output size, whatever the channels that reach them, are a single part
    with a multiplicity, and normalisation, activation and the like share the box of the layer before them; not so
    with `full`.
    Raises BadRecipe as `describe` does.
    """
    drawer = _Drawer({report.path: report for report in describe(network, input_shape)},
                     output_shapes(network, input_shape), full)  # fmt: skip
    return drawer.sequence(network.items, {name: fold(item, name, drawer.part) for name, item in network.items})


def is_folded(parts: Parts) -> bool:
    """True where any part, at any depth, stands for several."""
    return any(
        part.times > 1 or (isinstance(part, LayerGroup) and any(is_folded(lane) for lane in part.lanes))
        for part in parts
    )


@dataclass(frozen=True)
class _Drawer:
    reports: Mapping[str, LayerReport]
    shapes: Mapping[str, Shape]
    full: bool

    def part(self, layer: Layer, path: str, inner: dict[str, Part]) -> Part:
        """The part of the diagram for a layer, made of the parts for the layers directly inside it."""
        match layer:
            case Sequential(items):
                return _framed(path, self.sequence(items, inner))
            case Tap(Sequential(items)):
                return LayerGroup(path, (self.sequence(items, inner),), side=True)
            case Residual(Sequential(items), shortcut):
                lanes = self.sequence(items, inner), _lane(inner[SHORTCUT]) if shortcut else ()
                return LayerGroup(path, lanes, self._box(path, "add"))
            case Concat():
                return LayerGroup(path, tuple(map(_lane, inner.values())), self._box(path, "concat"))
        return self._box(path, "layer", self.reports[path])

    def _box(self, path: str, kind: Literal["layer", "add", "concat"], report: LayerReport | None = None) -> LayerBox:
        layers, count = ((report.layer,), report.parameter_count) if report else ((), 0)
        return LayerBox(path, kind, layers, (self.shapes[path],) * 2, (count,) * 2)

    def sequence(self, items: Iterable[tuple[str, Layer]], drawn: Mapping[str, Part]) -> Parts:
        """The parts of a sequence: followers in the box of the layer before, equal neighbours as a single part."""
        if self.full:
            return tuple(drawn[name] for name, _ in items)
        chunks: list[tuple[list[Layer], Part]] = []
        for name, item in items:
            if chunks and isinstance(item, FOLLOWERS) and not isinstance(chunks[-1][0][0], Sequential | Tap):
                layers, part = chunks[-1]
                chunks[-1] = [*layers, item], _followed(part, drawn[name])
            else:
                chunks.append(([item], drawn[name]))
        runs = groupby(chunks, key=lambda chunk: (chunk[0], _end(chunk[1])[1:]))
        return tuple(_folded([part for _, part in run]) for _, run in runs)


def _framed(path: str, parts: Parts) -> Part:
    """The parts of a sequence as a single part; a sequence of a single box lends it its name."""
    if len(parts) == 1 and isinstance(parts[0], LayerBox) and parts[0].times == 1:
        return replace(parts[0], path=path)
    return LayerGroup(path, (parts,))


def _lane(part: Part) -> Parts:
    """A branch's parts: those of a sequence without the frame around them."""
    return part.lanes[0] if isinstance(part, LayerGroup) and part.join is None else (part,)


def _end(part: Part) -> Shape:
    """The shape that leaves a part; () where it holds nothing."""
    last = part.join if isinstance(part, LayerGroup) and part.join else part
    if isinstance(last, LayerBox):
        return last.shapes[1]
    return _end(last.lanes[0][-1]) if last.lanes[0] else ()


def _followed(part: Part, follower: Part) -> Part:
    """A part whose last box, its own or that where its lanes meet, takes up the box of the layer after it."""
    box = part if isinstance(part, LayerBox) else part.join
    if box is None or not isinstance(follower, LayerBox):
        raise TypeError(f"{follower} shares no box with {part}")
    count = box.parameters[0] + follower.parameters[0]
    layers = box.layers + follower.layers
    box = replace(box, layers=layers, shapes=follower.shapes, parameters=(count, count))
    return box if isinstance(part, LayerBox) else replace(part, join=box)


def _folded(parts: list[Part]) -> Part:
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return first
    return replace(_spanning(first, last), times=len(parts), last_path=last.path)


def _spanning(first: Part, last: Part) -> Part:
    """Merge two parts of the same form: the shapes and numbers of the first and of the last."""
    if isinstance(first, LayerBox) and isinstance(last, LayerBox):
        return _spanning_box(first, last)
    if isinstance(first, LayerGroup) and isinstance(last, LayerGroup):
        lanes = tuple(
            tuple(_spanning(*pair) for pair in zip(*pair_of_lanes, strict=True))
            for pair_of_lanes in zip(first.lanes, last.lanes, strict=True)
        )
        join = _spanning_box(first.join, last.join) if first.join and last.join else None
        return replace(first, lanes=lanes, join=join)
    raise TypeError(f"{first} and {last} are of two forms")


def _spanning_box(first: LayerBox, last: LayerBox) -> LayerBox:
    return replace(
        first,
        shapes=(first.shapes[0], last.shapes[1]),
        parameters=(first.parameters[0], last.parameters[1]),
    )
