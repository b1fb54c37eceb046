"""The ways through a network's tree of layers, shared by all that read one: `walk`, `fold` and `flow`.

A layer's path is its name behind those of the layers around it: "stage2.unit1.conv". The items of a residual body
stand directly in the Residual, its other branch under the name "shortcut"; those of a head directly in the Tap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from imagenet_pipeline.networks.layers import Concat, Layer, Residual, Sequential, Tap

Value = TypeVar("Value")

SHORTCUT = "shortcut"


def joined(path: str, name: str) -> str:
    """The path of the layer `name` inside the layer at `path`; "" is the network's."""
    return f"{path}.{name}" if path else name


def parts(layer: Layer) -> tuple[tuple[str, Layer], ...]:
    """The layers directly inside a layer, by name: the shortcut first, the others in order of computation."""
    match layer:
        case Sequential(items) | Tap(Sequential(items)) | Concat(items) | Residual(Sequential(items), None):
            return items
        case Residual(Sequential(items), Sequential() as shortcut):
            return ((SHORTCUT, shortcut), *items)
    return ()


def walk(layer: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """Every layer inside `layer`, groups of layers included, with its path; a group before its parts."""
    for name, part in parts(layer):
        inner = joined(path, name)
        yield inner, part
        yield from walk(part, inner)


def fold(layer: Layer, path: str, rule: Callable[[Layer, str, dict[str, Value]], Value]) -> Value:
    """The value of a layer: `rule(layer, path, values of its parts by name)`, from the inside out."""
    return rule(layer, path, {name: fold(part, joined(path, name), rule) for name, part in parts(layer)})


def flow(layer: Layer, path: str, value: Value, rule: Callable[[Layer, str, list[Value]], Value]) -> Value:
    """What leaves `layer` when `value` enters it, layers followed in order of computation.

    `rule(layer, path, inputs)` says what leaves a single layer, a Residual (inputs: body, shortcut) or a Concat
    (inputs: branches). The head of a Tap is followed too; what enters the Tap goes on.
    """
    match layer:
        case Sequential():
            for name, item in layer.items:
                value = flow(item, joined(path, name), value, rule)
            return value
        case Residual(body, shortcut):
            end = flow(body, path, value, rule)
            around = flow(shortcut, joined(path, SHORTCUT), value, rule) if shortcut else value
            return rule(layer, path, [end, around])
        case Concat():
            return rule(layer, path, [flow(item, joined(path, name), value, rule) for name, item in layer.branches])
        case Tap():
            flow(layer.head, path, value, rule)
            return value
    return rule(layer, path, [value])
