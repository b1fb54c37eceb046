"""A network as it leaves the pipeline: its auxiliary classifiers left out, its values checked and float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.engines import Array, Values, check_fits
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.networks.layers import Sequential, Tap, without_taps
from imagenet_pipeline.networks.shapes import LayerReport, Shape, describe, output_shape

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, in 0..255."""


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
