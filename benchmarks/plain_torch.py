"""ResNet-18, ResNet-50 (v1b) and VGG-16 as one would write them by hand in PyTorch, for `benchmarks/step.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Unit(nn.Module):
    """A body, and around it the input, projected where the shapes differ."""

    def __init__(self, body: nn.Module, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if stride != 1 or channels != outputs:
            self.shortcut = nn.Sequential(*convolution(channels, outputs, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        around = x if self.shortcut is None else self.shortcut(x)
        return self.relu(self.body(x) + around)


def convolution(channels: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


def basic(channels: int, width: int, stride: int) -> nn.Module:
    body = [*convolution(channels, width, 3, stride), nn.ReLU(inplace=True), *convolution(width, width, 3)]
    return Unit(nn.Sequential(*body), channels, width, stride)


def bottleneck(channels: int, width: int, stride: int) -> nn.Module:
    body = [
        *convolution(channels, width, 1), nn.ReLU(inplace=True), *convolution(width, width, 3, stride),
        nn.ReLU(inplace=True), *convolution(width, 4 * width, 1),
    ]  # fmt: skip
    return Unit(nn.Sequential(*body), channels, 4 * width, stride)


def resnet(unit: Callable[[int, int, int], nn.Module], expansion: int, counts: list[int], classes: int) -> nn.Module:
    layers = [*convolution(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, count in enumerate(counts):
        width = 64 << stage
        for number in range(count):
            layers.append(unit(channels, width, 2 if stage and not number else 1))
            channels = expansion * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def resnet18(classes: int) -> nn.Module:
    return resnet(basic, 1, [2, 2, 2, 2], classes)


def resnet50(classes: int) -> nn.Module:
    return resnet(bottleneck, 4, [3, 4, 6, 3], classes)


def vgg16(classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    head = [
        nn.Flatten(),
        nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(4096, classes),
    ]  # fmt: skip
    return nn.Sequential(*layers, *head)


NETWORKS = {"resnet18": resnet18, "resnet50": resnet50, "vgg16": vgg16}
