"""SE-ResNet (Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018), as timm's seresnet50 and seresnext50_32x4d have
it: the bottlenecks of v1b and of ResNeXt, each excited before its shortcut is added, with a sixteenth of its channels
in the middle.

GluonCV's se_resnet50_v1 is another network, with the stride in the first 1x1 and biases.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.resnet import BOTTLENECK, DEPTHS_50, DEPTHS_101, Form, resnet
from imagenet_pipeline.networks.resnext import widened
from imagenet_pipeline.networks.squeeze_excitation import REDUCTION, squeeze_excitation


def excited(form: Form) -> Form:
    """The form with squeeze-and-excitation at the end of each body."""

    def body(width: int, stride: int) -> Sequential:
        channels = form.expansion * width
        excitation = squeeze_excitation(channels, channels // REDUCTION)
        return Sequential((*form.body(width, stride).items, ("excitation", excitation)))

    return replace(form, body=body)


se_resnet50 = partial(resnet, excited(BOTTLENECK), DEPTHS_50)
se_resnet101 = partial(resnet, excited(BOTTLENECK), DEPTHS_101)
se_resnext50_32x4d = partial(resnet, excited(widened(BOTTLENECK, 2, 32)), DEPTHS_50)
