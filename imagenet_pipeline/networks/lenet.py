"""LeNet in its present-day form: the network of LeCun et al. ("Gradient-based learning applied to document
recognition", Proc. IEEE 1998) as Caffe's and MXNet's examples have it, with maximum pooling and ReLU.
"""

from __future__ import annotations

from imagenet_pipeline.networks.layers import Activation, Conv, Dense, Flatten, Pool, Sequential, stack


def lenet(classes: int) -> Sequential:
    """LeNet for small images: 28 pixels as in MNIST, and anything from 16 upwards."""
    return stack(
        conv1=Conv(20, 5),
        relu1=Activation("relu"),
        pool1=Pool("max", 2, stride=2),
        conv2=Conv(50, 5),
        relu2=Activation("relu"),
        pool2=Pool("max", 2, stride=2),
        flatten=Flatten(),
        dense1=Dense(500),
        relu3=Activation("relu"),
        classifier=Dense(classes),
    )
