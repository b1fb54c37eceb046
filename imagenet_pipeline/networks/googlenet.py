"""GoogLeNet (Szegedy et al., "Going deeper with convolutions", CVPR 2015), as published, batch-normalised, and
as the ImageNet Bundle's chapter trains it.

The widths are the paper's table 1. All three take the mean over the whole last map, which is the paper's 7x7 at
224 pixels, so that other sizes work too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Layer,
    LocalResponseNorm,
    Pool,
    Sequential,
    Tap,
    stack,
)

Unit = Callable[..., Sequential]  # (channels, kernel, stride=1) -> a convolution that keeps the borders, and its ReLU

WIDTHS = {  # 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
HEADS = ("4a", "4d")
"""The modules whose output the auxiliary classifiers read."""
relu = Activation("relu")


def plain(channels: int, kernel: int, stride: int = 1) -> Sequential:
    """Convolution, ReLU."""
    return stack(conv=Conv(channels, kernel, stride, pad=kernel // 2), relu=relu)


def normalised(channels: int, kernel: int, stride: int = 1, bias: bool = False) -> Sequential:
    """Convolution, batch normalisation, ReLU."""
    conv = Conv(channels, kernel, stride, pad=kernel // 2, bias=bias)
    return stack(conv=conv, norm=BatchNorm(epsilon=1e-3, momentum=0.9), relu=relu)


def inception(unit: Unit, widths: tuple[int, ...], largest: int) -> Concat:
    """Four branches side by side: 1x1, 3x3, `largest` (5x5 in the paper), and pooling."""
    width1, reduce3, width3, reduce5, width5, project = widths
    return Concat((
        ("branch1", unit(width1, 1)),
        ("branch3", stack(reduce=unit(reduce3, 1), expand=unit(width3, 3))),
        ("branch5", stack(reduce=unit(reduce5, 1), expand=unit(width5, largest))),
        ("branch_pool", stack(pool=Pool("max", 3, stride=1, pad=1), project=unit(project, 1))),
    ))  # fmt: skip


def auxiliary(unit: Unit, classes: int) -> Tap:
    """The paper's section 5: mean over 5x5, 1x1 convolution, two dense layers; its loss counts 0.3."""
    head = stack(
        pool=Pool("average", 5, stride=3),
        reduce=unit(128, 1),
        flatten=Flatten(),
        dense=Dense(1024),
        relu=relu,
        dropout=Dropout(0.7),
        classifier=Dense(classes),
    )
    return Tap(head, weight=0.3)


def trunk(unit: Unit, response: Layer | None, pools: tuple[Pool, Pool], largest: int) -> dict[str, Layer]:
    """Everything up to the last map; `pools` halve the size in the first three places and in the fourth."""
    early, late = pools
    first: dict[str, Layer] = {"conv1": unit(64, 7, 2), "pool1": early}
    second: dict[str, Layer] = {"reduce2": unit(64, 1), "conv2": unit(192, 3)}
    if response is not None:
        first["norm1"] = second["norm2"] = response
    items = first | second | {"pool2": early}
    for name, widths in WIDTHS.items():
        items[f"inception{name}"] = inception(unit, widths, largest)
        if name == "3b":
            items["pool3"] = early
        if name == "4e":
            items["pool4"] = late
    return items


def with_heads(items: dict[str, Layer], unit: Unit, classes: int) -> dict[str, Layer]:
    """The trunk with its two auxiliary classifiers."""
    result: dict[str, Layer] = {}
    for name, item in items.items():
        result[name] = item
        if name.removeprefix("inception") in HEADS:
            result[name.replace("inception", "auxiliary")] = auxiliary(unit, classes)
    return result


def ending(classes: int) -> dict[str, Layer]:
    """Mean over the image, dropout of the paper's 0.4, classifier."""
    return {
        "pool5": GlobalAveragePool(),
        "flatten": Flatten(),
        "dropout": Dropout(0.4),
        "classifier": Dense(classes),
    }


def googlenet(classes: int) -> Sequential:
    """The paper's network, with response normalisation and two auxiliary classifiers.

    The paper leaves open the constants of the normalisation and the rounding of the pooled sizes: they are those
    of Caffe's bvlc_googlenet (bias 1, sizes rounded up).
    """
    pool = Pool("max", 3, stride=2, ceil=True)
    items = trunk(plain, LocalResponseNorm(bias=1.0), (pool, pool), largest=5)
    return stack(**with_heads(items, plain, classes), **ending(classes))


def googlenet_bn(classes: int) -> Sequential:
    """Batch-normalised, as torchvision and GluonCV have it: 3x3 where the paper has 5x5, and a last pooling of 2x2.

    Both differences come from the TensorFlow network whose weights torchvision took over. Its auxiliary
    classifiers pool with overlapping windows, GluonCV's and these with the paper's 5x5; dropout is the paper's
    0.4 (torchvision 0.2). Neither changes a parameter.
    """
    pools = (Pool("max", 3, stride=2, ceil=True), Pool("max", 2, stride=2, ceil=True))
    items = trunk(normalised, None, pools, largest=3)
    return stack(**with_heads(items, normalised, classes), **ending(classes))


def googlenet_book(classes: int) -> Sequential:
    """The book's network: batch normalisation before every ReLU, convolutions with bias, no auxiliary classifiers.

    Its pooling pads by 1 and rounds down. The epsilon of 1e-3 is the MXNet default its code relies on; that
    default's scale of 1 is trained here.
    """
    unit, pool = partial(normalised, bias=True), Pool("max", 3, stride=2, pad=1)
    return stack(**trunk(unit, None, (pool, pool), largest=5), **ending(classes))
