"""MXNet's operators as steps of a `Graph`.

What does nothing when a trained network scores is left out (dropout, copies, the softmax at the end, a flatten in
front of a dense layer); what has several spellings gets a single spelling (a global pooling and a pooling of the whole
map, Module's names of operators and Gluon's). Defaults of attributes are those of apache/mxnet 1.9.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.graph import Flow, Folding, Graph, InputScale, Steps, scaled, scaled_by_norm
from imagenet_pipeline.interchange.params import AnyArray
from imagenet_pipeline.interchange.symbol import VARIABLE, Attributes, Node, Output, Symbol
from imagenet_pipeline.networks.shapes import Role, Shape, windows

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
        layers: Mapping[str, Callable[[Operator], Flow]],
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
        """The flow out of a node's output, flattened or not."""
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
        return write(Operator(self, node, Attributes(node.attributes, repr(node.name[:80]))))


@dataclass(frozen=True)
class Operator:
    """An operator's node on its way to become a step."""

    reader: Reader
    node: Node
    attributes: Attributes

    def flow(self) -> Flow:
        """The flow into the node's first input."""
        return self.reader.flow(self.node.inputs[0], self.node.name)

    def settled(self, which: int = 0) -> Flow:
        """An input, flattened by a step of its own where that matters."""
        return self.reader.steps.settled(self.reader.flow(self.node.inputs[which], self.node.name), self.node.name)

    def image(self) -> Flow:
        """The first input, channels, height, width."""
        flow = self.settled()
        if len(flow.shape) != 3:
            raise self.bad("the operator needs an image", found=f"a vector of {flow.shape[0]}")
        return flow

    def variables(self, *roles: Role) -> tuple[tuple[Role, str], ...]:
        """The parameters behind the first input."""
        names = [self.reader.variable(index) for index, _ in self.node.inputs[1:]]
        if len(names) != len(roles) or not all(names):
            raise self.bad("the operator does not read the parameters of its kind", expected=", ".join(roles) or "none")
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


PROBABILITIES = ("SoftmaxOutput", "Softmax", "softmax", "SoftmaxActivation", "log_softmax")
MOST_JOINED = 1_000
NO_FOLDING = Folding()


def reduced(symbol: Symbol, params: Mapping[str, AnyArray], image: Shape, folding: Folding = NO_FOLDING) -> Graph:
    """The graph of `symbol` for images [channels, height, width]; `params` are its values, without `arg:`.

    Raises BadInput for what our layers cannot say, and where the image does not fit.
    """
    graph, problem = partly_reduced(symbol, params, image, folding)
    if problem is not None:
        raise problem
    return graph


def partly_reduced(
    symbol: Symbol, params: Mapping[str, AnyArray], image: Shape, folding: Folding
) -> tuple[Graph, BadInput | None]:
    """The graph as far as our networks have words for it, and what `reduced` raises about the rest."""
    reader = Reader(symbol, params, image, folding, _LAYERS)
    try:
        if len(symbol.heads) != 1:
            raise BadInput("the graph has several outputs", found=len(symbol.heads), advice="take the scores alone")
        root, temperature = before_softmax(symbol, SKIPPED)
        if temperature != 1:
            raise BadInput("the softmax at the end has a temperature", found=temperature)
        for index in sorted(_reached(symbol, root[0])):
            reader.read(index)
        end = reader.flow(root)
        if len(end.shape) == 3 and math.prod(end.shape[1:]) > 1:
            raise BadInput("its output is not a vector of scores", found="x".join(map(str, end.shape)))
    except BadInput as error:
        last = len(reader.steps.all) - 1
        return reader.steps.graph(Flow(last, reader.steps.all[last].shape)), error
    return reader.steps.graph(end), None


def before_softmax(symbol: Symbol, skipped: Sequence[str]) -> tuple[Output, float]:
    """The scores in front of the softmax at the end of a graph, which no network of ours has, and its temperature.

    `skipped` are operators to pass over. A log_softmax in front of the softmax changes nothing; another softmax does.
    """
    root, temperature, is_inside = symbol.heads[0], 1.0, False
    while (node := symbol.nodes[root[0]]).inputs:
        if node.op in (("log_softmax",) if is_inside else PROBABILITIES):
            temperature *= Attributes(node.attributes, repr(node.name[:80])).real("temperature", 1.0)
            is_inside = True
        elif node.op not in skipped:
            break
        root = node.inputs[0]
    return root, temperature


def _reached(symbol: Symbol, root: int) -> set[int]:
    reached, waiting = {root}, [root]
    while waiting:
        for index, _ in symbol.nodes[waiting.pop()].inputs:
            if index not in reached:
                reached.add(index)
                waiting.append(index)
    return reached


def _convolution(operator: Operator) -> Flow:
    attributes, flow = operator.attributes, operator.image()
    channels, groups = attributes.integer("num_filter"), attributes.integer("num_group", 1)
    if min(channels, groups) < 1 or channels % groups or flow.shape[0] % groups:
        raise operator.bad(f"{groups} groups do not divide {flow.shape[0]} channels in and {channels} out")
    if attributes.pair("dilate", (1, 1), 1) != (1, 1) or attributes.word("layout", "NCHW") != "NCHW":
        raise operator.bad("the convolution is dilated, or not NCHW", expected="dilate (1, 1), layout NCHW")
    kernel, stride = attributes.pair("kernel", None, 1), attributes.pair("stride", (1, 1), 1)
    pad, bias = attributes.pair("pad", (0, 0), 0), not attributes.flag("no_bias", False)
    settings = {
        "channels": channels, "kernel": kernel, "stride": stride, "pad": pad, "groups": groups, "bias": bias,
    }  # fmt: skip
    shape = (channels, *_counts(operator, flow.shape, kernel, stride, pad))
    return operator.step("convolution", settings, (flow,), shape, operator.variables("weight", *_bias(bias)))


def _dense(operator: Operator) -> Flow:
    attributes, flow = operator.attributes, operator.flow()
    units, bias = attributes.integer("num_hidden"), not attributes.flag("no_bias", False)
    if units < 1 or (len(flow.shape) == 3 and not attributes.flag("flatten", True)):
        raise operator.bad("the dense layer does not read a vector")
    settings = {"units": units, "bias": bias}
    return operator.step("dense", settings, (flow,), (units,), operator.variables("weight", *_bias(bias)))


def _bias(bias: bool) -> tuple[Role, ...]:
    return ("bias",) if bias else ()


def _norm(operator: Operator) -> Flow:
    flow = operator.settled()
    if operator.attributes.integer("axis", 1) != 1:
        raise operator.bad("the normalisation is along another axis than the channels")
    variables = operator.variables("scale", "shift", "mean", "variance")
    if operator.attributes.flag("fix_gamma", True):
        operator.reader.steps.fixed.add(variables[0][1])
    if operator.reader.folding.bias:
        flow = operator.reader.steps.unbiased(flow, variables[2][1])
    settings = {"epsilon": _rounded(operator.attributes.real("eps", 1e-3))}
    return operator.step("normalisation", settings, (flow,), flow.shape, variables)


def _activation(operator: Operator) -> Flow:
    kind = operator.attributes.word("act_type", "") if operator.node.op == "Activation" else operator.node.op
    if kind not in ("relu", "tanh", "sigmoid"):
        raise operator.bad(f"our layers have no activation {kind[:80]!r}")
    flow = operator.settled()
    return operator.step("activation", {"function": kind}, (flow,), flow.shape, operator.variables())


def _leaky(operator: Operator) -> Flow:
    kind = operator.attributes.word("act_type", "leaky")
    if kind not in ("leaky", "elu", "prelu"):
        raise operator.bad(f"our layers have no activation {kind[:80]!r}")
    flow = operator.settled()
    if kind == "prelu":
        return operator.step("activation", {"function": kind}, (flow,), flow.shape, operator.variables("slope"))
    settings = {"function": kind, "slope": _rounded(operator.attributes.real("slope", 0.25))}
    return operator.step("activation", settings, (flow,), flow.shape, operator.variables())


def _pooling(operator: Operator) -> Flow:
    attributes, flow = operator.attributes, operator.image()
    kind, convention = attributes.word("pool_type", "max"), attributes.word("pooling_convention", "valid")
    if kind not in ("max", "avg") or convention not in ("valid", "full"):
        raise operator.bad(f"our layers have no pooling {kind[:40]!r}, {convention[:40]!r}")
    if attributes.flag("global_pool", False):
        size, stride, pad, ceil = flow.shape[1:], (1, 1), (0, 0), False
    else:
        size, stride = attributes.pair("kernel", None, 1), attributes.pair("stride", (1, 1), 1)
        pad, ceil = attributes.pair("pad", (0, 0), 0), convention == "full"
    counts = _counts(operator, flow.shape, size, stride, pad, ceil)
    if size == (1, 1) and pad == (0, 0) and counts == flow.shape[1:]:
        operator.variables()
        return flow  # GluonCV's deeper v1d networks have such an average
    settings = {
        "pooling": kind, "pad": pad,
        "size": "the whole map" if size == flow.shape[1:] and pad == (0, 0) else size,
        # Where all windows are full, or there is but one, the rest makes no difference.
        "ceil": ceil and counts != _counts(operator, flow.shape, size, stride, pad),
        "stride": tuple(1 if count == 1 else step for count, step in zip(counts, stride, strict=True)),
        "count_pad": kind == "avg" and pad != (0, 0) and attributes.flag("count_include_pad", True),
    }  # fmt: skip
    return operator.step("pooling", settings, (flow,), (flow.shape[0], *counts), operator.variables())


def _counts(
    operator: Operator, shape: Shape, size: Shape, stride: Shape, pad: Shape, ceil: bool = False
) -> tuple[int, ...]:
    counts = tuple(windows(*axis, ceil) for axis in zip(shape[1:], size, stride, pad, strict=True))
    if min(counts) < 1:
        found = f"{shape[1]}x{shape[2]} reach its windows of {size[0]}x{size[1]}"
        raise operator.bad("the input is too small", found=found)
    return counts


def _response_norm(operator: Operator) -> Flow:
    flow, attributes = operator.image(), operator.attributes
    settings = {
        "size": attributes.integer("nsize"), "alpha": _rounded(attributes.real("alpha", 1e-4)),
        "beta": _rounded(attributes.real("beta", 0.75)), "bias": _rounded(attributes.real("knorm", 2.0)),
    }  # fmt: skip
    return operator.step("response normalisation", settings, (flow,), flow.shape, operator.variables())


def _flattened(operator: Operator) -> Flow:
    flow = operator.flow()
    features = math.prod(flow.shape)
    if operator.node.op in ("Reshape", "reshape"):
        asked = operator.attributes.integers("shape")
        if len(asked) != 2 or asked not in ((0, -1), (-1, features), (0, features)):
            raise operator.bad("our layers have no reshape but a flattening", expected="(0, -1)", found=asked[:8])
    operator.variables()
    return Flow(flow.step, (features,))


def _sum(operator: Operator) -> Flow:
    flows = tuple(operator.settled(which) for which in range(len(operator.node.inputs)))
    if len(flows) < 2 or any(flow.shape != flows[0].shape for flow in flows):
        raise operator.bad("the sum is of arrays of different shapes", found=[flow.shape for flow in flows[:3]])
    return operator.step("sum", {}, flows, flows[0].shape)


def _product(operator: Operator) -> Flow:
    """An array times one of its shape, or times a number a channel: a gate."""
    flows = tuple(operator.settled(which) for which in range(len(operator.node.inputs)))
    shape = max((flow.shape for flow in flows), key=math.prod)
    if len(flows) != 2 or any(flow.shape not in (shape, (*shape[:1], 1, 1)) for flow in flows):
        raise operator.bad("the product is of other arrays than a map and a gate", found=[flow.shape for flow in flows])
    return operator.step("product", {}, flows, shape)


def _clipped(operator: Operator) -> Flow:
    flow, attributes = operator.settled(), operator.attributes
    settings = {"low": _rounded(attributes.real("a_min")), "high": _rounded(attributes.real("a_max"))}
    return operator.step("clip", settings, (flow,), flow.shape, operator.variables())


def _hard_sigmoid(operator: Operator) -> Flow:
    flow, attributes = operator.settled(), operator.attributes
    numbers = {"alpha": _rounded(attributes.real("alpha", 0.2)), "beta": _rounded(attributes.real("beta", 0.5))}
    return operator.step("activation", {"function": "hard_sigmoid", **numbers}, (flow,), flow.shape)


def _joined(operator: Operator) -> Flow:
    if operator.attributes.integer("dim", 1) != 1:
        raise operator.bad("the concatenation is along another axis than the channels")
    steps = operator.reader.steps.all
    flows: list[Flow] = []
    for which in range(len(operator.node.inputs)):
        flow = operator.settled(which)
        step = steps[flow.step]
        inner = step.inputs if step.kind == "concatenation" else (flow.step,)
        flows += [Flow(index, (*steps[index].shape[:1], *flow.shape[1:])) for index in inner]
    if len(flows) > MOST_JOINED or any(flow.shape[1:] != flows[0].shape[1:] for flow in flows):
        raise operator.bad("the concatenation has too many inputs, or maps of unequal size")
    shape = (sum(flow.shape[0] for flow in flows), *flows[0].shape[1:])
    return flows[0] if len(flows) == 1 else operator.step("concatenation", {}, tuple(flows), shape)


def _rounded(value: float) -> float:
    """The number to float32's precision: "1e-05" and 9.99999974e-06 are the same."""
    return float(f"{value:.6g}")


_LAYERS: dict[str, Callable[[Operator], Flow]] = {
    "Convolution": _convolution,
    "Convolution_v1": _convolution,
    "FullyConnected": _dense,
    **dict.fromkeys(NORMS, _norm),
    **dict.fromkeys(("Activation", "relu", "tanh", "sigmoid"), _activation),
    "LeakyReLU": _leaky,
    "Pooling": _pooling,
    "Pooling_v1": _pooling,
    "LRN": _response_norm,
    **dict.fromkeys(("Flatten", "flatten", "Reshape", "reshape"), _flattened),
    **dict.fromkeys(
        ("elemwise_add", "_plus", "_Plus", "_add", "broadcast_add", "broadcast_plus", "add_n", "ElementWiseSum"), _sum
    ),
    **dict.fromkeys(("elemwise_mul", "_mul", "_Mul", "broadcast_mul"), _product),
    "clip": _clipped,
    "hard_sigmoid": _hard_sigmoid,
    **dict.fromkeys(("Concat", "concat"), _joined),
}
