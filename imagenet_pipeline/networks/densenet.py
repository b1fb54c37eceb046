"""DenseNet-BC for ImageNet (Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, table 1).

Each unit's new channels are appended to all earlier ones; normalisation and ReLU come before each convolution.
As in the authors' ImageNet networks nothing is dropped out.
"""

from __future__ import annotations

from functools import partial

from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Layer,
    Pool,
    Sequential,
    stack,
)

BOTTLENECK = 4  # a unit's 1x1 makes this many times as many channels as the unit adds

conv = partial(Conv, bias=False)
norm = partial(BatchNorm, epsilon=1e-5, momentum=0.9)
relu = Activation("relu")


def unit(growth: int) -> Concat:
    """The input as it is, and `growth` new channels made of it by a 1x1 and a 3x3 convolution."""
    new = stack(
        norm1=norm(),
        relu1=relu,
        conv1=conv(BOTTLENECK * growth, 1),
        norm2=norm(),
        relu2=relu,
        conv2=conv(growth, 3, pad=1),
    )
    return Concat((("input", stack()), ("new", new)))


def transition(channels: int) -> Sequential:
    """1x1 convolution to `channels` and the mean of each 2x2 pixels."""
    return stack(norm=norm(), relu=relu, conv=conv(channels, 1), pool=Pool("average", 2, stride=2))


def densenet(growth: int, units: tuple[int, ...], classes: int) -> Sequential:
    """Stem of 2 * `growth` channels, dense blocks with halving transitions between them, classifier."""
    channels = 2 * growth
    blocks: dict[str, Layer] = {}
    for number, count in enumerate(units, 1):
        blocks[f"block{number}"] = stack(**{f"unit{index}": unit(growth) for index in range(1, count + 1)})
        channels += count * growth
        if number < len(units):
            channels //= 2
            blocks[f"transition{number}"] = transition(channels)
    stem = stack(
        conv=conv(2 * growth, 7, stride=2, pad=3),
        norm=norm(),
        relu=relu,
        pool=Pool("max", 3, stride=2, pad=1),
    )
    return stack(
        stem=stem,
        **blocks,
        norm=norm(),
        relu=relu,
        pool=GlobalAveragePool(),
        flatten=Flatten(),
        classifier=Dense(classes),
    )


densenet121 = partial(densenet, 32, (6, 12, 24, 16))
densenet161 = partial(densenet, 48, (6, 12, 36, 24))
densenet169 = partial(densenet, 32, (6, 12, 32, 32))
densenet201 = partial(densenet, 32, (6, 12, 48, 32))
