"""Pre-activation residual networks (He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016), as
MXNet's resnet*_v2 have them.

Normalisation and ReLU come before each convolution and nothing after the sum. The input itself is normalised
first, with its scale held at 1; its shift is trained, as in MXNet's symbol and the book (the model zoo holds it
at 0). A projecting unit's shortcut starts from the activated input. The stride is in the 3x3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from imagenet_pipeline.networks.layers import (
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
from imagenet_pipeline.networks.resnet import (
    DEPTHS_18,
    DEPTHS_34,
    DEPTHS_50,
    DEPTHS_101,
    DEPTHS_152,
    Depths,
    conv,
    relu,
)


@dataclass(frozen=True)
class Form:
    """The convolutions of a unit by (width, stride); the last has `expansion` times the width in channels."""

    convolutions: Callable[[int, int], tuple[Conv, ...]]
    expansion: int
    epsilon: float = 1e-5

    def norm(self, scale: bool = True) -> BatchNorm:
        return BatchNorm(epsilon=self.epsilon, momentum=0.9, scale=scale)


def basic(width: int, stride: int) -> tuple[Conv, ...]:
    """Two 3x3 convolutions of `width` channels."""
    return conv(width, 3, stride=stride, pad=1), conv(width, 3, pad=1)


def bottleneck(width: int, stride: int) -> tuple[Conv, ...]:
    """1x1 down to `width` channels, 3x3 with the stride, 1x1 up to four times as many."""
    return conv(width, 1), conv(width, 3, stride=stride, pad=1), conv(4 * width, 1)


def unit(form: Form, width: int, stride: int, project: bool) -> Layer:
    """norm, relu, convolution and so on, added to the input, or to a projection of it after the first relu."""
    items: dict[str, Layer] = {}
    for number, convolution in enumerate(form.convolutions(width, stride), 1):
        items |= {f"norm{number}": form.norm(), f"relu{number}": relu, f"conv{number}": convolution}
    if not project:
        return Residual(stack(**items))
    activated = stack(norm1=items.pop("norm1"), relu1=items.pop("relu1"))
    shortcut = stack(conv=conv(form.expansion * width, 1, stride=stride))
    return Sequential((*activated.items, ("sum", Residual(stack(**items), shortcut))))


def stage(form: Form, width: int, units: int, stride: int, project: bool) -> Sequential:
    """Units of the same width; only the first may change the shape."""
    first = unit(form, width, stride, project)
    rest = {f"unit{number}": unit(form, width, 1, project=False) for number in range(2, units + 1)}
    return stack(unit1=first, **rest)


def resnet_v2(form: Form, depths: Depths, classes: int) -> Sequential:
    """Normalised input, stem, four stages of doubling width, last activation, mean over the image, classifier."""
    units1, units2, units3, units4 = depths
    return stack(
        input=form.norm(scale=False),
        stem=stack(
            conv=conv(64, 7, stride=2, pad=3),
            norm=form.norm(),
            relu=relu,
            pool=Pool("max", 3, stride=2, pad=1),
        ),
        stage1=stage(form, 64, units1, stride=1, project=form.expansion > 1),
        stage2=stage(form, 128, units2, stride=2, project=True),
        stage3=stage(form, 256, units3, stride=2, project=True),
        stage4=stage(form, 512, units4, stride=2, project=True),
        norm=form.norm(),
        relu=relu,
        pool=GlobalAveragePool(),
        flatten=Flatten(),
        classifier=Dense(classes),
    )


BASIC = Form(basic, 1)
BOTTLENECK = Form(bottleneck, 4)

resnet18_v2 = partial(resnet_v2, BASIC, DEPTHS_18)
resnet34_v2 = partial(resnet_v2, BASIC, DEPTHS_34)
resnet50_v2 = partial(resnet_v2, BOTTLENECK, DEPTHS_50)
resnet101_v2 = partial(resnet_v2, BOTTLENECK, DEPTHS_101)
resnet152_v2 = partial(resnet_v2, BOTTLENECK, DEPTHS_152)
# The ImageNet Bundle's: MXNet's symbol to the letter, so that checkpoints of either mean the same here.
resnet50_book = partial(resnet_v2, Form(bottleneck, 4, epsilon=2e-5), DEPTHS_50)
