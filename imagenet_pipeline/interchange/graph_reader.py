"""Follows an image through the nodes of an MXNet graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.attributes import Attributes
from imagenet_pipeline.interchange.graph import Flow, Folding, Steps
from imagenet_pipeline.interchange.input_scale import InputScale, scaled, scaled_by_norm
from imagenet_pipeline.interchange.params import AnyArray
from imagenet_pipeline.interchange.symbol import VARIABLE, Node, Symbol
from imagenet_pipeline.networks.shapes import Role, Shape

SKIPPED = ("Dropout", "identity", "_copy", "BlockGrad", "stop_gradient", "Cast", "cast", "amp_cast")
NORMS = ("BatchNorm", "BatchNorm_v1", "CuDNNBatchNorm", "_contrib_SyncBatchNorm")


class Reader:
    """Follows the image through the nodes; `_flows` has what leaves those it reaches."""

    def __init__(
        self,
        symbol: Symbol,
        params: Mapping[str, AnyArray],
        image: Shape,
        folding: Folding,
        layers: Mapping[str, Callable[[Place], Flow]],
    ) -> None:
        self._symbol = symbol
        self._params = params
        self.folding = folding
        self._layers = layers
        self._flows: dict[int, Flow | InputScale] = {}
        self.steps = Steps(image)

    def read(self, index: int) -> None:
        """Work out what leaves a node, all nodes before it known."""
        node = self._symbol.nodes[index]
        if node.op == VARIABLE:
            if node.name not in self._params:
                self._flows[index] = InputScale.none(self.steps.image[0])
            return
        if not node.inputs:
            raise BadInput(f"operator {node.op[:80]!r} reads nothing", where=repr(node.name[:80]))
        first = self._flows.get(node.inputs[0][0])
        if node.op in SKIPPED:
            if len(node.inputs) > 1:
                raise BadInput(f"operator {node.op!r} reads more than one input", where=repr(node.name[:80]))
            if first is not None:
                self._flows[index] = first
            return
        changed = self._scaled(node, first) if isinstance(first, InputScale) else None
        self._flows[index] = changed or self._layer(node)

    def flow(self, output: tuple[int, int], name: str = "output") -> Flow:
        """What comes out there, flattened or not."""
        flow = self._flows.get(output[0])
        if flow is None or output[1] != 0:
            raise BadInput("reads a parameter, or a second output, as if it were features", where=repr(name[:80]))
        return self.steps.image_flow(flow) if isinstance(flow, InputScale) else flow

    def variable(self, index: int) -> str:
        """The name of the variable a node is or only copies; "" where there is none."""
        node = self._symbol.nodes[index]
        while node.op in SKIPPED and node.inputs:
            node = self._symbol.nodes[node.inputs[0][0]]
        return node.name if node.op == VARIABLE else ""

    def _scaled(self, node: Node, before: InputScale) -> InputScale | None:
        others = [self._params.get(self.variable(index)) for index, _ in node.inputs[1:]]
        attributes = Attributes(node.attributes, repr(node.name[:80]))
        if node.op in NORMS and self.folding.norm:
            return scaled_by_norm(before, attributes, others, repr(node.name[:80]))
        return scaled(before, node.op, attributes, others, repr(node.name[:80]))

    def _layer(self, node: Node) -> Flow:
        write = self._layers.get(node.op)
        if write is None:
            raise BadInput(f"our layers have nothing like operator {node.op[:80]!r}", where=repr(node.name[:80]))
        return write(Place(self, node, Attributes(node.attributes, repr(node.name[:80]))))


@dataclass(frozen=True)
class Place:
    """A node on its way to become a step."""

    reader: Reader
    node: Node
    attributes: Attributes

    def flow(self) -> Flow:
        """What comes in first."""
        return self.reader.flow(self.node.inputs[0], self.node.name)

    def settled(self, which: int = 0) -> Flow:
        """An input, flattened by a step of its own where that matters."""
        return self.reader.steps.settled(self.reader.flow(self.node.inputs[which], self.node.name), self.node.name)

    def image(self) -> Flow:
        """The first input, channels, height, width."""
        flow = self.settled()
        if len(flow.shape) != 3:
            raise self.bad("needs an image", found=f"a vector of {flow.shape[0]}")
        return flow

    def variables(self, *roles: Role) -> tuple[tuple[Role, str], ...]:
        """The parameters behind the first input."""
        names = [self.reader.variable(index) for index, _ in self.node.inputs[1:]]
        if len(names) != len(roles) or not all(names):
            raise self.bad("does not read the parameters it should", expected=", ".join(roles) or "none")
        return tuple(zip(roles, names, strict=True))

    def step(
        self,
        kind: str,
        settings: Mapping[str, object],
        flows: tuple[Flow, ...],
        shape: Shape,
        variables: tuple[tuple[Role, str], ...] = (),
    ) -> Flow:
        """Add the node as a step."""
        return self.reader.steps.append(kind, settings, flows, shape, self.node.name, variables)

    def bad(self, what: str, expected: object = None, found: object = None) -> BadInput:
        """The error that this node causes."""
        return BadInput(what, where=repr(self.node.name[:80]), expected=expected, found=found)
