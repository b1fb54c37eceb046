"""Inception-v3 (Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016).

The paper's table 1 leaves the modules' inner widths open; they are those of the authors' TensorFlow code, which
torchvision and MXNet's zoo follow too. Modules are named as there: mixed5b to mixed7c. Every convolution is without
bias and followed by batch normalisation (epsilon 1e-3) and ReLU.
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
    Size,
    Tap,
    stack,
)

average = Pool("average", 3, stride=1, pad=1)
halve = Pool("max", 3, stride=2)
ROW, COLUMN = (1, 7), (7, 1)


def unit(channels: int, kernel: Size, stride: int = 1, pad: Size = 0) -> Sequential:
    """Convolution, normalisation, ReLU."""
    conv = Conv(channels, kernel, stride, pad, bias=False)
    return stack(conv=conv, norm=BatchNorm(epsilon=1e-3, momentum=0.9), relu=Activation("relu"))


def same(channels: int, kernel: Size) -> Sequential:
    """A unit that keeps the size."""
    pad = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    return unit(channels, kernel, pad=pad)


def chain(*units: Sequential) -> Sequential:
    """Units in sequence: unit1, unit2, ..."""
    return stack(**{f"unit{number}": item for number, item in enumerate(units, start=1)})


def pooled(channels: int) -> Sequential:
    """The branch that averages first."""
    return stack(pool=average, project=unit(channels, 1))


def mixed5(project: int) -> Concat:
    """The paper's figure 5: the 5x5 of a GoogLeNet module also as two 3x3."""
    return Concat((
        ("branch1", unit(64, 1)),
        ("branch5", chain(unit(48, 1), same(64, 5))),
        ("branch3twice", chain(unit(64, 1), same(96, 3), same(96, 3))),
        ("branch_pool", pooled(project)),
    ))  # fmt: skip


def reduce6() -> Concat:
    """From 35x35 to 17x17, the paper's figure 10."""
    return Concat((
        ("branch3", unit(384, 3, stride=2)),
        ("branch3twice", chain(unit(64, 1), same(96, 3), unit(96, 3, stride=2))),
        ("branch_pool", halve),
    ))  # fmt: skip


def mixed6(width: int) -> Concat:
    """The paper's figure 6: 7x7 taken apart into 1x7 and 7x1."""
    return Concat((
        ("branch1", unit(192, 1)),
        ("branch7", chain(unit(width, 1), same(width, ROW), same(192, COLUMN))),
        ("branch7twice", chain(unit(width, 1), same(width, COLUMN), same(width, ROW), same(width, COLUMN),
                               same(192, ROW))),
        ("branch_pool", pooled(192)),
    ))  # fmt: skip


def reduce7() -> Concat:
    """From 17x17 to 8x8."""
    return Concat((
        ("branch3", chain(unit(192, 1), unit(320, 3, stride=2))),
        ("branch7", chain(unit(192, 1), same(192, ROW), same(192, COLUMN), unit(192, 3, stride=2))),
        ("branch_pool", halve),
    ))  # fmt: skip


def mixed7() -> Concat:
    """The paper's figure 7: 1x3 and 3x1 side by side."""
    split = Concat((("row", same(384, (1, 3))), ("column", same(384, (3, 1)))))
    return Concat((
        ("branch1", unit(320, 1)),
        ("branch3", stack(unit1=unit(384, 1), split=split)),
        ("branch3twice", stack(unit1=unit(448, 1), unit2=same(384, 3), split=split)),
        ("branch_pool", pooled(192)),
    ))  # fmt: skip


def auxiliary(classes: int) -> Tap:
    """The auxiliary classifier on the last 17x17 map, which needs that size; weight as in the authors' code."""
    head = stack(
        pool=Pool("average", 5, stride=3),
        reduce=unit(128, 1),
        conv=unit(768, 5),
        mean=GlobalAveragePool(),
        flatten=Flatten(),
        classifier=Dense(classes),
    )
    return Tap(head, weight=0.4)


def inception_v3(classes: int) -> Sequential:
    """The network with its auxiliary classifier, for 299 pixels."""
    return stack(
        conv1=unit(32, 3, stride=2), conv2=unit(32, 3), conv3=same(64, 3), pool3=halve,
        conv4=unit(80, 1), conv5=unit(192, 3), pool5=halve,
        mixed5b=mixed5(32), mixed5c=mixed5(64), mixed5d=mixed5(64),
        mixed6a=reduce6(), mixed6b=mixed6(128), mixed6c=mixed6(160), mixed6d=mixed6(160), mixed6e=mixed6(192),
        auxiliary=auxiliary(classes),
        mixed7a=reduce7(), mixed7b=mixed7(), mixed7c=mixed7(),
        pool=GlobalAveragePool(), flatten=Flatten(), dropout=Dropout(0.5),
        classifier=Dense(classes),
    )  # fmt: skip
