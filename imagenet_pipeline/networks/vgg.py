"""VGG networks (Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition",
ICLR 2015): configurations A, B, D and E, the same with batch normalisation, and the ImageNet Bundle's form of D.

The "_bn" forms are not in the paper; as torchvision and MXNet's zoo have them, convolutions keep their bias and
the dense layers are not normalised.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Layer,
    Pool,
    Sequential,
    stack,
)

Form = Callable[[Conv | Dense, int], dict[str, Layer]]  # (layer, number) -> the layer and what follows it

WIDTHS = (64, 128, 256, 512, 512)


def plain(layer: Conv | Dense, number: int) -> dict[str, Layer]:
    """The paper's: ReLU after every layer."""
    return {_name(layer, number): layer, f"relu{number}": Activation("relu")}


def normalised(layer: Conv | Dense, number: int) -> dict[str, Layer]:
    """Batch normalisation between a convolution and its ReLU."""
    if isinstance(layer, Dense):
        return plain(layer, number)
    return {_name(layer, number): layer, f"norm{number}": BatchNorm(), f"relu{number}": Activation("relu")}


def book(layer: Conv | Dense, number: int) -> dict[str, Layer]:
    """The book's: a PReLU with a slope for every channel, then normalisation, dense layers included.

    The epsilon of 1e-3 is the MXNet default its code relies on. Those defaults also held the normalisation's
    scale at 1; here it is trained.
    """
    return {
        _name(layer, number): layer,
        f"prelu{number}": Activation("prelu", slope=0.25),
        f"norm{number}": BatchNorm(epsilon=1e-3, momentum=0.9),
    }


def block(form: Form, depth: int, width: int) -> Sequential:
    """`depth` 3x3 convolutions of `width` channels, then half the size; the book drops a quarter behind that."""
    items: dict[str, Layer] = {}
    for number in range(1, depth + 1):
        items |= form(Conv(width, 3, pad=1), number)
    items["pool"] = Pool("max", 2, stride=2)
    if form is book:
        items["dropout"] = Dropout(0.25)
    return stack(**items)


def vgg(form: Form, depths: tuple[int, int, int, int, int], classes: int) -> Sequential:
    """Five blocks, two dense layers of 4096, classifier."""
    blocks = {
        f"block{number}": block(form, depth, width)
        for number, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True), start=1)
    }
    return stack(
        **blocks,
        flatten=Flatten(),
        **form(Dense(4096), 1), dropout1=Dropout(0.5),
        **form(Dense(4096), 2), dropout2=Dropout(0.5),
        classifier=Dense(classes),
    )  # fmt: skip


def _name(layer: Conv | Dense, number: int) -> str:
    return f"{'conv' if isinstance(layer, Conv) else 'dense'}{number}"


vgg11 = partial(vgg, plain, (1, 1, 2, 2, 2))
vgg13 = partial(vgg, plain, (2, 2, 2, 2, 2))
vgg16 = partial(vgg, plain, (2, 2, 3, 3, 3))
vgg19 = partial(vgg, plain, (2, 2, 4, 4, 4))
vgg11_bn = partial(vgg, normalised, (1, 1, 2, 2, 2))
vgg13_bn = partial(vgg, normalised, (2, 2, 2, 2, 2))
vgg16_bn = partial(vgg, normalised, (2, 2, 3, 3, 3))
vgg19_bn = partial(vgg, normalised, (2, 2, 4, 4, 4))
vgg16_book = partial(vgg, book, (2, 2, 3, 3, 3))
