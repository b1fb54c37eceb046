"""Every network of the catalogue on both engines: the same values give the same logits and the same gradients.

In float64, with batches of four random pictures at the smallest size that leaves each batch normalisation (but
those of auxiliary heads) two by two pixels. A difference is relative to the largest of the logits, or of the
gradients of that layer: the bias of a convolution before a batch normalisation has a gradient of 0, of which both
engines find rounding only. IMAGENET_PIPELINE_LONG=1 tries the large networks too.

Measured over all of them: logits within 8e-15 (se_resnet101: 4.2e-11), gradients within 1.4e-11 (resnet152).
"""

from __future__ import annotations

import bisect
import dataclasses
import os
from functools import partial
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog, resnet_d
from imagenet_pipeline.networks.convnext import convnext
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Concat,
    Constant,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Elementwise,
    Flatten,
    GlobalAveragePool,
    Graph,
    InstanceNorm,
    Join,
    Layer,
    LayerNorm,
    LocalResponseNorm,
    Pool,
    Reduce,
    Reshape,
    Residual,
    Sequential,
    Slice,
    Tap,
    Transpose,
    stack,
)
from imagenet_pipeline.networks.mobilenet import convolution, inverted
from imagenet_pipeline.networks.mobilenet_v3 import HS, RE, mobilenet_v3
from imagenet_pipeline.networks.resnet import BOTTLENECK, Form, stage
from imagenet_pipeline.networks.resnext import widened
from imagenet_pipeline.networks.se_resnet import excited
from imagenet_pipeline.networks.shapes import describe
from imagenet_pipeline.networks.squeeze_excitation import squeeze_excitation
from imagenet_pipeline.networks.vit import vit

pytestmark = pytest.mark.gluon

CLASSES, IMAGES = 5, 4
RATE = 2.0**20  # so large that a step leaves nothing of the old value but its rounding
LONG = os.environ.get("IMAGENET_PIPELINE_LONG") == "1"
LARGE = (
    "alexnet_one_tower", "vgg11", "vgg13", "vgg16", "vgg19", "vgg13_bn", "vgg16_bn", "vgg19_bn", "vgg16_book",
    "inception_v3", "resnet34", "resnet101", "resnet152", "resnet50_v1", "resnet101_v1", "resnet152_v1",
    "resnet34_v2", "resnet50_v2", "resnet101_v2", "resnet152_v2", "resnet50_book", "resnet34_d", "resnet50_d",
    "resnet101_d", "resnet152_d", "resnet26_d", "resnext26_32x4d_d", "resnext50_32x4d", "resnext50_32x4d_d",
    "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2", "se_resnet50", "se_resnet101",
    "se_resnext50_32x4d", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "efficientnet_b0",
    "convnext_tiny", "vit_small_patch16_224", "densenet161", "densenet169", "densenet201",
)  # fmt: skip
"""From two seconds on one core upwards; of each family a smaller or similar one is tried always."""
LIMIT = 1e-9
STATISTICS_LIMIT = 1e-6  # MXNet keeps running statistics in float32

Values = dict[str, np.ndarray[Any, Any]]


def without_dropout(layer: Any) -> Any:
    """The same network with nothing in place of its dropouts: the engines draw different numbers."""
    match layer:
        case Dropout():
            return stack()
        case Sequential():
            return Sequential(tuple((name, without_dropout(item)) for name, item in layer.items))
        case Residual():
            shortcut = layer.shortcut and without_dropout(layer.shortcut)
            return Residual(without_dropout(layer.body), shortcut)
        case Concat():
            return Concat(tuple((name, without_dropout(branch)) for name, branch in layer.branches))
        case Tap():
            return dataclasses.replace(layer, head=without_dropout(layer.head))
    return layer


def smallest_size(network: Sequential, usual: int) -> int:
    """Below two by two pixels the normalised values of a batch are a handful, and their gradients mostly noise.

    `usual` where a network takes no other size.
    """

    def fits(size: int) -> bool:
        try:
            reports = describe(network, (3, size, size))
        except BadRecipe:
            return False
        normalised = [one.input_shape for one in reports if isinstance(one.layer, BatchNorm) and not one.auxiliary]
        return all(min(shape[1:], default=2) >= 2 for shape in normalised)

    found = bisect.bisect_left(range(512), True, lo=8, key=fits)
    return found if fits(found) else usual


def computed(engine: Any, images: Any, labels: Any, before: Values) -> tuple[Values, Values, Values]:
    """Logits, gradients of the loss by parameter, running statistics after the step."""
    logits = {"logits": engine.logits(images)}
    engine.train_batch(images, labels, RATE, seed=0)
    after = engine.values()
    statistics = {name: value for name, value in after.items() if "running_" in name}
    gradients = {name: (before[name] - after[name]) / RATE for name in after if name not in statistics}
    return logits, gradients, statistics


def worst(found: Values, wanted: Values) -> float:
    """The largest difference relative to the largest value of the same layer."""
    largest: dict[str, float] = {}
    for name, value in wanted.items():
        layer = name.rpartition(".")[0]
        largest[layer] = max(largest.get(layer, 0.0), np.abs(value).max())
    return max(
        (np.abs(found[name] - value).max() / largest[name.rpartition(".")[0]] for name, value in wanted.items()),
        default=0.0,
    )


def compare(engine_of: Any, network: Sequential, values: Values, images: Any, precision: str) -> list[float]:
    """The worst difference of the logits, the gradients and the running statistics."""
    labels = np.arange(IMAGES) % CLASSES
    size = images.shape[1]
    ours, theirs = (
        computed(engine_of(name, network, size, values, precision), images, labels, values)
        for name in ("gluon", "pytorch")
    )
    return [worst(found, wanted) for found, wanted in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("name", catalog.names())
def test_both_engines_compute_the_same(name: str, random_values: Any, photos: Any, engine_of: Any) -> None:
    if name in LARGE and not LONG:
        pytest.skip("a large network: IMAGENET_PIPELINE_LONG=1 tries it")
    network = without_dropout(catalog.build(name, CLASSES))
    size = smallest_size(network, catalog.entry(name).input_size)
    logits, gradients, statistics = compare(
        engine_of, network, random_values(network, size), photos(IMAGES, size), "float64"
    )
    assert logits <= LIMIT
    assert gradients <= LIMIT
    assert statistics <= STATISTICS_LIMIT


SWISH = Activation("swish")


def classifying(layer: Layer) -> Sequential:
    """A network of a layer and a classifier."""
    return stack(layer=layer, pool=GlobalAveragePool(), flatten=Flatten(), classifier=Dense(CLASSES))


def excited_unit(reaching: int, expanded: int, channels: int, stride: int) -> Layer:
    excitation = squeeze_excitation(expanded, max(1, reaching // 4), SWISH)
    return inverted(reaching, expanded, channels, 5, stride, partial(convolution, active=SWISH), excitation)


def units(form: Form) -> Sequential:
    return classifying(stage(form, 8, 2, stride=2, project=True))


REDUCED = {
    "resnext": units(widened(BOTTLENECK, 2, 4)),
    "resnext_d": units(widened(resnet_d.BOTTLENECK, 2, 4)),
    "se_resnet": units(excited(BOTTLENECK)),
    "mobilenet_v2": classifying(stack(unit1=inverted(3, 6, 5, 3, 2), unit2=inverted(5, 15, 5, 3, 1))),
    "mobilenet_v3": mobilenet_v3(((3, 12, 16, True, RE, 2), (5, 24, 16, True, HS, 1)), 20, CLASSES),
    "efficientnet": classifying(stack(unit1=excited_unit(3, 12, 8, 2), unit2=excited_unit(8, 16, 8, 1))),
    "convnext": convnext((1, 2), (8, 12), 0.0, CLASSES),
    "vit": vit(16, 4, 12, 2, 3, CLASSES),
}
"""A few narrow units of each family whose networks are large."""


@pytest.mark.parametrize("family", REDUCED)
def test_units_of_a_family_compute_the_same(family: str, random_values: Any, photos: Any, engine_of: Any) -> None:
    network = without_dropout(REDUCED[family])
    found = compare(engine_of, network, random_values(network, 16), photos(IMAGES, 16), "float64")
    assert max(found[:2]) <= LIMIT
    assert found[2] <= STATISTICS_LIMIT


SHUFFLE = Graph(
    (("left", Slice(0, 0, 4)), ("right", Slice(0, 4, None)), ("conv", stack(conv=Conv(4, 1), norm=BatchNorm())),
     ("spread", ConvTranspose(4, 3, pad=2, dilation=2)), ("gate", stack(mean=Reduce("mean", (1, 2), keep=True),
                                                                       sigmoid=Activation("sigmoid"))),
     ("scaled", Elementwise("multiply")), ("number", Constant((4, 1, 1))), ("shifted", Elementwise("maximum")),
     ("join", Join()), ("groups", Reshape((2, 4, 10, 10))), ("turned", Transpose((1, 0, 2, 3))),
     ("end", Reshape((8, 10, 10)))),
    (("",), ("",), ("left",), ("conv",), ("conv",), ("spread", "gate"), (), ("scaled", "number"),
     ("shifted", "right"), ("join",), ("groups",), ("turned",)),
)  # fmt: skip
"""A ShuffleNet unit with a gate, an upsampling and a constant in it."""


def test_a_graph_trains_as_equal_steps_on_both_engines(random_values: Any, photos: Any, engine_of: Any) -> None:
    network = stack(
        conv=Conv(8, 3), norm=InstanceNorm(), relu=Activation("gelu"), unit=SHUFFLE,
        twice=Residual(stack(unit=SHUFFLE, fixed=BatchNorm(frozen=True))), pool=Pool("sum", 3, stride=2, ceil=True),
        last=Reduce("mean", (1, 2)), norm2=LayerNorm(), classifier=Dense(CLASSES),
    )  # fmt: skip
    values, images, labels = random_values(network, 12), photos(IMAGES, 12), np.arange(IMAGES) % CLASSES
    ours, theirs = (engine_of(name, network, 12, values) for name in ("gluon", "pytorch"))
    for step in range(3):
        losses = []
        for engine in (ours, theirs):
            engine.train_batch(images, labels, 0.05, seed=step)
            losses.append(engine.totals().loss)
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    found, wanted = ours.values(), theirs.values()
    still = {name for name, value in values.items() if abs(found[name] - value).max() == 0}
    # A bias before a norm moves by rounding at most.
    assert {name for name in still if not name.endswith("conv.bias")} == {
        "twice.fixed.running_mean", "twice.fixed.running_var"}  # fmt: skip
    statistics = {name for name in wanted if "running" in name}
    assert worst(found, {name: wanted[name] for name in wanted.keys() - statistics}) <= LIMIT
    assert worst(found, {name: wanted[name] for name in statistics}) <= STATISTICS_LIMIT
    assert worst({"logits": ours.logits(images)}, {"logits": theirs.logits(images)}) <= STATISTICS_LIMIT


def test_response_norm_between_convolutions_in_float32(random_values: Any, photos: Any, engine_of: Any) -> None:
    """Where MXNet's own LRN has a wrong gradient: its neighbours keep 16 channels together in memory."""
    network = stack(
        conv=Conv(16, 3),
        norm=LocalResponseNorm(alpha=1.0),
        pool=Pool("max", 3, stride=2),
        last=Conv(CLASSES, 6),
        flatten=Flatten(),
    )
    logits, gradients, _ = compare(engine_of, network, random_values(network, 15), photos(IMAGES, 15), "float32")
    assert logits <= 1e-5
    assert gradients <= 1e-5
