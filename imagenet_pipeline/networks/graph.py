"""The arrangement of a flat graph of layers as a network: a sequence wherever nothing branches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count

from imagenet_pipeline.networks.layers import Activation, Constant, Elementwise, Graph, Join, Layer, Sequential
from imagenet_pipeline.networks.subnetwork import needed

Item = tuple[str, Layer, tuple[str, ...]]
"""A layer of a graph: its name, itself and the names of what it reads."""


def arrange(graph: Graph) -> Sequential:
    """Arrange a graph of single layers as a Sequential, in which a Graph holds each stretch that branches.

    A stretch, named block1, block2, ..., goes from one point that everything passes through to the next. Layers keep
    their names; those in a stretch have the path block1.NAME. What the last layer does not need is left out. A product
    of x and its sigmoid, as other programs write it, is a swish.
    """
    items = _with_swishes(_needed(graph))
    taken = {name for name, _, _ in items}
    blocks = (block for block in (f"block{number}" for number in count(1)) if block not in taken)
    arranged: list[tuple[str, Layer]] = []
    entrance = ""
    for stretch in _stretches(items):
        name, layer, links = stretch[-1]
        is_plain = len(stretch) == 1 and len(links) == 1 and not isinstance(layer, Elementwise | Join)
        arranged.append((name, layer) if is_plain else (next(blocks), _block(stretch, entrance)))
        entrance = name
    return Sequential(tuple(arranged))


def _needed(graph: Graph) -> list[Item]:
    """The items that the last one depends on, in order, but each Constant just before the first that reads it."""
    items = {name: (name, layer, links) for (name, layer), links in zip(graph.items, graph.links, strict=True)}
    last = graph.items[-1][0]
    there = needed(graph, last)
    ordered: dict[str, Item] = {}
    for name, layer, links in items.values():
        if name in there and (not isinstance(layer, Constant) or name == last):
            ordered |= {link: items[link] for link in links if link and isinstance(items[link][1], Constant)}
            ordered[name] = items[name]
    return list(ordered.values())


def _with_swishes(items: list[Item]) -> list[Item]:
    """Each product of something and its sigmoid, which nothing else reads, as an Activation of the product's name."""
    readers = Counter(link for _, _, links in items for link in set(links))
    sigmoids = {
        name: links[0]
        for name, layer, links in items
        if isinstance(layer, Activation) and layer.kind == "sigmoid" and readers[name] == 1
    }
    gates: dict[str, str] = {}
    for name, layer, links in items:
        if layer == Elementwise("multiply") and len(links) == 2:
            for gate, source in (links, links[::-1]):
                if sigmoids.get(gate) == source:
                    gates[name] = gate
    return [
        (name, Activation("swish"), (sigmoids[gates[name]],)) if name in gates else (name, layer, links)
        for name, layer, links in items
        if name not in gates.values()
    ]


def _stretches(items: list[Item]) -> Iterator[list[Item]]:
    """Cut after every item that is the only one, of it and those before, that later items read."""
    last_read = {link: index for index, (_, _, links) in enumerate(items) for link in links}
    stretch: list[Item] = []
    open_until = last_read.get("", 0)
    for index, item in enumerate(items):
        stretch.append(item)
        if index >= open_until:
            yield stretch
            stretch = []
        open_until = max(open_until, last_read.get(item[0], index))


def _block(stretch: list[Item], entrance: str) -> Graph:
    items = tuple((name, layer) for name, layer, _ in stretch)
    links = tuple(tuple("" if link == entrance else link for link in links) for _, _, links in stretch)
    return Graph(items, links)
