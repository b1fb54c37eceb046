"""The PyTorch engine: a channels-last network, from pixels to logits, on one device, which may be one of several
that train together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
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
)
from imagenet_pipeline.engines.devices import micro_batches, naming_memory
from imagenet_pipeline.engines.ema import Averages, rule_state
from imagenet_pipeline.engines.optimizer_state import parameter_groups
from imagenet_pipeline.engines.pytorch import zoo
from imagenet_pipeline.engines.pytorch.distributed import joined_group, naming_lost_ranks, normalised_over_ranks
from imagenet_pipeline.engines.pytorch.loss_scale import LossScale
from imagenet_pipeline.engines.pytorch.losses import METRICS, distilled, losses_of, weighted
from imagenet_pipeline.engines.pytorch.network import build, gradients_of, normalise_together, watched_layer
from imagenet_pipeline.engines.pytorch.optimizer import Optimizer
from imagenet_pipeline.engines.pytorch.runtime import (
    allow_tf32,
    choose_algorithms,
    choose_precision,
    compiled,
    device_name,
    naming_algorithms,
    parse_device,
    require_compiler,
    torch,
    versions_of,
)
from imagenet_pipeline.engines.pytorch.tensor_list import copy_unless
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import Tap, draws
from imagenet_pipeline.networks.shapes import Parameter, parameters
from imagenet_pipeline.processes import this_process

STEPS_IN_FLIGHT = 2
"""Steps Python may run ahead of a GPU: bounds the memory of queued batches."""


@naming_memory
class PyTorchEngine:
    """See `engines.Engine`.

    On a CPU equal runs give equal bytes. A GPU's kernels add in no fixed order and are chosen by trial, so its
    runs differ in the last bits, unless the recipe is `deterministic`.
    """

    name = "pytorch"

    def __init__(self, blueprint: Blueprint, values: Values | None) -> None:
        recipe = blueprint.recipe
        self._device = parse_device(recipe.devices, this_process())
        on_gpu = self._device.type == "cuda"
        self._deterministic = recipe.deterministic and on_gpu
        choose_algorithms(self._deterministic)
        self._group = joined_group(self._device)
        self._copies = torch.cuda.Stream(self._device) if on_gpu else None
        self.rank, self.ranks = self._group.rank, self._group.ranks
        self.device_names: tuple[str, ...] = (device_name(self._device),)
        self.versions = versions_of(self._device)
        self.threads: int = torch.get_num_threads()
        # bfloat16 tells classes apart, but rounds a number to three digits.
        wanted = "float32" if (recipe.precision, blueprint.label_kind) == ("auto", "number") else recipe.precision
        self.precision = choose_precision(wanted, self._device)
        self._loss, self._distillation = recipe.loss, recipe.distillation
        self._class_weights = self._weights_of(blueprint.class_weights)
        self._label_kind, self._metrics_of = blueprint.label_kind, METRICS[blueprint.label_kind]
        built = build_network(blueprint, self._dtype, self._device)
        self._tensors, self._tap_weights, self._draws = built.tensors, built.tap_weights, built.draws
        self._layers = built.layers
        self._trained = {name: tensor for name, tensor in built.tensors.items() if tensor.requires_grad}
        if values is not None:
            self.set_values(values)
        shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        transfer = recipe.transfer
        groups = parameter_groups(shapes, recipe.optimizer, blueprint.frozen, transfer.rates, transfer.layer_decay)
        self._fixed_norms = freeze(built, {name for name, group in groups.items() if group.frozen})
        if recipe.sync_batch_norm and self.ranks > 1:
            require_own_normalisation(blueprint)
            normalise_together(built.module, normalised_over_ranks)
        self._compression = recipe.gradient_compression
        self._network = Normalised(built.module, blueprint, self._dtype, self._device).eval()
        self._compile = recipe.compile
        if self._compile:
            require_compiler()
        self._optimizer = Optimizer(recipe.optimizer, self._trained, groups)
        self._accumulation, self._sam_radius = recipe.accumulation, recipe.optimizer.sam_radius
        # A graph's gradients do not outlive the next micro-batch, and DDP's exchange is no part of one.
        self._graphs = on_gpu and self.ranks == 1 and self._accumulation == 1
        self._loss_scale = LossScale(self._device) if self.precision == "float16" else None
        live = {name: [tensor.detach()] for name, tensor in self._tensors.items()}
        self._averages = Averages(recipe.average_decay, live, torch.clone, self._approach)
        self._overflow: Any | None = None
        self._metrics: list[Any] = []
        self._events: list[Any] = []
        self._images = 0

    @naming_lost_ranks
    @naming_algorithms
    def train_batch(
        self, images: Images, labels: Targets, learning_rate: float, seed: int, teacher: Array | None = None
    ) -> None:
        self._train_mode(True)
        self._averages.begin()
        metrics = self._pass(images, labels, seed, teacher)
        if self._sam_radius:
            with self._optimizer.uphill(self._sam_radius), self._kept_statistics():
                self._pass(images, labels, seed, teacher)
        self._step(learning_rate)
        self._add(metrics, len(labels))
        self._await_copies()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def score_batch(self, images: Images, labels: Targets) -> None:
        targets = self._put(labels)
        logits = self._evaluated(images)
        losses = losses_of(logits, targets, self._loss, training=False, label_kind=self._label_kind)
        self._add(self._metrics_of(losses, logits, targets), len(labels))
        self._await_copies()

    def totals(self) -> Totals:
        counts = torch.stack(self._metrics).double().cpu().numpy() if self._metrics else np.zeros((0, 3))
        images, self._images, self._metrics = self._images, 0, []
        return Totals.of(images, counts, self._label_kind)

    def logits(self, images: Images) -> Array:
        wait: Callable[[], Array] = self.issue_logits(images)
        return wait()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def issue_logits(self, images: Images) -> Callable[[], Array]:
        # Copied now: a copy issued later would wait for the batches in between.
        logits = self._evaluated(images).to("cpu", non_blocking=True)
        copied = self._event()
        self._await_copies()

        def read() -> Array:
            if copied is not None:
                copied.synchronize()
            array: Array = logits.numpy()
            return array

        return read

    def host_array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        if self._copies is None:
            return np.empty(shape, dtype)
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        try:
            array: npt.NDArray[Any] = torch.empty(shape, dtype=kind, pin_memory=True).numpy()
        except RuntimeError as error:
            raise MemoryError(str(error)) from error
        return array

    def layer_gradients(self, images: Images, layer: str, classes: Labels) -> tuple[Array, Array]:
        self._train_mode(False)
        with watched_layer(self._layers, layer) as outputs:
            with self._autocast():
                logits = self._logits(self._network(self._put(images))[0])
            return gradients_of(logits, self._put(classes), outputs, layer)

    def sum_over_ranks(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return self._group.sum(numbers)

    def values(self) -> dict[str, Array]:
        return self._group.with_mean_statistics({name: _on_host(tensor) for name, tensor in self._tensors.items()})

    def averages(self) -> dict[str, Array]:
        return self._means() or self.values()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def set_values(self, values: Values) -> None:
        check_fits({name: tensor.shape for name, tensor in self._tensors.items()}, values, "weights")
        for name, tensor in self._tensors.items():
            tensor.copy_(torch.tensor(values[name]))

    def optimizer_state(self) -> dict[str, Array]:
        self._take_back_skipped()
        scale = {} if self._loss_scale is None else self._loss_scale.state()
        return self._optimizer.state() | self._averages.state(self._means()) | scale

    def set_optimizer_state(self, state: Values) -> None:
        self._take_back_skipped()
        self._optimizer.set_state(rule_state(state))
        self._averages.restore(state, lambda mean, values: mean.copy_(torch.tensor(values)))
        if self._loss_scale is not None:
            self._loss_scale.set_state(state)

    @cached_property
    def _parallel(self) -> Any:
        """The network whose gradients are averaged over the ranks; made at the first step, which is collective."""
        self._group.require_equal(self.values())
        return self._group.parallel(self._network, self._compression)

    @cached_property
    def _training_network(self) -> Any:
        return compiled(self._parallel, self._graphs) if self._compile else self._parallel

    @property
    def _dtype(self) -> Any:
        return torch.float64 if self.precision == "float64" else torch.float32

    def _put(self, array: npt.NDArray[Any]) -> Any:
        """The array on the device, copied on a stream of its own, which waits for no step; `_await_copies` ends it.

        From pinned memory (`host_array`) the copy costs Python no time.
        """
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        if self._copies is None:
            return tensor
        with torch.cuda.stream(self._copies):
            copied = tensor.to(self._device, non_blocking=True)
        steps = torch.cuda.current_stream(self._device)
        steps.wait_stream(self._copies)
        copied.record_stream(steps)
        return copied

    def _await_copies(self) -> None:
        """Wait until the host's arrays have been read; they have been, mostly, when the work on them is issued."""
        if self._copies is not None:
            self._copies.synchronize()

    def _event(self) -> Any | None:
        """The end of all that has been issued; None on a CPU, which never runs behind."""
        return None if self._copies is None else torch.cuda.current_stream(self._device).record_event()

    def _autocast(self) -> Any:
        half = self.precision in ("bfloat16", "float16")
        return torch.autocast(self._device.type, getattr(torch, self.precision) if half else None, enabled=half)

    def _train_mode(self, training: bool) -> None:
        # Both hold for the process, where another engine may have been told otherwise.
        allow_tf32(self.precision == "tf32")
        choose_algorithms(self._deterministic)
        if self._network.training != training:
            self._network.train(training)
            for norm in self._fixed_norms:
                norm.training = False

    def _logits(self, output: Any) -> Any:
        return output.to(self._dtype)

    def _evaluated(self, images: Images) -> Any:
        self._train_mode(False)
        with self._autocast():
            return self._logits(self._network(self._put(images))[0])

    def _pass(self, images: Images, labels: Targets, seed: int, teacher: Array | None) -> Any:
        """Leave the gradient of the mean loss in the weights' `grad`; the metrics of the batch [3]."""
        if self._draws:
            torch.manual_seed(self._group.seed(seed))
        for tensor in self._trained.values():
            tensor.grad = None
        batches = micro_batches(images, labels, self._accumulation, 1, teacher)
        metrics = []
        for number, batch in enumerate(batches, 1):
            with self._exchanging(number == len(batches)):
                metrics.append(self._backward(*batch, len(batches)))
        return sum(metrics)

    @contextmanager
    def _kept_statistics(self) -> Iterator[None]:
        """Context that leaves running statistics as they were."""
        statistics = [tensor for name, tensor in self._tensors.items() if name not in self._trained]
        kept = [tensor.clone() for tensor in statistics]
        try:
            yield
        finally:
            for tensor, value in zip(statistics, kept, strict=True):
                tensor.copy_(value)

    def _backward(self, images: Images, labels: Targets, teacher: Array | None, parts: int) -> Any:
        """Add a micro-batch's share, of `parts`, of the gradient of the mean loss; its metrics [3]."""
        targets, taught = self._put(labels), None if teacher is None else self._logits(self._put(teacher))
        with self._autocast():
            outputs = self._training_network(self._put(images))
        logits, *heads = [self._logits(output) for output in outputs]
        losses = self._losses(logits, targets, taught)
        total = losses.mean()
        for weight, head in zip(self._tap_weights, heads, strict=True):
            total = total + weight * self._losses(head, targets, taught).mean()
        if self._loss_scale is not None:
            total = self._loss_scale.scaled(total)
        (total / parts if parts > 1 else total).backward()
        return self._metrics_of(losses, logits, targets)

    def _losses(self, logits: Any, targets: Any, teacher: Any | None) -> Any:
        """The training loss of each image [n]."""
        losses = losses_of(logits, targets, self._loss, training=True, label_kind=self._label_kind)
        if teacher is not None:
            losses = distilled(losses, logits, teacher, self._distillation)
        return weighted(losses, targets, self._class_weights)

    def _weights_of(self, class_weights: tuple[float, ...]) -> Any | None:
        return torch.tensor(class_weights, dtype=self._dtype, device=self._device) if class_weights else None

    def _exchanging(self, last: bool) -> Any:
        """Context of a micro-batch: ranks exchange gradients with the last micro-batch alone."""
        return nullcontext() if last else self._group.no_sync(self._parallel)

    def _step(self, learning_rate: float) -> None:
        self._take_back_skipped()
        if self._loss_scale is not None:
            gradients = [tensor.grad for tensor in self._trained.values() if tensor.grad is not None]
            self._overflow = self._loss_scale.unscale(gradients)
        self._optimizer.update(learning_rate, self._overflow)
        self._averages.update()

    def _take_back_skipped(self) -> None:
        """Count float16's last step as not taken where it was not; called before a count is used."""
        if self._loss_scale is not None and self._loss_scale.skipped():
            self._optimizer.take_back()
            self._averages.take_back()

    def _approach(self, means: list[Any], arrays: list[Any], share: float) -> list[Any]:
        if self._overflow is None:
            torch._foreach_lerp_(means, arrays, share)
        else:
            copy_unless(self._overflow, means, torch._foreach_lerp(means, arrays, share))
        return means

    def _means(self) -> dict[str, Array]:
        means = {name: _on_host(mean) for name, (mean,) in self._averages.means.items()}
        return self._group.with_mean_statistics(means)

    def _add(self, metrics: Any, images: int) -> None:
        self._metrics.append(metrics)
        self._images += images
        event = self._event()
        if event is not None:
            self._events.append(event)
            if len(self._events) > STEPS_IN_FLIGHT:
                self._events.pop(0).synchronize()


def _on_host(tensor: Any) -> Array:
    return np.array(tensor.detach().cpu().numpy(), order="C")


@dataclass
class PyTorchNetwork:
    """A module that gives a list, the logits and in training those of every tap, and its tensors by name.

    `layers` has the module of every layer, and of every group of layers, by its path; a zoo's network has none.
    """

    module: Any
    tensors: dict[str, Any]
    tap_weights: list[float]
    draws: bool
    """True where training draws random numbers."""
    layers: Mapping[str, Any] = field(default_factory=dict)


def build_network(blueprint: Blueprint, dtype: Any, device: Any) -> PyTorchNetwork:
    """The network on its device: a zoo's with its own initial values, our own with zeros."""
    network, input_shape = blueprint.network, blueprint.input_shape
    if network.engine is not None:
        module = zoo.build(network, input_shape, blueprint.recipe.seed)
        module.to(device, dtype)
        for parameter in module.parameters():
            parameter.data = _channels_last(parameter.data)
        return PyTorchNetwork(zoo.Listed(module), zoo.tensors(module), [], True)
    tensors = {name: _zeros(parameter, dtype, device) for name, parameter in parameters(network, input_shape).items()}
    tap_weights = [item.weight for _, item in network.items if isinstance(item, Tap)]
    module = build(network, tensors)
    return PyTorchNetwork(module, tensors, tap_weights, draws(network), module.layers)


def freeze(network: PyTorchNetwork, names: set[str]) -> list[Any]:
    """Let these tensors take no gradient; returns the modules that must not train, since their statistics stay."""
    for name in names:
        network.tensors[name].requires_grad_(False)
    statistics = {id(network.tensors[name]) for name in names if name.endswith("running_mean")}
    return [layer for layer in network.module.modules() if id(getattr(layer, "running_mean", None)) in statistics]


def _zeros(parameter: Parameter, dtype: Any, device: Any) -> Any:
    tensor = torch.zeros(parameter.shape, dtype=dtype, device=device)
    return torch.nn.Parameter(_channels_last(tensor), requires_grad=parameter.trainable)


def _channels_last(tensor: Any) -> Any:
    # With strides that say so where a size of 1 leaves several, as their gradients' do: `contiguous` would keep them.
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor) if tensor.ndim == 4 else tensor


def require_own_normalisation(blueprint: Blueprint) -> None:
    """Raise BadRecipe for a zoo's network, whose normalisations know of no other ranks."""
    if blueprint.network.engine is not None:
        raise BadRecipe(
            "the normalisations of a zoo's network each go by their own process's images",
            where="sync_batch_norm = true",
            advice=f"sync_batch_norm=false, or a network of our own in place of {blueprint.network}",
        )


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
