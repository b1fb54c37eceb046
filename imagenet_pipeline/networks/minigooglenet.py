"""MiniGoogLeNet: the "Inception (small)" of Zhang et al., "Understanding deep learning requires rethinking
generalization" (ICLR 2017, appendix A), as "Deep Learning for Computer Vision with Python" (Rosebrock, Practitioner
Bundle) has it: convolutions with bias, dropout before the classifier, 32 pixels (the paper crops to 28).

The constants of the normalisation are the Keras defaults that the book's code relies on.
"""

from __future__ import annotations

from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Pool,
    Sequential,
    stack,
)


def minigooglenet(classes: int) -> Sequential:
    """Ten modules in three stages, mean over the image (7x7 at 32 pixels), classifier."""
    return stack(
        conv1=unit(96, 3, pad=1),
        inception2a=inception(32, 32), inception2b=inception(32, 48), downsample2=downsample(80),
        inception3a=inception(112, 48), inception3b=inception(96, 64), inception3c=inception(80, 80),
        inception3d=inception(48, 96), downsample3=downsample(96),
        inception4a=inception(176, 160), inception4b=inception(176, 160),
        pool=GlobalAveragePool(), dropout=Dropout(0.5), flatten=Flatten(),
        classifier=Dense(classes),
    )  # fmt: skip


def unit(channels: int, kernel: int, stride: int = 1, pad: int = 0) -> Sequential:
    """Convolution, normalisation, ReLU."""
    norm = BatchNorm(epsilon=1e-3, momentum=0.99)
    return stack(conv=Conv(channels, kernel, stride, pad), norm=norm, relu=Activation("relu"))


def inception(width1: int, width3: int) -> Concat:
    """1x1 and 3x3 convolutions side by side."""
    return Concat((("branch1", unit(width1, 1)), ("branch3", unit(width3, 3, pad=1))))


def downsample(channels: int) -> Concat:
    """Half the size, by a convolution and by pooling side by side."""
    return Concat((("branch3", unit(channels, 3, stride=2)), ("branch_pool", Pool("max", 3, stride=2))))
