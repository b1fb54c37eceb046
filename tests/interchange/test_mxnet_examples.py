"""MXNet's example networks, as example/image-classification has them but narrow: they come in, and score as in MXNet.

Each is written anew out of what it is made of: the order of its layers, kernels, strides and joins.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("imagenet_pipeline.engines.gluon.runtime")

from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.interchange.mxnet_layers import layered
from imagenet_pipeline.interchange.symbol import read_symbol

S = mx.sym
CLASSES = 5


def conv(x: Any, channels: int, kernel: Any = 1, stride: int = 1, pad: Any = 0, **more: Any) -> Any:
    kernel, pad = (size if isinstance(size, tuple) else (size, size) for size in (kernel, pad))
    return S.Convolution(x, num_filter=channels, kernel=kernel, stride=(stride, stride), pad=pad, **more)


def unit(x: Any, channels: int, kernel: Any = 1, stride: int = 1, pad: Any = 0, **more: Any) -> Any:
    """Convolution, normalisation, ReLU."""
    x = conv(x, channels, kernel, stride, pad, no_bias=True, **more)
    return S.Activation(S.BatchNorm(x, fix_gamma=True, eps=2e-5), act_type="relu")


def pool(x: Any, kind: str, kernel: int = 3, stride: int = 2, pad: int = 0, **more: Any) -> Any:
    return S.Pooling(x, kernel=(kernel, kernel), stride=(stride, stride), pad=(pad, pad), pool_type=kind, **more)


def classifier(x: Any) -> Any:
    pooled = S.Pooling(x, global_pool=True, kernel=(7, 7), pool_type="avg")
    return S.FullyConnected(S.Flatten(pooled), num_hidden=CLASSES)


def mlp(x: Any) -> Any:
    x = S.Flatten(x)
    for units in (128, 64):
        x = S.Activation(S.FullyConnected(x, num_hidden=units), act_type="relu")
    return S.FullyConnected(x, num_hidden=CLASSES)


def lenet(x: Any) -> Any:
    for channels in (20, 50):
        x = pool(S.Activation(conv(x, channels, 5), act_type="tanh"), "max", 2, 2)
    x = S.Activation(S.FullyConnected(S.Flatten(x), num_hidden=500), act_type="tanh")
    return S.FullyConnected(x, num_hidden=CLASSES)


def vgg(x: Any) -> Any:
    for channels, count in ((8, 1), (12, 2)):
        for _ in range(count):
            x = S.Activation(conv(x, channels, 3, 1, 1), act_type="relu")
        x = pool(x, "max", 2, 2)
    for _ in range(2):
        x = S.Dropout(S.Activation(S.FullyConnected(S.flatten(x), num_hidden=32), act_type="relu"), p=0.5)
    return S.FullyConnected(x, num_hidden=CLASSES)


def mobilenet(x: Any) -> Any:
    x = unit(x, 8, 3, 2, 1)
    for channels, stride in ((8, 1), (16, 2), (16, 1), (32, 2)):
        before = {16: 8, 8: 8, 32: 16}[channels] if stride == 2 or channels == 8 else channels
        x = unit(unit(x, before, 3, stride, 1, num_group=before), channels)
    return classifier(x)


def mobilenet_v2(x: Any) -> Any:
    def clipped(x: Any, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
        x = conv(x, channels, kernel, stride, kernel // 2, num_group=groups, no_bias=True)
        return S.clip(S.BatchNorm(x, fix_gamma=False), 0, 6)

    x, channels = clipped(x, 8, 3, 2), 8
    for wanted, stride in ((8, 1), (12, 2), (12, 1)):
        inner = clipped(clipped(x, 6 * channels, 1), 6 * channels, 3, stride, 6 * channels)
        inner = S.BatchNorm(conv(inner, wanted, no_bias=True), fix_gamma=False)
        x = S.elemwise_add(inner, x) if (stride, wanted) == (1, channels) else inner
        channels = wanted
    pooled = S.Pooling(clipped(x, 32, 1), global_pool=True, kernel=(7, 7), pool_type="avg")
    return S.flatten(conv(pooled, CLASSES))


def residual(groups: int, first: bool) -> Callable[[Any], Any]:
    """ResNet v1 with groups, and with `first` a normalisation of the data."""

    def make(x: Any) -> Any:
        if first:
            x = S.BatchNorm(x, fix_gamma=True, eps=2e-5, name="bn_data")
        x, channels = pool(unit(x, 8, 7, 2, 3), "max", 3, 2, 1), 8
        for wanted, stride in ((16, 1), (16, 1), (32, 2)):
            inner = unit(unit(x, wanted // 2), wanted // 2, 3, stride, 1, num_group=groups)
            inner = S.BatchNorm(conv(inner, wanted, no_bias=True), fix_gamma=False, eps=2e-5)
            around = x
            if (stride, wanted) != (1, channels):
                around = S.BatchNorm(conv(x, wanted, 1, stride, no_bias=True), fix_gamma=False, eps=2e-5)
            x, channels = S.Activation(inner + around, act_type="relu"), wanted
        return classifier(x)

    return make


def inception_bn(x: Any) -> Any:
    def module(x: Any, kind: str, last: int) -> Any:
        towers = [unit(x, 6), unit(unit(x, 4), 6, 3, 1, 1), unit(unit(unit(x, 4), 6, 3, 1, 1), 6, 3, 1, 1)]
        return S.Concat(*towers, unit(pool(x, kind, 3, 1, 1), last))

    def reduction(x: Any) -> Any:
        return S.Concat(
            unit(unit(x, 4), 6, 3, 2, 1), unit(unit(unit(x, 4), 6, 3, 1, 1), 6, 3, 2, 1), pool(x, "max", 3, 2, 1)
        )

    x = pool(unit(x, 8, 7, 2, 3), "max", 3, 2)
    return classifier(module(reduction(module(x, "avg", 4)), "max", 4))


def inception_v4(x: Any) -> Any:
    x = unit(unit(unit(x, 4, 3, 2), 4, 3), 8, 3, 1, 1)
    x = S.Concat(pool(x, "max"), unit(x, 8, 3, 2))
    crossed = unit(unit(unit(x, 6), 6, (1, 7), 1, (0, 3)), 6, (7, 1), 1, (3, 0))
    x = S.Concat(unit(unit(x, 6), 8, 3), unit(crossed, 8, 3))
    split = unit(x, 6)
    towers = [unit(split, 4, (1, 3), 1, (0, 1)), unit(split, 4, (3, 1), 1, (1, 0)), unit(pool(x, "avg", 3, 1, 1), 4)]
    x = S.Concat(unit(x, 4), *towers)
    x = pool(x, "avg", 7, 1)
    return S.FullyConnected(S.Dropout(S.Flatten(x), p=0.2), num_hidden=CLASSES)


def inception_resnet_v2(x: Any) -> Any:
    x = pool(unit(unit(x, 8, 3, 2), 12, 3, 1, 1), "max")
    for scale, relu in ((0.17, True), (0.1, True), (1.0, False)):
        crossed = unit(unit(unit(x, 4), 4, (1, 7), 1, (0, 3)), 4, (7, 1), 1, (3, 0))
        mixed = conv(S.Concat(unit(x, 4), crossed), 12)
        x = x + scale * mixed
        x = S.Activation(x, act_type="relu") if relu else x
    return classifier(x)


EXAMPLES: dict[str, tuple[Callable[[Any], Any], int, int]] = {
    "mlp": (mlp, 28, 1),
    "lenet": (lenet, 28, 1),
    "vgg": (vgg, 32, 3),
    "mobilenet": (mobilenet, 32, 3),
    "mobilenetv2": (mobilenet_v2, 32, 3),
    "resnet-v1": (residual(1, False), 32, 3),
    "resnext": (residual(4, True), 32, 3),
    "inception-bn": (inception_bn, 48, 3),
    "inception-v4": (inception_v4, 45, 3),
    "inception-resnet-v2": (inception_resnet_v2, 40, 3),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_network_scores_as_in_mxnet(name: str, against_mxnet: Any) -> None:
    make, side, channels = EXAMPLES[name]
    against, logits = against_mxnet(side, channels), make(S.Variable("data"))
    found = against.assert_equal(logits)
    assert found.classes == CLASSES
    whole = against.read(S.SoftmaxOutput(logits, name="softmax"), side)
    assert whole.network == found.network


@pytest.mark.parametrize("name", ["mlp", "lenet", "vgg"])
def test_the_size_of_the_input_is_found_where_dense_layers_tell_it(name: str, against_mxnet: Any) -> None:
    make, side, channels = EXAMPLES[name]
    found = against_mxnet(side, channels).read(make(S.Variable("data")))
    assert found.size == side
    assert found.notes[0].startswith(f"input of {side} pixels assumed")


def test_a_real_file_of_before_0_8_pools_beyond_the_image_as_then(
    unpacked: Callable[[str], Path], against_mxnet: Any
) -> None:
    """MXNet 1.9.1 itself finds its branches of unequal size, unless it is told of the convention."""
    path = next(unpacked("mxnet_files_shared.tar.xz").rglob("inception-bn-28-symbol.json"))
    whole = json.loads(path.read_text())
    for node in whole["nodes"]:
        if node["op"] == "Pooling":
            node["param"]["pooling_convention"] = "full"
    told, against = mx.sym.load_json(json.dumps(whole)), against_mxnet(28)
    values = against.drawn(told)
    found = layered(read_symbol(path), values, None, (path, Path("x.params")))
    assert (found.size, found.classes) == (28, 36)
    wanted = against.bound(told.get_internals()["fc1_output"]).forward()[0].asnumpy()
    for engine in against.engines:
        logits = against.engine_of(engine, found).logits(against.images)
        assert np.abs(logits - wanted).max() <= 1e-9 * np.abs(wanted).max()
