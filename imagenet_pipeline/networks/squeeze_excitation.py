"""Squeeze-and-excitation (Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018): each channel times a factor
between 0 and 1 that a small network makes of the means of all channels.

Written in the layers there are. Of MobileNetV3 and EfficientNet too, with other functions.
"""

from __future__ import annotations

from typing import Literal

from imagenet_pipeline.networks.layers import Activation, Conv, Elementwise, GlobalAveragePool, Graph, Layer

REDUCTION = 16
"""The paper's: so many times fewer channels in the middle."""
RELU = Activation("relu")


def squeeze_excitation(
    channels: int,
    squeezed: int,
    bend: Activation = RELU,
    gate: Literal["sigmoid", "hard_sigmoid"] = "sigmoid",
) -> Graph:
    """The Graph on images of `channels`, with `squeezed` of them in the middle.

    Layers: pool, reduce, bend, expand, gate, scale; those with parameters are 1x1 convolutions, with biases.
    """
    items: dict[str, Layer] = {
        "pool": GlobalAveragePool(),
        "reduce": Conv(squeezed, 1),
        "bend": bend,
        "expand": Conv(channels, 1),
        "gate": Activation(gate),
        "scale": Elementwise("multiply"),
    }
    links = (("",), ("pool",), ("reduce",), ("bend",), ("expand",), ("", "gate"))
    return Graph(tuple(items.items()), links)
