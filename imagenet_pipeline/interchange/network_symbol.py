"""Our networks as MXNet graphs."""

from __future__ import annotations

from collections.abc import Iterable

from imagenet_pipeline.interchange.frozen import Normalisation
from imagenet_pipeline.interchange.symbol import VARIABLE, Node, Output, Symbol
from imagenet_pipeline.networks import layers
from imagenet_pipeline.networks.layers import Layer, Sequential, follow, joined, pair, without_taps
from imagenet_pipeline.networks.shapes import Parameter, Shape, describe

MEAN, DEVIATION = "normalisation_mean", "normalisation_std"
_SUFFIXES = {
    "weight": "weight", "bias": "bias", "scale": "gamma", "shift": "beta", "mean": "moving_mean",
    "variance": "moving_var", "slope": "gamma",
}  # fmt: skip
FLOAT32 = "0"
_STATISTICS = ("mean", "variance")


def symbol_of(network: Sequential, input_shape: Shape, normalisation: Normalisation | None = None) -> Symbol:
    """The network, without its taps, as MXNet's operators: input `data`, its logits the only output.

    With a `normalisation` the graph subtracts the variable `normalisation_mean` [1, channels, 1, 1] from its input
    and divides by `normalisation_std`; training with MXNet leaves both as they are. Raises BadRecipe as
    `describe` does, and ValueError where two layers would be called the same.
    """
    plain = without_taps(network)
    describe(plain, input_shape)
    writer = _SymbolWriter()
    start = writer.variable("data")
    if normalisation is not None:
        start = writer.normalised(start, len(normalisation[0]))
    end = follow(plain, "", start, writer.appended)
    names = [node.name for node in writer.nodes]
    if len(set(names)) < len(names):
        raise ValueError(f"two nodes have the same name: {next(name for name in names if names.count(name) > 1)}")
    return Symbol(tuple(writer.nodes), (end,))


def symbol_names(network: Sequential, input_shape: Shape) -> dict[str, str]:
    """The name in a .params file, `arg:` or `aux:` in front, of each of our parameters; taps left out."""
    reports = describe(without_taps(network), input_shape)
    return {
        parameter.name: ("aux:" if parameter.role in _STATISTICS else "arg:") + _variable_name(report.path, parameter)
        for report in reports
        for parameter in report.parameters
    }


def _variable_name(path: str, parameter: Parameter) -> str:
    return f"{_node_name(path)}_{_SUFFIXES[parameter.role]}"


def _node_name(path: str) -> str:
    return path.replace(".", "_")


class _SymbolWriter:
    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def variable(self, name: str, **attributes: str) -> Output:
        return self._append(VARIABLE, name, (), attributes)

    def normalised(self, data: Output, channels: int) -> Output:
        fixed = {
            "__dtype__": FLOAT32,
            "__shape__": f"(1, {channels}, 1, 1)",
            "__lr_mult__": "0.0",
            "__wd_mult__": "0.0",
        }
        mean, deviation = self.variable(MEAN, **fixed), self.variable(DEVIATION, **fixed)
        centred = self._append("broadcast_sub", "normalisation_centred", (data, mean), {})
        return self._append("broadcast_div", "normalisation_scaled", (centred, deviation), {})

    def appended(self, layer: Layer, path: str, inputs: list[Output]) -> Output:
        """Append a layer, a Residual's sum or a Concat, and say where its result comes out."""
        match layer:
            case layers.Residual():
                return self._append("elemwise_add", _node_name(joined(path, "plus")), inputs, {})
            case layers.Concat():
                attributes = {"num_args": str(len(inputs)), "dim": "1"}
                return self._append("Concat", _node_name(joined(path, "concat")), inputs, attributes)
        op, attributes, suffixes = _operator(layer)
        name = _node_name(path)
        variables = [self.variable(f"{name}_{suffix}", __dtype__=FLOAT32) for suffix in suffixes]
        return self._append(op, name, [*inputs, *variables], attributes)

    def _append(self, op: str, name: str, inputs: Iterable[Output], attributes: dict[str, str]) -> Output:
        self.nodes.append(Node(op, name, tuple(inputs), attributes))
        return len(self.nodes) - 1, 0


Operator = tuple[str, dict[str, str], tuple[str, ...]]
"""Operator, attributes, endings of its variables' names."""


def _operator(layer: Layer) -> Operator:
    match layer:
        case layers.Conv() | layers.Dense():
            return _weighted(layer)
        case layers.BatchNorm():
            attributes = {
                "axis": "1", "eps": repr(layer.epsilon), "momentum": repr(layer.momentum),
                "fix_gamma": str(not layer.scale), "use_global_stats": "False",
            }  # fmt: skip
            return "BatchNorm", attributes, ("gamma", "beta", "moving_mean", "moving_var")
        case layers.Activation(kind="relu" | "tanh" | "sigmoid"):
            return "Activation", {"act_type": layer.kind}, ()
        case layers.Activation():
            attributes = {"act_type": layer.kind, "slope": repr(layer.slope)}
            return "LeakyReLU", attributes, ("gamma",) if layer.kind == "prelu" else ()
        case layers.Pool() | layers.GlobalAveragePool():
            return "Pooling", _pooling(layer), ()
        case layers.Dropout():
            return "Dropout", {"p": repr(layer.rate)}, ()
        case layers.Flatten():
            return "Flatten", {}, ()
        case layers.LocalResponseNorm():
            attributes = {
                "nsize": str(layer.size), "alpha": repr(layer.alpha), "beta": repr(layer.beta),
                "knorm": repr(layer.bias),
            }  # fmt: skip
            return "LRN", attributes, ()
        case _:
            raise NotImplementedError(f"no MXNet operator is known for {type(layer).__name__}")


def _weighted(layer: layers.Conv | layers.Dense) -> Operator:
    suffixes = ("weight", "bias") if layer.bias else ("weight",)
    if isinstance(layer, layers.Dense):
        attributes = {"num_hidden": str(layer.units), "no_bias": str(not layer.bias), "flatten": "True"}
        return "FullyConnected", attributes, suffixes
    attributes = {
        "kernel": str(pair(layer.kernel)), "stride": str(pair(layer.stride)), "dilate": "(1, 1)",
        "pad": str(pair(layer.pad)), "num_filter": str(layer.channels), "num_group": str(layer.groups),
        "no_bias": str(not layer.bias), "layout": "NCHW",
    }  # fmt: skip
    return "Convolution", attributes, suffixes


def _pooling(layer: layers.Pool | layers.GlobalAveragePool) -> dict[str, str]:
    if isinstance(layer, layers.GlobalAveragePool):
        return {"global_pool": "True", "kernel": "(1, 1)", "pool_type": "avg", "pooling_convention": "valid"}
    attributes = {
        "global_pool": "False", "pool_type": "max" if layer.kind == "max" else "avg",
        "kernel": str(pair(layer.size)), "stride": str(pair(layer.stride)), "pad": str(pair(layer.pad)),
        "pooling_convention": "full" if layer.ceil else "valid",
    }  # fmt: skip
    return attributes if layer.kind == "max" else {**attributes, "count_include_pad": str(layer.count_pad)}
