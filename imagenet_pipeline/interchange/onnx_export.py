"""Write a network as an ONNX graph, for ONNX Runtime, OpenCV and others.

Operator set 13 (ONNX 1.8, 2020): no later set says anything these networks need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_pipeline import __version__, files
from imagenet_pipeline.engines import Values
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.frozen import Frozen, Normalisation, freeze
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Layer,
    LocalResponseNorm,
    Pool,
    Residual,
    Sequential,
    follow,
    pair,
)
from imagenet_pipeline.networks.shapes import LayerReport, Shape

OPERATOR_SET, FORMAT_VERSION = 13, 7
LARGEST_BYTES = 2**31 - 2**24
"""A protocol buffer ends at 2 GiB; the rest is for the graph itself."""


def export_onnx(
    network: Sequential,
    values: Values,
    input_shape: Shape,
    out: Path,
    normalisation: Normalisation | None,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write `out`.onnx: `images` float32 [n, channels, height, width] to `logits` float32 [n, classes].

    `images` are RGB in 0..255 with `normalisation` inside, or else (RGB - mean) / std. Initializers have our
    parameters' names (a PReLU's slope has the shape [channels, 1, 1]); `metadata` goes into the model's own.
    Raises BadRecipe where the onnx package is missing or the network exceeds 2 GiB, and as `freeze` does.
    """
    onnx = _import_onnx()
    frozen = freeze(network, values, input_shape)
    size = sum(value.nbytes for value in frozen.values.values())
    if size > LARGEST_BYTES:
        raise BadRecipe(
            "too large for an ONNX file",
            where=out.name,
            expected=f"at most {LARGEST_BYTES:,} bytes of weights",
            found=f"{size:,}",
            advice="--format pytorch has no such limit",
        )
    model = _model(onnx, _Graph(onnx, frozen), out.name, normalisation)
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    target = out.with_name(f"{out.name}.onnx")
    with files.whole_file(target) as stream:
        stream.write(model.SerializeToString(deterministic=True))
    return [target]


def _import_onnx() -> Any:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise BadRecipe(
            f"the onnx package is not installed ({error})", advice="pip install 'imagenet-pipeline[onnx]'"
        ) from error
    return onnx


def _model(onnx: Any, graph: _Graph, name: str, normalisation: Normalisation | None) -> Any:
    helper, frozen = onnx.helper, graph.frozen
    graph.finish(follow(frozen.network, "", graph.begin(normalisation), graph.add))
    reads = "(RGB - mean) / std" if normalisation is None else "RGB, 0..255"
    described = helper.make_graph(
        graph.nodes,
        name,
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", *frozen.input_shape])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", *frozen.output_shape])],
        graph.initializers,
        doc_string=f"images: {reads}; logits: scores before the softmax",
    )
    return helper.make_model(
        described,
        opset_imports=[helper.make_opsetid("", OPERATOR_SET)],
        ir_version=FORMAT_VERSION,
        producer_name="imagenet-pipeline",
        producer_version=__version__,
        doc_string=f"{name}: images float32 [n, {', '.join(map(str, frozen.input_shape))}], {reads}, to logits",
    )


class _Graph:
    """Nodes in order of computation; a layer's node and its output are named after its path."""

    def __init__(self, onnx: Any, frozen: Frozen) -> None:
        self.frozen = frozen
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._onnx = onnx

    def begin(self, normalisation: Normalisation | None) -> str:
        """The name of what the first layer reads."""
        if normalisation is None:
            return "images"
        mean, std = (self._constant(f"normalisation.{name}", np.array(numbers, np.float32)[:, None, None])
                     for name, numbers in zip(("mean", "std"), normalisation, strict=True))  # fmt: skip
        centred = self._node("Sub", "normalisation.centre", ["images", mean])
        return self._node("Div", "normalisation.scale", [centred, std])

    def finish(self, last: str) -> None:
        """Call what the last layer gives `logits`."""
        if last == "images":
            self._node("Identity", "identity", [last])
        self.nodes[-1].output[0] = "logits"

    def add(self, layer: Layer, path: str, inputs: list[str]) -> str:
        """Write a layer, a Residual's sum or a Concat that reads the values `inputs`, and name what it gives."""
        match layer:
            case Residual():
                return self._node("Add", path, inputs)
            case Concat():
                return self._node("Concat", path, inputs, axis=1)
            case Dropout():
                return inputs[0]
            case Pool():
                return self._pool(layer, path, inputs[0])
            case _:
                operator, attributes = _operator(layer)
                return self._node(operator, path, [*inputs, *self._parameters(path)], **attributes)

    def _pool(self, layer: Pool, path: str, x: str) -> str:
        pads, is_longer = _pads(layer, self.frozen.reports[path])
        attributes: dict[str, Any] = {"kernel_shape": pair(layer.size), "strides": pair(layer.stride)}
        if layer.kind == "max":
            return self._node("MaxPool", path, [x], pads=pads, **attributes)
        count_pad = layer.count_pad and any(pair(layer.pad))
        if count_pad and is_longer:
            # The padding counts, what `ceil` adds behind it does not.
            border = (0, 0, *pair(layer.pad))
            amounts = self._constant(f"{path}.pads", np.array(border * 2, np.int64))
            x = self._node("Pad", f"{path}.pad", [x, amounts])
            pads, count_pad = [whole - part for whole, part in zip(pads, pair(layer.pad) * 2, strict=True)], False
        return self._node("AveragePool", path, [x], pads=pads, count_include_pad=int(count_pad), **attributes)

    def _parameters(self, path: str) -> Iterator[str]:
        report = self.frozen.reports[path]
        for parameter in report.parameters:
            value = self.frozen.values[parameter.name]
            if parameter.role == "slope":
                value = value.reshape(-1, *(1 for _ in report.input_shape[1:]))
            yield self._constant(parameter.name, value)

    def _constant(self, name: str, value: Any) -> str:
        self.initializers.append(self._onnx.numpy_helper.from_array(value, name))
        return name

    def _node(self, operator: str, path: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{path}.output"
        self.nodes.append(self._onnx.helper.make_node(operator, inputs, [output], name=path, **attributes))
        return output


def _operator(layer: Layer) -> tuple[str, dict[str, Any]]:
    match layer:
        case Conv():
            pads = pair(layer.pad) * 2
            sizes = {"kernel_shape": pair(layer.kernel), "strides": pair(layer.stride), "pads": pads}
            return "Conv", {**sizes, "group": layer.groups}
        case Dense():
            return "Gemm", {"transB": 1}
        case BatchNorm():
            return "BatchNormalization", {"epsilon": layer.epsilon, "momentum": layer.momentum}
        case Activation():
            return _activation(layer)
        case GlobalAveragePool():
            return "GlobalAveragePool", {}
        case Flatten():
            return "Flatten", {"axis": 1}
        case LocalResponseNorm():
            return "LRN", {"size": layer.size, "alpha": layer.alpha, "beta": layer.beta, "bias": layer.bias}
        case _:
            raise NotImplementedError(f"ONNX export has no rule for {type(layer).__name__}")


def _activation(layer: Activation) -> tuple[str, dict[str, Any]]:
    slope = {"alpha": layer.slope}
    return {
        "relu": ("Relu", {}),
        "elu": ("Elu", slope),
        "prelu": ("PRelu", {}),
        "leaky": ("LeakyRelu", slope),
        "tanh": ("Tanh", {}),
        "sigmoid": ("Sigmoid", {}),
    }[layer.kind]


def _pads(layer: Pool, report: LayerReport) -> tuple[list[int], bool]:
    """ONNX's pads (top, left, bottom, right), and whether the image ends earlier than the last window.

    The partial windows of `ceil` are written as longer padding: runtimes do not agree about `ceil_mode`.
    """
    ends = []
    axes = zip(report.input_shape[1:], report.output_shape[1:], pair(layer.size), pair(layer.stride), pair(layer.pad),
               strict=True)  # fmt: skip
    for length, windows, size, stride, pad in axes:
        ends.append(pad + max(0, (windows - 1) * stride + size - length - 2 * pad))
    return [*pair(layer.pad), *ends], tuple(ends) != pair(layer.pad)
