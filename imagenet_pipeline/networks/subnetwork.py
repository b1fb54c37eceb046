"""A network's beginning: everything up to a layer, for its activations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import takewhile

from imagenet_pipeline.errors import BadRecipe, did_you_mean
from imagenet_pipeline.networks.layers import (
    SHORTCUT,
    Concat,
    Graph,
    Layer,
    Residual,
    Sequential,
    Tap,
    joined,
    parts,
    walk,
    without_taps,
)
from imagenet_pipeline.networks.shapes import Shape, output_shapes


def until(network: Sequential, path: str, name: str = "NAME") -> Sequential:
    """The network up to and including the layer `path`, its parameters called as in the whole.

    Any layer will do, also a layer inside a residual body, its shortcut, a branch, a Graph or an auxiliary classifier:
    what runs beside the way to it, and taps that stand before it, are left out. So will a whole group of layers, as
    `stage2` or `stage2.unit1`: their end is meant. For a path there is not, raises BadRecipe with
    the nearest names and where those of the network `name` are listed.
    """
    found = _cut(network, path.split("."))
    if not isinstance(found, Sequential):
        raise no_layer(path, [known for known, _ in walk(network)], name)
    return without_taps(found)


def last_map(network: Sequential, input_shape: Shape) -> str | None:
    """The path of the last layer (or residual unit, or concatenation) whose output is an image of several pixels.

    Layers inside bodies, branches and graphs do not count: something beside them matters too. The last item of a Graph
    does, since all leaves by it. None where there is none.
    Raises BadRecipe where the network cannot take the input.
    """
    scoring = without_taps(network)
    inside = tuple(f"{joined(path, name)}." for path, layer in walk(scoring) for name in _beside_others(layer))
    shapes = output_shapes(scoring, input_shape)
    maps = [path for path, shape in shapes.items() if path and len(shape) == 3 and math.prod(shape[1:]) > 1]
    return next((path for path in reversed(maps) if not f"{path}.".startswith(inside)), None)


def _beside_others(layer: Layer) -> list[str]:
    """The names of a layer's parts that not everything passes through."""
    names = [name for name, _ in parts(layer)]
    if isinstance(layer, Graph):
        return names[:-1]
    return names if isinstance(layer, Residual | Concat) else []


def no_layer(path: str, known: Iterable[str], name: str = "NAME", where: str = "layer") -> BadRecipe:
    """The error for a path that leads to no layer of the network `name`, with the nearest names and where all are."""
    advice = f"{did_you_mean(path, known, '')} `imagenet-pipeline networks {name}` lists them".strip()
    return BadRecipe(f"no layer is called {path!r}", where=where, advice=advice)


def _cut(layer: Layer, words: list[str]) -> Layer | None:
    """The part of `layer` that the rest of a path leads through; None where it leads nowhere."""
    if not words:
        return layer
    name, inner = words[0], dict(parts(layer))
    last = _cut(inner[name], words[1:]) if name in inner else None
    if last is None:
        return None
    if isinstance(layer, Graph):
        return _cut_graph(layer, name, last)
    beside = isinstance(layer, Concat) or name == SHORTCUT
    before = [] if beside else takewhile(lambda item: item[0] != name, parts(layer))
    items = [item for item in before if item[0] != SHORTCUT]
    return Sequential((*items, (name, last.head if isinstance(last, Tap) else last)))


def _cut_graph(graph: Graph, name: str, last: Layer) -> Graph:
    """The items that `last`, the beginning of the item `name`, depends on, and that itself."""
    there = needed(graph, name)
    kept = [
        (known, last if known == name else item, links)
        for (known, item), links in zip(graph.items, graph.links, strict=True)
        if known in there
    ]
    return Graph(tuple((known, item) for known, item, _ in kept), tuple(links for _, _, links in kept))


def needed(graph: Graph, name: str) -> set[str]:
    """The names of the items that an item depends on, its own among them."""
    names = {name}
    for (known, _), links in zip(reversed(graph.items), reversed(graph.links), strict=True):
        if known in names:
            names.update(links)
    return names
