"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016).

resnet18 to resnet152 are the form called v1b: where a bottleneck halves the image it does so in its 3x3
convolution, as in Gross & Wilber, "Training and investigating Residual Nets" (2016). The _v1 networks do it in
the first 1x1, as the paper has it; basic blocks know no such difference. Convolutions have no bias: a batch
normalisation follows each. The D variant is in resnet_d.py, pre-activation in resnet_v2.py, grouped and wider
bottlenecks in resnext.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Layer,
    Pool,
    Residual,
    Sequential,
    stack,
)

Depths = tuple[int, int, int, int]  # units in each stage
Part = Callable[[int, int], Sequential]  # (channels, stride) -> layers

conv = partial(Conv, bias=False)
norm = partial(BatchNorm, epsilon=1e-5, momentum=0.9)
relu = Activation("relu")


def basic(width: int, stride: int) -> Sequential:
    """Two 3x3 convolutions of `width` channels."""
    return stack(
        conv1=conv(width, 3, stride=stride, pad=1),
        norm1=norm(),
        relu1=relu,
        conv2=conv(width, 3, pad=1),
        norm2=norm(),
    )


def bottleneck(width: int, stride: int, times: int = 1, groups: int = 1) -> Sequential:
    """1x1 to `times` the width in channels, as many by a 3x3 in `groups` with the stride, 1x1 up to four times."""
    return _bottleneck(width, (1, stride), times, groups)


def bottleneck_v1(width: int, stride: int) -> Sequential:
    """The paper's bottleneck: the stride is in the first 1x1."""
    return _bottleneck(width, (stride, 1))


def _bottleneck(width: int, strides: tuple[int, int], times: int = 1, groups: int = 1) -> Sequential:
    return stack(
        conv1=conv(times * width, 1, stride=strides[0]),
        norm1=norm(),
        relu1=relu,
        conv2=conv(times * width, 3, stride=strides[1], pad=1, groups=groups),
        norm2=norm(),
        relu2=relu,
        conv3=conv(4 * width, 1),
        norm3=norm(),
    )


def projection(channels: int, stride: int) -> Sequential:
    """The shortcut where the shape changes: 1x1 convolution and normalisation (the paper's option B)."""
    return stack(conv=conv(channels, 1, stride=stride), norm=norm())


STEM = stack(
    conv=conv(64, 7, stride=2, pad=3),
    norm=norm(),
    relu=relu,
    pool=Pool("max", 3, stride=2, pad=1),
)


@dataclass(frozen=True)
class Form:
    """The parts that a family repeats: the body of a unit, whose output has `expansion` times its width in channels."""

    body: Part
    expansion: int
    shortcut: Part = projection
    stem: Sequential = STEM


BASIC = Form(basic, 1)
BOTTLENECK = Form(bottleneck, 4)
BOTTLENECK_V1 = Form(bottleneck_v1, 4)


def stage(form: Form, width: int, units: int, stride: int, project: bool) -> Sequential:
    """Units of the same width; only the first may change the shape."""
    items: dict[str, Layer] = {}
    for number in range(1, units + 1):
        shortcut = form.shortcut(form.expansion * width, stride) if project and number == 1 else None
        items[f"unit{number}"] = Residual(form.body(width, stride if number == 1 else 1), shortcut)
        items[f"relu{number}"] = relu
    return stack(**items)


def resnet(form: Form, depths: Depths, classes: int) -> Sequential:
    """Stem, four stages of doubling width, mean over the image, classifier."""
    units1, units2, units3, units4 = depths
    return stack(
        stem=form.stem,
        stage1=stage(form, 64, units1, stride=1, project=form.expansion > 1),
        stage2=stage(form, 128, units2, stride=2, project=True),
        stage3=stage(form, 256, units3, stride=2, project=True),
        stage4=stage(form, 512, units4, stride=2, project=True),
        pool=GlobalAveragePool(),
        flatten=Flatten(),
        classifier=Dense(classes),
    )


DEPTHS_18, DEPTHS_34, DEPTHS_101, DEPTHS_152 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
DEPTHS_26, DEPTHS_50 = DEPTHS_18, DEPTHS_34  # in bottlenecks

resnet18 = partial(resnet, BASIC, DEPTHS_18)
resnet34 = partial(resnet, BASIC, DEPTHS_34)
resnet50 = partial(resnet, BOTTLENECK, DEPTHS_50)
resnet101 = partial(resnet, BOTTLENECK, DEPTHS_101)
resnet152 = partial(resnet, BOTTLENECK, DEPTHS_152)
resnet50_v1 = partial(resnet, BOTTLENECK_V1, DEPTHS_50)
resnet101_v1 = partial(resnet, BOTTLENECK_V1, DEPTHS_101)
resnet152_v1 = partial(resnet, BOTTLENECK_V1, DEPTHS_152)
