"""The MXNet/Gluon engine: a hybridized network, from pixels to logits, over a ctx list."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import (
    Array,
    Blueprint,
    Images,
    Labels,
    Targets,
    Totals,
    Values,
    check_fits,
    in_cluster,
    keys_of_ranks,
)
from imagenet_pipeline.engines.devices import (
    CPU_CONTEXTS,
    micro_batches,
    naming_memory,
    parse_devices,
    require_gpus,
    require_there,
    tell_automatic,
)
from imagenet_pipeline.engines.ema import Averages, Copies, rule_state
from imagenet_pipeline.engines.gluon import zoo
from imagenet_pipeline.engines.gluon.distributed import Reducer, all_workers
from imagenet_pipeline.engines.gluon.losses import METRICS, distilled, losses_of, weighted
from imagenet_pipeline.engines.gluon.network import GluonNetwork, build, gradients_of
from imagenet_pipeline.engines.gluon.optimizer import Approach, Optimizer
from imagenet_pipeline.engines.gluon.runtime import compute_threads, gpu_count, mx, why_no_gpu
from imagenet_pipeline.engines.optimizer_state import parameter_groups
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import draws
from imagenet_pipeline.networks.shapes import parameters

STEPS_IN_FLIGHT = 2
"""Steps Python may run ahead of the devices: bounds the memory of queued batches."""


@naming_memory
class GluonEngine:
    """See `engines.Engine`; it waits for the step just issued where there are moving averages."""

    name = "gluon"

    def __init__(self, blueprint: Blueprint, values: Values | None) -> None:
        self.versions = {"mxnet": mx.__version__, "numpy": np.__version__}
        self.threads = compute_threads()
        self._workers = all_workers() if in_cluster() else None
        self.rank, self.ranks = (self._workers.rank, self._workers.ranks) if self._workers else (0, 1)
        recipe = blueprint.recipe
        self._contexts = parse_contexts(recipe.devices)
        self.device_names = tuple(str(context) for context in self._contexts)
        if recipe.deterministic and any(context.device_type == "gpu" for context in self._contexts):
            # MXNet asks for it when it chooses the algorithms of a layer.
            os.environ["MXNET_ENFORCE_DETERMINISM"] = "1"
        refuse_keys_of_pytorch(recipe)
        self.precision = self._dtype = choose_precision(recipe.precision)
        built, self._draws = build_network(blueprint)
        self._parameters, self._tap_weights, self._layers = built.parameters, built.tap_weights, built.layers
        self._trained = {
            name: parameter for name, parameter in built.parameters.items() if parameter.grad_req != "null"
        }
        shapes = {name: tuple(parameter.shape) for name, parameter in built.parameters.items()}
        transfer = recipe.transfer
        groups = parameter_groups(shapes, recipe.optimizer, blueprint.frozen, transfer.rates, transfer.layer_decay)
        self._network = Normalised(built.block, blueprint, self._dtype)
        self._training = (
            self._network if built.training is built.block else Normalised(built.training, blueprint, self._dtype)
        )
        self._accumulation, self._sam_radius = recipe.accumulation, recipe.optimizer.sam_radius
        first = zoo.draw(built, recipe.seed) if values is None else values
        freeze(built, {name for name, group in groups.items() if group.frozen})
        self._moving = [parameter for parameter in self._trained.values() if parameter.grad_req != "null"]
        self._prepare(first)
        self._loss, self._distillation = recipe.loss, recipe.distillation
        weights = blueprint.class_weights
        self._class_weights = mx.nd.array(weights, dtype=self._dtype) if weights else None
        self._label_kind, self._metrics_of = blueprint.label_kind, METRICS[blueprint.label_kind]
        self._optimizer = Optimizer(recipe.optimizer, self._trained, self._contexts, groups)
        self._reducer = self._make_reducer()
        self._averages = Averages(recipe.average_decay, self._copies(), mx.nd.NDArray.copy, Approach())
        self._metrics: list[list[Any]] = []
        self._images = 0

    def train_batch(
        self, images: Images, labels: Targets, learning_rate: float, seed: int, teacher: Array | None = None
    ) -> None:
        self._averages.begin()
        metrics = self._pass(images, labels, seed, teacher)
        if self._sam_radius:
            with self._optimizer.uphill(self._sam_radius), self._kept_statistics():
                self._pass(images, labels, seed, teacher)
        self._optimizer.update(learning_rate, len(images) * self.ranks)
        if self._averages.means:
            self._await_gradients()
            self._averages.update()
        self._add(metrics, len(images))

    def score_batch(self, images: Images, labels: Targets) -> None:
        metrics = []
        for share, targets in self._shares(images, labels):
            logits = self._network(share)
            metrics.append(
                self._metrics_of(
                    losses_of(logits, targets, self._loss, training=False, label_kind=self._label_kind), logits, targets
                )
            )
        self._add(metrics, len(labels))

    def totals(self) -> Totals:
        counts = np.array(
            [np.sum([share.asnumpy() for share in step], axis=0, dtype=np.float64) for step in self._metrics]
        ).reshape(-1, 3)
        images, self._images, self._metrics = self._images, 0, []
        return Totals.of(images, counts, self._label_kind)

    def logits(self, images: Images) -> Array:
        return self.issue_logits(images)()

    def issue_logits(self, images: Images) -> Callable[[], Array]:
        parts = [self._network(share) for (share,) in self._shares(images)]
        return lambda: np.concatenate([part.asnumpy() for part in parts])

    def host_array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return np.empty(shape, dtype)

    def layer_gradients(self, images: Images, layer: str, classes: Labels) -> tuple[Array, Array]:
        # A hybridized network is a single operator, which hides its layers.
        self._network.hybridize(active=False)
        try:
            return gradients_of(self._network, self._layers, layer, images, classes, self._contexts[0])
        finally:
            self._hybridize()

    def sum_over_ranks(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return self._workers.total(numbers) if self._workers else numbers.copy()

    def values(self) -> dict[str, Array]:
        return self._on_host(self._copies())

    def averages(self) -> dict[str, Array]:
        return self._on_host(self._averages.means) or self.values()

    def set_values(self, values: Values) -> None:
        expected = {name: parameter.shape for name, parameter in self._parameters.items()}
        check_fits(expected, values, "weights")
        for name, parameter in self._parameters.items():
            parameter.set_data(mx.nd.array(values[name], dtype=self._dtype))

    def optimizer_state(self) -> dict[str, Array]:
        return self._optimizer.state() | self._averages.state(self._on_host(self._averages.means))

    def set_optimizer_state(self, state: Values) -> None:
        self._optimizer.set_state(rule_state(state))
        self._averages.restore(state, _fill)

    def forget_batches(self) -> None:
        """Be able to go on where memory ran out: MXNet leaves the error in arrays that are used again."""
        self._metrics, self._images = [], 0
        self._hybridize()

    def _prepare(self, values: Values) -> None:
        everything = mx.gluon.ParameterDict()
        for parameter in self._moving if self._accumulation > 1 else ():
            parameter.grad_req = "add"
        for network in (self._network, self._training):
            network.cast(self._dtype)
            everything.update(network.collect_params())
        everything.initialize(mx.init.Zero(), ctx=self._contexts, force_reinit=True)  # drawn for nothing otherwise
        self._hybridize()
        self.set_values(values)

    def _hybridize(self) -> None:
        for network in (self._network, self._training):
            network.hybridize(static_alloc=True, static_shape=True)

    def _make_reducer(self) -> Any | None:
        if self._workers is not None:
            return Reducer(self._workers, self._moving)
        if len(self._contexts) == 1:
            return None
        return mx.gluon.Trainer(self._moving, "sgd", kvstore="device", update_on_kvstore=False)

    def _pass(self, images: Images, labels: Targets, seed: int, teacher: Array | None) -> list[Any]:
        """Leave the gradient of the loss, summed over all images, in the parameters; the metrics, an array a device."""
        if self._draws:
            for index, context in enumerate(self._contexts):
                device_index = self.rank * len(self._contexts) + index
                mx.random.seed((seed + device_index * 0x9E3779B1) % 2**31, ctx=context)
        batches = micro_batches(images, labels, self._accumulation, len(self._contexts), teacher)
        for parameter in self._moving if len(batches) > 1 else ():
            parameter.zero_grad()
        metrics = [share for batch in batches for share in self._backward(*batch)]
        if self._reducer is not None:
            self._reducer.allreduce_grads()
        return metrics

    @contextmanager
    def _kept_statistics(self) -> Iterator[None]:
        """Context that leaves running statistics as they were."""
        self._await_gradients()
        named = (parameter for name, parameter in self._parameters.items() if name not in self._trained)
        statistics = [array for parameter in named for array in parameter.list_data()]
        kept = [array.copy() for array in statistics]
        try:
            yield
        finally:
            self._await_gradients()
            for array, value in zip(statistics, kept, strict=True):
                value.copyto(array)

    def _backward(self, images: Images, labels: Targets, teacher: Array | None) -> list[Any]:
        """Add a micro-batch's share of the gradient of the summed loss; its metrics, an array a device."""
        shares = list(self._shares(images, labels, teacher))
        losses, objectives = [], []
        with mx.autograd.record():
            for share, targets, taught in shares:
                logits, *heads = _listed(self._training(share))
                losses.append((self._losses(logits, targets, taught), logits, targets))
                objectives.append(losses[-1][0] + self._auxiliary(heads, targets, taught))
        mx.autograd.backward(objectives)
        return [self._metrics_of(*share) for share in losses]

    def _losses(self, logits: Any, targets: Any, teacher: Any | None) -> Any:
        """The training loss of each image [n]."""
        losses = losses_of(logits, targets, self._loss, training=True, label_kind=self._label_kind)
        if teacher is not None:
            losses = distilled(losses, logits, teacher, self._distillation)
        return weighted(losses, targets, self._class_weights)

    def _await_gradients(self) -> None:
        """Wait for the backward pass, in which MXNet writes running statistics, unknown to its own engine."""
        for parameter in self._moving:
            for gradient in parameter.list_grad():
                gradient.wait_to_read()

    def _auxiliary(self, heads: list[Any], targets: Any, teacher: Any | None) -> Any:
        taps = zip(self._tap_weights, heads, strict=True)
        return sum(weight * self._losses(head, targets, teacher) for weight, head in taps)

    def _shares(self, images: Images, *others: npt.NDArray[Any] | None) -> Iterator[tuple[Any, ...]]:
        """Each device's rows of the arrays, on it; what is None stays so."""
        kinds = {"uint8": "uint8", "int64": "int32"}
        for context, rows in zip(
            self._contexts, np.array_split(np.arange(len(images)), len(self._contexts)), strict=True
        ):
            if len(rows):
                own = slice(int(rows[0]), int(rows[-1]) + 1)
                yield tuple(
                    array
                    if array is None
                    else mx.nd.array(array[own], context, kinds.get(array.dtype.name, self._dtype))
                    for array in (images, *others)
                )

    def _add(self, metrics: list[Any], images: int) -> None:
        self._metrics.append(metrics)
        self._images += images
        if len(self._metrics) > STEPS_IN_FLIGHT:
            for share in self._metrics[-1 - STEPS_IN_FLIGHT]:
                share.wait_to_read()

    def _copies(self) -> dict[str, list[Any]]:
        # Weights are equal on every device; running statistics differ.
        named = self._parameters.items()
        return {name: parameter.list_data()[: 1 if name in self._trained else None] for name, parameter in named}

    def _on_host(self, copies: Copies) -> dict[str, Array]:
        """The arrays in NumPy; where devices have different values their mean, as a single device has."""
        values = {name: _mean([array.asnumpy() for array in arrays]) for name, arrays in copies.items()}
        if self._workers is None:
            return values
        return values | self._workers.mean({name: value for name, value in values.items() if name not in self._trained})


def choose_precision(precision: str) -> str:
    """The precision to compute in; "auto" is float32. Raises BadRecipe for those below.

    Tried with MXNet 1.9.1: on a CPU its convolutions and dense layers refuse float16 ("FP16 gemm on cpu not
    implemented!"), batch normalisation, pooling and activations take it.
    """
    if precision in ("bfloat16", "float16", "tf32"):
        why = ": MXNet multiplies float16 matrices on GPUs alone, and that is not supported here"
        raise BadRecipe(
            f"the gluon engine computes in float32 or float64{why if precision == 'float16' else ''}",
            where=f"precision = {precision!r}",
            advice="take precision=auto or engine=pytorch",
        )
    return "float32" if precision == "auto" else precision


def refuse_keys_of_pytorch(recipe: Recipe) -> None:
    """Raise BadRecipe for a key of the pytorch engine alone."""
    for key, default in keys_of_ranks(recipe).items():
        what, advice = f"the gluon engine has no {key}", f"{key}={str(default).lower()} or engine=pytorch"
        raise BadRecipe(what, where=f"{key} = {json.dumps(getattr(recipe, key))}", advice=advice)
    if recipe.compile:
        raise BadRecipe(
            "the gluon engine compiles its own way", where="compile = true", advice="compile=false or engine=pytorch"
        )


def _fill(array: Any, values: Array) -> None:
    array[:] = mx.nd.array(values, dtype=array.dtype)


def _mean(copies: list[Array]) -> Array:
    mean = copies[0] if len(copies) == 1 else np.mean(copies, axis=0, dtype=np.float64)
    return np.ascontiguousarray(mean, copies[0].dtype)


def _listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def parse_contexts(devices: str) -> list[Any]:
    """The ctx list for a `devices` word. Raises BadRecipe for a device that is not there.

    "auto" is the first GPU, or else the CPU.
    """
    gpus = gpu_count()
    kind, words = parse_devices(devices, gpus, expected="auto, cpu, cpu:0,1, gpu:all or gpu:0,1")
    if devices == "auto":
        tell_automatic("gluon", gpus, why_no_gpu)
    if kind == "gpu":
        require_gpus(devices, words, "gluon", gpus, why_no_gpu)
    else:
        require_there(devices, words, CPU_CONTEXTS, f"contexts cpu:0 to cpu:{CPU_CONTEXTS - 1}")
    return [mx.Context(kind, int(word)) for word in words]


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
    """The network, every parameter with its shape; true beside it if training draws random numbers."""
    network, input_shape = blueprint.network, blueprint.input_shape
    if network.engine is not None:
        return zoo.build(network, input_shape), True
    declared = parameters(network, input_shape)
    built = build(network, lambda name: declared[name].shape[0])
    for name, parameter in built.parameters.items():
        parameter.shape = declared[name].shape
        if not declared[name].trainable:
            parameter.grad_req = "null"
    return built, draws(network)


def freeze(network: GluonNetwork, names: set[str]) -> None:
    """Let these parameters take no gradient, and layers keep these running statistics; before the first step."""
    for name in names:
        network.parameters[name].grad_req = "null"
    statistics = {id(network.parameters[name]) for name in names if name.endswith("running_mean")}

    def fix(block: Any) -> None:
        if id(getattr(block, "running_mean", None)) in statistics:
            # Where its constructor, which only our own networks call here, keeps `use_global_stats`.
            block._kwargs["use_global_stats"] = True

    network.training.apply(fix)
