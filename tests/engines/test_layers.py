"""Every layer of every engine against a plain NumPy statement of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.engines import is_installed
from imagenet_pipeline.engines.pytorch import network as pytorch_network
from imagenet_pipeline.engines.pytorch.runtime import torch as pytorch
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
    pair,
    stack,
)
from imagenet_pipeline.networks.shapes import describe

Array = np.ndarray[Any, Any]
Run = Callable[..., tuple[Array, dict[str, Array]]]
torch: Any = pytorch
if is_installed("gluon"):
    from imagenet_pipeline.engines.gluon import network as gluon_network
    from imagenet_pipeline.engines.gluon.runtime import mx


def run_gluon(
    layer: Layer, x: Array, values: dict[str, Array], training: bool = False
) -> tuple[Array, dict[str, Array]]:
    """The layer's output and its parameters afterwards."""
    built = gluon_network.build(stack(layer=layer), lambda name: len(values[name]))
    for name, parameter in built.parameters.items():
        parameter.shape = values[name].shape
    built.block.initialize()
    for name, parameter in built.parameters.items():
        parameter.set_data(mx.nd.array(values[name]))
    built.block.hybridize()
    with mx.autograd.record(train_mode=training) if training else mx.autograd.pause():
        output = built.block(mx.nd.array(x))
    if training and values:
        output.backward()  # MXNet moves running statistics in the backward pass
    return output.asnumpy(), {name: parameter.data().asnumpy() for name, parameter in built.parameters.items()}


def run_pytorch(
    layer: Layer, x: Array, values: dict[str, Array], training: bool = False
) -> tuple[Array, dict[str, Array]]:
    """The same."""
    tensors = {
        name: torch.nn.Parameter(torch.tensor(value), requires_grad="running" not in name)
        for name, value in values.items()
    }
    module = pytorch_network.build(stack(layer=layer), tensors).train(training)
    pixels = torch.tensor(x)
    (output,) = module(pixels.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else pixels)
    if training and values:
        output.sum().backward()  # autograd would refuse what the forward pass changed behind its back
    return output.detach().numpy(), {name: tensor.detach().numpy() for name, tensor in tensors.items()}


@pytest.fixture(params=[run_gluon, run_pytorch], ids=["gluon", "pytorch"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param  # type: ignore[no-any-return]


def close(found: Array, wanted: Array, limit: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= limit * max(np.abs(wanted).max(), 1e-30)


def images(*shape: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).normal(size=shape) * 3).astype(np.float32)


def windows(x: Array, size: Any, stride: Any, pad: Any, fill: float) -> Array:
    """[n, c, rows, columns, height, width] of all whole windows over the padded float64 image."""
    (height, width), (down, across), (top, left) = pair(size), pair(stride), pair(pad)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, top), (left, left)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))[:, :, ::down, ::across]


@pytest.mark.parametrize(
    "layer",
    [
        Conv(8, 3),
        Conv(8, 1, bias=False),
        Conv(6, (3, 5), stride=(2, 1), pad=(1, 2)),
        Conv(8, 3, pad=1, groups=2),
        Conv(4, 3, pad=1, groups=4, bias=False),
        Conv(8, 3, stride=2, pad=2),
    ],
    ids=str,
)
def test_convolution(run: Run, layer: Conv) -> None:
    x, random = images(2, 4, 9, 11), np.random.default_rng(1)
    kernel = random.normal(size=(layer.channels, 4 // layer.groups, *pair(layer.kernel))).astype(np.float32)
    bias = random.normal(size=layer.channels).astype(np.float32)
    values = {"layer.weight": kernel} | ({"layer.bias": bias} if layer.bias else {})
    seen = windows(x, layer.kernel, layer.stride, layer.pad, 0)
    parts = [
        np.einsum("ncijhw,ochw->noij", part, weight.astype(np.float64))
        for part, weight in zip(np.split(seen, layer.groups, 1), np.split(kernel, layer.groups), strict=True)
    ]
    wanted = np.concatenate(parts, 1) + (bias[:, None, None] if layer.bias else 0)
    close(run(layer, x, values)[0], wanted)


@pytest.mark.parametrize("bias", [True, False])
def test_dense(run: Run, bias: bool) -> None:
    x, random = images(3, 10), np.random.default_rng(1)
    weight, shift = random.normal(size=(4, 10)).astype(np.float32), random.normal(size=4).astype(np.float32)
    values = {"layer.weight": weight} | ({"layer.bias": shift} if bias else {})
    close(run(Dense(4, bias), x, values)[0], x.astype(np.float64) @ weight.T + (shift if bias else 0))


def pooled(layer: Pool, x: Array) -> Array:
    """Pooling by its definition: each window cut out of the image, the last one partial if `ceil`."""
    (high, wide), (down, across), (top, left) = pair(layer.size), pair(layer.stride), pair(layer.pad)
    round_ = np.ceil if layer.ceil else np.floor
    rows = int(round_((x.shape[2] + 2 * top - high) / down)) + 1
    columns = int(round_((x.shape[3] + 2 * left - wide) / across)) + 1
    out = np.zeros((*x.shape[:2], rows, columns))
    for i, j in itertools.product(range(rows), range(columns)):
        y, z = i * down - top, j * across - left
        part = x[:, :, max(y, 0) : y + high, max(z, 0) : z + wide].astype(np.float64)
        if layer.kind == "max":
            out[:, :, i, j] = part.max((2, 3))
        else:
            # Counted padding ends with the padding: a partial window of `ceil` is not made larger by it.
            inside = (min(y + high, x.shape[2] + top) - y) * (min(z + wide, x.shape[3] + left) - z)
            out[:, :, i, j] = part.sum((2, 3)) / (inside if layer.count_pad else part[0, 0].size)
    return out


SWEEP = [
    Pool(kind, size, stride, pad, ceil, count_pad)
    for kind, size, stride, pad, ceil, count_pad in itertools.product(
        ("max", "average"), ((1, 1), (2, 2), (3, 3), (2, 4), (5, 3)), ((1, 1), (2, 2), (3, 2)), (0, 1, 2),
        (False, True), (False, True),
    )
    if 2 * pad <= min(size)
    and not (ceil and any(pad + step > length for step, length in zip(stride, size, strict=True)))
    and not (kind == "max" and count_pad)
]  # fmt: skip


@pytest.mark.parametrize("size", [(8, 8), (9, 10), (7, 12), (5, 6)])
def test_pooling_in_every_combination(run: Run, size: tuple[int, int]) -> None:
    """The two engines count the windows of `ceil` and the padding of an average by rules of their own."""
    x = images(1, 2, *size)
    for layer in SWEEP:
        wanted = pooled(layer, x)
        found = run(layer, x, {})[0]
        assert found.shape == wanted.shape, layer
        assert np.abs(found - wanted).max() < 1e-5, layer


POOLS = [
    Pool(kind, size, stride, pad, ceil, count_pad)
    for kind, size, (stride, pad, ceil), count_pad in itertools.product(
        ("max", "average"),
        (3, (2, 4)),
        ((1, 0, False), (2, 0, False), (2, 1, False), (2, 0, True)),
        (True, False),
    )
    if not (kind == "max" and not count_pad) and not (ceil and stride > 2)
]


@pytest.mark.parametrize("layer", POOLS, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (9, 10)])
def test_pooling(run: Run, layer: Pool, size: tuple[int, int]) -> None:
    x = images(2, 3, *size)
    wanted = pooled(layer, x)
    assert describe(stack(layer=layer), x.shape[1:])[0].output_shape == wanted.shape[1:]  # type: ignore[arg-type]
    close(run(layer, x, {})[0], wanted)


def test_global_pooling_and_flattening(run: Run) -> None:
    x = images(2, 3, 4, 5)
    close(run(GlobalAveragePool(), x, {})[0], x.mean((2, 3), keepdims=True))
    close(run(Flatten(), x, {})[0], x.reshape(2, -1), 0)


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (Activation("relu"), lambda x: np.maximum(x, 0)),
        (Activation("elu"), lambda x: np.where(x > 0, x, 0.25 * np.expm1(np.minimum(x, 0)))),
        (Activation("elu", 1.0), lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))),
        (Activation("leaky", 0.1), lambda x: np.where(x > 0, x, 0.1 * x)),
        (Activation("tanh"), np.tanh),
        (Activation("sigmoid"), lambda x: 1 / (1 + np.exp(-x))),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 6)])
def test_activation(run: Run, layer: Activation, function: Callable[[Array], Array], shape: tuple[int, ...]) -> None:
    x = images(*shape)
    close(run(layer, x, {})[0], function(x.astype(np.float64)))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 3)])
def test_prelu(run: Run, shape: tuple[int, ...]) -> None:
    x, slope = images(*shape), np.array([0.1, 0.25, -0.5], np.float32)
    factor = slope.reshape((3, *[1] * (len(shape) - 2)))
    close(run(Activation("prelu"), x, {"layer.slope": slope})[0], np.where(x > 0, x, factor * x))


@pytest.mark.parametrize("layer", [LocalResponseNorm(), LocalResponseNorm(3, 1e-2, 0.5, 1.0)], ids=str)
def test_local_response_normalisation(run: Run, layer: LocalResponseNorm) -> None:
    x = images(2, 7, 4, 4) * 10
    half = layer.size // 2
    squares = np.pad(x.astype(np.float64) ** 2, ((0, 0), (half, half), (0, 0), (0, 0)))
    total = sum(squares[:, shift : shift + 7] for shift in range(layer.size))
    close(run(layer, x, {})[0], x / (layer.bias + layer.alpha / layer.size * total) ** layer.beta)


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (16, 3)])
@pytest.mark.parametrize("layer", [BatchNorm(), BatchNorm(1e-2, 0.7), BatchNorm(scale=False)], ids=str)
def test_batch_normalisation(run: Run, layer: BatchNorm, shape: tuple[int, ...]) -> None:
    x, random = images(*shape) + 1, np.random.default_rng(1)
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, var = (random.uniform(0.5, 2, 3).astype(np.float32) for _ in names)
    if not layer.scale:
        weight[:] = 1
    values = {f"layer.{name}": value for name, value in zip(names, (weight, bias, mean, var), strict=True)}
    axes = (0, *range(2, x.ndim))

    def normalised(centre: Array, variance: Array) -> Array:
        scale, shift, middle, spread = (
            value.reshape((3, *[1] * (x.ndim - 2))) for value in (weight, bias, centre, variance)
        )
        return scale * (x.astype(np.float64) - middle) / np.sqrt(spread + layer.epsilon) + shift

    evaluated, unchanged = run(layer, x, values)
    close(evaluated, normalised(mean, var))
    assert all((unchanged[name] == value).all() for name, value in values.items())
    trained, after = run(layer, x, values, training=True)
    batch_mean, batch_var = x.astype(np.float64).mean(axes), x.astype(np.float64).var(axes)
    close(trained, normalised(batch_mean, batch_var))
    # The biased variance, NumPy's default.
    close(after["layer.running_mean"], layer.momentum * mean + (1 - layer.momentum) * batch_mean)
    close(after["layer.running_var"], layer.momentum * var + (1 - layer.momentum) * batch_var)


def test_dropout(run: Run) -> None:
    x = np.ones((100, 200), np.float32)
    close(run(Dropout(0.3), x, {})[0], x, 0)
    trained = run(Dropout(0.3), x, {}, training=True)[0]
    assert set(np.unique(trained.round(5))) == {0.0, np.float32(1 / 0.7).round(5)}
    assert abs((trained == 0).mean() - 0.3) < 0.02


@pytest.mark.parametrize("shape", [(2000, 3, 2, 2), (2000, 5)])
def test_a_residual_leaves_out_its_body_for_whole_images(run: Run, shape: tuple[int, ...]) -> None:
    layer = Residual(stack(a=Activation("square")), stack(b=Activation("tanh")), drop_rate=0.3)
    x = np.abs(images(*shape)) + 1
    body, around = x.astype(np.float64) ** 2, np.tanh(x)
    close(run(layer, x, {})[0], body + around)
    factors = (run(layer, x, {}, training=True)[0] - around) / body
    of_image = factors.reshape(len(x), -1).mean(1)
    close(factors, np.broadcast_to(of_image.reshape(-1, *[1] * (x.ndim - 1)), x.shape), 1e-3)
    assert {round(abs(factor), 2) for factor in of_image.tolist()} == {0, 1.43}
    assert abs((of_image < 0.5).mean() - 0.3) < 0.04


def test_residual_and_concatenation(run: Run) -> None:
    x = images(2, 3, 4, 4)
    relu, tanh = Activation("relu"), Activation("tanh")
    close(run(Residual(stack(a=relu)), x, {})[0], np.maximum(x, 0) + x)
    close(run(Residual(stack(a=relu), stack(b=tanh)), x, {})[0], np.maximum(x, 0) + np.tanh(x))
    joined = run(Concat((("a", relu), ("b", stack(c=tanh)))), x, {})[0]
    close(joined, np.concatenate([np.maximum(x, 0), np.tanh(x)], 1))
