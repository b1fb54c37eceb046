"""A network as it leaves the pipeline: its auxiliary classifiers left out, its values checked and float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.engines import Values, check_fits
from imagenet_pipeline.networks.layers import Flatten, Sequential, stack, without_taps
from imagenet_pipeline.networks.shapes import LayerReport, Shape, describe

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, in 0..255."""


@dataclass(frozen=True)
class Frozen:
    """What an exporter writes down. `reports` by path, `values` by name in order of computation."""

    network: Sequential
    input_shape: Shape
    output_shape: Shape
    reports: dict[str, LayerReport]
    values: dict[str, npt.NDArray[np.float32]]


def freeze(network: Sequential, values: Values, input_shape: Shape) -> Frozen:
    """Prepare a network for export; values of auxiliary classifiers may be among `values` and are dropped.

    Raises BadRecipe where the network cannot take the input, BadInput where the values are not the network's.
    """
    auxiliary = [one.name for report in describe(network, input_shape) if report.auxiliary for one in report.parameters]
    scoring = without_taps(network)
    reports = {report.path: report for report in describe(scoring, input_shape)}
    declared = {one.name: one.shape for report in reports.values() for one in report.parameters}
    check_fits(declared, {name: value for name, value in values.items() if name not in auxiliary}, "weights")
    # What reaches a layer put behind the network is what leaves the network.
    output_shape = describe(stack(network=scoring, end=Flatten()), input_shape)[-1].input_shape
    return Frozen(
        scoring,
        input_shape,
        output_shape,
        reports,
        {name: np.ascontiguousarray(values[name], np.float32) for name in declared},
    )
