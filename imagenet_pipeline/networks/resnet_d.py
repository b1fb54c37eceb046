"""ResNet-D (He, T. et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", CVPR
2019, section 4), as GluonCV's resnet50_v1d and timm's resnet50d have it.

Two changes to v1b: three 3x3 convolutions in place of the stem's 7x7, and a shortcut that halves the image
averages it before its 1x1 convolution instead of dropping three pixels in four.
"""

from __future__ import annotations

from functools import partial

from imagenet_pipeline.networks.layers import Pool, Sequential, stack
from imagenet_pipeline.networks.resnet import (
    DEPTHS_18,
    DEPTHS_26,
    DEPTHS_34,
    DEPTHS_50,
    DEPTHS_101,
    DEPTHS_152,
    Form,
    basic,
    bottleneck,
    conv,
    norm,
    projection,
    relu,
    resnet,
)

STEM = stack(
    conv1=conv(32, 3, stride=2, pad=1),
    norm1=norm(),
    relu1=relu,
    conv2=conv(32, 3, pad=1),
    norm2=norm(),
    relu2=relu,
    conv3=conv(64, 3, pad=1),
    norm3=norm(),
    relu3=relu,
    pool=Pool("max", 3, stride=2, pad=1),
)


def averaging_projection(channels: int, stride: int) -> Sequential:
    """Mean of each 2x2 pixels (of those there are, at an odd border), then 1x1 convolution and normalisation."""
    if stride == 1:
        return projection(channels, 1)
    pool = Pool("average", stride, stride=stride, ceil=True, count_pad=False)
    return stack(pool=pool, conv=conv(channels, 1), norm=norm())


BASIC = Form(basic, 1, averaging_projection, STEM)
BOTTLENECK = Form(bottleneck, 4, averaging_projection, STEM)

resnet18_d = partial(resnet, BASIC, DEPTHS_18)
resnet34_d = partial(resnet, BASIC, DEPTHS_34)
resnet26_d = partial(resnet, BOTTLENECK, DEPTHS_26)
resnet50_d = partial(resnet, BOTTLENECK, DEPTHS_50)
resnet101_d = partial(resnet, BOTTLENECK, DEPTHS_101)
resnet152_d = partial(resnet, BOTTLENECK, DEPTHS_152)
