"""A diagram of a network as data: boxes for layers, groups for stages, units and branches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from imagenet_pipeline.networks.layers import (
    SHORTCUT,
    Activation,
    BatchNorm,
    Clip,
    Concat,
    Dropout,
    Flatten,
    Graph,
    InstanceNorm,
    L2Norm,
    Layer,
    LayerNorm,
    LocalResponseNorm,
    Residual,
    Scalar,
    Scale,
    Sequential,
    Softmax,
    Tap,
    fold,
)
from imagenet_pipeline.networks.shapes import LayerReport, Shape, describe, output_shapes

FOLLOWERS = (
    BatchNorm, InstanceNorm, LayerNorm, L2Norm, LocalResponseNorm, Scale, Activation, Clip, Softmax, Scalar, Dropout,
    Flatten,
)  # fmt: skip
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


@dataclass(frozen=True)
class LayerGraph:
    """The parts of a Graph in order of computation, and what leaves: the output of the part number `exit`.

    `links` are the numbers of the parts that each reads, -1 what enters.
    """

    path: str
    parts: tuple[Part, ...]
    links: tuple[tuple[int, ...], ...]
    exit: int
    times: int = 1
    last_path: str = ""


Part = LayerBox | LayerGroup | LayerGraph
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
    return any(part.times > 1 or any(map(is_folded, _lanes(part))) for part in parts)


def _lanes(part: Part) -> tuple[Parts, ...]:
    match part:
        case LayerGroup(lanes=lanes):
            return lanes
        case LayerGraph(parts=parts):
            return (parts,)
    return ()


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
            case Graph():
                return self.graph(layer, path, inner)
        return self._box(path, "layer", self.reports[path])

    def _box(self, path: str, kind: Literal["layer", "add", "concat"], report: LayerReport | None = None) -> LayerBox:
        layers, count = ((report.layer,), report.parameter_count) if report else ((), 0)
        return LayerBox(path, kind, layers, (self.shapes[path],) * 2, (count,) * 2)

    def sequence(self, items: Iterable[tuple[str, Layer]], drawn: Mapping[str, Part]) -> Parts:
        """The parts of a sequence: followers in the box of the layer before, equal neighbours as a single part."""
        if self.full:
            return tuple(drawn[name] for name, _ in items)
        chunks: list[_Chunk] = []
        for name, item in items:
            if chunks and chunks[-1].takes(item):
                chunks[-1] = chunks[-1].with_follower(item, drawn[name])
            else:
                chunks.append(_Chunk((item,), drawn[name]))
        runs = groupby(chunks, key=_Chunk.form)
        return tuple(_folded([chunk.part for chunk in run]) for _, run in runs)

    def graph(self, graph: Graph, path: str, drawn: Mapping[str, Part]) -> LayerGraph:
        """The parts of a graph, folded as those of a sequence are wherever a single part reads another."""
        chunks: list[_Chunk] = []
        links: list[tuple[int, ...]] = []
        numbers = {"": -1}
        readers = Counter(link for names in graph.links for link in names)
        for (name, item), names in zip(graph.items, graph.links, strict=True):
            before = numbers[names[0]] if len(names) == 1 and readers[names[0]] == 1 else -1
            if before >= 0 and not self.full and chunks[before].takes(item):
                chunks[before] = chunks[before].with_follower(item, drawn[name])
                numbers[name] = before
            else:
                numbers[name] = len(chunks)
                chunks.append(_Chunk((item,), drawn[name]))
                links.append(tuple(numbers[link] for link in names))
        exit = numbers[graph.items[-1][0]]
        return _graph_of_runs(path, chunks, links, exit, [] if self.full else [chunk.form() for chunk in chunks])


@dataclass(frozen=True)
class _Chunk:
    """A layer, the followers that share its box, and the part that is drawn for them."""

    layers: tuple[Layer, ...]
    part: Part

    def takes(self, layer: Layer) -> bool:
        """True where the layer after these shares their box."""
        return isinstance(layer, FOLLOWERS) and not isinstance(self.layers[0], Sequential | Tap) and _is_open(self.part)

    def with_follower(self, layer: Layer, part: Part) -> _Chunk:
        return _Chunk((*self.layers, layer), _followed(self.part, part))

    def form(self) -> tuple[object, Shape]:
        """Equal neighbours are drawn as a single part with a multiplicity."""
        return tuple(map(_form, self.layers)), _end(self.part)[1:]


def _form(layer: Layer) -> object:
    """A layer's description, without the names inside a Graph, which no two graphs of a network share."""
    if not isinstance(layer, Graph):
        return layer
    numbers = {"": -1} | {name: number for number, (name, _) in enumerate(layer.items)}
    links = tuple(tuple(numbers[link] for link in names) for names in layer.links)
    return tuple(_form(item) for _, item in layer.items), links


def _graph_of_runs(
    path: str, chunks: list[_Chunk], links: list[tuple[int, ...]], exit: int, forms: list[tuple[object, Shape]]
) -> LayerGraph:
    """The graph of these chunks, those that form a chain of equal `forms` (if there are any) as a single part."""
    readers = Counter(link for numbers in links for link in numbers)
    runs: list[list[int]] = []
    run_of = {-1: -1}
    for number, reads in enumerate(links):
        before = reads[0] if len(reads) == 1 and readers[reads[0]] == 1 else -1
        if before >= 0 and forms and forms[before] == forms[number]:
            run_of[number] = run_of[before]
            runs[run_of[before]].append(number)
        else:
            run_of[number] = len(runs)
            runs.append([number])
    parts = tuple(_folded([chunks[number].part for number in run]) for run in runs)
    return LayerGraph(path, parts, tuple(tuple(run_of[link] for link in links[run[0]]) for run in runs), run_of[exit])


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
    if isinstance(part, LayerGraph):
        return _end(part.parts[part.exit])
    last = part.join if isinstance(part, LayerGroup) and part.join else part
    if isinstance(last, LayerBox):
        return last.shapes[1]
    return _end(last.lanes[0][-1]) if last.lanes[0] else ()


def _is_open(part: Part) -> bool:
    """True where a part ends in a box of its own, for a single layer."""
    match part:
        case LayerGraph():
            return part.times == 1 and _is_open(part.parts[part.exit])
        case LayerGroup():
            return part.times == 1 and part.join is not None
    return part.times == 1


def _followed(part: Part, follower: Part) -> Part:
    """A part whose last box, its own or that where its lanes meet, takes up the box of the layer after it."""
    if isinstance(part, LayerGraph):
        parts = list(part.parts)
        parts[part.exit] = _followed(parts[part.exit], follower)
        return replace(part, parts=tuple(parts))
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
    if isinstance(first, LayerGraph) and isinstance(last, LayerGraph):
        return replace(first, parts=tuple(_spanning(*pair) for pair in zip(first.parts, last.parts, strict=True)))
    raise TypeError(f"{first} and {last} are of two forms")


def _spanning_box(first: LayerBox, last: LayerBox) -> LayerBox:
    return replace(
        first,
        shapes=(first.shapes[0], last.shapes[1]),
        parameters=(first.parameters[0], last.parameters[1]),
    )
