"""A network as steps in our layers' terms, whoever wrote it, so that two graphs can be compared.

`graph_operators.py` makes the steps out of MXNet's operators.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.input_scale import InputScale
from imagenet_pipeline.networks.shapes import Role, Shape

Variables = tuple[tuple[Role, str], ...]
"""The parameters of a step: their role and their names in the graph."""
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Step:
    """One layer; step 0 is the image. `key` is a digest of it and of all before it, names left out."""

    kind: str
    settings: Mapping[str, Any]
    inputs: tuple[int, ...]
    variables: Variables
    shape: Shape
    name: str
    key: bytes


@dataclass(frozen=True)
class Graph:
    """Steps in order of computation; `root` gives the scores.

    `scale` is what the graph does to its input first. `fixed` names the scales of batch normalisations that
    MXNet takes as 1, whatever its file says (fix_gamma); `folded` the bias that each mean has to swallow.
    """

    steps: tuple[Step, ...]
    root: int
    scale: InputScale
    fixed: frozenset[str]
    folded: Mapping[str, str]


@dataclass(frozen=True)
class Folding:
    """What to take as part of its neighbour: a batch normalisation of the image as the image's scale, the bias
    in front of a batch normalisation as part of that one's mean.
    """

    norm: bool = False
    bias: bool = False


@dataclass(frozen=True)
class Flow:
    """What leaves a node: the result of a step, as an array of `shape`, flattened perhaps."""

    step: int
    shape: Shape


class Steps:
    """Steps being put together, for images of one shape."""

    def __init__(self, image: Shape) -> None:
        self.image = image
        self.scale: InputScale | None = None
        self.fixed: set[str] = set()
        self.folded: dict[str, str] = {}
        self.all: list[Step] = []
        self.append("image", {}, (), image, "data")

    def append(
        self,
        kind: str,
        settings: Mapping[str, Any],
        inputs: tuple[Flow, ...],
        shape: Shape,
        name: str,
        variables: Variables = (),
    ) -> Flow:
        """Add a step. Raises BadInput where its result is larger than any memory."""
        if math.prod(shape) > LARGEST:
            raise BadInput("gives more numbers than any memory holds", where=repr(name), found=shape)
        keys = [self.all[flow.step].key for flow in inputs]
        if kind == "sum":
            keys.sort()
        content = repr((kind, sorted(settings.items()), [shape for shape in (shape,) if kind == "image"], keys))
        key = hashlib.blake2b(content.encode(), digest_size=16).digest()
        indices = tuple(flow.step for flow in inputs)
        self.all.append(Step(kind, settings, indices, variables, shape, name, key))
        return Flow(len(self.all) - 1, shape)

    def image_flow(self, scale: InputScale) -> Flow:
        """The image, scaled. Raises BadInput where it was used with another scale before."""
        if self.scale not in (None, scale):
            raise BadInput("the input is used both normalised and not")
        self.scale = scale
        return Flow(0, self.image)

    def unbiased(self, flow: Flow, mean: str) -> Flow:
        """The layer before a batch normalisation without its bias, which the variable `mean` is to swallow."""
        step = self.all[flow.step]
        if not step.settings.get("bias", False):
            return flow
        self.folded[mean] = step.variables[1][1]
        inputs = tuple(Flow(index, self.all[index].shape) for index in step.inputs)
        settings = {**step.settings, "bias": False}
        return self.append(step.kind, settings, inputs, flow.shape, step.name, step.variables[:1])

    def settled(self, flow: Flow, name: str) -> Flow:
        """A flattened map as a step of its own, unless flattening left its numbers one a channel."""
        before = self.all[flow.step].shape
        if len(flow.shape) == len(before) or math.prod(before[1:]) == 1:
            return flow
        return self.append("flatten", {}, (Flow(flow.step, before),), flow.shape, name)

    def graph(self, end: Flow) -> Graph:
        """The finished graph."""
        scale = self.scale or InputScale.none(self.image[0])
        return Graph(tuple(self.all), end.step, scale, frozenset(self.fixed), self.folded)
