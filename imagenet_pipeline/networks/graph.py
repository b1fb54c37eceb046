"""The arrangement of a flat graph of layers as a network: a sequence wherever nothing branches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count

from imagenet_pipeline.networks.layers import Activation, Constant, Elementwise, Graph, Join, Layer, Sequential
from imagenet_pipeline.networks.subnetwork import needed

Item = tuple[str, Layer, tuple[str, ...]]
"""A layer of a graph: its name, itself and the names of what it reads."""
GATED = {"sigmoid": Activation("swish"), "hard_sigmoid": Activation("hard_swish")}
"""What the product of x and this function of x is."""


def arrange(graph: Graph) -> Sequential:
    """Arrange a graph of single layers as a Sequential, in which a Graph holds each stretch that branches.

    A stretch, named block1, block2, ..., goes from one point that everything passes through to the next. Layers keep
    their names; those in a stretch have the path block1.NAME. What the last layer does not need is left out. A product
    of x and its sigmoid, as other programs write it, is a swish; so are a hard swish and a Mish known.
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
    """Each product of x and a gate of x that nothing else reads as an Activation of the product's name."""
    known = {name: (layer, links) for name, layer, links in items}
    readers = Counter(link for _, _, links in items for link in set(links))

    def inner(name: str) -> tuple[str, str]:
        """The kind of an activation that only one item reads, and what it reads itself; else nothing."""
        layer, links = known.get(name, (None, ()))
        return (layer.kind, links[0]) if isinstance(layer, Activation) and readers[name] == 1 else ("", "")

    swishes: dict[str, Item] = {}
    gone: set[str] = set()
    for name, layer, links in items:
        if layer == Elementwise("multiply") and len(links) == 2:
            for gate, source in (links, links[::-1]):
                kind, read = inner(gate)
                if kind in GATED and read == source:
                    swishes[name], gone = (name, GATED[kind], (source,)), gone | {gate}
                elif kind == "tanh" and inner(read) == ("softplus", source):
                    swishes[name], gone = (name, Activation("mish"), (source,)), gone | {gate, read}
    return [swishes.get(item[0], item) for item in items if item[0] not in gone]


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
