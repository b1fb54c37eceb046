"""MiniVGGNet of "Deep Learning for Computer Vision with Python" (Rosebrock, Starter Bundle): VGG's idea for images
of 32 pixels, with batch normalisation behind each ReLU.

The constants of the normalisation are the Keras defaults that the book's code relies on.
"""

from __future__ import annotations

from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Pool,
    Sequential,
    stack,
)

relu = Activation("relu")
norm = BatchNorm(epsilon=1e-3, momentum=0.99)


def minivggnet(classes: int) -> Sequential:
    """Two blocks of two 3x3 convolutions, one dense layer of 512."""
    return stack(
        block1=block(32),
        block2=block(64),
        flatten=Flatten(),
        dense=Dense(512), relu=relu, norm=norm, dropout=Dropout(0.5),
        classifier=Dense(classes),
    )  # fmt: skip


def block(width: int) -> Sequential:
    """Two 3x3 convolutions of `width` channels, half the size, a quarter dropped."""
    return stack(
        conv1=Conv(width, 3, pad=1), relu1=relu, norm1=norm,
        conv2=Conv(width, 3, pad=1), relu2=relu, norm2=norm,
        pool=Pool("max", 2, stride=2), dropout=Dropout(0.25),
    )  # fmt: skip
