"""An MXNet checkpoint as the values of a network of ours.

Nothing depends on names: our network is written as MXNet's graph too, and the two graphs are walked together from
the scores back to the image. So files of Module, FeedForward and Gluon's `export` are all read alike.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.errors import BadInput, BadRecipe, first_few
from imagenet_pipeline.interchange.export import require_input_size
from imagenet_pipeline.interchange.frozen import Imported, Normalisation
from imagenet_pipeline.interchange.graph import Different, Folding, Graph, paired_variables
from imagenet_pipeline.interchange.graph_operators import is_known, reduced
from imagenet_pipeline.interchange.network_symbol import symbol_names, symbol_of
from imagenet_pipeline.interchange.params import AnyArray, read_params
from imagenet_pipeline.interchange.symbol import VARIABLE, Attributes, Symbol, read_symbol
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Sequential, without_taps
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


def import_mxnet(
    symbol_path: Path, params_path: Path, network: str | None = None, input_size: int | None = None
) -> Imported:
    """Read a symbol and its values as `network`, or as whichever network of the catalogue it is.

    `input_size` is the side of the image in pixels, by default that of the network. Raises BadInput for damaged
    files, and where the graph is no network of ours: then it says where the nearest network differs.
    Raises BadRecipe for an unknown `network`, or where `input_size` is too small for it.
    """
    symbol = read_symbol(symbol_path)
    foreign = _Foreign(symbol, _bare(read_params(params_path), params_path), symbol_path, params_path)
    _require_together(foreign)
    found, difference = _found(foreign, _candidates(foreign, network, input_size))
    if not found:
        if input_size is not None:
            _require_size(foreign, network, input_size, difference)
        raise _unlike(foreign, network, difference)
    candidate, values, normalisation = found[0]
    known = {node.name for node in symbol.nodes if node.op == VARIABLE}
    return Imported(
        candidate.name,
        _classes(foreign),
        candidate.image[1],
        values,
        normalisation,
        tuple(other.name for other, _, _ in found[1:]),
        tuple(name for name in foreign.params if name not in known),
    )


_Found = list[tuple[_Candidate, Values, Normalisation | None]]


def _found(foreign: _Foreign, candidates: list[_Candidate]) -> tuple[_Found, str]:
    """The candidates that the graph is, and where the nearest of the others differs; "" where that says nothing."""
    found: _Found = []
    difference = ""
    weights = _weight_shapes(foreign).total()
    for candidate in candidates:
        if candidate.distance and (found or difference):
            break
        try:
            found.append((candidate, *_matched(candidate, foreign)))
        except Different as error:
            difference = difference or f"as {candidate.name}: {error}"
    is_near = len(candidates) == 1 or (candidates and candidates[0].distance <= weights // 2)
    return found, difference if is_near else ""


def _require_size(foreign: _Foreign, network: str | None, input_size: int, difference: str) -> None:
    """Raise BadRecipe or BadInput where the graph is a network of ours at that network's own size, but not at this."""
    found, _ = _found(foreign, _candidates(foreign, network, None))
    for candidate, _, _ in found[:1]:
        name, own = candidate.name, candidate.image[1]
        require_input_size(name, candidate.network, input_size, own)
        what, advice = f"is {name} at {own} pixels, not at {input_size}", "leave --input out"
        raise BadInput(what, where=foreign.symbol_path, found=difference or None, advice=advice)


def _unlike(foreign: _Foreign, network: str | None, difference: str) -> BadInput:
    where, advice = foreign.symbol_path, "imagenet-pipeline networks lists what is recognised"
    if network is not None:
        return BadInput(f"not {network}", where=where, found=difference or None)
    if difference:
        return BadInput(
            "the graph is no network of ours; the nearest differs", where=where, found=difference, advice=advice
        )
    strange = next((node for node in foreign.symbol.nodes if not is_known(node.op)), None)
    found = None if strange is None else f"operator {strange.op[:80]!r} in {strange.name[:80]!r}, which none has"
    return BadInput("the graph is no network of ours", where=where, found=found, advice=advice)


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


def _candidates(foreign: _Foreign, network: str | None, input_size: int | None) -> list[_Candidate]:
    """Networks to try, the nearest first; those with the very weights have distance 0."""
    classes, weights = _classes(foreign), _weight_shapes(foreign)
    candidates = []
    for name in catalog.names() if network is None else [network]:
        size = input_size or catalog.entry(name).input_size
        built = without_taps(catalog.entry(name).build(classes))
        try:
            declared = parameters(built, (CHANNELS, size, size))
        except BadRecipe:
            if network is not None:
                require_input_size(name, built, size, catalog.entry(name).input_size)
            continue
        ours = Counter(parameter.shape for parameter in declared.values() if parameter.role == "weight")
        distance = sum(((ours - weights) + (weights - ours)).values())
        candidates.append(_Candidate(name, built, (CHANNELS, size, size), declared, distance))
    return sorted(candidates, key=lambda candidate: candidate.distance)


def _classes(foreign: _Foreign) -> int:
    """The outputs of the last layer with weights."""
    nodes = foreign.symbol.nodes
    index = foreign.symbol.heads[0][0]
    while nodes[index].op not in _WEIGHTED:
        if not nodes[index].inputs:
            raise BadInput("the graph has no layer with weights", where=foreign.symbol_path)
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


def _matched(candidate: _Candidate, foreign: _Foreign) -> tuple[Values, Normalisation | None]:
    """The values of a network that the foreign graph is. Raises Different, and BadInput for values that do not fit.

    Biases in front of batch normalisations that our network does without are no difference: its means make up for
    them (MXNet's zoo has such in its ResNet-50 v1).
    """
    ours = reduced(symbol_of(candidate.network, candidate.image), {}, candidate.image)
    norm = not _starts_with_norm(ours)
    try:
        return _matched_folding(candidate, foreign, ours, Folding(norm))
    except Different:
        with contextlib.suppress(Different):
            return _matched_folding(candidate, foreign, ours, Folding(norm, bias=True))
        raise


def _matched_folding(
    candidate: _Candidate, foreign: _Foreign, ours: Graph, folding: Folding
) -> tuple[Values, Normalisation | None]:
    try:
        theirs = reduced(
            foreign.symbol,
            foreign.params,
            candidate.image,
            folding=folding,
        )
    except BadInput as error:
        raise Different(str(error)) from None
    names = paired_variables(ours, theirs)
    values = _values(candidate, foreign, names, theirs)
    scale = theirs.scale
    plain = not any(scale.mean) and set(scale.std) == {1.0}
    return values, None if plain else (scale.mean, scale.std)


def _starts_with_norm(graph: Graph) -> bool:
    return any(step.kind == "normalisation" and step.inputs == (0,) for step in graph.steps)


def _values(candidate: _Candidate, foreign: _Foreign, names: dict[str, str], graph: Graph) -> Values:
    ours = symbol_names(candidate.network, candidate.image)
    theirs = {name: names[ours[name].partition(":")[2]] for name in candidate.declared}
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
    if array.dtype.kind != "f":
        raise BadInput("the array holds no floating-point numbers", where=where, found=array.dtype)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(values).all():
        raise BadInput("holds numbers that are not finite", where=where)
    if parameter.role == "scale" and not parameter.trainable and (values != 1).any():
        raise BadInput("scales a normalisation that has no scale", where=where, expected=f"1, as {parameter.name} is")
    return values
