"""The network as the PyTorch engine holds it: from pixels to logits, with its tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imagenet_pipeline.engines import Blueprint
from imagenet_pipeline.engines.pytorch import zoo
from imagenet_pipeline.engines.pytorch.network import build
from imagenet_pipeline.engines.pytorch.runtime import torch
from imagenet_pipeline.networks.layers import Dropout, Tap
from imagenet_pipeline.networks.shapes import Parameter, describe, parameters
from imagenet_pipeline.networks.zoo import ZooNetwork


@dataclass
class PyTorchNetwork:
    """A module that gives a list, the logits and in training those of every tap, and its tensors by name.

    `layers` has the module of every layer, and of every group of layers, by its path; a zoo's network has none.
    """

    module: Any
    tensors: dict[str, Any]
    tap_weights: list[float]
    draws: bool
    """Whether training it draws random numbers."""
    layers: Mapping[str, Any] = field(default_factory=dict)


def build_network(blueprint: Blueprint, dtype: Any, device: Any) -> PyTorchNetwork:
    """The network on its device: a zoo's with its own initial values, one of ours with zeros."""
    network, input_shape = blueprint.network, blueprint.input_shape
    if isinstance(network, ZooNetwork):
        module = zoo.build(network, input_shape, blueprint.seed)
        module.to(device, dtype, memory_format=torch.channels_last)
        return PyTorchNetwork(zoo.Listed(module), zoo.tensors(module), [], True)
    tensors = {name: _zeros(one, dtype, device) for name, one in parameters(network, input_shape).items()}
    tap_weights = [item.weight for _, item in network.items if isinstance(item, Tap)]
    draws = any(isinstance(report.layer, Dropout) for report in describe(network, input_shape))
    module = build(network, tensors)
    return PyTorchNetwork(module, tensors, tap_weights, draws, module.layers)


def freeze(network: PyTorchNetwork, names: set[str]) -> list[Any]:
    """Let these tensors take no gradient; the modules that must not train, since their statistics stay."""
    for name in names:
        network.tensors[name].requires_grad_(False)
    statistics = {id(network.tensors[name]) for name in names if name.endswith("running_mean")}
    return [one for one in network.module.modules() if id(getattr(one, "running_mean", None)) in statistics]


def _zeros(parameter: Parameter, dtype: Any, device: Any) -> Any:
    tensor = torch.zeros(parameter.shape, dtype=dtype, device=device)
    if tensor.ndim == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return torch.nn.Parameter(tensor, requires_grad=parameter.trainable)


class Normalised(torch.nn.Module):  # type: ignore[misc]
    """uint8 [n, height, width, channels] -> normalised, channels last in memory -> logits, and those of the heads."""

    def __init__(self, body: Any, blueprint: Blueprint, dtype: Any, device: Any) -> None:
        super().__init__()
        self.body = body
        self.mean = torch.tensor(blueprint.mean, dtype=dtype, device=device)
        self.std = torch.tensor(blueprint.std, dtype=dtype, device=device)

    def forward(self, images: Any) -> Any:
        # A whole row at a time: with three numbers in its inner loop the CPU takes long over it.
        mean, std = (numbers.repeat(images.shape[2]) for numbers in (self.mean, self.std))
        pixels = (images.flatten(2) - mean) / std
        return self.body(pixels.view(images.shape).permute(0, 3, 1, 2))
