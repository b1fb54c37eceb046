"""ResNets whose bottlenecks are wider inside.

ResNeXt (Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017): the 3x3 works in
groups, 32x4d in 32 of 4 channels in the first stage. Wide ResNet (Zagoruyko & Komodakis, "Wide Residual Networks",
BMVC 2016): twice as wide, as torchvision has it. Where the image is halved the 3x3 does so. With ResNet-D's stem and
shortcuts (`_d`) they are timm's resnext50d_32x4d, and what fast.ai calls xresnext50.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from imagenet_pipeline.networks import resnet_d
from imagenet_pipeline.networks.resnet import BOTTLENECK, DEPTHS_26, DEPTHS_50, DEPTHS_101, Form, bottleneck, resnet


def widened(form: Form, times: int, groups: int) -> Form:
    """The form with bottlenecks of so many times the width inside, in so many groups."""
    return replace(form, body=partial(bottleneck, times=times, groups=groups))


resnext50_32x4d = partial(resnet, widened(BOTTLENECK, 2, 32), DEPTHS_50)
resnext101_32x8d = partial(resnet, widened(BOTTLENECK, 4, 32), DEPTHS_101)
resnext101_64x4d = partial(resnet, widened(BOTTLENECK, 4, 64), DEPTHS_101)
wide_resnet50_2 = partial(resnet, widened(BOTTLENECK, 2, 1), DEPTHS_50)
wide_resnet101_2 = partial(resnet, widened(BOTTLENECK, 2, 1), DEPTHS_101)
resnext26_32x4d_d = partial(resnet, widened(resnet_d.BOTTLENECK, 2, 32), DEPTHS_26)
resnext50_32x4d_d = partial(resnet, widened(resnet_d.BOTTLENECK, 2, 32), DEPTHS_50)
