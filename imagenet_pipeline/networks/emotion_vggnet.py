"""EmotionVGGNet of "Deep Learning for Computer Vision with Python" (Rosebrock, ImageNet Bundle): a small VGG with ELU
for faces of 48 pixels, grey or colour.

ELU's slope of 1 and the constants of the normalisation are the Keras defaults that the book's code relies on; it
starts from the initial values called "he" here.
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

elu = Activation("elu", slope=1.0)
norm = BatchNorm(epsilon=1e-3, momentum=0.99)


def emotion_vggnet(classes: int) -> Sequential:
    """Three blocks of two 3x3 convolutions, two dense layers of 64."""
    return stack(
        block1=block(32),
        block2=block(64),
        block3=block(128),
        flatten=Flatten(),
        dense1=Dense(64), elu1=elu, norm1=norm, dropout1=Dropout(0.5),
        dense2=Dense(64), elu2=elu, norm2=norm, dropout2=Dropout(0.5),
        classifier=Dense(classes),
    )  # fmt: skip


def block(width: int) -> Sequential:
    """Two 3x3 convolutions of `width` channels, half the size, a quarter dropped."""
    return stack(
        conv1=Conv(width, 3, pad=1), elu1=elu, norm1=norm,
        conv2=Conv(width, 3, pad=1), elu2=elu, norm2=norm,
        pool=Pool("max", 2, stride=2), dropout=Dropout(0.25),
    )  # fmt: skip
