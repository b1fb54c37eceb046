"""The networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.alexnet import alexnet, alexnet_book
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.lenet import lenet
from imagenet_pipeline.networks.resnet import resnet18, resnet34, resnet50


@dataclass(frozen=True)
class NetworkEntry:
    """A network on offer: `build(classes)` makes it, `input_size` pixels are what it was designed for."""

    name: str
    build: Callable[[int], Sequential]
    input_size: int
    summary: str


_ENTRIES = (
    NetworkEntry("lenet", lenet, 28, "two 5x5 convolutions and two dense layers (LeCun et al. 1998, ReLU)"),
    NetworkEntry("alexnet", alexnet, 227, "the paper's: two groups, response norm (Krizhevsky et al. 2012)"),
    NetworkEntry("alexnet_book", alexnet_book, 227, "the book's: ELU, batch normalisation, no groups"),
    NetworkEntry("resnet18", resnet18, 224, "residual network of basic blocks (He et al. 2015)"),
    NetworkEntry("resnet34", resnet34, 224, "residual network of basic blocks (He et al. 2015)"),
    NetworkEntry("resnet50", resnet50, 224, "bottleneck blocks, stride in the 3x3 (v1b)"),
)
_BY_NAME = {entry.name: entry for entry in _ENTRIES}


def names() -> tuple[str, ...]:
    """The names of all networks, smaller families first."""
    return tuple(_BY_NAME)


def entry(name: str) -> NetworkEntry:
    """The network called `name`. Raises BadRecipe with the nearest names if there is none."""
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name.lower(), _BY_NAME, n=3, cutoff=0.5)
        raise BadRecipe(
            f"no network is called {name!r}",
            where="network",
            advice=f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(_BY_NAME)}",
        )
    return _BY_NAME[name]


def build(name: str, classes: int) -> Sequential:
    """The network `name` with `classes` outputs. Raises BadRecipe for an unknown name or no classes."""
    if classes < 1:
        raise BadRecipe("a network needs at least one class", where=f"network {name}", found=classes)
    return entry(name).build(classes)
