"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016).

The form called v1b: where a bottleneck halves the image it does so in its 3x3 convolution, as in Gross &
Wilber, "Training and investigating Residual Nets" (2016). Convolutions have no bias: a batch normalisation
follows each.
"""

from __future__ import annotations

from collections.abc import Callable
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

Block = Callable[[int, int, bool], Residual]  # (width, stride, project) -> one unit

conv = partial(Conv, bias=False)
norm = partial(BatchNorm, epsilon=1e-5, momentum=0.9)
relu = Activation("relu")


def basic(width: int, stride: int, project: bool) -> Residual:
    """Two 3x3 convolutions of `width` channels."""
    body = stack(
        conv1=conv(width, 3, stride=stride, pad=1),
        norm1=norm(),
        relu1=relu,
        conv2=conv(width, 3, pad=1),
        norm2=norm(),
    )
    return Residual(body, projection(width, stride) if project else None)


def bottleneck(width: int, stride: int, project: bool) -> Residual:
    """1x1 down to `width` channels, 3x3, 1x1 up to four times as many."""
    body = stack(
        conv1=conv(width, 1),
        norm1=norm(),
        relu1=relu,
        conv2=conv(width, 3, stride=stride, pad=1),
        norm2=norm(),
        relu2=relu,
        conv3=conv(4 * width, 1),
        norm3=norm(),
    )
    return Residual(body, projection(4 * width, stride) if project else None)


def projection(channels: int, stride: int) -> Sequential:
    """The shortcut where the shape changes: 1x1 convolution and normalisation (the paper's option B)."""
    return stack(conv=conv(channels, 1, stride=stride), norm=norm())


def stage(block: Block, width: int, units: int, stride: int, project: bool) -> Sequential:
    """Units of one width; only the first may change the shape."""
    items: dict[str, Layer] = {}
    for number in range(1, units + 1):
        first = number == 1
        items[f"unit{number}"] = block(width, stride if first else 1, project and first)
        items[f"relu{number}"] = relu
    return stack(**items)


def resnet(block: Block, depths: tuple[int, int, int, int], classes: int) -> Sequential:
    """Stem, four stages of doubling width, mean over the image, classifier."""
    one, two, three, four = depths
    return stack(
        stem=stack(
            conv=conv(64, 7, stride=2, pad=3),
            norm=norm(),
            relu=relu,
            pool=Pool("max", 3, stride=2, pad=1),
        ),
        stage1=stage(block, 64, one, stride=1, project=block is bottleneck),
        stage2=stage(block, 128, two, stride=2, project=True),
        stage3=stage(block, 256, three, stride=2, project=True),
        stage4=stage(block, 512, four, stride=2, project=True),
        pool=GlobalAveragePool(),
        flatten=Flatten(),
        classifier=Dense(classes),
    )


resnet18 = partial(resnet, basic, (2, 2, 2, 2))
resnet34 = partial(resnet, basic, (3, 4, 6, 3))
resnet50 = partial(resnet, bottleneck, (3, 4, 6, 3))
