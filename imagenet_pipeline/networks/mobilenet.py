"""MobileNets: convolutions over each channel by itself ("depthwise"), between 1x1 convolutions over all of them.

V1 (Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017) as its
authors' code and timm's mobilenetv1_100 have it: every ReLU stops at 6. V2 (Sandler et al., "MobileNetV2: Inverted
Residuals and Linear Bottlenecks", CVPR 2018) as torchvision has it. GluonCV's V1 has a plain ReLU, and its V2
a last convolution without a bias for a classifier.
"""

from __future__ import annotations

from collections.abc import Callable

from imagenet_pipeline.networks.layers import (
    BatchNorm,
    Clip,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Layer,
    Residual,
    Sequential,
    stack,
)

NORM, RELU6 = BatchNorm(), Clip(0, 6)


def convolution(
    channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    active: Layer | None = RELU6,
    norm: BatchNorm = NORM,
) -> Sequential:
    """A convolution without bias that keeps the size or divides it by its stride, its normalisation and activation."""
    conv = Conv(channels, kernel, stride, pad=kernel // 2, groups=groups, bias=False)
    return stack(conv=conv, norm=norm) if active is None else stack(conv=conv, norm=norm, active=active)


V1_STRIDES = {64: (1,), 128: (2, 1), 256: (2, 1), 512: (2, 1, 1, 1, 1, 1), 1024: (2, 1)}
"""Of the units of each stage, by their channels: the paper's table 1."""


def mobilenet_v1(classes: int) -> Sequential:
    """Stem, 13 units of a depthwise and a 1x1 convolution, mean over the image, classifier."""
    stages: dict[str, Layer] = {}
    reaching = 32
    for channels, strides in V1_STRIDES.items():
        units: dict[str, Layer] = {}
        for stride in strides:
            depthwise = convolution(reaching, 3, stride, groups=reaching)
            units[f"unit{len(units) + 1}"] = stack(depthwise=depthwise, pointwise=convolution(channels, 1))
            reaching = channels
        stages[f"stage{len(stages) + 1}"] = stack(**units)
    head: dict[str, Layer] = {"pool": GlobalAveragePool(), "flatten": Flatten(), "classifier": Dense(classes)}
    return stack(stem=convolution(32, 3, 2), **stages, **head)


def inverted(
    reaching: int,
    expanded: int,
    channels: int,
    kernel: int,
    stride: int,
    convolution: Callable[..., Sequential] = convolution,
    excitation: Layer | None = None,
    drop_rate: float = 0.0,
) -> Layer:
    """An inverted residual: 1x1 up to `expanded` channels, depthwise, 1x1 down to `channels`, not activated.

    The first is left out where it would change nothing. What comes in is added where it has the shape of what goes
    out, at the `drop_rate` that alone. `convolution` is MobileNetV2's by default; `excitation` stands behind the
    depthwise one.
    """
    items: dict[str, Layer] = {}
    if expanded != reaching:
        items["expand"] = convolution(expanded, 1)
    items["depthwise"] = convolution(expanded, kernel, stride, groups=expanded)
    if excitation is not None:
        items["excitation"] = excitation
    items["project"] = convolution(channels, 1, active=None)
    body = stack(**items)
    return Residual(body, drop_rate=drop_rate) if (stride, reaching) == (1, channels) else body


V2_UNITS = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
"""The paper's table 2: factor of expansion, channels, units, stride of the first of them."""


def mobilenet_v2(classes: int) -> Sequential:
    """Stem, 17 inverted residuals, a 1x1 convolution, mean over the image, dropout, classifier."""
    units: dict[str, Layer] = {}
    reaching = 32
    for factor, channels, count, first in V2_UNITS:
        for stride in (first, *[1] * (count - 1)):
            units[f"unit{len(units) + 1}"] = inverted(reaching, factor * reaching, channels, 3, stride)
            reaching = channels
    return stack(
        stem=convolution(32, 3, 2), **units, head=convolution(1280, 1), pool=GlobalAveragePool(), flatten=Flatten(),
        dropout=Dropout(0.2), classifier=Dense(classes),
    )  # fmt: skip
