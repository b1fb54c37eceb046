"""Networks as they leave the pipeline, values checked and float32, and as they come in from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import Size, pair
from imagenet_pipeline.engines import Array, Values, check_fits
from imagenet_pipeline.engines import Normalisation as Normalisation
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.networks.layers import Sequential, Tap, without_taps
from imagenet_pipeline.networks.shapes import LayerReport, Shape, describe, output_shape
from imagenet_pipeline.records.classes import ClassTable


def contents(channels: int, normalised: bool) -> str:
    """The numbers that an exported network reads, in words: those of pixels, or those of pixels `normalised`."""
    colours = "RGB" if channels == 3 else "grey"
    return f"({colours} - mean) / std" if normalised else f"{colours}, 0..255"


@dataclass(frozen=True)
class Frozen:
    """A network as an exporter writes it: `reports` by path, `values` by name in order of computation."""

    network: Sequential
    input_shape: Shape
    output_shape: Shape
    reports: dict[str, LayerReport]
    values: dict[str, npt.NDArray[np.float32]]


def freeze(network: Sequential, values: Values, input_shape: Shape) -> Frozen:
    """Prepare a network for export; values of auxiliary classifiers may be among `values` and are dropped.

    Raises BadRecipe where the network cannot take the input, BadInput where the values are not the network's
    or not finite in float32.
    """
    # By their names: an input too small for the auxiliary classifiers alone will do.
    auxiliary = tuple(f"{name}." for name, item in network.items if isinstance(item, Tap))
    scoring = without_taps(network)
    reports = {report.path: report for report in describe(scoring, input_shape)}
    declared = {parameter.name: parameter.shape for report in reports.values() for parameter in report.parameters}
    check_fits(declared, {name: value for name, value in values.items() if not name.startswith(auxiliary)}, "weights")
    return Frozen(
        scoring,
        input_shape,
        output_shape(scoring, input_shape),
        reports,
        {name: in_float32(name, values[name]) for name in declared},
    )


def in_float32(name: str, value: Array) -> npt.NDArray[np.float32]:
    """A parameter as every format writes it, last axis fastest. Raises BadInput where it is not finite then."""
    with np.errstate(over="ignore"):
        numbers = np.asarray(value, np.float32, order="C")
    if not np.isfinite(numbers).all():
        raise BadInput(f"the weights {name} hold numbers that are not finite in float32")
    return numbers


THE_GRAPH = "the graph"
"""Says a normalisation that is inside the network."""


@dataclass(frozen=True)
class Imported:
    """A network trained elsewhere, in our terms.

    `network` is its name in the catalogue; a network that is in no catalogue has its `layers` here, and `network` is
    what its file calls it. `values` by our names, those of auxiliary classifiers only where the file has them.
    `normalisation` is what the network itself does to its input, or what its source states, and `normalisation_from`
    says which (a user may know better than a source); None where nobody says it. `also` names other networks that
    compute the same, `unused` arrays of the file that the network does not have. `crop_fraction` and `class_table` are
    what the file states. `sources` are the names that the file has for `values`, where it names them. `notes` are
    sentences on what could not be kept. Its input is RGB, or with 1 of `channels` grey.
    """

    network: str
    classes: int
    input_size: Size
    values: dict[str, npt.NDArray[np.float32]]
    normalisation: Normalisation | None
    also: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    layers: Sequential | None = None
    crop_fraction: float | None = None
    class_table: ClassTable | None = None
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    normalisation_from: str = THE_GRAPH
    channels: int = 3

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (self.channels, *pair(self.input_size))
