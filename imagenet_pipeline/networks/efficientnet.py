"""EfficientNet-B0 (Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019), as
torchvision has it: inverted residuals with squeeze-and-excitation and swish, dropped at random in training, the last
ones most (stochastic depth).
"""

from __future__ import annotations

from functools import partial

from imagenet_pipeline.networks.layers import (
    Activation,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Layer,
    Sequential,
    stack,
)
from imagenet_pipeline.networks.mobilenet import convolution, inverted
from imagenet_pipeline.networks.squeeze_excitation import squeeze_excitation

SWISH = Activation("swish")
STAGES = (
    (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)  # fmt: skip
"""The paper's table 1: factor of expansion, kernel, channels, units, stride of the first of them."""
DROP_RATE = 0.2
"""Share of the training images that a residual body after the last would be left out for; the first is never."""


def efficientnet_b0(classes: int) -> Sequential:
    """Stem, seven stages, a 1x1 convolution, mean over the image, dropout, classifier."""
    layers = partial(convolution, active=SWISH)
    stages: dict[str, Layer] = {}
    reaching, done, count = 32, 0, sum(units for *_, units, _ in STAGES)
    for factor, kernel, channels, units, first in STAGES:
        stage: dict[str, Layer] = {}
        for stride in (first, *[1] * (units - 1)):
            expanded = factor * reaching
            excitation, rate = squeeze_excitation(expanded, reaching // 4, SWISH), DROP_RATE * done / count
            unit = inverted(reaching, expanded, channels, kernel, stride, layers, excitation, rate)
            stage[f"unit{len(stage) + 1}"] = unit
            reaching, done = channels, done + 1
        stages[f"stage{len(stages) + 1}"] = stack(**stage)
    return stack(
        stem=layers(32, 3, 2), **stages, head=layers(1280, 1), pool=GlobalAveragePool(), flatten=Flatten(),
        dropout=Dropout(0.2), classifier=Dense(classes),
    )  # fmt: skip
