"""An MXNet checkpoint as the values of a network of ours, or of one made of its own layers.

Nothing depends on names: our network is written as MXNet's graph too, and the two graphs are compared step by step. So
files of Module, FeedForward and Gluon's `export` are all read alike. A graph that no network of ours is becomes layers
one by one (`mxnet_layers.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import Size, as_size, pair, shown_size
from imagenet_pipeline.errors import BadInput, BadRecipe, first_few
from imagenet_pipeline.interchange.export import Stated, card_beside, require_input_size, stated_in
from imagenet_pipeline.interchange.frozen import Imported, Normalisation
from imagenet_pipeline.interchange.graph import Different, Folding, Graph, paired_variables, require_equal_start
from imagenet_pipeline.interchange.graph_operators import partly_reduced, reduced
from imagenet_pipeline.interchange.mxnet_layers import layered, with_output
from imagenet_pipeline.interchange.network_symbol import symbol_names, symbol_of
from imagenet_pipeline.interchange.params import AnyArray, finite_float32, read_params
from imagenet_pipeline.interchange.symbol import VARIABLE, Attributes, Symbol, read_symbol
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Conv, Dense, Sequential, walk, without_taps
from imagenet_pipeline.networks.shapes import Parameter, Shape, parameters

CHANNELS = 3
NAMES_SHOWN = 3
_WEIGHTED = {"Convolution": "num_filter", "Convolution_v1": "num_filter", "FullyConnected": "num_hidden"}

Values = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class _Foreign:
    """A foreign checkpoint: its graph and its parameters, and the files they were read from."""

    symbol: Symbol
    params: dict[str, AnyArray]
    symbol_path: Path
    params_path: Path


@dataclass(frozen=True)
class _Candidate:
    """One of our networks, for the image size it would have to be."""

    name: str
    network: Sequential
    image: Shape
    declared: dict[str, Parameter]
    distance: int
    """Number of weights, by their shapes, that only one of the two has."""


@dataclass(frozen=True)
class _Match:
    """A network's values out of a foreign checkpoint, and the names they have there by ours."""

    values: Values
    normalisation: Normalisation | None
    sources: dict[str, str]


def import_mxnet(
    symbol_path: Path,
    params_path: Path,
    network: str | None = None,
    input_size: int | None = None,
    output: str | None = None,
) -> Imported:
    """Read a symbol and its values as `network`, or as whichever network of the catalogue it is, or as its own layers.

    `input_size` is the side of the image in pixels, by default that of the card beside an export of ours, that of the
    network, or one that fits the layers; the card also has crop, classes, and mean and std that the graph lacks.
    `output` names the output to take: NODE, NODE_output or NODE_outputK, by default the graph's only one. Raises
    BadInput for damaged files, where the graph is not `network` (it says where the two first differ) and where our
    layers cannot say it. Raises BadRecipe for an unknown `network`, or where `input_size` is too small for it.
    """
    symbol = with_output(read_symbol(symbol_path), output, symbol_path)
    foreign = _Foreign(symbol, _bare(read_params(params_path), params_path), symbol_path, params_path)
    _require_together(foreign)
    beside = _stated_beside(symbol_path, params_path)
    if beside is None:
        return _imported(foreign, network, input_size)
    stated, card = beside
    imported = _imported(foreign, network, input_size or stated.size, stated.channels)
    origin = imported.normalisation_from if imported.normalisation else str(card)
    note = f"input, crop and classes, where no option says them, as {card} has them"
    return replace(stated.added_to(imported), normalisation_from=origin, notes=(*imported.notes, note))


def _stated_beside(symbol_path: Path, params_path: Path) -> tuple[Stated, Path] | None:
    """The statements of the card beside an export of ours, and the card; None where it is not that of both files."""
    found = card_beside(symbol_path)
    if found is None or found != card_beside(params_path):
        return None
    content, card = found
    stated = stated_in(content)
    return None if stated is None else (stated, card)


def import_graph(symbol: Symbol, params: dict[str, AnyArray], where: Path, input_size: int | None = None) -> Imported:
    """Read a graph and its values, both at hand, as `import_mxnet` does; `where` is the file they come from."""
    return _imported(_Foreign(symbol, params, where, where), None, input_size)


def _imported(foreign: _Foreign, network: str | None, input_size: Size | None, channels: int = CHANNELS) -> Imported:
    found, difference = _found(foreign, network, input_size, channels)
    if not found:
        if input_size is not None:
            _require_size(foreign, network, input_size, channels, difference)
        if network is not None:
            raise BadInput(f"not {network}", where=foreign.symbol_path, found=difference or None)
        return _as_layers(foreign, input_size, channels, difference)
    candidate, match = found[0]
    return Imported(
        candidate.name,
        _classes(foreign),
        as_size(*candidate.image[1:]),
        match.values,
        of_channels(match.normalisation, channels),
        tuple(other.name for other, _ in found[1:]),
        _unused(foreign),
        sources=match.sources,
        channels=channels,
    )


def of_channels(normalisation: Normalisation | None, channels: int) -> Normalisation | None:
    """The normalisation of R, G and B, or of grey, whose one number is that of each."""
    return normalisation and (normalisation[0][:channels], normalisation[1][:channels])


def _as_layers(foreign: _Foreign, input_size: Size | None, channels: int, difference: str) -> Imported:
    paths = foreign.symbol_path, foreign.params_path
    try:
        found = layered(foreign.symbol, foreign.params, input_size, paths, channels)
    except BadInput as error:
        if error.found is not None or not difference:
            raise
        near = f"{difference}, the nearest network of ours"
        raise BadInput(error.what, where=error.where, found=near, advice=error.advice) from None
    nearest = [f"no network of ours; the nearest differs: {difference}"] if difference else []
    name = re.sub(r"[^\w.-]", "_", foreign.symbol_path.name.removesuffix(".json").removesuffix("-symbol")) or "network"
    return Imported(
        name,
        found.classes,
        found.size,
        found.values,
        of_channels(found.normalisation, channels),
        unused=_unused(foreign),
        layers=found.network,
        notes=(*nearest, *found.notes),
        sources=found.sources,
        channels=channels,
    )


def recognised(
    network: Sequential, values: Mapping[str, npt.NDArray[np.float32]], image: Shape, where: Path
) -> tuple[Imported | None, str]:
    """The network of the catalogue that layers from another kind of file are, and where the nearest differs.

    None where they are none of them, and "" where no network is near. Its normalisation is left open.
    """
    try:
        symbol, names = symbol_of(network, image), symbol_names(network, image)
    except (NotImplementedError, ValueError, BadRecipe):
        return None, ""
    params = {names[name].partition(":")[2]: array for name, array in values.items()}
    foreign = _Foreign(symbol, params, where, where)
    size, channels = as_size(*image[1:]), image[0]
    found, difference = _found(foreign, None, size, channels)
    if not found:
        return None, difference
    candidate, match = found[0]
    also = tuple(other.name for other, _ in found[1:])
    return Imported(candidate.name, _classes(foreign), size, match.values, None, also, channels=channels), ""


def _unused(foreign: _Foreign) -> tuple[str, ...]:
    known = {node.name for node in foreign.symbol.nodes if node.op == VARIABLE}
    return tuple(name for name in foreign.params if name not in known)


_Found = list[tuple[_Candidate, _Match]]


def _found(foreign: _Foreign, network: str | None, input_size: Size | None, channels: int) -> tuple[_Found, str]:
    """The networks that the graph is, and where the nearest of the others differs; "" where that says nothing."""
    candidates = _candidates(foreign, network, input_size, channels)
    found: _Found = []
    difference = ""
    weights = _weight_shapes(foreign).total()
    for candidate in candidates:
        if candidate.distance and (found or difference):
            break
        try:
            found.append((candidate, _matched(candidate, foreign)))
        except Different as error:
            difference = difference or str(error)
    is_near = network is not None or (candidates and candidates[0].distance <= weights // 2)
    return found, difference if is_near else ""


def _require_size(foreign: _Foreign, network: str | None, input_size: Size, channels: int, difference: str) -> None:
    """Raise BadRecipe or BadInput where the graph is a network of ours at that network's own size, but not at this."""
    found, _ = _found(foreign, network, None, channels)
    for candidate, _ in found[:1]:
        name, own = candidate.name, as_size(*candidate.image[1:])
        require_input_size(name, candidate.network, input_size, own, channels)
        what, advice = f"is {name} at {shown_size(own)} pixels, not at {shown_size(input_size)}", "leave --input out"
        raise BadInput(what, where=foreign.symbol_path, found=difference or None, advice=advice)


def _bare(params: Mapping[str, AnyArray], where: Path) -> dict[str, AnyArray]:
    bare = {name.removeprefix("arg:").removeprefix("aux:"): array for name, array in params.items()}
    if len(bare) < len(params):
        raise BadInput("two arrays have the same name, as arg: and as aux:", where=where)
    return bare


def _require_together(foreign: _Foreign) -> None:
    """Raise BadInput where most parameters that the graph names are not in the file: it is another graph's."""
    nodes = foreign.symbol.nodes
    inputs = (index for node in nodes if node.op in _WEIGHTED for index, _ in node.inputs[1:])
    named = dict.fromkeys(nodes[index].name for index in inputs if nodes[index].op == VARIABLE)
    if 2 * sum(name not in foreign.params for name in named) > len(named):
        raise BadInput(
            f"not the parameters of {foreign.symbol_path.name}",
            where=foreign.params_path,
            expected=first_few(named),
            found=first_few(foreign.params),
            advice="give the .params saved with it",
        )


def _candidates(foreign: _Foreign, network: str | None, input_size: Size | None, channels: int) -> list[_Candidate]:
    """Networks to try, the nearest first; those with the very weights have distance 0."""
    classes, weights = _classes(foreign), _weight_shapes(foreign)
    candidates: list[_Candidate] = []
    if not classes:
        return candidates
    for name in catalog.names() if network is None else [network]:
        size = input_size or catalog.entry(name).input_size
        built = without_taps(catalog.entry(name).build(classes))
        if network is None and _is_far(built, weights.total()):
            continue
        try:
            declared = parameters(built, (channels, *pair(size)))
        except BadRecipe:
            if network is not None:
                require_input_size(name, built, size, catalog.entry(name).input_size, channels)
            continue
        ours = Counter(parameter.shape for parameter in declared.values() if parameter.role == "weight")
        distance = sum(((ours - weights) + (weights - ours)).values())
        candidates.append(_Candidate(name, built, (channels, *pair(size)), declared, distance))
    return sorted(candidates, key=lambda candidate: candidate.distance)


def _is_far(network: Sequential, weights: int) -> bool:
    """True where even the number of weights tells that the nearest network is another."""
    own = sum(isinstance(layer, Conv | Dense) for _, layer in walk(network))
    return abs(own - weights) > weights // 2


def _classes(foreign: _Foreign) -> int:
    """The outputs of the last layer with weights, 0 where there is none."""
    nodes = foreign.symbol.nodes
    index = foreign.symbol.heads[0][0]
    while nodes[index].op not in _WEIGHTED:
        if not nodes[index].inputs:
            return 0
        index = nodes[index].inputs[0][0]
    where = f"{foreign.symbol_path}: {nodes[index].name[:80]!r}"
    classes = Attributes(nodes[index].attributes, where).integer(_WEIGHTED[nodes[index].op])
    if classes < 1:
        raise BadInput("the classifier has no classes", where=where)
    return classes


def _weight_shapes(foreign: _Foreign) -> Counter[Shape]:
    nodes = foreign.symbol.nodes
    names = [nodes[node.inputs[1][0]].name for node in nodes if node.op in _WEIGHTED and len(node.inputs) > 1]
    return Counter(foreign.params[name].shape for name in names if name in foreign.params)


def _matched(candidate: _Candidate, foreign: _Foreign) -> _Match:
    """The values of a network that the foreign graph is. Raises Different, and BadInput for values that do not fit.

    Biases in front of batch normalisations that our network does without are no difference: its means make up for
    them (MXNet's zoo has such in its ResNet-50 v1).
    """
    try:
        ours = reduced(symbol_of(candidate.network, candidate.image), {}, candidate.image)
    except BadInput as error:  # a transformer's: there are no steps for what is no image
        raise Different(f"{candidate.name} is not told by its steps: {error.what}") from None
    norm = not _starts_with_norm(ours)
    try:
        return _matched_folding(candidate, foreign, ours, Folding(norm))
    except Different as error:
        try:
            return _matched_folding(candidate, foreign, ours, Folding(norm, bias=True))
        except Different as other:
            raise max(error, other, key=lambda different: different.equal) from None


def _matched_folding(candidate: _Candidate, foreign: _Foreign, ours: Graph, folding: Folding) -> _Match:
    theirs, problem = partly_reduced(foreign.symbol, foreign.params, candidate.image, folding)
    if problem is not None:
        require_equal_start(ours, theirs, candidate.name)
        raise Different(f"as {candidate.name}: {problem}", len(theirs.steps))
    names = paired_variables(ours, theirs, candidate.name)
    ours_there = symbol_names(candidate.network, candidate.image)
    sources = {name: names[ours_there[name].partition(":")[2]] for name in candidate.declared}
    values = _values(candidate, foreign, sources, theirs)
    return _Match(values, theirs.scale.normalisation, sources)


def _starts_with_norm(graph: Graph) -> bool:
    return any(step.kind == "normalisation" and step.inputs == (0,) for step in graph.steps)


def _values(candidate: _Candidate, foreign: _Foreign, theirs: dict[str, str], graph: Graph) -> Values:
    missing = [name for name in (*theirs.values(), *graph.folded.values()) if name not in foreign.params]
    if missing:
        shown = ", ".join(map(repr, missing[:NAMES_SHOWN]))
        raise BadInput("values are missing", where=foreign.params_path, found=f"no {shown} ({len(missing)} in all)")
    values = {}
    for name, parameter in candidate.declared.items():
        array = foreign.params[theirs[name]]
        if theirs[name] in graph.fixed:
            array = np.ones(parameter.shape, np.float32)
        values[name] = _checked(array, parameter, foreign.params_path, theirs[name], candidate)
        bias = graph.folded.get(theirs[name])
        if bias is not None:
            shift = _checked(foreign.params[bias], parameter, foreign.params_path, bias, candidate)
            with np.errstate(over="ignore"):
                folded = values[name] - shift
            values[name] = _checked(folded, parameter, foreign.params_path, theirs[name], candidate)
    return values


def _checked(
    array: AnyArray, parameter: Parameter, path: Path, their_name: str, candidate: _Candidate
) -> npt.NDArray[np.float32]:
    where = f"{path}: {their_name[:80]!r}"
    if parameter.role == "slope" and array.shape == (1,):
        array = np.repeat(array, parameter.shape[0])  # the same slope for all channels
    if array.shape != parameter.shape:
        advice = f"in {candidate.name} at {candidate.image[1]} pixels (--input gives another size)"
        expected = f"shape {parameter.shape} as {parameter.name} has"
        raise BadInput("the array does not fit", where=where, expected=expected, found=array.shape, advice=advice)
    values = finite_float32(array, where)
    if parameter.role == "scale" and not parameter.trainable and (values != 1).any():
        raise BadInput("scales a normalisation that has no scale", where=where, expected=f"1, as {parameter.name} is")
    return values
