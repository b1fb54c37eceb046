"""What a diagram of a network shows: boxes for layers, groups for stages, units and branches. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from imagenet_pipeline.networks.layers import (
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
)
from imagenet_pipeline.networks.shapes import LayerReport, Shape, describe

FOLLOWERS = (BatchNorm, Activation, Dropout, Flatten, LocalResponseNorm)
"""Layers that share the box of the one before them."""


@dataclass(frozen=True)
class Step:
    """One box: a layer and what follows it at once, or the place where branches meet.

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
class Group:
    """Boxes that belong together, in lanes side by side; an empty lane hands on what came in.

    `join` is where the lanes meet; a group of one lane has none. A `side` group leads nowhere: an auxiliary
    classifier. A group may stand for several of one form, `times`, from `path` to `last_path`.
    """

    path: str
    lanes: tuple[tuple[Part, ...], ...]
    join: Step | None = None
    side: bool = False
    times: int = 1
    last_path: str = ""


Part = Step | Group
Parts = tuple[Part, ...]
Chunk = list[tuple[str, Layer]]  # an item of a sequence and those that share its box, by name


def diagram(network: Sequential, input_shape: Shape, full: bool = False) -> Parts:
    """The parts of a network's diagram for an input of [channels, height, width], in order of computation.

    Neighbours of one description that give images of one size, whatever the channels that reach them, are one part
    with a multiplicity, and normalisation, activation and the like share the box of the layer before them; not so
    with `full`.
    Raises BadRecipe as `describe` does.
    """
    reports = {report.path: report for report in describe(network, input_shape)}
    return _Drawer(reports, full).parts(network, "", input_shape)[0]


def is_folded(parts: Parts) -> bool:
    """Whether any of the parts, or one inside them, stands for several."""
    return any(
        part.times > 1 or (isinstance(part, Group) and any(is_folded(lane) for lane in part.lanes)) for part in parts
    )


@dataclass(frozen=True)
class _Drawer:
    reports: Mapping[str, LayerReport]
    full: bool

    def parts(self, sequence: Sequential, path: str, shape: Shape) -> tuple[Parts, Shape]:
        """The parts of a sequence that `shape` enters, and the shape that leaves it."""
        drawn = []
        for chunk in self._chunks(sequence):
            part, shape = self._part(chunk, path, shape)
            drawn.append((part, [item for _, item in chunk], shape[1:]))
        if self.full:
            return tuple(part for part, *_ in drawn), shape
        runs = groupby(drawn, key=lambda one: one[1:])
        return tuple(_folded([part for part, *_ in run]) for _, run in runs), shape

    def _chunks(self, sequence: Sequential) -> list[Chunk]:
        chunks: list[Chunk] = []
        for name, item in sequence.items:
            if chunks and isinstance(item, FOLLOWERS) and not self.full and _leads(chunks[-1][0][1]):
                chunks[-1].append((name, item))
            else:
                chunks.append([(name, item)])
        return chunks

    def _part(self, chunk: Chunk, path: str, shape: Shape) -> tuple[Part, Shape]:
        (name, first), *others = chunk
        followers = [self.reports[_joined(path, other)] for other, _ in others]
        inner = _joined(path, name)
        match first:
            case Sequential():
                parts, shape = self._lane(name, first, path, shape)
                return (parts[0] if parts and parts[0].path == inner else Group(inner, (parts,))), shape
            case Tap():
                return Group(inner, (self.parts(first.head, inner, shape)[0],), side=True), shape
            case Residual(body=body, shortcut=shortcut):
                lane, end = self.parts(body, inner, shape)
                around, _ = self._lane("shortcut", shortcut or Sequential(()), inner, shape)
                join = _join("add", inner, end, followers)
                return Group(inner, (lane, around), join), join.shapes[1]
            case Concat(branches=branches):
                lanes, shapes = zip(*(self._lane(*branch, inner, shape) for branch in branches), strict=True)
                whole = (sum(one[0] for one in shapes), *shapes[0][1:])
                join = _join("concat", inner, whole, followers)
                return Group(inner, lanes, join), join.shapes[1]
        return _step(self.reports[inner], followers)

    def _lane(self, name: str, branch: Layer, path: str, shape: Shape) -> tuple[Parts, Shape]:
        """The parts of a branch; a sequence that is one box all told lends it its name."""
        if not isinstance(branch, Sequential):
            part, shape = self._part([(name, branch)], path, shape)
            return (part,), shape
        parts, shape = self.parts(branch, _joined(path, name), shape)
        if len(parts) == 1 and isinstance(parts[0], Step) and parts[0].times == 1:
            parts = (replace(parts[0], path=_joined(path, name)),)
        return parts, shape


def _leads(layer: Layer) -> bool:
    return not isinstance(layer, Sequential | Tap)


def _step(report: LayerReport, followers: list[LayerReport]) -> tuple[Step, Shape]:
    all_of_them = (report, *followers)
    shape, count = all_of_them[-1].output_shape, sum(one.parameter_count for one in all_of_them)
    return Step(report.path, "layer", tuple(one.layer for one in all_of_them), (shape, shape), (count, count)), shape


def _join(kind: Literal["add", "concat"], path: str, shape: Shape, followers: list[LayerReport]) -> Step:
    layers, count = tuple(one.layer for one in followers), sum(one.parameter_count for one in followers)
    shape = followers[-1].output_shape if followers else shape
    return Step(path, kind, layers, (shape, shape), (count, count))


def _folded(parts: list[Part]) -> Part:
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return first
    return replace(_spanning(first, last), times=len(parts), last_path=last.path)


def _spanning(first: Part, last: Part) -> Part:
    """One part for both, which are of one form: the shapes and numbers of the first and of the last."""
    if isinstance(first, Step) and isinstance(last, Step):
        return _spanning_step(first, last)
    if isinstance(first, Group) and isinstance(last, Group):
        lanes = tuple(
            tuple(_spanning(*pair) for pair in zip(*pair_of_lanes, strict=True))
            for pair_of_lanes in zip(first.lanes, last.lanes, strict=True)
        )
        join = _spanning_step(first.join, last.join) if first.join and last.join else None
        return replace(first, lanes=lanes, join=join)
    raise TypeError(f"{first} and {last} are of two forms")


def _spanning_step(first: Step, last: Step) -> Step:
    return replace(
        first,
        shapes=(first.shapes[0], last.shapes[1]),
        parameters=(first.parameters[0], last.parameters[1]),
    )


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
