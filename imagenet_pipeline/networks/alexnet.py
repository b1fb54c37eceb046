"""AlexNet (Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks",
NIPS 2012), as published and as the ImageNet Bundle's chapter trains it, and its successor of 2014.
"""

from __future__ import annotations

from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Layer,
    LocalResponseNorm,
    Pool,
    Sequential,
    stack,
)


def alexnet(classes: int) -> Sequential:
    """The paper's network: the groups of conv2, conv4 and conv5 are its two GPUs.

    Reads 227 pixels: the paper's 224 give its 55x55 maps only with padding it does not mention.
    """
    relu = Activation("relu")
    pool = Pool("max", 3, stride=2)
    response = LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, bias=2.0)
    return stack(
        conv1=Conv(96, 11, stride=4), relu1=relu, norm1=response, pool1=pool,
        conv2=Conv(256, 5, pad=2, groups=2), relu2=relu, norm2=response, pool2=pool,
        conv3=Conv(384, 3, pad=1), relu3=relu,
        conv4=Conv(384, 3, pad=1, groups=2), relu4=relu,
        conv5=Conv(256, 3, pad=1, groups=2), relu5=relu, pool5=pool,
        flatten=Flatten(),
        dense6=Dense(4096), relu6=relu, dropout6=Dropout(0.5),
        dense7=Dense(4096), relu7=relu, dropout7=Dropout(0.5),
        classifier=Dense(classes),
    )  # fmt: skip


def alexnet_one_tower(classes: int) -> Sequential:
    """The network of Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014), as
    torchvision and MXNet's zoo have it: no groups, no response normalisation, narrower, 224 pixels.

    Dropout follows the dense layers as in 2012 and in MXNet's zoo; in torchvision it stands before them.
    """
    relu, pool = Activation("relu"), Pool("max", 3, stride=2)
    return stack(
        conv1=Conv(64, 11, stride=4, pad=2), relu1=relu, pool1=pool,
        conv2=Conv(192, 5, pad=2), relu2=relu, pool2=pool,
        conv3=Conv(384, 3, pad=1), relu3=relu,
        conv4=Conv(256, 3, pad=1), relu4=relu,
        conv5=Conv(256, 3, pad=1), relu5=relu, pool5=pool,
        flatten=Flatten(),
        dense6=Dense(4096), relu6=relu, dropout6=Dropout(0.5),
        dense7=Dense(4096), relu7=relu, dropout7=Dropout(0.5),
        classifier=Dense(classes),
    )  # fmt: skip


def alexnet_book(classes: int) -> Sequential:
    """The book's network: ELU then batch normalisation after every layer, no groups, no response norm.

    The slope of 0.25 and the epsilon of 1e-3 are the MXNet defaults its code relies on. Those defaults also
    held the normalisation's scale at 1; here it is trained.
    """
    pool, light = Pool("max", 3, stride=2), Dropout(0.25)
    return stack(
        **_active("1", Conv(96, 11, stride=4)), pool1=pool, dropout1=light,
        **_active("2", Conv(256, 5, pad=2)), pool2=pool, dropout2=light,
        **_active("3", Conv(384, 3, pad=1)),
        **_active("4", Conv(384, 3, pad=1)),
        **_active("5", Conv(256, 3, pad=1)), pool5=pool, dropout5=light,
        flatten=Flatten(),
        **_active("6", Dense(4096)), dropout6=Dropout(0.5),
        **_active("7", Dense(4096)), dropout7=Dropout(0.5),
        classifier=Dense(classes),
    )  # fmt: skip


def _active(number: str, layer: Conv | Dense) -> dict[str, Layer]:
    kind = "conv" if isinstance(layer, Conv) else "dense"
    return {
        f"{kind}{number}": layer,
        f"elu{number}": Activation("elu", slope=0.25),
        f"norm{number}": BatchNorm(epsilon=1e-3, momentum=0.9),
    }
