"""The network as the Gluon engine holds it: from pixels to logits, with its parameters by name."""

from __future__ import annotations

from typing import Any

from imagenet_pipeline.engines import Blueprint
from imagenet_pipeline.engines.gluon import zoo
from imagenet_pipeline.engines.gluon.network import GluonNetwork, build
from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.networks.layers import Dropout
from imagenet_pipeline.networks.shapes import describe, parameters
from imagenet_pipeline.networks.zoo import ZooNetwork


class Normalised(mx.gluon.HybridBlock):  # type: ignore[misc]
    """uint8 [n, height, width, channels] -> normalised [n, channels, height, width] -> logits."""

    def __init__(self, body: Any, blueprint: Blueprint, dtype: str) -> None:
        super().__init__()
        self._dtype = dtype
        self.body = body
        self.mean = self.params.get_constant("mean", mx.nd.array(blueprint.mean, dtype=dtype))
        self.std = self.params.get_constant("std", mx.nd.array(blueprint.std, dtype=dtype))

    def hybrid_forward(self, F: Any, images: Any, mean: Any, std: Any) -> Any:
        pixels = F.broadcast_div(F.broadcast_sub(F.cast(images, self._dtype), mean), std)
        return self.body(F.transpose(pixels, axes=(0, 3, 1, 2)))


def build_network(blueprint: Blueprint) -> tuple[GluonNetwork, bool]:
    """The network, every parameter with its shape, and whether training it draws random numbers."""
    network, input_shape = blueprint.network, blueprint.input_shape
    if isinstance(network, ZooNetwork):
        return zoo.build(network, input_shape), True
    declared = parameters(network, input_shape)
    built = build(network, lambda name: declared[name].shape[0])
    for name, parameter in built.parameters.items():
        parameter.shape = declared[name].shape
    return built, any(isinstance(report.layer, Dropout) for report in describe(network, input_shape))


def freeze(network: GluonNetwork, names: set[str]) -> None:
    """Before the first step: let these parameters take no gradient, and layers keep these running statistics."""
    for name in names:
        network.parameters[name].grad_req = "null"
    statistics = {id(network.parameters[name]) for name in names if name.endswith("running_mean")}

    def fix(block: Any) -> None:
        if id(getattr(block, "running_mean", None)) in statistics:
            # Where its constructor, which only our own networks call here, keeps `use_global_stats`.
            block._kwargs["use_global_stats"] = True

    network.training.apply(fix)
