"""The two tables of the verb `networks`: all networks, and the layers of a network. Data only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from imagenet_pipeline.config.shipped import shipped_networks
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Graph, Layer, Sequential, Size, follow, pair, walk
from imagenet_pipeline.networks.shapes import Shape, describe, multiply_adds, parameter_count


@dataclass(frozen=True)
class NetworkRow:
    """One network; the two counts are None where it cannot take an input of that size.

    `input_size` is None too for a network of another package that cannot be had: `summary` says why.
    """

    name: str
    input_size: Size | None
    parameters: int | None
    multiply_adds: int | None
    summary: str


@dataclass(frozen=True)
class LayerRow:
    """One layer; shapes without the batch axis, parameters as trained numbers.

    `auxiliary`: under an auxiliary classifier, working in training only. `inputs`: the layers, Residuals and Concats
    that a layer inside a Graph reads, "" the image; nothing where it is the layer before alone, and outside of Graphs.
    """

    path: str
    layer: str
    output_shape: Shape
    parameters: int
    multiply_adds: int
    auxiliary: bool
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkTable:
    """A network layer by layer, with its totals; those of its auxiliary classifiers are counted apart."""

    name: str
    summary: str
    input_shape: Shape
    classes: int
    parameters: int
    multiply_adds: int
    auxiliary_parameters: int
    layers: tuple[LayerRow, ...]


def network_rows(classes: int = 1000, input_size: int | None = None) -> tuple[NetworkRow, ...]:
    """Every network of the catalogue and every file that is shipped, each at `input_size` pixels or at its own."""
    return tuple(_network_row(name, classes, input_size) for name in (*catalog.names(), *shipped_networks()))


def network_table(name: str, classes: int | None = None, input_size: int | None = None) -> NetworkTable:
    """The layers of a network for an input of `input_size` pixels, or of its own size; classes likewise.

    Raises BadRecipe for an unknown name, and for an input it cannot take.
    """
    entry = catalog.entry(name)
    size = entry.input_size if input_size is None else input_size
    classes = entry.classes if classes is None else classes
    shape = (entry.channels, *pair(size))
    network = entry.build(classes)
    reports, inputs = describe(network, shape), graph_inputs(network)
    rows = tuple(
        LayerRow(
            report.path,
            _phrase(report.layer),
            report.output_shape,
            report.parameter_count,
            report.multiply_adds,
            report.auxiliary,
            inputs.get(report.path, ()),
        )
        for report in reports
    )
    return NetworkTable(
        entry.name,
        entry.summary,
        shape,
        classes,
        parameter_count(reports),
        multiply_adds(reports),
        sum(row.parameters for row in rows if row.auxiliary),
        rows,
    )


def graph_inputs(network: Sequential) -> dict[str, tuple[str, ...]]:
    """The paths of what the layers inside Graphs read, by theirs, where it is not the layer before alone."""
    graphs = tuple(f"{path}." for path, layer in walk(network) if isinstance(layer, Graph))
    found: dict[str, tuple[str, ...]] = {}
    before = ""

    def rule(layer: Layer, path: str, inputs: list[str]) -> str:
        nonlocal before
        if path.startswith(graphs) and inputs != [before]:
            found[path] = tuple(inputs)
        before = path
        return path

    follow(network, "", "", rule)
    return found


def _network_row(name: str, classes: int, input_size: int | None) -> NetworkRow:
    try:
        entry = catalog.entry(name)
    except BadRecipe as error:
        # Of another package, which does not work: no reason to hide the others.
        return NetworkRow(name, None, None, None, str(error))
    size = entry.input_size if input_size is None else input_size
    try:
        reports = describe(entry.build(classes), (entry.channels, *pair(size)))
    except BadRecipe:
        return NetworkRow(name, size, None, None, entry.summary)
    return NetworkRow(name, size, parameter_count(reports), multiply_adds(reports), entry.summary)


def _phrase(layer: Layer) -> str:
    """The layer as Python code, its defaults left out: Conv(96, 11, stride=4)."""
    words = []
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if field.default is dataclasses.MISSING:
            words.append(repr(value))
        elif value != field.default:
            words.append(f"{field.name}={value!r}")
    return f"{type(layer).__name__}({', '.join(words)})"
