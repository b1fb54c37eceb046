"""Changes to a whole network, of the catalogue or a file: the recipe's `network_options`, each a rewriting of its tree.

Layers keep their names, so that weights, frozen layers and pictures go by the same ones. A network that an option
cannot act on is an error; one that is already as the option says stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from imagenet_pipeline.config.recipe import NetworkOptions
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import (
    SHORTCUT,
    Activation,
    BatchNorm,
    BlurPool,
    Clip,
    Concat,
    Constant,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Elementwise,
    Flatten,
    Graph,
    Layer,
    Pool,
    Residual,
    Sequential,
    Tap,
    Transpose,
    fold,
    follow,
    joined,
    pair,
    parts,
    stack,
    walk,
)
from imagenet_pipeline.networks.shapes import Shape, output_shapes
from imagenet_pipeline.networks.squeeze_excitation import squeeze_excitation

Items = list[tuple[str, Any]]
WEIGHTED = Conv | ConvTranspose | Dense
BENDING = ("relu", "leaky", "elu", "prelu", "selu", "sigmoid", "tanh", "gelu", "swish", "softplus", "softsign",
           "mish", "hard_swish", "hard_sigmoid")  # fmt: skip
"""Kinds of activation that bend what a layer gives; the others are arithmetic."""
RELU6 = Clip(0, 6)
"""MobileNets' activation (Howard et al. 2017)."""
GATES = ("sigmoid", "hard_sigmoid")
SLOPES = {"elu": 1.0, "leaky": 0.01, "prelu": 0.25}
"""Slopes where nobody says them: those of Clevert et al. 2016, Maas et al. 2013 and He et al. 2015."""


def rewritten(network: Sequential, options: NetworkOptions, name: str, input_shape: Shape) -> Sequential:
    """The network `name` with these options; its scores, too, are `options.width` times as many.

    Raises BadRecipe for an option that has nothing to act on.
    """
    given = options.model_dump(exclude_defaults=True)
    for key, change in _changes(input_shape).items():
        if key in given:
            try:
                network = change(network, given[key])
            except _Nothing as error:
                where = f"network_options.{key} = {given[key]!r}"
                raise BadRecipe(f"the network has {error}", where=where, found=f"network {name}") from None
    return network


class _Nothing(Exception):
    """An option has nothing to act on: the message says what is not there."""


def _rebuilt(
    layer: Layer,
    single: Callable[[Any], Any] = lambda layer: layer,
    sequence: Callable[[Items, str], Items] = lambda items, path: items,
    graph: Callable[[Graph, Graph], Graph] = lambda before, after: after,
    residual: Callable[[Residual, str], Residual] = lambda layer, path: layer,
) -> Any:
    """A layer with `single` applied to every single layer in it, then `sequence` to the items, and path, of sequences.

    `graph` gives each Graph, out of how it was and what has become of it; `residual` each Residual, out of what has
    become of it and its path.
    """

    def rule(layer: Layer, path: str, made: dict[str, Any]) -> Any:
        match layer:
            case Sequential():
                return replace(layer, items=tuple(sequence([*made.items()], path)))
            case Residual():
                shortcut = made.pop(SHORTCUT) if layer.shortcut else None
                body = Sequential(tuple(sequence([*made.items()], path)))
                return residual(replace(layer, body=body, shortcut=shortcut), path)
            case Concat():
                return Concat(tuple(made.items()))
            case Tap():
                return replace(layer, head=Sequential(tuple(sequence([*made.items()], path))))
            case Graph():
                return graph(layer, replace(layer, items=tuple(made.items())))
        return single(layer)

    return fold(layer, "", rule)


def with_dropout(network: Sequential, rate: float) -> Any:
    """The network with this rate in every Dropout."""
    if not any(isinstance(layer, Dropout) for _, layer in walk(network)):
        raise _Nothing("no Dropout, whose rate could be another")
    return _rebuilt(network, lambda layer: Dropout(rate) if isinstance(layer, Dropout) else layer)


def with_activation(network: Sequential, kind: Any) -> Any:
    """The network with this kind of activation throughout, but for gates: the sigmoids that a Graph multiplies by."""
    made = Activation(kind, SLOPES.get(kind, Activation("relu").slope))
    if kind == "prelu" and (along := _bending_along_the_last_axis(network)):
        raise _Nothing(f"its channels along the last axis in {along[0]}; PReLU's slopes are of those along the first")
    if not any(_bends(layer) for _, layer in walk(network)):
        raise _Nothing("no activation, whose kind could be another")

    def other(layer: Any) -> Any:
        is_of_kind = isinstance(layer, Activation) and layer.kind == kind
        return made if _bends(layer) and not is_of_kind else layer

    def other_than_gates(layer: Any) -> Any:
        return layer if isinstance(layer, Activation) and layer.kind in GATES else other(layer)

    def with_gates(before: Graph, after: Graph) -> Graph:
        products = (links for (_, item), links in zip(before.items, before.links, strict=True)
                    if item == Elementwise("multiply"))  # fmt: skip
        gates = {link for links in products for link in links}
        items = [(name, _rebuilt(item, other_than_gates, graph=with_gates) if name in gates else new)
                 for (name, item), (_, new) in zip(before.items, after.items, strict=True)]  # fmt: skip
        return replace(after, items=tuple(items))

    return _rebuilt(network, other, graph=with_gates)


def _bends(layer: Layer) -> bool:
    return layer == RELU6 or (isinstance(layer, Activation) and layer.kind in BENDING)


def _bending_along_the_last_axis(network: Sequential) -> list[str]:
    """The activations that have their channels along the last axis, as those of ConvNeXts and transformers do."""
    found = []

    def is_last(layer: Layer, path: str, inputs: list[bool]) -> bool:
        if isinstance(layer, Dense | Transpose | Flatten | Conv):
            return isinstance(layer, Dense) and layer.last_axis
        if _bends(layer) and any(inputs):
            found.append(path)
        return any(inputs)

    follow(network, "", False, is_last)
    return found


def with_normalisation(network: Sequential, place: str) -> Any:
    """The network with batch normalisation "before" or "after" activations, "first" of all, or with none of it.

    What stands beside an activation already changes sides with it. Where one is put in, the layer before it keeps its
    bias, as in the zoos' VGGs; where one is taken away, the layer before it gets one.
    """
    if place == "none":
        return _rebuilt(network, sequence=_without_norms, graph=lambda before, after: _graph_without_norms(after))
    if place == "first":
        if isinstance(network.items[0][1], BatchNorm):
            return network
        name = _free("input_norm", [name for name, _ in network.items])
        return replace(network, items=((name, BatchNorm()), *network.items))
    changed = _rebuilt(network, sequence=lambda items, path: _beside_activations(items, place == "after"))
    if not any(isinstance(layer, BatchNorm) for _, layer in walk(changed)):
        raise _Nothing("no activation behind a Conv, or a Dense of vectors, beside which it could stand")
    return changed


def _without_norms(items: Items, path: str) -> Items:
    kept: Items = []
    for name, layer in items:
        if not isinstance(layer, BatchNorm):
            kept.append((name, layer))
        elif kept and isinstance(kept[-1][1], WEIGHTED):
            kept[-1] = kept[-1][0], replace(kept[-1][1], bias=True)
    return kept


def _graph_without_norms(graph: Graph) -> Graph:
    items: dict[str, Any] = dict(graph.items)
    for (name, layer), links in zip(graph.items, graph.links, strict=True):
        if isinstance(layer, BatchNorm):
            items[name] = Sequential(())
            before = items.get(links[0])
            if isinstance(before, WEIGHTED):
                items[links[0]] = replace(before, bias=True)
    return replace(graph, items=tuple(items.items()))


def _beside_activations(items: Items, after: bool) -> Items:
    """The items of a sequence with a BatchNorm before (or after) each activation that has one, or a weighted layer.

    Not behind a Dense along the last axis, where the first, which BatchNorm takes for the channels', is of rows.
    """
    placed: Items = []
    taken = [name for name, _ in items]
    rest = list(items)
    while rest:
        name, layer = rest.pop(0)
        if not _bends(layer):
            placed.append((name, layer))
            continue
        before, behind = (side[0][1] if side else None for side in (placed[-1:], rest[:1]))
        norms: Items = []
        if isinstance(before, BatchNorm):
            norms = [placed.pop()]
        elif isinstance(behind, BatchNorm):
            norms = [rest.pop(0)]
        elif isinstance(before, WEIGHTED) and not (isinstance(before, Dense) and before.last_axis):
            number = name[len(name.rstrip("0123456789")) :]
            norms = [(_free(f"norm{number}", taken), BatchNorm())]
            taken.append(norms[0][0])
        placed += [(name, layer), *norms] if after else [*norms, (name, layer)]
    return placed


def _free(name: str, taken: list[str]) -> str:
    return name if name not in taken else next(word for word in (f"{name}_{n}" for n in count(2)) if word not in taken)


def with_width(network: Sequential, factor: float) -> Any:
    """The network with so many times the channels and units.

    Those of a grouped convolution, and of the layer before it, stay a multiple of its groups.
    """
    if any(isinstance(layer, Constant) for _, layer in walk(network)):
        raise _Nothing("trained constants, such as a transformer's positions, which go with the width it has")

    def wider(layer: Layer) -> Layer:
        match layer:
            case Dense(units=units, trained=True):
                return replace(layer, units=_scaled(units, factor))
            case Conv(channels=channels, groups=groups) | ConvTranspose(channels=channels, groups=groups):
                if channels == groups:
                    return replace(layer, channels=_scaled(channels, factor), groups=_scaled(channels, factor))
                return replace(layer, channels=_scaled(channels, factor, groups))
        return layer

    def dividing(items: Items, path: str) -> Items:
        fitted, feeder = dict(items), ""
        for name, layer in items:
            if isinstance(layer, Conv | ConvTranspose) and feeder:
                fitted[feeder] = _in_groups(fitted[feeder], layer.groups)
            feeder = name if isinstance(layer, WEIGHTED) else "" if parts(layer) else feeder
        return [*fitted.items()]

    return _rebuilt(network, wider, dividing)


def _in_groups(layer: Any, groups: int) -> Any:
    """The layer, if a convolution, with the nearest number of channels that so many groups divide, and its own."""
    if isinstance(layer, Dense) or not layer.channels % groups:
        return layer
    return replace(layer, channels=_scaled(layer.channels, 1.0, math.lcm(groups, layer.groups)))


def _scaled(count: int, factor: float, groups: int = 1) -> int:
    return groups * max(1, round(count * factor / groups))


def with_depth(network: Sequential, times: int) -> Any:
    """The network with each Conv and Dense that has an activation so many times, with what follows them up to the next.

    Repeated convolutions have stride 1 and keep the image's size; those of even kernels, which cannot, and the layer
    that gives the scores stay as they are.
    """
    weighted = [path for path, layer in walk(network) if isinstance(layer, WEIGHTED)]

    def repeated(items: Items, path: str) -> Items:
        deeper: Items = []
        for cell in _cells(items):
            (name, first), *behind = cell
            deeper += cell
            if _is_repeatable(first) and any(_bends(layer) for _, layer in behind) and joined(path, name) not in last:
                copies = [(name, _size_keeping(first)), *behind]
                deeper += [(f"{word}_{number}", layer) for number in range(2, times + 1) for word, layer in copies]
        return deeper

    last = weighted[-1:]
    changed = _rebuilt(network, sequence=repeated)
    if changed == network:
        raise _Nothing("no Conv or Dense with an activation behind it, to be repeated")
    return changed


def _cells(items: Items) -> list[Items]:
    """The items of a sequence, each with the normalisations, activations and dropouts that follow it directly."""
    cells: list[Items] = []
    for name, layer in items:
        if cells and (_bends(layer) or isinstance(layer, BatchNorm | Dropout)):
            cells[-1].append((name, layer))
        else:
            cells.append([(name, layer)])
    return cells


def _is_repeatable(layer: Layer) -> bool:
    return (isinstance(layer, Dense) and layer.trained) or (
        isinstance(layer, Conv) and all(size % 2 for size in pair(layer.kernel))
    )


def _size_keeping(layer: Any) -> Any:
    if isinstance(layer, Dense):
        return layer
    spans = zip(pair(layer.kernel), pair(layer.dilation), strict=True)
    margins = [(size - 1) * dilation // 2 for size, dilation in spans]
    return replace(layer, stride=1, pad=margins[0] if margins[0] == margins[1] else tuple(margins))


def with_stem(network: Sequential, form: str) -> Any:
    """The network whose layer "stem" suits images of 32 pixels, as He et al. 2015 have it for CIFAR-10, section 4.2.

    Its convolutions are 3x3 of stride 1, and nothing is pooled.
    """
    items: dict[str, Any] = dict(network.items)
    if "stem" not in items:
        raise _Nothing("no layer called stem, as ResNets and DenseNets have")

    def small(layer: Any) -> Any:
        is_large = isinstance(layer, Conv) and (max(pair(layer.kernel)) >= 3 or max(pair(layer.stride)) > 1)
        return replace(layer, kernel=3, stride=1, pad=1) if is_large else layer

    def without_pools(items: Items, path: str) -> Items:
        return [(name, layer) for name, layer in items if not isinstance(layer, Pool)]

    items["stem"] = _rebuilt(items["stem"], small, without_pools)
    return replace(network, items=tuple(items.items()))


def with_squeeze_excitation(network: Sequential, reduction: int, input_shape: Shape) -> Any:
    """The network with a squeeze-and-excitation at the end of each residual body that makes an image.

    Bodies that multiply by a gate already, as MobileNetV3's and EfficientNet's do, stay as they are.
    """
    shapes = output_shapes(network, input_shape)
    residuals = {path: layer for path, layer in walk(network) if isinstance(layer, Residual)}
    if not any(len(shapes[path]) == 3 for path in residuals):
        raise _Nothing("no residual body that makes an image")

    def excited(layer: Residual, path: str) -> Residual:
        channels, *positions = shapes[path]
        if not positions[1:] or any(_is_gated(part) for _, part in walk(residuals[path])):
            return layer
        name = _free("squeeze_excitation", [name for name, _ in layer.body.items])
        last = squeeze_excitation(channels, max(1, channels // reduction))
        return replace(layer, body=Sequential((*layer.body.items, (name, last))))

    changed = _rebuilt(network, residual=excited)
    if changed == network:
        raise _Nothing("a gate of its own in each residual body")
    return changed


def _is_gated(layer: Layer) -> bool:
    return isinstance(layer, Graph) and any(item == Elementwise("multiply") for _, item in layer.items)


def with_stochastic_depth(network: Sequential, rate: float) -> Any:
    """The network whose residuals, n in all, are left out at 1/n, 2/n, ... and, the last, all of this rate.

    That is Huang et al.'s linear decay, in which the network's input counts as the residual of rate 0.
    """
    paths = [path for path, layer in walk(network) if isinstance(layer, Residual)]
    if not paths:
        raise _Nothing("no residual body, which could be left out")
    rates = {path: rate * number / len(paths) for number, path in enumerate(paths, 1)}
    return _rebuilt(network, residual=lambda layer, path: replace(layer, drop_rate=rates[path]))


def with_blur_pool(network: Sequential, form: str) -> Any:
    """The network that blurs before it leaves out pixels; average pools, which blur themselves, stay as they are.

    A maximum of stride s becomes one of stride 1 and a BlurPool of stride s, as fast.ai's and timm's MaxBlurPool.
    With `form` "all" so does a convolution, the BlurPool behind its activation, and before it where its kernel is 1x1
    (Zhang 2019, section 3.2, and his networks: the first convolution stays).
    """
    first = next((path for path, layer in walk(network) if isinstance(layer, Conv)), None)

    def blurred_maximum(layer: Any) -> Any:
        if not isinstance(layer, Pool) or layer.kind != "max" or max(pair(layer.stride)) == 1:
            return layer
        return stack(max=replace(layer, stride=1, ceil=False), blur=BlurPool(stride=layer.stride))

    def blurred(items: Items, path: str) -> Items:
        made: Items = []
        names = [name for name, _ in items]
        for (name, layer), *behind in _cells(items):
            if not isinstance(layer, Conv) or max(pair(layer.stride)) == 1 or joined(path, name) == first:
                made += [(name, layer), *behind]
                continue
            blur = (_free(f"{name}_blur", names), BlurPool(stride=layer.stride))
            cell = [(name, replace(layer, stride=1)), *behind]
            made += [blur, *cell] if pair(layer.kernel) == (1, 1) else [*cell, blur]
        return made

    changed = _rebuilt(network, blurred_maximum, blurred if form == "all" else lambda items, path: items)
    if changed == network:
        raise _Nothing("no strided maximum" + (" or convolution" if form == "all" else "") + ", behind which to blur")
    return changed


def _changes(input_shape: Shape) -> dict[str, Callable[[Sequential, Any], Any]]:
    """What each option does, in the order in which it is done: the later see what the earlier have made."""
    return {
        "stem": with_stem,
        "width": with_width,
        "depth": with_depth,
        "squeeze_excitation": partial(with_squeeze_excitation, input_shape=input_shape),
        "normalisation": with_normalisation,
        "activation": with_activation,
        "dropout": with_dropout,
        "blur_pool": with_blur_pool,
        "stochastic_depth": with_stochastic_depth,
    }
