"""SqueezeNet (Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model
size", 2016): the paper's 1.0, its authors' cheaper 1.1, and 1.0 as the ImageNet Bundle's chapter trains it.

Pooling counts its last, partial window, as Caffe's does. The mean over the whole last map stands for the
published average over 13x13, so other sizes than 224 and 227 work too. The last convolution is activated.
"""

from __future__ import annotations

from imagenet_pipeline.networks.layers import (
    Activation,
    Concat,
    Conv,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Layer,
    Pool,
    Sequential,
    stack,
)

RELU = Activation("relu")
POOL = Pool("max", 3, stride=2, ceil=True)


def fire(squeeze: int, expand: int, active: Activation = RELU) -> Sequential:
    """1x1 down to `squeeze` channels, then `expand` of a 1x1 and as many of a 3x3 side by side."""
    branches = (
        ("one", stack(conv=Conv(expand, 1), active=active)),
        ("three", stack(conv=Conv(expand, 3, pad=1), active=active)),
    )
    return stack(squeeze=Conv(squeeze, 1), active=active, expand=Concat(branches))


def squeezenet1_0(classes: int) -> Sequential:
    """The paper's network."""
    return _squeezenet1_0(classes, RELU)


def squeezenet_book(classes: int) -> Sequential:
    """The book's network: 1.0 with ELU (MXNet's default slope of 0.25) in place of every ReLU.

    Reads 227 pixels; there its pooling over whole windows only and this pooling are the same.
    """
    return _squeezenet1_0(classes, Activation("elu", slope=0.25))


def _squeezenet1_0(classes: int, active: Activation) -> Sequential:
    return stack(
        conv1=Conv(96, 7, stride=2), active1=active, pool1=POOL,
        fire2=fire(16, 64, active), fire3=fire(16, 64, active), fire4=fire(32, 128, active), pool4=POOL,
        fire5=fire(32, 128, active), fire6=fire(48, 192, active), fire7=fire(48, 192, active),
        fire8=fire(64, 256, active), pool8=POOL,
        fire9=fire(64, 256, active), dropout9=Dropout(0.5),
        **_classifier(classes, active),
    )  # fmt: skip


def squeezenet1_1(classes: int) -> Sequential:
    """2.4 times cheaper at the same accuracy (github.com/forresti/SqueezeNet): smaller stem, earlier pooling."""
    return stack(
        conv1=Conv(64, 3, stride=2), active1=RELU, pool1=POOL,
        fire2=fire(16, 64), fire3=fire(16, 64), pool3=POOL,
        fire4=fire(32, 128), fire5=fire(32, 128), pool5=POOL,
        fire6=fire(48, 192), fire7=fire(48, 192), fire8=fire(64, 256),
        fire9=fire(64, 256), dropout9=Dropout(0.5),
        **_classifier(classes, RELU),
    )  # fmt: skip


def _classifier(classes: int, active: Activation) -> dict[str, Layer]:
    return {
        "classifier": Conv(classes, 1),
        "active10": active,
        "pool10": GlobalAveragePool(),
        "flatten": Flatten(),
    }
