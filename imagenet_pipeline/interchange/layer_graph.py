"""A graph of layers being put together, one layer and its values after the other."""

from __future__ import annotations

import keyword
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.interchange.params import AnyArray, finite_float32
from imagenet_pipeline.networks.graph import arrange
from imagenet_pipeline.networks.layers import Activation, Dense, Flatten, Graph, Layer, Sequential, walk
from imagenet_pipeline.networks.shapes import LayerReport, Parameter, Shape, TooSmall, layer_report

LONGEST_NAME = 80
MOST_CHANNELS = 2**20
"""Channels that may share one stored slope, of which each gets a copy."""
LOWEST = -3.4028234663852886e38
"""The lowest number of float32: no maximum is below it."""
MOST_COPIES = 16
"""Times that all the numbers of a file may be held, where layers share them."""


Stored = Mapping[str, tuple[str, AnyArray]]
"""Parameters of a layer by our names for them: what the file calls each, and its values."""


@dataclass(frozen=True)
class Flow:
    """The output of a layer of the graph, an array of `shape` for each image; the name of the image is ""."""

    name: str
    shape: Shape


class TwoScales(Exception):
    """The input is used both as it comes and normalised, or normalised in two ways."""


class SizeUnfit(BadInput):
    """A layer that does not fit what reaches it, though it may for other images: `larger` ones, if that is known."""

    larger: bool | None = None


class LayerGraph:
    """Layers in order of computation, for images of the same shape; `notes` say what could not be kept.

    `numbers` is how many the file holds.
    """

    def __init__(self, image: Shape, numbers: int) -> None:
        self.image = Flow("", image)
        self._room = MOST_COPIES * max(numbers, MOST_CHANNELS)
        self.notes: list[str] = []
        self._items: dict[str, Layer] = {}
        self._links: list[tuple[str, ...]] = []
        self._values: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
        self._readers: dict[str, str] = {}
        self._sources: dict[str, str] = {}
        self._namesakes: Counter[str] = Counter()

    def add(
        self,
        name: str,
        layer: Layer,
        inputs: tuple[Flow, ...],
        arrays: Stored | None = None,
        where: object = None,
    ) -> Flow:
        """Add a layer, called `name` as far as that is free and a plain word, with the values of its parameters.

        Raises SizeUnfit where the image has
        another size than the layer or its values ask for, and BadInput where they do not fit at all.
        """
        report = _reported(layer, name, inputs, where)
        values = {}
        for parameter in report.parameters:
            suffix = parameter.name.rpartition(".")[2]
            source, array = (arrays or {})[suffix]
            values[suffix] = _fitting(array, parameter, report, f"{where}, array {source[:80]!r}")
            self._room -= values[suffix].size
            if self._room < 0:
                raise BadInput("its layers share their values too often", where=where)
        free = self._free(name)
        for suffix, (source, _) in (arrays or {}).items():
            self._note_sharing(source, free)
            self._sources[f"{free}.{suffix}"] = source
        self._items[free] = layer
        self._links.append(tuple(flow.name for flow in inputs))
        self._values[free] = values
        return Flow(free, report.output_shape)

    def scores(self, end: Flow | None, where: object) -> Flow:
        """The end of the graph as a vector. Raises BadInput where no layer makes it, SizeUnfit where it is a map."""
        if end is None or not end.name:
            raise BadInput("the graph has no layers between its input and its output", where=where)
        if len(end.shape) == 1:
            return end
        if math.prod(end.shape[1:]) > 1:
            found = "x".join(map(str, end.shape))
            raise SizeUnfit("its output is not a vector of scores", where=where, found=found)
        return self.add("flatten_scores", Flatten(), (end,))

    def network(self, end: Flow) -> tuple[Sequential, dict[str, npt.NDArray[np.float32]], dict[str, str]]:
        """The layers that `end` comes from as a network; their values, and the file's names of these, by our names."""
        count = list(self._items).index(end.name) + 1
        network = arrange(Graph(tuple(self._items.items())[:count], tuple(self._links[:count])))
        values, sources = {}, {}
        for path, _ in walk(network):
            name = path.rpartition(".")[2]
            for suffix, array in self._values.get(name, {}).items():
                values[f"{path}.{suffix}"] = array
                sources[f"{path}.{suffix}"] = self._sources[f"{name}.{suffix}"]
        return network, values, sources

    def _free(self, name: str) -> str:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)[:LONGEST_NAME] or "layer"
        plain = f"n{plain}" if plain[0].isdigit() else plain
        plain = f"{plain}_" if keyword.iskeyword(plain) else plain
        free = plain
        while free in self._items:
            self._namesakes[plain] += 1
            free = f"{plain}_{self._namesakes[plain] + 1}"
        return free

    def _note_sharing(self, source: str, name: str) -> None:
        first = self._readers.setdefault(source, name)
        if first != name:
            self.notes.append(f"{first} and {name} share {source[:80]!r}: each has a copy of its own now")


def _reported(layer: Layer, name: str, inputs: tuple[Flow, ...], where: object) -> LayerReport:
    try:
        return layer_report(layer, name, [flow.shape for flow in inputs])
    except TooSmall as error:
        problem = SizeUnfit(f"the image is too small: {error}", where=where)
        problem.larger = True
        raise problem from None
    except BadRecipe as error:
        raise SizeUnfit(error.what, where=where, expected=error.expected, found=error.found) from None


def _fitting(array: AnyArray, parameter: Parameter, report: LayerReport, where: str) -> npt.NDArray[np.float32]:
    """The array as the values of a parameter."""
    shape = parameter.shape
    if isinstance(report.layer, Activation) and array.size == 1 and math.prod(shape) <= MOST_CHANNELS:
        array = np.repeat(array.reshape(1), shape[0])  # the same slope for all channels
    if array.shape != shape:
        problem = SizeUnfit("the array does not fit", where=where, expected=f"shape {shape}", found=array.shape)
        if isinstance(report.layer, Dense) and array.ndim == 2 and array.shape[0] == shape[0]:
            problem.larger = array.shape[1] > shape[1]
        raise problem
    return finite_float32(array, where)
