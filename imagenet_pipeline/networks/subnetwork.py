"""A network's beginning: everything up to one layer, for its activations."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import Concat, Layer, Residual, Sequential, Tap, without_taps
from imagenet_pipeline.networks.shapes import Shape, output_shape

SHORTCUT = "shortcut"


def until(network: Sequential, path: str, name: str = "NAME") -> Sequential:
    """The network up to and including the layer `path`, its parameters called as in the whole.

    Any layer will do, also one inside a residual body, its shortcut, a branch or an auxiliary classifier: what
    runs beside the way to it, and taps that stand before it, are left out. So will a whole group of layers, as
    `stage2` or `stage2.unit1`: their end is meant. For a path there is not, raises BadRecipe with
    the nearest names and where those of the network `name` are listed.
    """
    found = _cut_layer(network, path.split("."))
    if not isinstance(found, Sequential):
        raise no_layer(path, _paths(network, ""), name)
    return without_taps(found)


def last_map(network: Sequential, input_shape: Shape) -> str | None:
    """The path of the last layer (or residual unit, or concatenation) whose output is an image of several pixels.

    Layers inside bodies and branches do not count: something beside them matters too. None where there is none.
    Raises BadRecipe where the network cannot take the input.
    """
    for path in reversed(list(_main_paths(without_taps(network), ""))):
        shape = output_shape(until(network, path), input_shape)
        if len(shape) == 3 and math.prod(shape[1:]) > 1:
            return path
    return None


def no_layer(path: str, known: Iterable[str], name: str = "NAME") -> BadRecipe:
    """The error for a path that leads to no layer of the network `name`, with the nearest names and where all are."""
    near = difflib.get_close_matches(path, list(known), n=3, cutoff=0.5)
    question = f"did you mean {' or '.join(near)}? " if near else ""
    advice = f"{question}`imagenet-pipeline networks {name}` lists them"
    return BadRecipe(f"no layer is called {path!r}", where="layer", advice=advice)


def _main_paths(sequence: Sequential, path: str) -> Iterator[str]:
    for name, item in sequence.items:
        inner = f"{path}.{name}" if path else name
        if isinstance(item, Sequential):
            yield from _main_paths(item, inner)
        else:
            yield inner


def _cut_layer(layer: Layer, words: list[str]) -> Layer | None:
    """The part of `layer` that the rest of a path leads through; None where it leads nowhere."""
    if not words:
        return layer
    match layer:
        case Sequential():
            return _cut_sequence(layer, words)
        case Residual(shortcut=Sequential() as shortcut) if words[0] == SHORTCUT:
            return _named(SHORTCUT, _cut_layer(shortcut, words[1:]))
        case Residual():
            return _cut_sequence(layer.body, words)
        case Concat():
            branch = dict(layer.branches).get(words[0])
            return None if branch is None else _named(words[0], _cut_layer(branch, words[1:]))
        case Tap():
            return _cut_sequence(layer.head, words)
    return None


def _cut_sequence(sequence: Sequential, words: list[str]) -> Sequential | None:
    names = [name for name, _ in sequence.items]
    if words[0] not in names:
        return None
    place = names.index(words[0])
    last = _cut_layer(sequence.items[place][1], words[1:])
    if isinstance(last, Tap):
        last = last.head
    return None if last is None else Sequential((*sequence.items[:place], (words[0], last)))


def _named(name: str, layer: Layer | None) -> Sequential | None:
    return None if layer is None else Sequential(((name, layer),))


def _paths(layer: Layer, path: str) -> Iterator[str]:
    """Every path that leads somewhere, groups of layers included."""
    if path:
        yield path
    for name, part in _parts(layer):
        yield from _paths(part, f"{path}.{name}" if path else name)


def _parts(layer: Layer) -> tuple[tuple[str, Layer], ...]:
    match layer:
        case Sequential(items=parts) | Tap(head=Sequential(items=parts)) | Concat(branches=parts):
            return parts
        case Residual(body=body, shortcut=None):
            return body.items
        case Residual(body=body, shortcut=Sequential() as shortcut):
            return (*body.items, (SHORTCUT, shortcut))
    return ()
