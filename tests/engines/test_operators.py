"""Layers of networks from elsewhere, in float64: both engines against each other and MXNet's own operators."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.engines import is_installed
from imagenet_pipeline.engines.pytorch import network as pytorch_network
from imagenet_pipeline.engines.pytorch.runtime import torch as pytorch
from imagenet_pipeline.networks.layers import (
    Activation,
    Attention,
    BatchNorm,
    BlurPool,
    Clip,
    Constant,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Graph,
    Greyscale,
    InstanceNorm,
    Join,
    L2Norm,
    Layer,
    LayerNorm,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Residual,
    Scalar,
    Scale,
    Sequential,
    Slice,
    Softmax,
    Transpose,
    Upsample,
    pair,
    stack,
)
from imagenet_pipeline.networks.shapes import output_shape, parameters

Array = np.ndarray[Any, Any]
Values = dict[str, Array]
Found = tuple[Array, Values]
torch: Any = pytorch
if is_installed("gluon"):
    from imagenet_pipeline.engines.gluon import network as gluon_network
    from imagenet_pipeline.engines.gluon.runtime import mx

SHAPE = (4, 5, 6)
IMAGES = np.random.default_rng(0).normal(size=(3, *SHAPE)) * 2
POSITIVE = np.abs(IMAGES) + 0.1
TIED = np.random.default_rng(0).integers(-1, 2, (3, *SHAPE)).astype(np.float64)


def values_of(network: Sequential, shape: tuple[int, ...]) -> Values:
    """Values at random, those of a variance positive."""
    random = np.random.default_rng(1)
    declared = parameters(network, shape).values()
    return {one.name: random.uniform(0.5, 1.5, one.shape) * (1 if one.role == "variance" else random.choice([-1, 1]))
            for one in declared}  # fmt: skip


def weights_for(output: Any) -> Array:
    """What the outputs are multiplied by before they are added up, for a gradient."""
    return np.random.default_rng(2).normal(size=tuple(output.shape))


def run_gluon(network: Sequential, x: Array, values: Values) -> Found:
    """The output in training, and gradients by the input and each parameter."""
    built = gluon_network.build(network, lambda name: len(values[name]))
    for name, parameter in built.parameters.items():
        parameter.shape = values[name].shape
    built.block.initialize()
    built.block.cast("float64")
    for name, parameter in built.parameters.items():
        parameter.set_data(mx.nd.array(values[name], dtype="float64"))
    built.block.hybridize(static_alloc=True, static_shape=True)
    images = mx.nd.array(x, dtype="float64")
    images.attach_grad()
    with mx.autograd.record():
        output = built.block(images)
    output.backward(mx.nd.array(weights_for(output), dtype="float64"))
    moving = {name: one for name, one in built.parameters.items() if one.grad_req != "null"}
    gradients = {name: one.grad().asnumpy() for name, one in moving.items()}
    after = {f"after {name}": one.data().asnumpy() for name, one in built.parameters.items() if name not in moving}
    return output.asnumpy(), {"x": images.grad.asnumpy(), **gradients, **after}


def run_pytorch(network: Sequential, x: Array, values: Values) -> Found:
    """The same."""
    shape = x.shape[1:]
    trained = {one.name: one.trainable for one in parameters(network, shape).values()}
    tensors = {name: torch.nn.Parameter(torch.tensor(value), trained[name]) for name, value in values.items()}
    images = torch.tensor(x).contiguous(memory_format=torch.channels_last).requires_grad_()
    (output,) = pytorch_network.build(network, tensors).train()(images)
    (output * torch.tensor(weights_for(output))).sum().backward()
    gradients = {name: one.grad.numpy() for name, one in tensors.items() if trained[name]}
    after = {f"after {name}": one.detach().numpy() for name, one in tensors.items() if not trained[name]}
    return output.detach().numpy(), {"x": images.grad.numpy(), **gradients, **after}


def run_mxnet(function: Callable[..., Any], x: Array, values: Values) -> Found:
    """What MXNet's operator gives for the input and the parameters in order."""
    arrays = [mx.nd.array(one, dtype="float64") for one in (x, *values.values())]
    for array in arrays:
        array.attach_grad()
    with mx.autograd.record():
        output = function(mx.nd, *arrays)
    output.backward(mx.nd.array(weights_for(output), dtype="float64"))
    return output.asnumpy(), dict(zip(("x", *values), (array.grad.asnumpy() for array in arrays), strict=True))


def check(found: Found, wanted: Found, output_limit: float = 1e-12, gradient_limit: float = 1e-9) -> None:
    close(found[0], wanted[0], output_limit, "output")
    for name, gradient in wanted[1].items():
        close(found[1][name], gradient, gradient_limit, name)


def close(found: Array, wanted: Array, limit: float, name: str) -> None:
    assert found.shape == wanted.shape, name
    assert np.abs(found - wanted).max() <= limit * max(np.abs(wanted).max(), 1e-3), name


def single(value: float) -> float:
    """MXNet's operators have most of their numbers in float32."""
    return float(np.float32(value))


CASES: dict[str, tuple[Layer, Array, Callable[..., Any] | None]] = {
    "dilated": (
        Conv(6, 3, pad=2, groups=2, dilation=(2, 1)),
        IMAGES,
        lambda F, *a: F.Convolution(*a, kernel=(3, 3), pad=(2, 2), dilate=(2, 1), num_filter=6, num_group=2),
    ),
    "transposed": (
        ConvTranspose(6, (3, 2), stride=(2, 3), pad=(1, 0), extra=(1, 2), groups=2),
        IMAGES,
        lambda F, *a: F.Deconvolution(*a, kernel=(3, 2), stride=(2, 3), pad=(1, 0), adj=(1, 2), num_filter=6,
                                      num_group=2, no_bias=False),
    ),
    "transposed without bias": (
        ConvTranspose(5, 4, stride=2, pad=1, bias=False),
        IMAGES,
        lambda F, *a: F.Deconvolution(*a, kernel=(4, 4), stride=(2, 2), pad=(1, 1), num_filter=5),
    ),
    # MXNet's own is wrong.
    "transposed and dilated": (ConvTranspose(6, (3, 2), stride=2, pad=1, groups=2, dilation=(2, 3)), IMAGES, None),
    "dense on the last axis": (
        Dense(3, last_axis=True), IMAGES, lambda F, *a: F.FullyConnected(*a, num_hidden=3, flatten=False),
    ),
    "layer norm": (LayerNorm(epsilon=single(1e-5)), IMAGES, lambda F, *a: F.LayerNorm(*a, axis=-1, eps=1e-5)),
    "layer norm of channels": (
        LayerNorm(axis=0, epsilon=single(1e-5)), IMAGES, lambda F, *a: F.LayerNorm(*a, axis=1, eps=1e-5),
    ),
    "softplus": (Activation("softplus"), IMAGES, lambda F, x: F.Activation(x, act_type="softrelu")),
    "softsign": (Activation("softsign"), TIED, lambda F, x: F.Activation(x, act_type="softsign")),
    "exp": (Activation("exp"), IMAGES, lambda F, x: F.exp(x)),
    "log": (Activation("log"), POSITIVE, lambda F, x: F.log(x)),
    "sqrt": (Activation("sqrt"), POSITIVE, lambda F, x: F.sqrt(x)),
    "square": (Activation("square"), IMAGES, lambda F, x: F.square(x)),
    "abs": (Activation("abs"), TIED, lambda F, x: F.abs(x)),
    "clip": (Clip(-1, single(0.7)), TIED, lambda F, x: F.clip(x, -1, 0.7)),
    "softmax": (Softmax(), IMAGES, lambda F, x: F.softmax(x, axis=1)),
    "hot softmax": (Softmax(-1, temperature=3.0), IMAGES, lambda F, x: F.softmax(x, axis=-1, temperature=3.0)),
    "log softmax": (Softmax(1, log=True), IMAGES, lambda F, x: F.log_softmax(x, axis=2)),
    "L2 over the channels": (
        L2Norm((0,), single(1e-10)), IMAGES, lambda F, x: F.L2Normalization(x, mode="channel", eps=1e-10),
    ),
    "L2 over the image": (L2Norm((0, 1, 2), single(1e-10)), IMAGES, lambda F, x: F.L2Normalization(x, eps=1e-10)),
    "L2 over positions": (
        L2Norm((-2, -1), single(1e-2)), IMAGES, lambda F, x: F.L2Normalization(x, mode="spatial", eps=1e-2),
    ),
    "reshape": (Reshape((2, -1, 3)), IMAGES, lambda F, x: F.reshape(x, shape=(0, 2, -1, 3))),
    "transpose": (Transpose((1, 2, 0)), IMAGES, lambda F, x: F.transpose(x, axes=(0, 2, 3, 1))),
    "slice": (Slice(0, 1, 3), IMAGES, lambda F, x: F.slice_axis(x, axis=1, begin=1, end=3)),
    "slice in steps": (Slice(-1, 1, None, 2), IMAGES, lambda F, x: F.slice(
        x, begin=(None, None, None, 1), end=(None, None, None, None), step=(None, None, None, 2))),
    "slice beyond the end": (Slice(1, -3, 100), IMAGES, lambda F, x: F.slice_axis(x, axis=2, begin=2, end=None)),
    "upsample": (Upsample(3), IMAGES, lambda F, x: F.UpSampling(x, scale=3, sample_type="nearest")),
    "greyscale": (Greyscale(), IMAGES[:, :3], lambda F, x: F.sum(
        F.broadcast_mul(x, F.array([0.299, 0.587, 0.114], dtype="float64").reshape((1, 3, 1, 1))), 1, keepdims=True)),
    **{f"pad {kind}": (
        Pad(1, 2, 3, 0, kind, 0.3), IMAGES,
        lambda F, x, kind=kind: F.pad(x, mode=kind, pad_width=(0, 0, 0, 0, 1, 2, 3, 0), constant_value=0.3),
    ) for kind in ("constant", "edge", "reflect")},
    **{f"{kind} {'kept' if keep else 'gone'}": (
        Reduce(kind, axes, keep), TIED,
        lambda F, x, kind=kind, axes=axes, keep=keep: getattr(F, kind)(
            x, axis=tuple(axis + (axis >= 0) for axis in axes), keepdims=keep),
    ) for kind, (axes, keep) in itertools.product(("mean", "sum", "max", "min"), (((1, 2), True), ((-3,), False)))},
    **{f"sum pool {size} {stride} {pad} {ceil}": (
        Pool("sum", size, stride, pad, ceil), IMAGES,
        lambda F, x, size=size, stride=stride, pad=pad, ceil=ceil: F.Pooling(
            x, pool_type="sum", kernel=size, stride=(stride, stride), pad=(pad, pad),
            pooling_convention="full" if ceil else "valid"),
    ) for size, stride, pad, ceil in (((2, 2), 2, 0, False), ((3, 4), 2, 0, True), ((3, 3), 2, 1, True))},
}  # fmt: skip
SCALARS = {
    "add": lambda x, y: x + y, "subtract": lambda x, y: x - y, "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y, "power": lambda x, y: x**y,
}  # fmt: skip
for _kind, _function in SCALARS.items():
    CASES[f"{_kind} 1.7"] = Scalar(_kind, 1.7), POSITIVE, lambda F, x, f=_function: f(x, 1.7)
    CASES[f"1.7 {_kind}"] = Scalar(_kind, 1.7, reverse=True), POSITIVE, lambda F, x, f=_function: f(1.7, x)
for _kind in ("maximum", "minimum"):
    CASES[f"{_kind} 1"] = Scalar(_kind, 1), TIED, lambda F, x, kind=_kind: getattr(F, kind)(x, 1)


@pytest.mark.gluon
@pytest.mark.parametrize("case", CASES)
def test_both_engines_and_mxnet_agree(case: str) -> None:
    layer, x, function = CASES[case]
    network = stack(layer=layer)
    values = values_of(network, x.shape[1:])
    found, other = run_gluon(network, x, values), run_pytorch(network, x, values)
    assert found[0].shape[1:] == output_shape(network, x.shape[1:])
    check(found, other)
    if function is not None:
        check(found, run_mxnet(function, x, values))


def inexact(function: Callable[[Array], Array], x: Array) -> Array:
    """Central differences."""
    return (function(x + 1e-5) - function(x - 1e-5)) / 2e-5


@pytest.mark.gluon
@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (Activation("gelu"), lambda x: 0.5 * x * (1 + torch.erf(torch.tensor(x) / 2**0.5).numpy())),
        (Activation("swish"), lambda x: x / (1 + np.exp(-x))),
        (Activation("selu"), lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))),
        (Activation("elu", 0.1), lambda x: np.where(x > 0, x, 0.1 * np.expm1(x))),
        (Activation("leaky", 0.1), lambda x: np.where(x > 0, x, 0.1 * x)),
    ],
    ids=str,
)
def test_activations_that_mxnet_has_in_float32_alone(layer: Layer, function: Callable[[Array], Array]) -> None:
    """MXNet's own comes within 1e-6, and has wrong gradients of "selu"."""
    network = stack(layer=layer)
    found = run_gluon(network, IMAGES, {})
    check(found, run_pytorch(network, IMAGES, {}))
    gradient = inexact(function, IMAGES) * weights_for(IMAGES)
    check(found, (function(IMAGES), {"x": gradient}), gradient_limit=1e-8)
    if isinstance(layer, Activation) and layer.kind != "swish":  # of which MXNet has none
        slope = layer.slope
        own = run_mxnet(lambda F, x: F.LeakyReLU(x, act_type=layer.kind, slope=slope), IMAGES, {})
        close(found[0], own[0], 1e-6, "MXNet's")


@pytest.mark.gluon
@pytest.mark.parametrize("shape", [SHAPE, (4, 5, 1), (4, 1, 1)])
def test_instance_normalisation(shape: tuple[int, ...]) -> None:
    """MXNet's own knows no float64."""
    network, x = stack(norm=InstanceNorm(0.01)), IMAGES[:, : shape[0], : shape[1], : shape[2]]
    values = values_of(network, shape)
    found = run_gluon(network, x, values)
    check(found, run_pytorch(network, x, values))
    weight, bias = (value.reshape(-1, 1, 1) for value in values.values())
    centred = x - x.mean((2, 3), keepdims=True)
    wanted = weight * centred / np.sqrt(x.var((2, 3), keepdims=True) + 0.01) + bias
    close(found[0], wanted, 1e-12, "output")
    single_x, *numbers = (mx.nd.array(array) for array in (x, *values.values()))
    close(found[0], mx.nd.InstanceNorm(single_x, *numbers, eps=0.01).asnumpy(), 1e-5, "MXNet's in float32")


@pytest.mark.gluon
@pytest.mark.parametrize("scale", [True, False])
def test_a_frozen_batch_norm_trains_by_its_running_values_and_keeps_them(scale: bool) -> None:
    network = stack(norm=BatchNorm(0.01, scale=scale, frozen=True))
    # MXNet keeps statistics in float32.
    values = {name: value.astype(np.float32).astype(np.float64) for name, value in values_of(network, SHAPE).items()}
    if not scale:
        values["norm.weight"][:] = 1
    found, other = run_gluon(network, IMAGES, values), run_pytorch(network, IMAGES, values)
    check(found, other)
    weight, bias, mean, variance = (value.reshape(-1, 1, 1) for value in values.values())
    close(found[0], weight * (IMAGES - mean) / np.sqrt(variance + 0.01) + bias, 1e-12, "output")
    for name in ("norm.running_mean", "norm.running_var"):
        close(found[1][f"after {name}"], values[name], 0, name)


@pytest.mark.gluon
@pytest.mark.parametrize("kind", ["add", "subtract", "multiply", "divide", "power", "maximum", "minimum"])
@pytest.mark.parametrize("tied", [False, True])
def test_elementwise(kind: Any, tied: bool) -> None:
    """Of two branches, of which the second has one position, and a constant."""
    items = (("a", Activation("abs")), ("b", Reduce("max", (1, 2), keep=True)), ("c", Constant((1, 5, 1))))
    network = stack(graph=Graph((*items, ("end", Elementwise(kind))), (("",), ("",), (), ("a", "b", "c"))))
    values = {name: np.abs(value) for name, value in values_of(network, SHAPE).items()}
    x = np.abs(TIED) + 1 if tied else POSITIVE
    if tied:
        values["graph.c.value"][:] = 1
    found = run_gluon(network, x, values)
    check(found, run_pytorch(network, x, values))
    name = {"subtract": "sub", "multiply": "mul", "divide": "div"}.get(kind, kind)

    def own(F: Any, x: Any, constant: Any) -> Any:
        function = getattr(F, f"broadcast_{name}")
        return function(function(F.abs(x), F.max(x, axis=(2, 3), keepdims=True)), F.expand_dims(constant, 0))

    check(found, run_mxnet(own, x, values))


def attended(x: Any) -> Any:
    """torch's module with three heads, whose projections are left as they are: queries, keys, values side by side."""
    whole = torch.nn.MultiheadAttention(6, 3, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        whole.in_proj_weight.copy_(torch.eye(6).repeat(3, 1))
        whole.out_proj.weight.copy_(torch.eye(6))
    return whole(*x.split(6, dim=-1), need_weights=False)[0]


def blurred(x: Any, size: int, strides: tuple[int, int]) -> Any:
    """The product of the image with a matrix for each axis, of binomial weights on mirrored places."""
    weights = np.array([math.comb(size - 1, place) for place in range(size)]) / 2 ** (size - 1)
    matrices = []
    for length, stride in zip(x.shape[2:], strides, strict=True):
        mirrored = np.pad(np.eye(length), (((size - 1) // 2, size // 2), (0, 0)), "reflect")
        starts = range(0, len(mirrored) - size + 1, stride)
        matrices.append(torch.tensor(np.stack([weights @ mirrored[start : start + size] for start in starts])))
    return torch.einsum("nchw,ph,qw->ncpq", x, *matrices)


def hard_sigmoid(x: Any) -> Any:
    return torch.clamp(x + 3, 0, 6) / 6


TOKENS = np.random.default_rng(3).normal(size=(3, 1, 5, 18))
AS_TOKENS = Reshape((5, 18))
STATED: dict[str, tuple[Layer | Sequential, Array, Callable[..., Any]]] = {
    "mish": (Activation("mish"), 4 * IMAGES, lambda x: x * torch.tanh(torch.log1p(torch.exp(x)))),
    "hard_sigmoid": (Activation("hard_sigmoid"), IMAGES, hard_sigmoid),
    "hard_swish": (Activation("hard_swish"), IMAGES, lambda x: x * hard_sigmoid(x)),
    "scale of channels": (Scale(axis=0), IMAGES, lambda x, weight: torch.einsum("nchw,c->nchw", x, weight)),
    "scale of tokens": (
        stack(tokens=AS_TOKENS, scale=Scale()), TOKENS,
        lambda x, weight: torch.einsum("nitw,w->ntw", x, weight),
    ),
    "attention": (stack(tokens=AS_TOKENS, attention=Attention(3)), TOKENS, lambda x: attended(x.squeeze(1))),
    **{f"blur {size} {stride}": (
        BlurPool(size, stride), IMAGES, lambda x, size=size, stride=stride: blurred(x, size, pair(stride)),
    ) for size, stride in ((2, 2), (3, 2), (3, (1, 2)), (4, 1), (5, 3))},
}  # fmt: skip


@pytest.mark.gluon
@pytest.mark.parametrize("case", STATED)
def test_both_engines_agree_with_an_independent_statement(case: str) -> None:
    layer, x, statement = STATED[case]
    network = stack(layer=layer)
    values = values_of(network, x.shape[1:])
    found, other = run_gluon(network, x, values), run_pytorch(network, x, values)
    assert found[0].shape[1:] == output_shape(network, x.shape[1:])
    arrays = {"x": torch.tensor(x), **{name: torch.tensor(value) for name, value in values.items()}}
    output = statement(*(array.requires_grad_() for array in arrays.values()))
    (output * torch.tensor(weights_for(output))).sum().backward()
    wanted = output.detach().numpy(), {name: array.grad.numpy() for name, array in arrays.items()}
    check(found, wanted, gradient_limit=1e-12)
    check(other, wanted, gradient_limit=1e-12)


NESTED = Graph(
    (("left", stack(conv=Conv(3, 1), norm=InstanceNorm())), ("number", Constant((3, 5, 6))), ("both", Join(1)),
     ("inner", Residual(stack(graph=Graph((("twice", Elementwise("add")), ("idle", Activation("abs")),
                                           ("all", Elementwise("multiply"))), (("", ""), ("",), ("twice", "")))))),
     ("end", Join(0))),
    (("",), (), ("left", "number"), ("both",), ("inner", "both")),
)  # fmt: skip


@pytest.mark.gluon
def test_graphs_within_graphs_of_groups() -> None:
    network = stack(first=NESTED, last=Residual(stack(again=Graph((("one", Scalar("add", 1.0)),), (("",),)))))
    values = values_of(network, SHAPE)
    found = run_gluon(network, IMAGES, values)
    check(found, run_pytorch(network, IMAGES, values))
    assert found[0].shape[1:] == output_shape(network, SHAPE) == (6, 10, 6)
    weight, bias = values["first.left.conv.weight"], values["first.left.conv.bias"]
    conv = np.einsum("nchw,ocij->nohw", IMAGES, weight) + bias.reshape(-1, 1, 1)
    norm = (conv - conv.mean((2, 3), keepdims=True)) / np.sqrt(conv.var((2, 3), keepdims=True) + 1e-3)
    shift, scale = (values[f"first.left.norm.{name}"].reshape(-1, 1, 1) for name in ("bias", "weight"))
    number = np.broadcast_to(values["first.number.value"], (3, 3, 5, 6))
    both = np.concatenate([scale * norm + shift, number], 2)
    first = np.concatenate([2 * both * both + both, both], 1)
    close(found[0], 2 * first + 1, 1e-12, "output")


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_in_half_precision_they_come_near(precision: str) -> None:
    for layer, x, _ in (*CASES.values(), *STATED.values(), (InstanceNorm(), IMAGES, None), (NESTED, IMAGES, None)):
        network = stack(layer=layer)
        values = values_of(network, x.shape[1:])
        tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
        module, images = pytorch_network.build(network, tensors), torch.tensor(x, dtype=torch.float32)
        with torch.autocast("cpu", getattr(torch, precision)):
            (found,) = module(images.to(getattr(torch, precision)))
        (wanted,) = module(images)
        assert (found.float() - wanted).abs().max() <= 0.1 * wanted.abs().max(), layer


def test_margins_that_a_maximum_passes_over_are_possible_in_half_precision() -> None:
    lowest = float(np.finfo(np.float32).min)  # as a max pooling beyond our limits is imported
    module = pytorch_network.build(stack(pad=Pad(1, 1, 1, 1, "constant", lowest), pool=Pool("max", 3, 1)), {})
    (found,) = module(torch.full((1, 1, 4, 4), -2.0, dtype=torch.bfloat16))
    assert (found == -2).all()
