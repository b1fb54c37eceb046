"""The nodes of ONNX's operator set 13 that our layers are written as."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from imagenet_pipeline.interchange.frozen import Frozen, Normalisation
from imagenet_pipeline.interchange.symbol_operators import batched, batched_axes, indices
from imagenet_pipeline.networks.layers import (
    GREY_SHARES,
    Activation,
    Attention,
    BatchNorm,
    BlurPool,
    Clip,
    Concat,
    Constant,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Elementwise,
    Flatten,
    GlobalAveragePool,
    Greyscale,
    InstanceNorm,
    Join,
    L2Norm,
    Layer,
    LayerNorm,
    LocalResponseNorm,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Residual,
    Scalar,
    Scale,
    Slice,
    Softmax,
    Transpose,
    Upsample,
    pair,
)
from imagenet_pipeline.networks.shapes import LayerReport

ARITHMETIC = {
    "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "power": "Pow", "maximum": "Max",
    "minimum": "Min",
}  # fmt: skip
ACTIVATIONS = {
    "relu": "Relu", "elu": "Elu", "prelu": "PRelu", "leaky": "LeakyRelu", "tanh": "Tanh", "sigmoid": "Sigmoid",
    "selu": "Selu", "softplus": "Softplus", "softsign": "Softsign", "exp": "Exp", "log": "Log", "sqrt": "Sqrt",
    "abs": "Abs",
}  # fmt: skip
IMAGES = "images"


class OnnxGraph:
    """Nodes in order of computation; a layer's node and its output are named after its path."""

    def __init__(self, onnx: Any, frozen: Frozen) -> None:
        self.frozen = frozen
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._onnx = onnx
        self._constants: set[str] = set()
        """Outputs that depend on no image: their batch axis has a length of 1."""

    def begin(self, normalisation: Normalisation | None) -> str:
        """The name of what the first layer reads."""
        if normalisation is None:
            return IMAGES
        mean, std = (self._constant(f"normalisation.{name}", np.array(numbers, np.float32)[:, None, None])
                     for name, numbers in zip(("mean", "std"), normalisation, strict=True))  # fmt: skip
        centred = self._node("Sub", "normalisation.centre", [IMAGES, mean])
        return self._node("Div", "normalisation.scale", [centred, std])

    def finish(self, last: str) -> None:
        """Call what the last layer gives `logits`."""
        if last in (IMAGES, *self._constants) or self.nodes[-1].output[0] != last:
            self._node("Identity", "identity", [last])
        elif self.nodes[-1].op_type in ("Softmax", "LogSoftmax"):
            # A softmax at the very end would be left off by who wants the scores before the probabilities.
            self._node("Mul", "scores", [last, self._number("scores.number", 1.0)])
        self.nodes[-1].output[0] = "logits"

    def add(self, layer: Layer, path: str, inputs: list[str]) -> str:
        """Write a layer, a Residual's sum or a Concat that reads the values `inputs`, and name what it gives."""
        end = self._added(layer, path, inputs)
        if self._constants.issuperset(inputs):
            self._constants.add(end)
        return end

    def _added(self, layer: Layer, path: str, inputs: list[str]) -> str:
        match layer:
            case Residual():
                return self._node("Add", path, inputs)
            case Concat():
                return self._node("Concat", path, inputs, axis=1)
            case Join(axis=axis):
                return self._node("Concat", path, self._repeated(path, inputs), axis=batched(axis))
            case Elementwise(kind=kind):
                return self._arithmetic(ARITHMETIC[kind], path, inputs)
            case Constant():
                return self._constant(f"{path}.value", self.frozen.values[f"{path}.value"][None])
        return self._of_one(layer, path, inputs[0])

    def _of_one(self, layer: Layer, path: str, x: str) -> str:
        match layer:
            case Dropout():
                return x
            case Pool():
                return self._pool(layer, path, x)
            case Dense(last_axis=True) if len(self.frozen.reports[path].input_shape) > 1:
                return self._dense_along_last_axis(path, x)
            case LayerNorm():
                return self._layer_norm(layer, path, x)
            case Activation(kind="gelu" | "swish" | "mish" | "hard_swish" | "hard_sigmoid" | "square" as kind):
                return self._product(kind, path, x)
            case Scale(axis=axis):
                shape = self.frozen.reports[path].input_shape
                weight = self.frozen.values[f"{path}.weight"].reshape(-1, *(1 for _ in shape[axis % len(shape) + 1 :]))
                return self._node("Mul", path, [x, self._constant(f"{path}.weight", weight)])
            case Attention():
                return self._attention(layer, path, x)
            case BlurPool():
                return self._blur(layer, path, x)
            case Scalar(kind=kind, value=value, reverse=reverse):
                sides = [x, self._number(f"{path}.number", value)]
                return self._node(ARITHMETIC[kind], path, sides[::-1] if reverse else sides)
            case Clip(low=low, high=high):
                return self._node(
                    "Clip", path, [x, self._number(f"{path}.low", low), self._number(f"{path}.high", high)]
                )
            case Softmax(axis=axis, log=log, temperature=temperature):
                if temperature != 1:
                    x = self._node("Div", f"{path}.cooled", [x, self._number(f"{path}.temperature", temperature)])
                return self._node("LogSoftmax" if log else "Softmax", path, [x], axis=batched(axis))
            case L2Norm() | Reduce():
                return self._reduced(layer, path, x)
            case Greyscale():
                shares = np.array(GREY_SHARES, np.float32).reshape(1, 3, 1, 1)
                return self._node("Conv", path, [x, self._constant(f"{path}.shares", shares)], kernel_shape=(1, 1))
            case Reshape() | Transpose() | Slice() | Pad() | Upsample():
                return self._rearranged(layer, path, x)
        operator, attributes = _operator(layer)
        return self._node(operator, path, [x, *self._parameters(path)], **attributes)

    def _pool(self, layer: Pool, path: str, x: str) -> str:
        pads, is_longer = _pads(layer, self.frozen.reports[path])
        attributes: dict[str, Any] = {"kernel_shape": pair(layer.size), "strides": pair(layer.stride)}
        if layer.kind == "max":
            return self._node("MaxPool", path, [x], pads=pads, **attributes)
        if layer.kind == "sum":
            mean = self._node("AveragePool", f"{path}.mean", [x], pads=pads, count_include_pad=1, **attributes)
            return self._node("Mul", path, [mean, self._number(f"{path}.size", math.prod(pair(layer.size)))])
        count_pad = layer.count_pad and any(pair(layer.pad))
        if count_pad and is_longer:
            # The padding counts, what `ceil` adds behind it does not.
            border = (0, 0, *pair(layer.pad))
            amounts = self._constant(f"{path}.pads", np.array(border * 2, np.int64))
            x = self._node("Pad", f"{path}.pad", [x, amounts])
            pads, count_pad = [whole - part for whole, part in zip(pads, pair(layer.pad) * 2, strict=True)], False
        return self._node("AveragePool", path, [x], pads=pads, count_include_pad=int(count_pad), **attributes)

    def _arithmetic(self, operator: str, path: str, inputs: list[str]) -> str:
        """The inputs from left to right; the last node has the layer's name."""
        result, last = inputs[0], len(inputs) - 1
        for number, value in enumerate(inputs[1:], 1):
            result = self._node(operator, path if number == last else f"{path}.part{number}", [result, value])
        return result

    def _repeated(self, path: str, inputs: list[str]) -> list[str]:
        """Constants among other inputs as often as there are images: each plus 0 times the mean of an image."""
        if self._constants.issuperset(inputs) or self._constants.isdisjoint(inputs):
            return inputs
        shape = self.frozen.reports[path].output_shape
        images = next(value for value in inputs if value not in self._constants)
        mean = self._node("ReduceMean", f"{path}.mean", [images], axes=batched_axes(range(len(shape)), shape))
        nothing = self._node("Mul", f"{path}.nothing", [mean, self._number(f"{path}.zero", 0)])
        return [
            self._node("Add", f"{path}.repeated{number}", [value, nothing]) if value in self._constants else value
            for number, value in enumerate(inputs)
        ]

    def _dense_along_last_axis(self, path: str, x: str) -> str:
        weight, *bias = self._parameters(path)
        turned = self._node("Transpose", f"{path}.turned", [weight], perm=(1, 0))
        product = self._node("MatMul", f"{path}.product" if bias else path, [x, turned])
        return self._node("Add", path, [product, *bias]) if bias else product

    def _layer_norm(self, layer: LayerNorm, path: str, x: str) -> str:
        """Operator set 17 has one of its own; runtimes know this form."""
        shape = self.frozen.reports[path].input_shape
        (axis,) = batched_axes((layer.axis,), shape)
        mean = self._node("ReduceMean", f"{path}.mean", [x], axes=(axis,))
        centred = self._node("Sub", f"{path}.centred", [x, mean])
        squares = self._node("Mul", f"{path}.squares", [centred, centred])
        variance = self._node("ReduceMean", f"{path}.variance", [squares], axes=(axis,))
        length = self._root(path, variance, layer.epsilon)
        scale, shift = (self._constant(f"{path}.{name}", self.frozen.values[f"{path}.{name}"].reshape(
            -1, *(1 for _ in shape[axis:]))) for name in ("weight", "bias"))  # fmt: skip
        scaled = self._node("Mul", f"{path}.scaled", [self._node("Div", f"{path}.unit", [centred, length]), scale])
        return self._node("Add", path, [scaled, shift])

    def _root(self, path: str, x: str, epsilon: float) -> str:
        above_0 = self._node("Add", f"{path}.above_0", [x, self._number(f"{path}.epsilon", epsilon)])
        return self._node("Sqrt", f"{path}.root", [above_0])

    def _attention(self, layer: Attention, path: str, x: str) -> str:
        tokens, width = self.frozen.reports[path].output_shape
        heads, length = layer.heads, width // layer.heads
        shape = self._integers(f"{path}.shape", (0, tokens, 3 * heads, length))
        split = self._node("Reshape", f"{path}.apart", [x, shape])
        split = self._node("Transpose", f"{path}.heads", [split], perm=(0, 2, 1, 3))
        axis = self._integers(f"{path}.axis", [1])
        bounds = [self._integers(f"{path}.bound{part}", [part * heads]) for part in range(4)]
        queries, keys, values = (
            self._node("Slice", f"{path}.{name}", [split, *bounds[part : part + 2], axis])
            for part, name in enumerate(("queries", "keys", "values"))
        )
        turned = self._node("Transpose", f"{path}.turned", [keys], perm=(0, 1, 3, 2))
        products = self._node("MatMul", f"{path}.products", [queries, turned])
        cooled = self._node("Div", f"{path}.cooled", [products, self._number(f"{path}.root", math.sqrt(length))])
        shares = self._node("Softmax", f"{path}.shares", [cooled], axis=-1)
        means = self._node("MatMul", f"{path}.means", [shares, values])
        together = self._node("Transpose", f"{path}.tokens", [means], perm=(0, 2, 1, 3))
        return self._node("Reshape", path, [together, self._integers(f"{path}.joined", (0, tokens, width))])

    def _blur(self, layer: BlurPool, path: str, x: str) -> str:
        """Averages of averages over 2x2, whose weights are binomial."""
        (before, behind), last = layer.margins, layer.size - 2
        margins = self._integers(f"{path}.margins", (0, 0, before, before, 0, 0, behind, behind))
        x = self._node("Pad", f"{path}.mirrored", [x, margins], mode="reflect")
        for number in range(last + 1):
            name, strides = (path, pair(layer.stride)) if number == last else (f"{path}.part{number}", (1, 1))
            x = self._node("AveragePool", name, [x], kernel_shape=(2, 2), strides=strides)
        return x

    def _product(self, kind: str, path: str, x: str) -> str:
        """Activations that are x times something of x, in operators that set 13 has."""
        match kind:
            case "gelu":
                return self._gelu(path, x)
            case "square":
                return self._node("Mul", path, [x, x])
            case "swish":
                gate = self._node("Sigmoid", f"{path}.gate", [x])
            case "mish":
                gate = self._node("Tanh", f"{path}.gate", [self._node("Softplus", f"{path}.softplus", [x])])
            case _:
                name = path if kind == "hard_sigmoid" else f"{path}.gate"
                gate = self._node("HardSigmoid", name, [x], alpha=1 / 6, beta=0.5)
        return gate if kind == "hard_sigmoid" else self._node("Mul", path, [x, gate])

    def _gelu(self, path: str, x: str) -> str:
        """x (1 + erf(x / sqrt(2))) / 2."""
        scaled = self._node("Div", f"{path}.scaled", [x, self._number(f"{path}.root2", math.sqrt(2))])
        error = self._node("Erf", f"{path}.error", [scaled])
        above_0 = self._node("Add", f"{path}.above_0", [error, self._number(f"{path}.one", 1)])
        twice = self._node("Mul", f"{path}.twice", [x, above_0])
        return self._node("Mul", path, [twice, self._number(f"{path}.half", 0.5)])

    def _reduced(self, layer: L2Norm | Reduce, path: str, x: str) -> str:
        axes = batched_axes(layer.axes, self.frozen.reports[path].input_shape)
        if isinstance(layer, L2Norm):
            operator, name = ("ReduceSumSquare", "squares") if axes else ("Mul", "square")
            squares = self._node(
                operator, f"{path}.{name}", [x] if axes else [x, x], **({"axes": axes} if axes else {})
            )
            return self._node("Div", path, [x, self._root(path, squares, layer.epsilon)])
        if not axes:
            return x
        if layer.kind == "sum":
            return self._node("ReduceSum", path, [x, self._integers(f"{path}.axes", axes)], keepdims=int(layer.keep))
        return self._node(f"Reduce{layer.kind.capitalize()}", path, [x], axes=axes, keepdims=int(layer.keep))

    def _rearranged(self, layer: Reshape | Transpose | Slice | Pad | Upsample, path: str, x: str) -> str:
        match layer:
            case Reshape(shape=shape):
                return self._node("Reshape", path, [x, self._integers(f"{path}.shape", (0, *shape))])
            case Transpose(axes=axes):
                return self._node("Transpose", path, [x], perm=(0, *(axis + 1 for axis in axes)))
            case Slice(axis=axis):
                shape = self.frozen.reports[path].input_shape
                taken = indices(layer, shape)
                numbers = {"begin": taken.start, "end": taken.stop, "axis": axis % len(shape) + 1, "step": taken.step}
                words = [self._integers(f"{path}.{name}", [number]) for name, number in numbers.items()]
                return self._node("Slice", path, [x, *words])
            case Pad():
                margins = (0, 0, layer.top, layer.left, 0, 0, layer.bottom, layer.right)
                words = [self._integers(f"{path}.margins", margins), self._number(f"{path}.number", layer.value)]
                return self._node("Pad", path, [x, *words], mode=layer.kind)
            case Upsample(scale=scale):
                scales = self._constant(f"{path}.scales", np.array((1, 1, scale, scale), np.float32))
                how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
                return self._node("Resize", path, [x, "", scales], **how)

    def _parameters(self, path: str) -> Iterator[str]:
        report = self.frozen.reports[path]
        for parameter in report.parameters:
            value = self.frozen.values[parameter.name]
            if parameter.role == "slope":
                value = value.reshape(-1, *(1 for _ in report.input_shape[1:]))
            yield self._constant(parameter.name, value)

    def _number(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def _integers(self, name: str, values: Any) -> str:
        return self._constant(name, np.array(values, np.int64))

    def _constant(self, name: str, value: Any) -> str:
        self.initializers.append(self._onnx.numpy_helper.from_array(value, name))
        return name

    def _node(self, operator: str, path: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{path}.output"
        self.nodes.append(self._onnx.helper.make_node(operator, inputs, [output], name=path, **attributes))
        return output


def _operator(layer: Layer) -> tuple[str, dict[str, Any]]:
    match layer:
        case Conv() | ConvTranspose():
            return _convolution(layer)
        case Dense():
            return "Gemm", {"transB": 1}
        case BatchNorm():
            return "BatchNormalization", {"epsilon": layer.epsilon, "momentum": layer.momentum}
        case InstanceNorm():
            return "InstanceNormalization", {"epsilon": layer.epsilon}
        case Activation(kind=kind, slope=slope):
            return ACTIVATIONS[kind], {"alpha": slope} if kind in ("elu", "leaky") else {}
        case GlobalAveragePool():
            return "GlobalAveragePool", {}
        case Flatten():
            return "Flatten", {"axis": 1}
        case LocalResponseNorm():
            return "LRN", {"size": layer.size, "alpha": layer.alpha, "beta": layer.beta, "bias": layer.bias}
        case _:
            raise NotImplementedError(f"ONNX export has no rule for {type(layer).__name__}")


def _convolution(layer: Conv | ConvTranspose) -> tuple[str, dict[str, Any]]:
    sizes = {"kernel_shape": pair(layer.kernel), "strides": pair(layer.stride), "pads": pair(layer.pad) * 2}
    attributes = {**sizes, "group": layer.groups}
    if pair(layer.dilation) != (1, 1):
        attributes["dilations"] = pair(layer.dilation)
    if isinstance(layer, ConvTranspose):
        return "ConvTranspose", {**attributes, "output_padding": pair(layer.extra)}
    return "Conv", attributes


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
