"""MobileNetV3 (Howard et al., "Searching for MobileNetV3", ICCV 2019), as torchvision has it: inverted residuals, some
of them with squeeze-and-excitation, and activations without an exponential.
"""

from __future__ import annotations

from functools import partial

from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
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

Unit = tuple[int, int, int, bool, Activation, int]
"""Kernel, channels it expands to, channels that leave it, excited or not, activation, stride."""
NORM = BatchNorm(epsilon=1e-3, momentum=0.99)
RE, HS = Activation("relu"), Activation("hard_swish")

LARGE: tuple[Unit, ...] = (
    (3, 16, 16, False, RE, 1), (3, 64, 24, False, RE, 2), (3, 72, 24, False, RE, 1), (5, 72, 40, True, RE, 2),
    (5, 120, 40, True, RE, 1), (5, 120, 40, True, RE, 1), (3, 240, 80, False, HS, 2), (3, 200, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1), (3, 184, 80, False, HS, 1), (3, 480, 112, True, HS, 1), (3, 672, 112, True, HS, 1),
    (5, 672, 160, True, HS, 2), (5, 960, 160, True, HS, 1), (5, 960, 160, True, HS, 1),
)  # fmt: skip
"""The paper's table 1."""
SMALL: tuple[Unit, ...] = (
    (3, 16, 16, True, RE, 2), (3, 72, 24, False, RE, 2), (3, 88, 24, False, RE, 1), (5, 96, 40, True, HS, 2),
    (5, 240, 40, True, HS, 1), (5, 240, 40, True, HS, 1), (5, 120, 48, True, HS, 1), (5, 144, 48, True, HS, 1),
    (5, 288, 96, True, HS, 2), (5, 576, 96, True, HS, 1), (5, 576, 96, True, HS, 1),
)  # fmt: skip
"""Table 2."""
DIVISOR = 8
"""Channels in the middle of an excitation are a multiple of it, as accelerators like them."""


def mobilenet_v3(table: tuple[Unit, ...], dense: int, classes: int) -> Sequential:
    """Stem, inverted residuals, a 1x1 convolution, mean over the image, a dense layer, dropout, classifier."""
    units: dict[str, Layer] = {}
    reaching = 16
    for kernel, expanded, channels, is_excited, active, stride in table:
        layers = partial(convolution, active=active, norm=NORM)
        excitation = squeeze_excitation(expanded, _squeezed(expanded), gate="hard_sigmoid") if is_excited else None
        units[f"unit{len(units) + 1}"] = inverted(reaching, expanded, channels, kernel, stride, layers, excitation)
        reaching = channels
    head = convolution(6 * reaching, 1, active=HS, norm=NORM)
    return stack(
        stem=convolution(16, 3, 2, active=HS, norm=NORM), **units, head=head, pool=GlobalAveragePool(),
        flatten=Flatten(), dense=Dense(dense), active=HS, dropout=Dropout(0.2), classifier=Dense(classes),
    )  # fmt: skip


def _squeezed(channels: int) -> int:
    """A quarter of the channels, rounded to a multiple of 8, up where that would lose a tenth."""
    quarter = channels // 4
    rounded = max(DIVISOR, (quarter + DIVISOR // 2) // DIVISOR * DIVISOR)
    return rounded if rounded >= 0.9 * quarter else rounded + DIVISOR


mobilenet_v3_large = partial(mobilenet_v3, LARGE, 1280)
mobilenet_v3_small = partial(mobilenet_v3, SMALL, 1024)
