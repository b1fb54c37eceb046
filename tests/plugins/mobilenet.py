"""MobileNet (Howard et al. 2017, table 1): depthwise convolutions, each followed by a 1x1 one.

A network of another package, to copy: `register_network("mobilenet", mobilenet)`, or in its pyproject.toml

    [project.entry-points."imagenet_pipeline.networks"]
    mobilenet = "mobilenet:mobilenet"
"""

from imagenet_pipeline.networks.layers import Activation, BatchNorm, Conv, Dense, Flatten, GlobalAveragePool, stack

STRIDES = {64: (1,), 128: (2, 1), 256: (2, 1), 512: (2, 1, 1, 1, 1, 1), 1024: (2, 1)}


def conv(channels, kernel, stride=1, groups=1):
    """A convolution without bias, batch normalisation, ReLU."""
    layer = Conv(channels, kernel, stride, pad=kernel // 2, groups=groups, bias=False)
    return stack(conv=layer, norm=BatchNorm(), relu=Activation("relu"))


def mobilenet(classes):
    """Depthwise separable convolutions (Howard et al. 2017)"""
    blocks, reaching = {"stem": conv(32, 3, stride=2)}, 32
    for channels, strides in STRIDES.items():
        for stride in strides:
            depthwise, pointwise = conv(reaching, 3, stride, groups=reaching), conv(channels, 1)
            blocks[f"block{len(blocks)}"] = stack(depthwise=depthwise, pointwise=pointwise)
            reaching = channels
    return stack(**blocks, pool=GlobalAveragePool(), flatten=Flatten(), classifier=Dense(classes))
