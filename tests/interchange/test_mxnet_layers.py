"""Every operator, and random graphs of them, give MXNet's own numbers on both engines.

In float64, but the operators that MXNet computes in float32 whatever its arrays are. IMAGENET_PIPELINE_LONG=1 draws 50
graphs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("imagenet_pipeline.engines.gluon.runtime")

from imagenet_pipeline.engines.gluon.runtime import mx

LONG = os.environ.get("IMAGENET_PIPELINE_LONG") == "1"
SIDE = 9
LIMIT, COARSE = 1e-9, 1e-5
RATE = 0.5

Array = np.ndarray[Any, Any]
S = mx.sym


def conv(x: Any, channels: int = 6, **more: Any) -> Any:
    return S.Convolution(x, num_filter=channels, **{"kernel": (3, 3), "pad": (1, 1), **more})


def pools(op: Any, kinds: tuple[str, ...]) -> Callable[[Any], list[Any]]:
    def make(x: Any) -> list[Any]:
        windows = ((2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 2, 2), (3, 4, 0), (1, 1, 0), (3, 4, 1))
        return [
            op(x, kernel=(k, k), stride=(s, s), pad=(p, p), pool_type=kind, pooling_convention=convention)
            for kind in kinds
            for convention in ("valid", "full")
            for k, s, p in windows
            if (op is S.Pooling or 2 * p <= k) and (kind, s, p) != ("avg", 4, 0)
        ]

    return make


GROUPS: dict[str, Callable[[Any], list[Any]]] = {
    "convolutions": lambda x: [
        conv(x, dilate=(2, 1), stride=(2, 1)),
        conv(x, num_group=3, no_bias=True),
        S.Deconvolution(x, kernel=(4, 3), stride=(2, 2), pad=(1, 1), adj=(0, 1), num_filter=4, num_group=2),
        S.Deconvolution(x, kernel=(4, 3), stride=(2, 2), target_shape=(17, 18), num_filter=4, no_bias=False),
        S.UpSampling(x, S.Variable("up_weight", shape=(6, 1, 4, 4)), scale=2, sample_type="bilinear", num_filter=6),
        S.UpSampling(x, S.Variable("down_weight", shape=(6, 1, 5, 5)), scale=3, sample_type="bilinear", num_filter=6),
        S.UpSampling(x, scale=2, sample_type="nearest"),
        S.FullyConnected(x, num_hidden=3, flatten=False, no_bias=True),
        S.FullyConnected(x, num_hidden=3),
    ],
    "normalisations": lambda x: [
        S.BatchNorm(x),
        S.BatchNorm(x, fix_gamma=False, use_global_stats=True, eps=1e-5),
        S.BatchNorm(x, axis=3, fix_gamma=False),
        S.BatchNorm(S.Reshape(x, shape=(0, 0, -1))),
        S.BatchNorm(S.Flatten(x), axis=-1),
        S.LayerNorm(x, eps=2**-10),
        S.LayerNorm(x, axis=1, eps=2**-10),
        *[S.L2Normalization(x, mode=mode) for mode in ("instance", "channel", "spatial")],
    ],
    "activations": lambda x: [
        *[S.Activation(x, act_type=kind) for kind in ("relu", "sigmoid", "tanh", "softrelu", "softsign")],
        S.LeakyReLU(x, act_type="elu", slope=0.25),
        *[getattr(S, name)(S.abs(x) + 0.5) for name in ("exp", "log", "sqrt", "square", "abs", "negative")],
        *[getattr(S, name)(S.abs(x) + 0.5) for name in ("reciprocal", "rsqrt", "relu", "sigmoid", "tanh", "softsign")],
        S.hard_sigmoid(x, alpha=0.25, beta=0.5),
        S.clip(x, -0.5, 0.25),
        S.Dropout(x, p=0.3),
        S.softmax(x, axis=1),
        S.softmax(x, temperature=2.0),
        S.log_softmax(x),
        S.SoftmaxOutput(x),
        S.SoftmaxOutput(x, multi_output=True),
        S.SoftmaxOutput(x, preserve_shape=True),
        S.LogisticRegressionOutput(x),
        S.LinearRegressionOutput(x),
        S.BlockGrad(S.identity(x)),
        S.zeros_like(x) - S.ones_like(x),
    ],
    "maxima": pools(S.Pooling, ("max",)),
    "averages": pools(S.Pooling, ("avg",)),
    "sums": lambda x: [
        *pools(S.Pooling, ("sum",))(x),
        *[S.Pooling(x, kernel=(2, 2), pool_type="lp", p_value=power) for power in (1, 2)],
        S.Pooling(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="avg", count_include_pad=False),
        *[S.Pooling(x, global_pool=True, kernel=(1, 1), pool_type=kind) for kind in ("max", "avg", "sum")],
        S.Pooling(x, global_pool=True, kernel=(1, 1), pool_type="lp", p_value=2),
        S.contrib.AdaptiveAvgPooling2D(x, output_size=1),
        S.contrib.AdaptiveAvgPooling2D(x, output_size=(3, 9)),
    ],
    "arithmetic": lambda x: [
        S.add_n(x, x, S.relu(x)),
        S.broadcast_maximum(x, S.mean(x, axis=1, keepdims=True)),
        S.broadcast_minimum(x, S.tanh(x)),
        S.broadcast_power(S.abs(x) + 0.5, S.tanh(x)),
        S.broadcast_sub(S.Variable("three", shape=(6, 1, 1)), x),
        S.broadcast_mul(x, S.Variable("four", shape=(1, 6, 1, 9))),
        x - S.tanh(x),
        x * S.tanh(x),
        x / (S.abs(x) + 1),
        3 - (x * 2 - 1) / 4,
        1 / (S.abs(x) + 1),
        2 ** S.tanh(x),
        (S.abs(x) + 1) ** 1.5,
        S._internal._maximum_scalar(x, scalar=0.25),
        S._internal._MinimumScalar(x, scalar=0.25),
        S._internal._RMinusScalar(S._internal._MulScalar(x, scalar=2), scalar=1),
        S._internal._Plus(x, S._internal._Maximum(x, S.tanh(x))),
    ],
    "shapes": lambda x: [
        S.Reshape(x, shape=(0, -1)),
        S.Reshape(x, shape=(0, -4, 2, 3, -2)),
        S.Reshape(x, shape=(0, -4, -1, 3, -3)),
        S.Reshape(x, shape=(-1, 6, 81)),
        S.Reshape(S.Reshape(x, shape=(0, 0, -3)), shape=(0, 3, -1)),
        S.Reshape(x, shape=(-1, 6, 27, 3), reverse=True),
        S.flatten(x),
        S.transpose(x, axes=(0, 2, 3, 1)),
        S.SwapAxis(x, dim1=1, dim2=3),
        S.squeeze(S.expand_dims(x, axis=2), axis=2),
        S.expand_dims(x, axis=-1),
        S.stack(x, S.relu(x), axis=2),
        S.concat(x, conv(x, 2), dim=1),
        S.concat(x, S.tanh(x), dim=3),
        *[S.pad(x, mode=kind, pad_width=(0, 0, 0, 0, 1, 2, 3, 0), constant_value=0.5)
          for kind in ("constant", "edge", "reflect")],
    ],
    "slices": lambda x: [
        S.SliceChannel(x, num_outputs=3)[1],
        S.SliceChannel(x, num_outputs=6, squeeze_axis=True)[4],
        S.split_v2(x, indices_or_sections=(2, 5), axis=1)[1],
        S.split_v2(x, indices_or_sections=3, axis=1)[2],
        S.slice_axis(x, axis=2, begin=1, end=-2),
        S.slice_axis(x, axis=1, begin=-2, end=None),
        S.slice(x, begin=(None, 1, 0), end=(None, 5, None), step=(None, 2, 3)),
        S.slice_like(x, S.Pooling(x, kernel=(2, 2)), axes=(2, 3)),
        *[getattr(S, name)(x, axis=(2, 3)) for name in ("mean", "sum", "max", "min")],
        S.sum(x, axis=(0, 1), exclude=True),
        S.max(x, axis=-1),
        *[S.norm(x, ord=order, axis=1, keepdims=keep) for order, keep in ((1, False), (2, True))],
        S.broadcast_like(S.mean(x, axis=(2, 3), keepdims=True), x) * x,
        x * S.sigmoid(x),
    ],
}  # fmt: skip
COARSE_GROUPS: dict[str, Callable[[Any], list[Any]]] = {
    "float32 alone": lambda x: [
        S.LRN(x, nsize=3),
        S.InstanceNorm(x, eps=2**-10),
        S.GroupNorm(x, num_groups=3),
        *[S.LeakyReLU(x, act_type=kind) for kind in ("leaky", "selu", "gelu", "prelu")],
        S.LeakyReLU(x, act_type="rrelu")[0],
        S.LeakyReLU(x, S.Variable("shared_gamma", shape=(1,)), act_type="prelu"),
        S.SoftmaxActivation(S.Flatten(x)),
        S.SoftmaxActivation(x, mode="channel"),
        S.contrib.BilinearResize2D(x, height=13, width=5),
        *pools(S.Pooling_v1, ("max", "avg", "sum"))(x),
    ],
}


def joined(outputs: list[Any]) -> Any:
    return S.concat(*[S.Flatten(output) for output in outputs], dim=1)


@pytest.mark.parametrize("group", GROUPS)
def test_every_operator_gives_mxnet_s_numbers(group: str, against_mxnet: Any) -> None:
    against_mxnet(SIDE).assert_equal(joined(GROUPS[group](conv(S.Variable("data")))))


@pytest.mark.parametrize("group", COARSE_GROUPS)
def test_operators_that_mxnet_computes_in_float32(group: str, against_mxnet: Any) -> None:
    against_mxnet(SIDE).assert_equal(joined(COARSE_GROUPS[group](conv(S.Variable("data")))), "float32", COARSE)


def shares(logits: Array) -> Array:
    """The softmax of each row."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "end",
    [
        lambda x: S.softmax(x, temperature=4.0),
        lambda x: S.softmax(S.softmax(x)),
        lambda x: S.SoftmaxOutput(S.log_softmax(x, temperature=2.0)),
        lambda x: S.exp(S.log_softmax(S.softmax(x))),
    ],
)
def test_the_softmax_left_off_gives_mxnet_s_probabilities(end: Callable[[Any], Any], against_mxnet: Any) -> None:
    """Of a single softmax; one in front of it, and a temperature, change them."""
    against = against_mxnet(SIDE)
    symbol = end(S.FullyConnected(conv(S.Variable("data")), num_hidden=5))
    wanted, found = against.bound(symbol).forward()[0].asnumpy(), against.read(symbol, SIDE)
    for engine in against.engines:
        logits = against.engine_of(engine, found).logits(against.images)
        assert min(np.abs(part - wanted).max() for part in (logits, shares(logits))) <= LIMIT


class Drawing:
    """A random graph: each step reads what earlier ones gave, images [channels, height, width] of even channels."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        first = conv(S.Variable("data"), 4)
        self.known: list[tuple[Any, tuple[int, ...]]] = [(first, (4, SIDE, SIDE))]

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def latest(self) -> tuple[Any, tuple[int, ...]]:
        return self.known[-1 - int(self.random.integers(min(3, len(self.known))))]

    def grow(self) -> None:
        x, shape = self.latest()
        made = self.pick(*STEPS)(self, x, shape)
        _, (output,), _ = made.infer_shape(data=(1, 3, SIDE, SIDE))
        if np.prod(output) <= 4000 and min(output[2:]) >= 2 and output[1] % 2 == 0:
            self.known.append((made, output[1:]))

    def partner(self, x: Any, shape: tuple[int, ...]) -> Any:
        """Another array that arithmetic with x takes."""
        same = [other for other, its in self.known if its == shape]
        weight = f"variable{len(self.known)}"
        return self.pick(
            self.pick(*same), S.mean(x, axis=1, keepdims=True), S.Variable(weight, shape=(1, shape[0], 1, 1))
        )

    def finished(self) -> Any:
        pooled = [S.mean(S.tanh(x), axis=(2, 3)) for x, _ in self.known[-3:]]
        vector = S.concat(*pooled, dim=1) if len(pooled) > 1 else pooled[0]
        return S.FullyConnected(S.Activation(vector, act_type=self.pick("tanh", "relu", "softsign")), num_hidden=5)


STEPS: list[Callable[[Drawing, Any, tuple[int, ...]], Any]] = [
    lambda d, x, s: conv(x, d.pick(2, 4, 6), num_group=d.pick(1, 2), stride=d.pick((1, 1), (2, 1)), no_bias=True),
    lambda d, x, s: conv(x, 4, dilate=d.pick((1, 1), (2, 2)), pad=(2, 2)),
    lambda d, x, s: S.Deconvolution(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), adj=d.pick((0, 0), (1, 0)),
                                    num_filter=4, num_group=d.pick(1, 2), no_bias=d.pick(True, False)),
    lambda d, x, s: S.BatchNorm(x, fix_gamma=d.pick(True, False), use_global_stats=d.pick(True, False), eps=2**-8),
    lambda d, x, s: S.LayerNorm(x, axis=d.pick(-1, 1), eps=2**-8),
    lambda d, x, s: S.L2Normalization(x + 2, mode=d.pick("instance", "channel", "spatial")),
    lambda d, x, s: S.Activation(x, act_type=d.pick("relu", "tanh", "sigmoid", "softrelu", "softsign")),
    lambda d, x, s: S.LeakyReLU(x, act_type="elu", slope=0.5),
    lambda d, x, s: S.Pooling(x, kernel=(2, 2), stride=d.pick((1, 1), (2, 2)), pool_type=d.pick("max", "avg", "sum"),
                              pooling_convention=d.pick("valid", "full")),
    lambda d, x, s: S.Pooling(x, kernel=(3, 3), pad=(1, 1), pool_type="avg", count_include_pad=d.pick(True, False)),
    lambda d, x, s: d.pick(S.broadcast_add, S.broadcast_sub, S.broadcast_mul, S.broadcast_maximum)(x, d.partner(x, s)),
    lambda d, x, s: S.broadcast_div(x, S.exp(S.tanh(S.mean(x, axis=d.pick(1, 2), keepdims=True)))),
    lambda d, x, s: d.pick(x * 0.5, 1 - x, x / 2, 1 / (1 + S.square(x)), S._internal._minimum_scalar(x, scalar=0.5)),
    lambda d, x, s: S.concat(x, S.tanh(x), dim=d.pick(1, 2, 3)),
    lambda d, x, s: S.SliceChannel(x, num_outputs=2, axis=1)[d.pick(0, 1)],
    lambda d, x, s: S.slice_axis(x, axis=d.pick(2, 3), begin=0, end=-1) if min(s[1:]) > 3 else S.square(x),
    lambda d, x, s: S.Reshape(S.SwapAxis(S.Reshape(x, shape=(0, -4, 2, -1, -2)), dim1=1, dim2=2), shape=(0, -3, -2)),
    lambda d, x, s: S.transpose(x, axes=(0, 1, 3, 2)),
    lambda d, x, s: S.broadcast_mul(x, S.sigmoid(S.mean(x, axis=(2, 3), keepdims=True))),
    lambda d, x, s: S.UpSampling(x, scale=2, sample_type="nearest"),
    lambda d, x, s: S.pad(x, mode=d.pick("constant", "edge", "reflect"), pad_width=(0, 0, 0, 0, 1, 0, 0, 1)),
    lambda d, x, s: S.softmax(x, axis=d.pick(1, -1)),
    lambda d, x, s: S.clip(x, -1, 0.75),
    lambda d, x, s: S.identity(x) + S.Cast(x, dtype="float64"),
    lambda d, x, s: S.add_n(x, x, S.negative(S.sqrt(S.abs(x) + 1))),
    lambda d, x, s: S.expand_dims(S.squeeze(S.expand_dims(x, axis=1), axis=1), axis=4).reshape(shape=(0, 0, 0, -3)),
]  # fmt: skip


def random_symbol(seed: int) -> Any:
    with mx.name.Prefix(f"g{seed}_"):
        drawing = Drawing(seed)
        for _ in range(int(drawing.random.integers(4, 26))):
            drawing.grow()
        return drawing.finished()


@pytest.mark.parametrize("seed", range(50 if LONG else 10))
def test_random_graphs_score_and_train_as_in_mxnet(seed: int, against_mxnet: Any) -> None:
    symbol, against = random_symbol(seed), against_mxnet(SIDE)
    found = against.assert_equal(symbol)
    gradients = against.gradients(symbol)
    largest = max(np.abs(array).max() for array in gradients.values())
    for name in against.engines:
        engine = against.engine_of(name, found)
        engine.train_batch(against.images, against.labels, RATE, seed=0)
        after = engine.values()
        for ours, source in found.sources.items():
            if "running_" not in ours:
                gradient = (found.values[ours] - after[ours]) / RATE
                assert np.abs(gradient - gradients[source]).max() <= LIMIT * largest, (name, ours)
