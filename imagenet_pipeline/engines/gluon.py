"""The MXNet/Gluon engine: one hybridized network over a ctx list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.engines import Array, Blueprint, Images, Labels, Targets, Totals, Values, check_fits, gluon_zoo
from imagenet_pipeline.engines.devices import parse_devices, require_there
from imagenet_pipeline.engines.gluon_import import mx
from imagenet_pipeline.engines.gluon_layers import GluonNetwork, build
from imagenet_pipeline.engines.gluon_rule import Rule
from imagenet_pipeline.engines.gluon_scores import losses_of, marks_of, mean_over_crops
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import Dropout
from imagenet_pipeline.networks.shapes import describe, parameters
from imagenet_pipeline.networks.zoo import ZooNetwork

CPU_CONTEXTS = 64
"""MXNet takes any number for a CPU context, and memory in proportion to it."""
STEPS_IN_FLIGHT = 2
"""How far Python may run ahead of the devices: bounds the memory of queued batches."""


class GluonEngine:
    """See `engines.Engine`."""

    name = "gluon"
    rank = 0
    ranks = 1

    def __init__(self, blueprint: Blueprint, values: Values | None) -> None:
        self.versions = {"mxnet": mx.__version__, "numpy": np.__version__}
        self._contexts = parse_contexts(blueprint.devices)
        self.device_names = tuple(str(context) for context in self._contexts)
        _refuse_compilation(blueprint)
        self.precision = self._dtype = choose_precision(blueprint.precision)
        built, self._draws = build_network(blueprint)
        self._parameters, self._tap_weights = built.parameters, built.tap_weights
        self._network = _Normalised(built.block, blueprint, self._dtype)
        self._training = (
            self._network if built.training is built.block else _Normalised(built.training, blueprint, self._dtype)
        )
        self._prepare(gluon_zoo.draw(built, blueprint.seed) if values is None else values)
        self._loss = blueprint.loss
        self._rule = Rule(blueprint.optimizer, self._trainable(), self._contexts)
        self._reducer = self._make_reducer()
        self._marks: list[list[Any]] = []
        self._images = 0

    def train_batch(self, images: Images, labels: Targets, learning_rate: float, seed: int) -> None:
        if len(images) < len(self._contexts):
            raise BadRecipe("fewer images in a step than devices", expected=len(self._contexts), found=len(images))
        if self._draws:
            for index, context in enumerate(self._contexts):
                mx.random.seed((seed + index * 0x9E3779B1) % 2**31, ctx=context)
        shares = list(self._shares(images, labels))
        losses, objectives = [], []
        with mx.autograd.record():
            for share, truth in shares:
                logits, *heads = _listed(self._training(share))
                losses.append((losses_of(logits, truth, self._loss, training=True), logits, truth))
                objectives.append(losses[-1][0] + self._auxiliary(heads, truth))
        mx.autograd.backward(objectives)
        if self._reducer is not None:
            self._reducer.allreduce_grads()
        self._rule.update(learning_rate, len(images))
        self._remember([marks_of(*share) for share in losses], len(images))

    def score_batch(self, images: Images, labels: Labels, crops: int = 1) -> None:
        marks = []
        for share, truth in self._shares(images, labels, crops):
            logits = mean_over_crops(self._network(share), crops)
            losses = losses_of(logits, truth, self._loss, training=False)
            marks.append(marks_of(losses, logits, truth))
        self._remember(marks, len(labels))

    def totals(self) -> Totals:
        counts = np.array(
            [np.sum([mark.asnumpy() for mark in step], axis=0, dtype=np.float64) for step in self._marks]
        ).reshape(-1, 3)
        images, self._images, self._marks = self._images, 0, []
        return Totals(images, int(counts[:, 1].sum()), int(counts[:, 2].sum()), counts[:, 0])

    def logits(self, images: Images) -> Array:
        nothing = np.zeros(len(images), np.int64)
        parts = [self._network(share).asnumpy() for share, _ in self._shares(images, nothing)]
        return np.concatenate(parts)

    def sum_over_ranks(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return numbers.copy()

    def values(self) -> dict[str, Array]:
        return {name: self._value(parameter) for name, parameter in self._parameters.items()}

    def averages(self) -> dict[str, Array]:
        return self.values()

    def set_values(self, values: Values) -> None:
        expected = {name: parameter.shape for name, parameter in self._parameters.items()}
        check_fits(expected, values, "weights")
        for name, parameter in self._parameters.items():
            parameter.set_data(mx.nd.array(values[name], dtype=self._dtype))

    def optimizer_state(self) -> dict[str, Array]:
        return self._rule.state()

    def set_optimizer_state(self, state: Values) -> None:
        self._rule.set_state(state)

    def _prepare(self, values: Values) -> None:
        everything = mx.gluon.ParameterDict()
        for network in (self._network, self._training):
            network.cast(self._dtype)
            network.hybridize(static_alloc=True, static_shape=True)
            everything.update(network.collect_params())
        everything.initialize(ctx=self._contexts, force_reinit=True)
        self.set_values(values)

    def _trainable(self) -> dict[str, Any]:
        return {name: one for name, one in self._parameters.items() if one.grad_req != "null"}

    def _make_reducer(self) -> Any | None:
        if len(self._contexts) == 1:
            return None
        return mx.gluon.Trainer(list(self._trainable().values()), "sgd", kvstore="device", update_on_kvstore=False)

    def _auxiliary(self, heads: list[Any], truth: Any) -> Any:
        return sum(
            weight * losses_of(head, truth, self._loss, training=True)
            for weight, head in zip(self._tap_weights, heads, strict=True)
        )

    def _shares(self, images: Images, labels: Targets, crops: int = 1) -> Iterator[tuple[Any, Any]]:
        kind = "int32" if labels.ndim == 1 else self._dtype
        for context, rows in zip(
            self._contexts, np.array_split(np.arange(len(labels)), len(self._contexts)), strict=True
        ):
            if len(rows):
                first, last = int(rows[0]), int(rows[-1]) + 1
                share = mx.nd.array(images[first * crops : last * crops], ctx=context, dtype="uint8")
                yield share, mx.nd.array(labels[first:last], ctx=context, dtype=kind)

    def _remember(self, marks: list[Any], images: int) -> None:
        self._marks.append(marks)
        self._images += images
        if len(self._marks) > STEPS_IN_FLIGHT:
            for mark in self._marks[-1 - STEPS_IN_FLIGHT]:
                mark.wait_to_read()

    def _value(self, parameter: Any) -> Array:
        copies = [copy.asnumpy() for copy in parameter.list_data()]
        # Weights are equal on every device; running statistics differ, and their mean is what one device sees.
        mean = copies[0] if parameter.grad_req != "null" else np.mean(copies, axis=0, dtype=copies[0].dtype)
        return np.ascontiguousarray(mean)


class _Normalised(mx.gluon.HybridBlock):  # type: ignore[misc]
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
        return gluon_zoo.build(network, input_shape), True
    declared = parameters(network, input_shape)
    built = build(network, lambda name: declared[name].shape[0])
    for name, parameter in built.parameters.items():
        parameter.shape = declared[name].shape
    return built, any(isinstance(report.layer, Dropout) for report in describe(network, input_shape))


def choose_precision(precision: str) -> str:
    """What to compute in; "auto" is float32. Raises BadRecipe for the half precisions."""
    if precision in ("bfloat16", "float16"):
        raise BadRecipe(
            "the gluon engine computes in float32 or float64",
            where=f"precision = {precision!r}",
            advice="take precision=auto or engine=pytorch",
        )
    return "float32" if precision == "auto" else precision


def _refuse_compilation(blueprint: Blueprint) -> None:
    if blueprint.compile:
        raise BadRecipe(
            "the gluon engine compiles its own way", where="compile = true", advice="compile=false or engine=pytorch"
        )


def _listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def parse_contexts(devices: str) -> list[Any]:
    """The ctx list for a `devices` word. Raises BadRecipe for a device that is not there.

    "auto" is the first GPU, or else the CPU.
    """
    gpus = mx.context.num_gpus()
    kind, words = parse_devices(devices, gpus, expected="auto, cpu, cpu:0,1 or gpu:0,1")
    if kind == "gpu":
        require_there(devices, words, gpus, f"{gpus} GPUs that MXNet can use")
    else:
        require_there(devices, words, CPU_CONTEXTS, f"contexts cpu:0 to cpu:{CPU_CONTEXTS - 1}")
    return [mx.Context(kind, int(word)) for word in words]
