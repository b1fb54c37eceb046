"""The layer that gives a network's scores, made anew for another number of classes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from imagenet_pipeline.config import log_odds
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import (
    Concat,
    Constant,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Graph,
    Join,
    Layer,
    Reshape,
    Residual,
    Scalar,
    Sequential,
    Tap,
    joined,
)
from imagenet_pipeline.networks.shapes import Shape, output_shape, output_shapes


def with_classes(network: Sequential, input_shape: Shape, classes: int, name: str) -> Sequential:
    """The network with `classes` scores: its last Dense or convolution, and that of every tap, has so many outputs.

    Layers of a single input may follow it; a Reshape among them that names the number of classes names the new one.
    A single output for two classes becomes an output for each.
    Raises BadRecipe, about the network `name`, where the scores come of several inputs or have another number then.
    """
    own = math.prod(output_shape(network, input_shape))
    if classes == own:
        return network
    if has_two_scores(network):
        network, own = _without_two_scores(network), 1
        if classes == 1:
            return network
    try:
        items = tuple(
            (path, Tap(_replaced(item.head, path, own, classes)[0], item.weight) if isinstance(item, Tap) else item)
            for path, item in network.items
        )
        made: Sequential = _replaced(Sequential(items), "", own, classes)[0]
        scores = score_shapes(made, input_shape)
    except BadRecipe as error:
        what = f"the network has {own:,} outputs, and no last layer that {classes:,} could take the place of"
        reason = error.what if error.where is None else f"{error.where}: {error.what}"
        raise BadRecipe(what, where=f"network {name}", found=reason) from error
    if scores != {(classes,)}:
        what = f"its last layer with weights does not have an output for each of its {own:,} classes"
        raise BadRecipe(what, where=f"network {name}", expected=classes, found=sorted(scores))
    return made


TWO_SCORES = "two_scores"


def with_two_scores(network: Sequential, threshold: float) -> Sequential:
    """The network of a single output z, of its taps too, with two classes' scores, (0, z - log_odds(threshold)).

    The second class has the probability sigmoid(z), and both scores are even where that is the threshold: so whatever
    ranks scores goes by it.
    """
    both = Concat((("first", Scalar("multiply", 0.0)), ("second", Scalar("subtract", log_odds(threshold)))))
    items = tuple(
        (path, replace(item, head=with_two_scores(item.head, threshold)) if isinstance(item, Tap) else item)
        for path, item in network.items
    )
    return Sequential((*items, (TWO_SCORES, both)))


def has_two_scores(network: Sequential) -> bool:
    """Tell whether it is a network that `with_two_scores` made."""
    return bool(network.items) and network.items[-1][0] == TWO_SCORES


def _without_two_scores(network: Sequential) -> Sequential:
    items = tuple(
        (path, replace(item, head=_without_two_scores(item.head)) if isinstance(item, Tap) else item)
        for path, item in network.items[:-1]
    )
    return Sequential(items)


def score_shapes(network: Sequential, input_shape: Shape) -> set[Shape]:
    """The shapes of the network's scores and of every tap's. Raises BadRecipe as `describe` does."""
    shapes = output_shapes(network, input_shape)
    ends = [joined(name, item.head.items[-1][0]) for name, item in network.items if isinstance(item, Tap)]
    return {shapes[end] for end in ("", *ends)}


def _replaced(layer: Layer, path: str, own: int, classes: int) -> tuple[Any, bool]:
    """A layer whose last part with weights has `classes` outputs, and whether there is such a part.

    Raises BadRecipe where several layers come together before it.
    """
    match layer:
        case Dense():
            return replace(layer, units=classes), True
        case Conv() | ConvTranspose():
            return replace(layer, channels=classes), True
        case Reshape(shape=shape):
            return Reshape(tuple(classes if length == own else length for length in shape)), False
        case Sequential() | Graph():
            return _replaced_in(layer, path, own, classes)
        case Residual() | Concat() | Elementwise() | Join() | Constant():
            raise BadRecipe(f"a {type(layer).__name__} gives the scores", where=f"layer {path}")
    return layer, False


def _replaced_in(group: Sequential | Graph, path: str, own: int, classes: int) -> tuple[Any, bool]:
    """A sequence or graph whose last layer with weights, on the only way to its end, has `classes` outputs."""
    items = dict(group.items)
    links = group.links if isinstance(group, Graph) else [(name,) for name in ("", *items)]
    before = dict(zip(items, links, strict=False))
    name, is_done = next(reversed(items), ""), False
    while name and not is_done:
        if not isinstance(items[name], Tap):
            items[name], is_done = _replaced(items[name], joined(path, name), own, classes)
        name = "".join(before[name][:1])
    return replace(group, items=tuple(items.items())), is_done
