"""MXNet's operator for each of our layers: its name, its attributes, and what its variables are called."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from imagenet_pipeline.networks import layers
from imagenet_pipeline.networks.layers import pair
from imagenet_pipeline.networks.shapes import LayerReport, Shape

LARGEST_FLOAT = float(np.finfo(np.float32).max)
Operator = tuple[str, dict[str, str], tuple[str, ...]]
"""Operator, attributes, endings of its variables' names."""

EQUAL = {"add": "elemwise_add", "subtract": "elemwise_sub", "multiply": "elemwise_mul", "divide": "elemwise_div"}
"""Arithmetic of arrays of the same shape, where MXNet has an operator of its own for it."""
BROADCAST = {
    "add": "broadcast_add", "subtract": "broadcast_sub", "multiply": "broadcast_mul", "divide": "broadcast_div",
    "power": "broadcast_power", "maximum": "broadcast_maximum", "minimum": "broadcast_minimum",
}  # fmt: skip
_WITH_NUMBER = {
    "add": "_plus_scalar", "subtract": "_minus_scalar", "multiply": "_mul_scalar", "divide": "_div_scalar",
    "power": "_power_scalar", "maximum": "_maximum_scalar", "minimum": "_minimum_scalar",
}  # fmt: skip
_NUMBER_FIRST = {"subtract": "_rminus_scalar", "divide": "_rdiv_scalar", "power": "_rpower_scalar"}
_ACTIVATIONS = {
    "relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "softplus": "softrelu", "softsign": "softsign",
}  # fmt: skip
HARD_SIGMOID = {"alpha": repr(1 / 6), "beta": "0.5"}
_POOLS = {"max": "max", "average": "avg", "sum": "sum"}
_SCALE_AND_SHIFT = ("gamma", "beta")


def operator_of(report: LayerReport) -> Operator:
    """The operator of a layer of one input. Raises NotImplementedError for a layer that no single operator is."""
    layer, shape = report.layer, report.input_shape
    match layer:
        case layers.Conv() | layers.ConvTranspose() | layers.Dense():
            return _weighted(layer)
        case layers.BatchNorm() | layers.InstanceNorm() | layers.LayerNorm() | layers.LocalResponseNorm():
            return _norm(layer)
        case layers.L2Norm(axes=axes):
            return "L2Normalization", {"eps": repr(layer.epsilon), "mode": l2_mode(axes, shape) or ""}, ()
        case layers.Activation():
            return _activation(layer)
        case layers.Pool() | layers.GlobalAveragePool():
            return "Pooling", pooling(layer), ()
        case layers.Dropout():
            return "Dropout", {"p": repr(layer.rate)}, ()
        case layers.Flatten():
            return "Flatten", {}, ()
        case layers.Scalar():
            names = _WITH_NUMBER | _NUMBER_FIRST if layer.reverse else _WITH_NUMBER
            return names[layer.kind], {"scalar": repr(layer.value)}, ()
        case layers.Clip():
            # Readers of MXNet's attributes, ours too, know no infinity.
            low, high = (min(max(limit, -LARGEST_FLOAT), LARGEST_FLOAT) for limit in (layer.low, layer.high))
            return "clip", {"a_min": repr(low), "a_max": repr(high)}, ()
        case layers.Softmax():
            warmth = {"temperature": repr(layer.temperature)} if layer.temperature != 1 else {}
            name = "log_softmax" if layer.log else "softmax"
            return name, {"axis": str(batched(layer.axis)), **warmth}, ()
        case layers.Reduce(kind=kind, axes=axes):
            if not axes:
                return "_copy", {}, ()  # MXNet takes no axes for all of them
            attributes = {"axis": tuple_of(batched_axes(axes, shape)), "keepdims": str(layer.keep), "exclude": "False"}
            return kind, attributes, ()
        case _:
            return _rearranged(layer, shape)


def _rearranged(layer: layers.Layer, shape: Shape) -> Operator:
    match layer:
        case layers.Reshape():
            return "Reshape", {"shape": tuple_of((0, *layer.shape))}, ()
        case layers.Transpose(axes=axes):
            return "transpose", {"axes": tuple_of((0, *(axis + 1 for axis in axes)))}, ()
        case layers.Slice():
            return _slice(layer, shape)
        case layers.Pad():
            margins = (0, 0, 0, 0, layer.top, layer.bottom, layer.left, layer.right)
            value = {"constant_value": repr(layer.value)} if layer.kind == "constant" else {}
            return "Pad", {"mode": layer.kind, "pad_width": tuple_of(margins), **value}, ()
        case layers.Upsample(scale=scale):
            return "UpSampling", {"scale": str(scale), "sample_type": "nearest", "num_args": "1"}, ()
        case _:
            raise NotImplementedError(f"no MXNet operator is known for {type(layer).__name__}")


def batched(axis: int) -> int:
    """An axis of an image as one of a batch of them."""
    return axis + 1 if axis >= 0 else axis


def batched_axes(axes: Iterable[int], shape: Shape) -> tuple[int, ...]:
    """Axes of an image of `shape` as those of a batch: from 1, sorted, each once."""
    return tuple(sorted({axis % len(shape) + 1 for axis in axes}))


def tuple_of(numbers: Iterable[int]) -> str:
    """Numbers as MXNet writes a shape: (1,), (2, 3)."""
    return str(tuple(numbers))


def l2_mode(axes: tuple[int, ...], shape: Shape) -> str | None:
    """The mode of L2Normalization that sums over these axes, None where there is none."""
    modes = {tuple(range(1, len(shape) + 1)): "instance"}
    if len(shape) > 1:
        modes |= {(1,): "channel", tuple(range(2, len(shape) + 1)): "spatial"}
    return modes.get(batched_axes(axes, shape))


def indices(layer: layers.Slice, shape: Shape) -> range:
    """The indices a Slice takes of an array of `shape`, all from 0."""
    end = layer.end if layer.end is None else max(layer.end, 0)
    return range(shape[layer.axis])[layer.begin : end : max(layer.step, 1)]


def _slice(layer: layers.Slice, shape: Shape) -> Operator:
    taken, axis = indices(layer, shape), layer.axis % len(shape) + 1
    if taken.step == 1:
        return "slice_axis", {"axis": str(axis), "begin": str(taken.start), "end": str(taken.stop)}, ()
    begin, end, step = (
        tuple_of((*(None for _ in range(axis)), number))  # type: ignore[arg-type]
        for number in (taken.start, taken.stop, taken.step)
    )
    return "slice", {"begin": begin, "end": end, "step": step}, ()


def _norm(layer: layers.BatchNorm | layers.InstanceNorm | layers.LayerNorm | layers.LocalResponseNorm) -> Operator:
    match layer:
        case layers.BatchNorm():
            attributes = {
                "axis": "1", "eps": repr(layer.epsilon), "momentum": repr(layer.momentum),
                "fix_gamma": str(not layer.scale), "use_global_stats": str(layer.frozen),
            }  # fmt: skip
            return "BatchNorm", attributes, (*_SCALE_AND_SHIFT, "moving_mean", "moving_var")
        case layers.InstanceNorm():
            return "InstanceNorm", {"eps": repr(layer.epsilon)}, _SCALE_AND_SHIFT
        case layers.LayerNorm():
            return "LayerNorm", {"axis": str(batched(layer.axis)), "eps": repr(layer.epsilon)}, _SCALE_AND_SHIFT
        case layers.LocalResponseNorm():
            attributes = {
                "nsize": str(layer.size), "alpha": repr(layer.alpha), "beta": repr(layer.beta),
                "knorm": repr(layer.bias),
            }  # fmt: skip
            return "LRN", attributes, ()


def _activation(layer: layers.Activation) -> Operator:
    match layer.kind:
        case "relu" | "tanh" | "sigmoid" | "softplus" | "softsign":
            return "Activation", {"act_type": _ACTIVATIONS[layer.kind]}, ()
        case "elu" | "leaky" | "prelu":
            attributes = {"act_type": layer.kind, "slope": repr(layer.slope)}
            return "LeakyReLU", attributes, ("gamma",) if layer.kind == "prelu" else ()
        case "selu" | "gelu":
            return "LeakyReLU", {"act_type": layer.kind}, ()
        case "hard_sigmoid":
            return "hard_sigmoid", HARD_SIGMOID, ()
        case _:
            return layer.kind, {}, ()


def _weighted(layer: layers.Conv | layers.ConvTranspose | layers.Dense) -> Operator:
    suffixes = ("weight", "bias") if layer.bias else ("weight",)
    if isinstance(layer, layers.Dense):
        attributes = {
            "num_hidden": str(layer.units),
            "no_bias": str(not layer.bias),
            "flatten": str(not layer.last_axis),
        }
        return "FullyConnected", attributes, suffixes
    attributes = {
        "kernel": str(pair(layer.kernel)), "stride": str(pair(layer.stride)), "dilate": str(pair(layer.dilation)),
        "pad": str(pair(layer.pad)), "num_filter": str(layer.channels), "num_group": str(layer.groups),
        "no_bias": str(not layer.bias), "layout": "NCHW",
    }  # fmt: skip
    if isinstance(layer, layers.ConvTranspose):
        return "Deconvolution", {**attributes, "adj": str(pair(layer.extra))}, suffixes
    return "Convolution", attributes, suffixes


def pooling(layer: layers.Pool | layers.GlobalAveragePool) -> dict[str, str]:
    """The attributes of MXNet's Pooling."""
    if isinstance(layer, layers.GlobalAveragePool):
        return {"global_pool": "True", "kernel": "(1, 1)", "pool_type": "avg", "pooling_convention": "valid"}
    attributes = {
        "global_pool": "False", "pool_type": _POOLS[layer.kind],
        "kernel": str(pair(layer.size)), "stride": str(pair(layer.stride)), "pad": str(pair(layer.pad)),
        "pooling_convention": "full" if layer.ceil else "valid",
    }  # fmt: skip
    return {**attributes, "count_include_pad": str(layer.count_pad)} if layer.kind == "average" else attributes
