"""The PyTorch engine: one channels-last network on one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.engines import (
    Array,
    Blueprint,
    Images,
    Labels,
    Targets,
    Totals,
    Values,
    check_fits,
    pytorch_zoo,
)
from imagenet_pipeline.engines.pytorch_device import choose_precision, compiled, device_name, parse_device, versions_of
from imagenet_pipeline.engines.pytorch_import import torch
from imagenet_pipeline.engines.pytorch_layers import build
from imagenet_pipeline.engines.pytorch_rule import Rule
from imagenet_pipeline.engines.pytorch_scores import losses_of, marks_of, mean_over_crops
from imagenet_pipeline.networks.layers import Dropout, Tap
from imagenet_pipeline.networks.shapes import Parameter, describe, parameters
from imagenet_pipeline.networks.zoo import ZooNetwork

STEPS_IN_FLIGHT = 2
"""How far Python may run ahead of a GPU: bounds the memory of queued batches."""
LOSS_SCALE = 1024.0
"""Of float16 training: keeps small gradients from vanishing (Micikevicius et al. 2018, section 3.2)."""


class PyTorchEngine:
    """See `engines.Engine`.

    On a CPU equal runs give equal bytes. A GPU's kernels add in no fixed order and are chosen by trial, so its
    runs differ in the last bits.
    """

    name = "pytorch"
    rank = 0
    ranks = 1

    def __init__(self, blueprint: Blueprint, values: Values | None) -> None:
        self._device = parse_device(blueprint.devices)
        self.device_names: tuple[str, ...] = (device_name(self._device),)
        self.versions = versions_of(self._device)
        self.precision = choose_precision(blueprint.precision, self._device)
        self._loss = blueprint.loss
        built = build_network(blueprint, self._dtype, self._device)
        self._tensors, self._tap_weights, self._draws = built.tensors, built.tap_weights, built.draws
        self._trained = {name: tensor for name, tensor in built.tensors.items() if tensor.requires_grad}
        if values is not None:
            self.set_values(values)
        self._network = _Normalised(built.module, blueprint, self._dtype, self._device)
        self._training_network = compiled(self._network) if blueprint.compile else self._network
        self._rule = Rule(blueprint.optimizer, self._trained)
        self._marks: list[Any] = []
        self._events: list[Any] = []
        self._images = 0

    def train_batch(self, images: Images, labels: Targets, learning_rate: float, seed: int) -> None:
        if self._draws:
            torch.manual_seed(seed)
        targets = self._put(labels)
        self._train_mode(True)
        with self._autocast():
            outputs = self._training_network(self._put(images))
        logits, *heads = [self._scores(output) for output in outputs]
        losses = losses_of(logits, targets, self._loss, training=True)
        total = losses.mean()
        for weight, head in zip(self._tap_weights, heads, strict=True):
            total = total + weight * losses_of(head, targets, self._loss, training=True).mean()
        self._backward(total)
        self._rule.update(learning_rate)
        self._remember(marks_of(losses, logits, targets), len(labels))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def score_batch(self, images: Images, labels: Labels, crops: int = 1) -> None:
        truth = self._put(labels)
        logits = mean_over_crops(self._evaluated(images), crops)
        losses = losses_of(logits, truth, self._loss, training=False)
        self._remember(marks_of(losses, logits, truth), len(labels))

    def totals(self) -> Totals:
        counts = torch.stack(self._marks).double().cpu().numpy() if self._marks else np.zeros((0, 3))
        images, self._images, self._marks = self._images, 0, []
        return Totals(images, int(counts[:, 1].sum()), int(counts[:, 2].sum()), counts[:, 0])

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def logits(self, images: Images) -> Array:
        scores: Array = self._evaluated(images).cpu().numpy()
        return scores

    def sum_over_ranks(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return numbers.copy()

    def values(self) -> dict[str, Array]:
        return {name: np.array(tensor.detach().cpu().numpy(), order="C") for name, tensor in self._tensors.items()}

    def averages(self) -> dict[str, Array]:
        return self.values()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def set_values(self, values: Values) -> None:
        check_fits({name: tensor.shape for name, tensor in self._tensors.items()}, values, "weights")
        for name, tensor in self._tensors.items():
            tensor.copy_(torch.tensor(values[name]))

    def optimizer_state(self) -> dict[str, Array]:
        return self._rule.state()

    def set_optimizer_state(self, state: Values) -> None:
        self._rule.set_state(state)

    @property
    def _dtype(self) -> Any:
        return torch.float64 if self.precision == "float64" else torch.float32

    def _put(self, array: npt.NDArray[Any]) -> Any:
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        if self._device.type == "cpu":
            return tensor
        # Only from pinned memory does a copy not wait for the steps before it.
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _autocast(self) -> Any:
        half = self.precision in ("bfloat16", "float16")
        return torch.autocast(self._device.type, getattr(torch, self.precision) if half else None, enabled=half)

    def _train_mode(self, training: bool) -> None:
        if self._network.training != training:
            self._network.train(training)

    def _scores(self, output: Any) -> Any:
        return output.to(self._dtype)

    def _evaluated(self, images: Images) -> Any:
        self._train_mode(False)
        with self._autocast():
            return self._scores(self._network(self._put(images))[0])

    def _backward(self, loss: Any) -> None:
        gradients = list(self._trained.values())
        for tensor in gradients:
            tensor.grad = None
        if self.precision != "float16":
            loss.backward()
            return
        (loss * LOSS_SCALE).backward()
        torch._foreach_mul_([tensor.grad for tensor in gradients if tensor.grad is not None], 1 / LOSS_SCALE)

    def _remember(self, marks: Any, images: int) -> None:
        self._marks.append(marks)
        self._images += images
        if self._device.type == "cuda":
            self._events.append(torch.cuda.current_stream(self._device).record_event())
            if len(self._events) > STEPS_IN_FLIGHT:
                self._events.pop(0).synchronize()


@dataclass
class PyTorchNetwork:
    """A module that gives a list, the logits and in training those of every tap, and its tensors by name."""

    module: Any
    tensors: dict[str, Any]
    tap_weights: list[float]
    draws: bool
    """Whether training it draws random numbers."""


def build_network(blueprint: Blueprint, dtype: Any, device: Any) -> PyTorchNetwork:
    """The network on its device: a zoo's with its own initial values, one of ours with zeros."""
    network, input_shape = blueprint.network, blueprint.input_shape
    if isinstance(network, ZooNetwork):
        module = pytorch_zoo.build(network, input_shape, blueprint.seed)
        module.to(device, dtype, memory_format=torch.channels_last)
        return PyTorchNetwork(pytorch_zoo.Listed(module), pytorch_zoo.tensors(module), [], True)
    tensors = {name: _zeros(one, dtype, device) for name, one in parameters(network, input_shape).items()}
    tap_weights = [item.weight for _, item in network.items if isinstance(item, Tap)]
    draws = any(isinstance(report.layer, Dropout) for report in describe(network, input_shape))
    return PyTorchNetwork(build(network, tensors), tensors, tap_weights, draws)


def _zeros(parameter: Parameter, dtype: Any, device: Any) -> Any:
    tensor = torch.zeros(parameter.shape, dtype=dtype, device=device)
    if tensor.ndim == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return torch.nn.Parameter(tensor, requires_grad=parameter.trainable)


class _Normalised(torch.nn.Module):  # type: ignore[misc]
    """uint8 [n, height, width, channels] -> normalised, channels last in memory -> logits, and those of the heads."""

    def __init__(self, body: Any, blueprint: Blueprint, dtype: Any, device: Any) -> None:
        super().__init__()
        self.body = body
        # A whole row at a time: with three numbers in its inner loop the CPU takes long over it.
        self.mean = torch.tensor(blueprint.mean, dtype=dtype, device=device).repeat(blueprint.input_size)
        self.std = torch.tensor(blueprint.std, dtype=dtype, device=device).repeat(blueprint.input_size)

    def forward(self, images: Any) -> Any:
        pixels = (images.flatten(2) - self.mean) / self.std
        return self.body(pixels.view(images.shape).permute(0, 3, 1, 2))
