"""A node of an MXNet graph on its way to become layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.graph import COLOURS, InputScale, scaled
from imagenet_pipeline.interchange.layer_graph import Flow, LayerGraph, SizeUnfit, Stored, TwoScales
from imagenet_pipeline.interchange.params import AnyArray
from imagenet_pipeline.interchange.symbol import VARIABLE, Attributes, Node, Output, Symbol
from imagenet_pipeline.networks.layers import Constant, Greyscale, Layer
from imagenet_pipeline.networks.shapes import Shape

SKIPPED = ("identity", "_copy", "BlockGrad", "stop_gradient", "Cast", "cast", "amp_cast")
STOPPED = ("BlockGrad", "stop_gradient")


class Conversion:
    """Follows the image through the nodes of a graph, and adds the layers they are.

    With `split` the arithmetic that a graph does to its input first is kept apart, as `scale`. An image of one
    channel is made of our three by a layer of its own, unless `channels` says that ours is grey, too.
    """

    def __init__(
        self,
        symbol: Symbol,
        params: Mapping[str, AnyArray],
        image: Shape,
        split: bool,
        where: tuple[object, object],
        channels: int = COLOURS,
    ) -> None:
        self.symbol = symbol
        self.params = params
        numbers = sum(array.size for array in params.values())
        self.graph = LayerGraph((channels, *image[1:]), numbers)
        self.scale: InputScale | None = None
        self._image = image
        self._split = split
        self.where, self._where_params = where
        self._data = data_variable(symbol, params)
        self._flows: dict[Output, Flow | InputScale] = {}
        self._grey: Flow | None = None

    def read(self, output: Output, rules: Callable[[str], Callable[[Operator], Flow]]) -> None:
        """Work out what leaves a node by one of its outputs, all nodes before it known."""
        index, which = output
        node = self.symbol.nodes[index]
        if node.op == VARIABLE:
            if index == self._data:
                self._flows[output] = InputScale.none(self._image[0])
            return
        operator = Operator(self, node, which)
        first = self._flows.get(node.inputs[0]) if node.inputs else None
        if node.op in SKIPPED and (first is not None or self.variable(index) is not None):
            if first is not None:
                self._flows[output] = first
                if node.op in STOPPED:
                    self.graph.notes.append(f"{node.name[:80]}: no gradient passes it in MXNet; here it does")
            return
        rule = rules(node.op)
        changed = self._scaled(operator, first) if self._split and isinstance(first, InputScale) else None
        self._flows[output] = changed or rule(operator)

    def flow(self, output: Output) -> Flow | None:
        """The flow out of a node; None for a variable that is not the image."""
        flow = self._flows.get(output)
        return self._image_flow(flow) if isinstance(flow, InputScale) else flow

    def variable(self, index: int) -> Node | None:
        """The variable that a node is or only copies, the image left out."""
        node = self.symbol.nodes[index]
        while node.op in SKIPPED and node.inputs:
            index = node.inputs[0][0]
            node = self.symbol.nodes[index]
        return node if node.op == VARIABLE and index != self._data else None

    def array(self, node: Node, where: str) -> AnyArray:
        """The values of a variable. Raises BadInput where the file has none."""
        if node.name not in self.params:
            raise BadInput("values are missing", where=self._where_params, found=f"no {node.name[:80]!r}, of {where}")
        return self.params[node.name]

    def _scaled(self, operator: Operator, before: InputScale) -> InputScale | None:
        """The scale of the input after an operator; None for one that is to become a layer."""
        node = operator.node
        variables = [self.variable(index) for index, _ in node.inputs[1:]]
        others = [self.params.get(variable.name) if variable else None for variable in variables]
        try:
            return scaled(before, node.op, operator.attributes, others, operator.where)
        except BadInput:
            return None

    def _image_flow(self, scale: InputScale) -> Flow:
        if self.scale not in (None, scale):
            raise TwoScales
        self.scale = scale
        if self._image[0] == self.graph.image.shape[0]:
            return self.graph.image
        if self._grey is None:
            self.graph.notes.append("reads images of one channel: the grey of photos (ITU-R BT.601)")
            self._grey = self.graph.add("greyscale", Greyscale(), (self.graph.image,))
        return self._grey


@dataclass(frozen=True)
class Operator:
    """A node, and which of its outputs is wanted."""

    conversion: Conversion
    node: Node
    which: int

    @property
    def where(self) -> str:
        return f"{self.conversion.where}: {self.node.name[:80]!r}"

    @property
    def attributes(self) -> Attributes:
        return Attributes(self.node.attributes, self.where)

    def flow(self, which: int = 0) -> Flow:
        """The flow into an input, which must be made of the image."""
        if which >= len(self.node.inputs):
            raise self.bad(f"{self.node.op} reads too little", found=f"{len(self.node.inputs)} inputs")
        flow = self.conversion.flow(self.node.inputs[which])
        if flow is None:
            source = self.conversion.symbol.nodes[self.node.inputs[which][0]].name[:80]
            raise self.bad(f"{self.node.op} computes with {source!r}, which is not made of the image")
        return flow

    def flows(self) -> tuple[Flow, ...]:
        """All that come in."""
        return tuple(self.flow(which) for which in range(len(self.node.inputs)))

    def image(self) -> Flow:
        """The first input, [channels, height, width]."""
        flow = self.flow()
        if len(flow.shape) != 3:
            raise self.unfit(f"{self.node.op} needs an image", found=flow.shape)
        return flow

    def operand(self, which: int, axes: int) -> Flow:
        """An input of arithmetic among arrays of so many axes: made of the image, or a variable as a constant."""
        index, _ = self.node.inputs[which]
        variable = self.conversion.variable(index)
        if variable is None:
            return self.flow(which)
        array = self.conversion.array(variable, self.where)
        if array.ndim > axes and array.shape[0] != 1:
            raise self.bad(f"{variable.name[:80]!r} has numbers for each image of a batch", found=array.shape)
        kept = array.shape[1:] if array.ndim > axes else array.shape
        shape = (1,) * (axes - len(kept)) + kept
        if len(shape) != axes or not shape:
            raise self.unfit(f"{variable.name[:80]!r} has too many axes", found=array.shape)
        arrays = {"value": (variable.name, array.reshape(shape))}
        return self.conversion.graph.add(variable.name, Constant(shape), (), arrays, self.where)

    def arrays(self, *names: str) -> dict[str, tuple[str, AnyArray]]:
        """The parameters behind the first input, by our names for them."""
        variables = [self.conversion.variable(index) for index, _ in self.node.inputs[1:]]
        if len(variables) != len(names):
            found = f"{len(self.node.inputs)} inputs"
            raise self.bad(f"{self.node.op} reads other parameters than those of its kind", names, found)
        found_arrays = {}
        for name, variable, (index, _) in zip(names, variables, self.node.inputs[1:], strict=True):
            if variable is None:
                source = self.conversion.symbol.nodes[index].name[:80]
                raise self.bad(f"its {name} {source!r} is computed, and no parameter of the file")
            found_arrays[name] = (variable.name, self.conversion.array(variable, self.where))
        return found_arrays

    def add(
        self,
        layer: Layer,
        *inputs: Flow,
        suffix: str = "",
        arrays: Stored | None = None,
    ) -> Flow:
        """Add a layer, named after the node."""
        name = f"{self.node.name}_{suffix}" if suffix else self.node.name
        return self.conversion.graph.add(name, layer, inputs, arrays, self.where)

    def axis(self, number: int, axes: int) -> int:
        """Our number of an MXNet axis, of an array with so many axes beside that of the batch."""
        place = number + axes + 1 if number < 0 else number
        if place == 0:
            raise self.bad(f"{self.node.op} works along the batch: it mixes images", found=f"axis {number}")
        if not 0 < place <= axes:
            raise self.unfit(f"{self.node.op} works along an axis that is not there", found=f"axis {number}")
        return place - 1

    def note(self, text: str) -> None:
        """Say what could not be kept."""
        self.conversion.graph.notes.append(f"{self.node.name[:80]}: {text}")

    def bad(self, what: str, expected: object = None, found: object = None) -> BadInput:
        """The error that this node causes."""
        return BadInput(what, where=self.where, expected=expected, found=found)

    def unfit(self, what: str, expected: object = None, found: object = None) -> SizeUnfit:
        """The error that this node causes for images of this size, if not for all."""
        return SizeUnfit(what, where=self.where, expected=expected, found=found)


def data_variable(symbol: Symbol, params: Mapping[str, AnyArray]) -> int | None:
    """The variable that is the image: "data", or else the first that the file has no values for."""
    open_ones = [index for index, node in enumerate(symbol.nodes) if node.op == VARIABLE and node.name not in params]
    named = [index for index in open_ones if symbol.nodes[index].name == "data"]
    return next(iter(named or open_ones), None)


def ones_like(array: AnyArray) -> AnyArray:
    """Ones of the same shape, float32."""
    return np.ones(array.shape, np.float32)
