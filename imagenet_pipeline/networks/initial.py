"""Initial values, made in NumPy so that every engine starts from the same numbers.

Each parameter has a generator of its own, seeded by (seed, its name): values depend neither on the order of
the parameters nor on the other layers of the network.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    ConvTranspose,
    Elementwise,
    Graph,
    Layer,
    Residual,
    Scale,
    Sequential,
    joined,
    walk,
)
from imagenet_pipeline.networks.shapes import Parameter, Shape, describe

Values = NDArray[np.float32]
ZeroScale = bool | Literal["auto"]
"""Values of the recipe's `initial.zero_last_scale`."""
Draw = Callable[[np.random.Generator, Shape], Values]

SPARSE_INPUTS = 15
MSRA_SLOPE = 0.25


def xavier(random: np.random.Generator, shape: Shape) -> Values:
    """Glorot & Bengio 2010 as `mxnet.initializer.Xavier()` has it: uniform within
    +-sqrt(3 / mean of fan-in and fan-out).
    """
    limit = math.sqrt(3 / _mean_fan(shape))
    return _uniform(random, shape, limit)


def msra(random: np.random.Generator, shape: Shape) -> Values:
    """He et al. 2015 as `mxnet.initializer.MSRAPrelu()` has it: normal, variance
    2 / (1 + slope^2) / mean of fan-in and fan-out, for PReLUs that start at a slope of 0.25.
    """
    return _normal(random, shape, math.sqrt(2 / (1 + MSRA_SLOPE**2) / _mean_fan(shape)))


def he(random: np.random.Generator, shape: Shape) -> Values:
    """He et al. 2015, "Delving Deep into Rectifiers", equation 10: normal, variance 2 / fan-in
    (torchvision's ResNets take fan-out instead).
    """
    return _normal(random, shape, math.sqrt(2 / _fans(shape)[0]))


def lecun(random: np.random.Generator, shape: Shape) -> Values:
    """LeCun et al. 1998, "Efficient BackProp", section 4.6: uniform with variance 1 / fan-in."""
    return _uniform(random, shape, math.sqrt(3 / _fans(shape)[0]))


def sparse(random: np.random.Generator, shape: Shape) -> Values:
    """Martens 2010, "Deep learning via Hessian-free optimization", section 5: each unit is connected to 15
    of its inputs by weights from the standard normal distribution, the others are 0.
    """
    values = np.zeros((shape[0], math.prod(shape[1:])), np.float32)
    inputs = min(SPARSE_INPUTS, values.shape[1])
    for row in values:
        row[random.choice(row.size, inputs, replace=False)] = random.standard_normal(inputs, np.float32)
    return values.reshape(shape)


def gaussian(random: np.random.Generator, shape: Shape) -> Values:
    """The standard normal distribution, whatever the layer's size: what the other kinds improve upon."""
    return _normal(random, shape, 1)


def truncated_normal(random: np.random.Generator, shape: Shape) -> Values:
    """The normal distribution of deviation 0.02, whatever the layer's size, what lies beyond two deviations drawn
    anew: what transformers begin with, and ConvNeXt (Liu et al. 2022, table 5).
    """
    values = random.standard_normal(shape, np.float32)
    while (beyond := np.abs(values) > 2).any():
        values[beyond] = random.standard_normal(np.count_nonzero(beyond), np.float32)
    return values * np.float32(0.02)


KINDS: dict[str, Draw] = {draw.__name__: draw for draw in (xavier, msra, he, lecun, sparse, gaussian, truncated_normal)}


def initial_values(
    network: Sequential, input_shape: Shape, kind: str, seed: int, zero_last_scale: ZeroScale = False, bias: float = 0.0
) -> dict[str, Values]:
    """Every parameter's first values by name, float32, in order of computation.

    `kind` draws the weights of Conv, ConvTranspose and Dense; their biases start at `bias`, a norm at weight 1, bias 0,
    mean 0, variance 1, a Constant at 0, a Scale and a PReLU at their layers' numbers.
    With `zero_last_scale` the weight of a BatchNorm that ends the body of a Residual, or has only factors behind it, is
    0, so that at first the shortcut alone counts (Goyal et al. 2017, section 5.1). Raises BadRecipe for an unknown
    kind, where it is True and there is no such BatchNorm (pre-activation bodies end in a convolution), and as
    `describe` does.
    """
    if kind not in KINDS:
        raise BadRecipe("unknown kind of initial values", expected=" | ".join(KINDS), found=kind)
    zeros = _last_scales(network) if zero_last_scale else []
    if zero_last_scale is True and not zeros:
        what = "no residual body of this network ends in a batch normalisation with a scale"
        raise BadRecipe(what, where="initial.zero_last_scale", advice="initial.zero_last_scale=auto")
    values = {
        parameter.name: _values(parameter, report.layer, KINDS[kind], seed, bias)
        for report in describe(network, input_shape)
        for parameter in report.parameters
    }
    return values | {name: np.zeros_like(values[name]) for name in zeros}


def _last_scales(network: Sequential) -> list[str]:
    """The weights of batch normalisations that end the body of a Residual."""
    ends = [_end(layer.body, path) for path, layer in walk(network) if isinstance(layer, Residual)]
    return [f"{path}.weight" for path, last in ends if isinstance(last, BatchNorm) and last.scale]


def _end(layer: Layer, path: str) -> tuple[str, Layer]:
    """The path of the last layer within a layer, and that layer; those that multiply it by something left out."""
    if not isinstance(layer, Sequential):
        return path, layer
    name, last = next((item for item in reversed(layer.items) if not _is_factor(item[1])), layer.items[-1])
    return _end(last, joined(path, name))


def _is_factor(layer: Layer) -> bool:
    """True of a layer that multiplies what reaches it: behind 0 it changes nothing."""
    is_product = isinstance(layer, Graph) and layer.items[-1][1] == Elementwise("multiply") and "" in layer.links[-1]
    return isinstance(layer, Scale) or is_product


def _values(parameter: Parameter, layer: object, draw: Draw, seed: int, bias: float) -> Values:
    if parameter.role == "weight" and isinstance(layer, ConvTranspose):
        return _turned(draw, _generator(seed, parameter.name), parameter.shape, layer.groups)
    if parameter.role == "weight":
        return draw(_generator(seed, parameter.name), parameter.shape)
    if parameter.role == "slope" and isinstance(layer, Activation):
        return np.full(parameter.shape, layer.slope, np.float32)
    if isinstance(layer, Scale):
        return np.full(parameter.shape, layer.initial, np.float32)
    if parameter.role == "bias":
        return np.full(parameter.shape, bias, np.float32)
    return np.full(parameter.shape, 1 if parameter.role in ("scale", "variance") else 0, np.float32)


def _turned(draw: Draw, random: np.random.Generator, shape: Shape, groups: int) -> Values:
    """The weights of a convolution of the same channels, turned to (in, out / groups, height, width)."""
    inputs, outputs = shape[0] // groups, shape[1] * groups
    weights = draw(random, (outputs, inputs, *shape[2:])).reshape(groups, shape[1], inputs, *shape[2:])
    return np.ascontiguousarray(weights.swapaxes(1, 2)).reshape(shape)


def _generator(seed: int, name: str) -> np.random.Generator:
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), "<u4")
    return np.random.default_rng([seed, *words.tolist()])


def _fans(shape: Shape) -> tuple[int, int]:
    """Fan-in and fan-out. MXNet does not divide the fan-out of a grouped convolution; neither do we."""
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window


def _mean_fan(shape: Shape) -> float:
    return sum(_fans(shape)) / 2


def _uniform(random: np.random.Generator, shape: Shape, limit: float) -> Values:
    return (2 * random.random(shape, np.float32) - 1) * np.float32(limit)


def _normal(random: np.random.Generator, shape: Shape, deviation: float) -> Values:
    return random.standard_normal(shape, np.float32) * np.float32(deviation)
