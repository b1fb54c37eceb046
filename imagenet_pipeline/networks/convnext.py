"""ConvNeXt (Liu et al., "A ConvNet for the 2020s", CVPR 2022), as torchvision has it: a ResNet's four stages of units
with the parts of a transformer. Each unit normalises over the channels, is scaled by a small trained factor, and is
dropped at random in training, the last ones most.
"""

from __future__ import annotations

from functools import partial

from imagenet_pipeline.networks.layers import (
    Activation,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Layer,
    LayerNorm,
    Residual,
    Scale,
    Sequential,
    Transpose,
    stack,
)

NORM, IMAGE_NORM = LayerNorm(epsilon=1e-6), LayerNorm(axis=0, epsilon=1e-6)


def unit(width: int, drop_rate: float) -> Residual:
    """Depthwise 7x7, then at every pixel two dense layers, four times as wide between them."""
    body = stack(
        depthwise=Conv(width, 7, pad=3, groups=width),
        pixels=Transpose((1, 2, 0)),
        norm=NORM,
        dense1=Dense(4 * width, last_axis=True),
        active=Activation("gelu"),
        dense2=Dense(width, last_axis=True),
        scale=Scale(1e-6),
        image=Transpose((2, 0, 1)),
    )
    return Residual(body, drop_rate=drop_rate)


def convnext(depths: tuple[int, ...], widths: tuple[int, ...], drop_rate: float, classes: int) -> Sequential:
    """Stem of 4x4 patches, stages, each but the first behind a 2x2 convolution, mean over the image, classifier.

    Units are dropped at rates from 0 to `drop_rate`.
    """
    items: dict[str, Layer] = {"stem": stack(conv=Conv(widths[0], 4, stride=4), norm=IMAGE_NORM)}
    done, last = 0, sum(depths) - 1
    for number, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
        if number > 1:
            items[f"halving{number}"] = stack(norm=IMAGE_NORM, conv=Conv(width, 2, stride=2))
        units = {f"unit{count + 1}": unit(width, drop_rate * (done + count) / last) for count in range(depth)}
        items[f"stage{number}"] = stack(**units)
        done += depth
    return stack(**items, pool=GlobalAveragePool(), norm=IMAGE_NORM, flatten=Flatten(), classifier=Dense(classes))


convnext_tiny = partial(convnext, (3, 3, 9, 3), (96, 192, 384, 768), 0.1)
