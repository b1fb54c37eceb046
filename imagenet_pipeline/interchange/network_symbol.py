"""Our networks as MXNet graphs, and the files of one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.engines import Values
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.frozen import Normalisation, freeze
from imagenet_pipeline.interchange.params import write_params
from imagenet_pipeline.interchange.symbol import VARIABLE, Node, Output, Symbol, symbol_text
from imagenet_pipeline.interchange.symbol_operators import (
    BROADCAST,
    EQUAL,
    HARD_SIGMOID,
    batched,
    batched_axes,
    l2_mode,
    operator_of,
    pooling,
    tuple_of,
)
from imagenet_pipeline.networks import layers
from imagenet_pipeline.networks.layers import GREY_SHARES, Layer, Sequential, follow, joined, without_taps
from imagenet_pipeline.networks.shapes import LayerReport, Parameter, Shape, describe

MEAN, DEVIATION = "normalisation_mean", "normalisation_std"
_SUFFIXES = {
    "weight": "weight", "bias": "bias", "scale": "gamma", "shift": "beta", "mean": "moving_mean",
    "variance": "moving_var", "slope": "gamma", "constant": "value",
}  # fmt: skip
FLOAT32 = "0"
_UNTRAINED = {"__lr_mult__": "0.0", "__wd_mult__": "0.0"}
"""Attributes of a variable that training with MXNet leaves as it is."""
_STATISTICS = ("mean", "variance")


def export_mxnet(
    network: Sequential,
    values: Values,
    input_shape: Shape,
    out: Path,
    normalisation: Normalisation | None,
) -> list[Path]:
    """Write `OUT-symbol.json` and `OUT-0000.params`, for `mx.gluon.SymbolBlock.imports` and `mx.mod.Module`.

    The input is called `data`, [n, channels, height, width]: RGB, 0..255, with a `normalisation`, which the graph
    then does itself; else already normalised. The output is the logits. All values are float32; a Constant has a batch
    axis of length 1 in front, a Scale axes of length 1 around its own.
    Files of these names are replaced, each in a single step. Raises BadInput and BadRecipe as `freeze` does, OutOfRoom
    when the disk is full.
    """
    frozen = freeze(network, values, input_shape)
    symbol = symbol_of(frozen.network, input_shape, normalisation)
    names = symbol_names(frozen.network, input_shape)
    spread = {
        parameter.name: _spread(report)
        for report in frozen.reports.values()
        for parameter in report.parameters
        if isinstance(report.layer, layers.Constant | layers.Scale)
    }
    arrays = {names[name]: array.reshape(spread.get(name, array.shape)) for name, array in frozen.values.items()}
    if normalisation is not None:
        for name, numbers in zip((MEAN, DEVIATION), normalisation, strict=True):
            arrays[f"arg:{name}"] = np.array(numbers, np.float32).reshape(1, -1, 1, 1)
    written = [out.with_name(f"{out.name}-0000.params"), out.with_name(f"{out.name}-symbol.json")]
    write_params(written[0], arrays)
    files.write_whole(written[1], symbol_text(symbol))
    return [written[1], written[0]]


def symbol_of(network: Sequential, input_shape: Shape, normalisation: Normalisation | None = None) -> Symbol:
    """The network, without its taps, as MXNet's operators: input `data`, its logits the only output.

    With a `normalisation` the graph subtracts the variable `normalisation_mean` [1, channels, 1, 1] from its input
    and divides by `normalisation_std`; training with MXNet leaves both as they are. Raises BadRecipe as
    `describe` does, and where two layers would be called the same.
    """
    plain = without_taps(network)
    writer = _SymbolWriter({report.path: report for report in describe(plain, input_shape)})
    start = writer.variable("data")
    if normalisation is not None:
        start = writer.normalised(start, len(normalisation[0]))
    end = writer.ended(follow(plain, "", start, writer.appended))
    names = [node.name for node in writer.nodes]
    if len(set(names)) < len(names):
        same = next(name for name in names if names.count(name) > 1)
        what = "two layers would be called the same in MXNet"
        raise BadRecipe(what, where="--format mxnet", found=same, advice="take another format")
    return Symbol(tuple(writer.nodes), (end,))


def symbol_names(network: Sequential, input_shape: Shape) -> dict[str, str]:
    """The name in a .params file, `arg:` or `aux:` in front, of each of our parameters; taps left out."""
    reports = describe(without_taps(network), input_shape)
    return {
        parameter.name: ("aux:" if parameter.role in _STATISTICS else "arg:") + _variable_name(report.path, parameter)
        for report in reports
        for parameter in report.parameters
    }


def _spread(report: LayerReport) -> Shape:
    """The shape in which a Constant's or Scale's numbers meet those of a batch."""
    if isinstance(report.layer, layers.Scale):
        axis = report.layer.axis % len(report.input_shape)
        return (1, *(length if place == axis else 1 for place, length in enumerate(report.input_shape)))
    return (1, *report.output_shape)


def _variable_name(path: str, parameter: Parameter) -> str:
    return f"{_node_name(path)}_{_SUFFIXES[parameter.role]}"


def _node_name(path: str) -> str:
    return path.replace(".", "_")


class _SymbolWriter:
    def __init__(self, reports: dict[str, LayerReport]) -> None:
        self.nodes: list[Node] = []
        self._reports = reports
        self._constants: set[Output] = set()
        """Outputs that depend on no image: their batch axis has a length of 1."""

    def variable(self, name: str, **attributes: str) -> Output:
        return self._append(VARIABLE, name, (), attributes)

    def normalised(self, data: Output, channels: int) -> Output:
        fixed = {
            "__dtype__": FLOAT32,
            "__shape__": f"(1, {channels}, 1, 1)",
            **_UNTRAINED,
        }
        mean, deviation = self.variable(MEAN, **fixed), self.variable(DEVIATION, **fixed)
        centred = self._append("broadcast_sub", "normalisation_centred", (data, mean), {})
        return self._append("broadcast_div", "normalisation_scaled", (centred, deviation), {})

    def ended(self, end: Output) -> Output:
        """The scores, told from probabilities: a softmax at the very end would be left off by who wants the scores."""
        if self.nodes[end[0]].op not in ("softmax", "log_softmax"):
            return end
        return self._append("_mul_scalar", "scores", (end,), {"scalar": "1.0"})

    def appended(self, layer: Layer, path: str, inputs: list[Output]) -> Output:
        """Append a layer, a Residual's sum or a Concat, and say where its result comes out."""
        end = self._appended(layer, path, inputs)
        if self._constants.issuperset(inputs):
            self._constants.add(end)
        return end

    def _appended(self, layer: Layer, path: str, inputs: list[Output]) -> Output:
        name = _node_name(path)
        match layer:
            case layers.Residual():
                return self._append("elemwise_add", _node_name(joined(path, "plus")), inputs, {})
            case layers.Concat():
                return self._joined(_node_name(joined(path, "concat")), inputs, 1)
            case layers.Join(axis=axis):
                return self._joined(name, self._repeated(path, inputs), batched(axis))
            case layers.Elementwise():
                return self._arithmetic(layer, path, inputs)
            case layers.Constant(shape=shape):
                # MXNet cannot tell the shape of what is only added or multiplied.
                fixed = {} if layer.trained else _UNTRAINED
                return self.variable(f"{name}_value", __dtype__=FLOAT32, __shape__=tuple_of((1, *shape)), **fixed)
            case layers.Activation(kind="swish" | "mish" | "hard_swish" as kind):
                return self._append("elemwise_mul", name, (inputs[0], self._gate(kind, f"{name}_gate", inputs[0])), {})
            case layers.Scale():
                around = tuple_of(_spread(self._reports[path]))
                weight = self.variable(f"{name}_gamma", __dtype__=FLOAT32, __shape__=around)
                return self._append("broadcast_mul", name, (inputs[0], weight), {})
            case layers.Attention():
                return self._attention(layer, path, inputs[0])
            case layers.BlurPool():
                return self._blur(layer, name, inputs[0])
            case layers.Greyscale():
                return self._grey(name, inputs[0])
            case layers.L2Norm() if l2_mode(layer.axes, self._reports[path].input_shape) is None:
                return self._unit_length(layer, path, inputs[0])
        op, attributes, suffixes = operator_of(self._reports[path])
        fixed = _UNTRAINED if isinstance(layer, layers.Dense) and not layer.trained else {}
        variables = [self.variable(f"{name}_{suffix}", __dtype__=FLOAT32, **fixed) for suffix in suffixes]
        return self._append(op, name, [*inputs, *variables], attributes)

    def _joined(self, name: str, inputs: list[Output], axis: int) -> Output:
        return self._append("Concat", name, inputs, {"num_args": str(len(inputs)), "dim": str(axis)})

    def _repeated(self, path: str, inputs: list[Output]) -> list[Output]:
        """Constants among other inputs as often as there are images: each plus 0 times the mean of an image."""
        if self._constants.issuperset(inputs) or self._constants.isdisjoint(inputs):
            return inputs
        name, shape = _node_name(path), self._reports[path].output_shape
        images = next(link for link in inputs if link not in self._constants)
        over = {"axis": tuple_of(batched_axes(range(len(shape)), shape)), "keepdims": "True", "exclude": "False"}
        mean = self._append("mean", f"{name}_mean", (images,), over)
        nothing = self._append("_mul_scalar", f"{name}_nothing", (mean,), {"scalar": "0.0"})
        return [
            self._append("broadcast_add", f"{name}_repeated{number}", (link, nothing), {})
            if link in self._constants
            else link
            for number, link in enumerate(inputs)
        ]

    def _arithmetic(self, layer: layers.Elementwise, path: str, inputs: list[Output]) -> Output:
        """The inputs from left to right; the last node has the layer's name."""
        alike = len({*self._reports[path].input_shapes}) == 1 and self._constants.isdisjoint(inputs)
        op = (BROADCAST | EQUAL if alike else BROADCAST)[layer.kind]
        result, last = inputs[0], len(inputs) - 1
        for number, link in enumerate(inputs[1:], 1):
            name = _node_name(path) if number == last else f"{_node_name(path)}_part{number}"
            result = self._append(op, name, (result, link), {})
        return result

    def _gate(self, kind: str, name: str, x: Output) -> Output:
        """What x is multiplied by."""
        match kind:
            case "swish":
                return self._append("Activation", name, (x,), {"act_type": "sigmoid"})
            case "mish":
                bent = self._append("Activation", f"{name}_softplus", (x,), {"act_type": "softrelu"})
                return self._append("Activation", name, (bent,), {"act_type": "tanh"})
        return self._append("hard_sigmoid", name, (x,), HARD_SIGMOID)

    def _attention(self, layer: layers.Attention, path: str, x: Output) -> Output:
        name, heads, (tokens, width) = _node_name(path), layer.heads, self._reports[path].output_shape
        apart = {"shape": tuple_of((0, tokens, 3 * heads, width // heads))}
        swapped, rows = {"axes": "(0, 2, 1, 3)"}, {"shape": tuple_of((-1, tokens, width // heads))}
        split = self._append(
            "transpose", f"{name}_heads", (self._append("Reshape", f"{name}_apart", (x,), apart),), swapped
        )
        parts = []
        for part, word in enumerate(("queries", "keys", "values")):
            bounds = {"axis": "1", "begin": str(part * heads), "end": str((part + 1) * heads)}
            taken = self._append("slice_axis", f"{name}_{word}_part", (split,), bounds)
            parts.append(self._append("Reshape", f"{name}_{word}", (taken,), rows))
        queries, keys, values = parts
        scaled = self._append("_contrib_div_sqrt_dim", f"{name}_scaled", (queries,), {})
        products = self._append("batch_dot", f"{name}_products", (scaled, keys), {"transpose_b": "True"})
        shares = self._append("softmax", f"{name}_shares", (products,), {"axis": "-1"})
        mean = self._append("batch_dot", f"{name}_mean", (shares, values), {})
        together = {"shape": tuple_of((-1, heads, tokens, width // heads))}
        apart_again = self._append("Reshape", f"{name}_together", (mean,), together)
        joined_heads = self._append("transpose", f"{name}_tokens", (apart_again,), swapped)
        return self._append("Reshape", name, (joined_heads,), {"shape": tuple_of((0, tokens, width))})

    def _blur(self, layer: layers.BlurPool, name: str, x: Output) -> Output:
        """Averages of averages over 2x2, whose weights are binomial."""
        (before, behind), last = layer.margins, layer.size - 2
        margins = tuple_of((0, 0, 0, 0, before, behind, before, behind))
        x = self._append("Pad", f"{name}_mirrored", (x,), {"mode": "reflect", "pad_width": margins})
        for number in range(last + 1):
            stride = layer.stride if number == last else 1
            attributes = pooling(layers.Pool("average", 2, stride))
            x = self._append("Pooling", name if number == last else f"{name}_part{number}", (x,), attributes)
        return x

    def _grey(self, name: str, x: Output) -> Output:
        parts = []
        for index, (colour, share) in enumerate(zip(("red", "green", "blue"), GREY_SHARES, strict=True)):
            channel = {"axis": "1", "begin": str(index), "end": str(index + 1)}
            plane = self._append("slice_axis", f"{name}_{colour}", (x,), channel)
            parts.append(self._append("_mul_scalar", f"{name}_{colour}_share", (plane,), {"scalar": repr(share)}))
        two = self._append("elemwise_add", f"{name}_two", parts[:2], {})
        return self._append("elemwise_add", name, (two, parts[2]), {})

    def _unit_length(self, layer: layers.L2Norm, path: str, x: Output) -> Output:
        """x / sqrt(epsilon + sum of squares) over axes that L2Normalization has no mode for."""
        name, axes = _node_name(path), batched_axes(layer.axes, self._reports[path].input_shape)
        squares = self._append("square", f"{name}_square", (x,), {})
        over = {"axis": tuple_of(axes), "keepdims": "True"}
        total = self._append("sum", f"{name}_sum", (squares,), over) if axes else squares
        above_0 = self._append("_plus_scalar", f"{name}_above_0", (total,), {"scalar": repr(layer.epsilon)})
        length = self._append("sqrt", f"{name}_length", (above_0,), {})
        return self._append("broadcast_div", name, (x, length), {})

    def _append(self, op: str, name: str, inputs: Iterable[Output], attributes: dict[str, str]) -> Output:
        self.nodes.append(Node(op, name, tuple(inputs), attributes))
        return len(self.nodes) - 1, 0
