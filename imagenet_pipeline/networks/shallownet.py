"""ShallowNet, the first network of "Deep Learning for Computer Vision with Python" (Rosebrock, Starter Bundle)."""

from __future__ import annotations

from imagenet_pipeline.networks.layers import Activation, Conv, Dense, Flatten, Sequential, stack


def shallownet(classes: int) -> Sequential:
    """One convolution, ReLU, classifier; takes images of any size, 32 pixels in the book."""
    return stack(
        conv=Conv(32, 3, pad=1),
        relu=Activation("relu"),
        flatten=Flatten(),
        classifier=Dense(classes),
    )
