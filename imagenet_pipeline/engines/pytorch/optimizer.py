"""The written update rules on lists of PyTorch tensors; its fused kernels where they are the same rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.optimizer_state import OptimizerState, ParameterGroup
from imagenet_pipeline.engines.pytorch.runtime import torch
from imagenet_pipeline.engines.pytorch.tensor_list import RowLimit, TensorList, copy_unless, joint_step
from imagenet_pipeline.optimizers import Step, clip_factor, with_l1

_FUSED_SLOTS = {
    "sgd": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adagrad": ("sum",),
}
"""Optimizers whose fused kernel is the written rule, with PyTorch's words for our slots."""


class Optimizer:
    """An optimizer of named tensors, all of the same type and on the same device.

    Without `groups` every parameter is in the recipe's own group (`optimizer_state.parameter_groups`).
    """

    def __init__(
        self, recipe: OptimizerRecipe, parameters: dict[str, Any], groups: Mapping[str, ParameterGroup] | None = None
    ) -> None:
        self._recipe = recipe
        self._parameters = parameters
        shapes = {name: tuple(weight.shape) for name, weight in parameters.items()}
        self._state = OptimizerState(recipe, shapes, groups)
        self._slots = {
            name: tuple(torch.zeros_like(weight, requires_grad=False) for _ in self._state.rule.slots)
            for name, weight in parameters.items()
        }
        self._fused: Any = self._fused_optimizer()
        self._row_limits: dict[tuple[str, ...], RowLimit] = {}

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update(self, rate: float, overflow: Any | None = None) -> None:
        """Apply the gradients, means over the batch, at this learning rate. A parameter without a gradient stays.

        `overflow` is a float32 on the device: where it is 1 weights and slots stay, and `take_back` shall follow.
        """
        self._state.count()
        named = ((name, self._parameters[name]) for name in self._state.moving)
        moving = {name: weight for name, weight in named if weight.grad is not None}
        if not moving:
            return
        weights = list(moving.values())
        gradients = _laid_out_as(weights, [weight.grad for weight in weights])
        if self._recipe.clip_norm:
            _clip(gradients, self._recipe.clip_norm)
        if self._recipe.l1:
            l1 = joint_step(self._steps(moving, rate)).recipe.l1
            gradients = with_l1(TensorList(weights), TensorList(gradients), l1).tensors
        if self._fused is not None:
            self._update_fused(weights, gradients, rate, overflow)
        elif self._state.rule.on_lists:
            self._update_lists(moving, gradients, joint_step(self._steps(moving, rate)), overflow)
        else:
            self._update_written(moving, gradients, self._steps(moving, rate), overflow)
        if self._recipe.max_norm:
            if tuple(moving) not in self._row_limits:
                self._row_limits = {tuple(moving): RowLimit(weights)}
            self._row_limits[tuple(moving)].limit(self._recipe.max_norm, overflow)

    def take_back(self) -> None:
        """Count the last step as not taken, because it had an overflow."""
        self._state.count(-1)

    def state(self) -> dict[str, Array]:
        """The optimizer state by name (`OptimizerState.arrays`); empty before the first update."""
        if not self._state.steps:
            return {}
        return self._state.arrays(
            {
                f"{slot}/{name}": slots[index].detach().cpu().contiguous().numpy().copy()
                for index, slot in enumerate(self._state.rule.slots)
                for name, slots in self._slots.items()
            }
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def set_state(self, state: Values) -> None:
        """Go on from a state. Raises BadRecipe or BadInput where it is another optimizer's or network's."""
        if not state:
            return
        arrays = self._state.read(state)
        for index, slot in enumerate(self._state.rule.slots):
            for name, slots in self._slots.items():
                slots[index].copy_(torch.from_numpy(arrays[f"{slot}/{name}"].copy()))
        for name, weight in self._parameters.items() if self._fused is not None else ():
            self._fused.state[weight]["step"].fill_(self._state.taken(name))

    def _steps(self, names: Iterable[str], rate: float) -> list[Step]:
        return [self._state.step(name, rate) for name in names]

    def _update_fused(self, weights: list[Any], gradients: Sequence[Any], rate: float, overflow: Any | None) -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        for group in self._fused.param_groups:
            group["lr"] = rate * group["factor"]
        self._fused.found_inf = overflow
        self._fused.step()

    def _update_lists(self, moving: dict[str, Any], gradients: Sequence[Any], step: Step, overflow: Any | None) -> None:
        weights = list(moving.values())
        kept = tuple(TensorList(slot) for slot in zip(*(self._slots[name] for name in moving), strict=True))
        moved, slots = self._state.rule.update(TensorList(weights), TensorList(gradients), kept, step)
        if overflow is None:
            torch._foreach_copy_(weights, moved.tensors)
            if slots:
                self._slots.update(zip(moving, zip(*(slot.tensors for slot in slots), strict=True), strict=True))
        else:
            copy_unless(
                overflow,
                [*weights, *(tensor for slot in kept for tensor in slot.tensors)],
                [tensor for new in (moved, *slots) for tensor in new.tensors],
            )

    def _update_written(
        self, moving: dict[str, Any], gradients: Sequence[Any], steps: list[Step], overflow: Any | None
    ) -> None:
        for (name, weight), gradient, step in zip(moving.items(), gradients, steps, strict=True):
            moved, slots = self._state.rule.update(weight, gradient, self._slots[name], step)
            if overflow is None:
                weight.copy_(moved)
                self._slots[name] = slots
            else:
                for target, value in zip((weight, *self._slots[name]), (moved, *slots), strict=True):
                    target.copy_(torch.where(overflow == 1, target, value))

    def _fused_optimizer(self) -> Any:
        recipe, groups = self._recipe, self._groups()
        constants: dict[str, Any] = {"lr": 0.0, "fused": True}
        on_cpu = all(weight.device.type == "cpu" for weight in self._parameters.values())
        optimizer: Any
        match recipe.name:
            case "sgd" if recipe.momentum:  # without momentum the kernel keeps no velocity for a restart with it
                nesterov, momentum = recipe.nesterov, recipe.momentum
                optimizer = torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, **constants)
            case "adam" | "adamw":
                kind = torch.optim.Adam if recipe.name == "adam" else torch.optim.AdamW
                optimizer = kind(groups, betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon, **constants)
            case "adagrad" if on_cpu:
                optimizer = torch.optim.Adagrad(groups, eps=recipe.epsilon, **constants)
            case _:
                return None
        for weight, slots in zip(self._parameters.values(), self._slots.values(), strict=True):
            optimizer.state[weight] = dict(zip(_FUSED_SLOTS[recipe.name], slots, strict=True))
            optimizer.state[weight]["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        return optimizer

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters with the same factor of the rate and decay; the kernels leave alone what has no gradient."""
        alike: dict[tuple[float, float], list[Any]] = {}
        for name, weight in self._parameters.items():
            step = self._state.step(name, 1.0)
            alike.setdefault((step.rate, step.recipe.weight_decay), []).append(weight)
        return [
            {"params": weights, "factor": factor, "weight_decay": decay} for (factor, decay), weights in alike.items()
        ]


def _clip(gradients: list[Any], limit: float) -> None:
    torch._foreach_mul_(gradients, clip_factor(torch.nn.utils.get_total_norm(gradients), limit))


def _laid_out_as(weights: list[Any], gradients: list[Any]) -> list[Any]:
    """The gradients, those in another order in memory than their weights copied into theirs."""
    # The fused kernels walk the memory: of a gradient in another order a CPU's take the wrong numbers.
    pairs = zip(weights, gradients, strict=True)
    others = [place for place, (weight, gradient) in enumerate(pairs) if not _in_the_same_order(weight, gradient)]
    if others:
        copies = torch._foreach_clone([weights[place] for place in others])
        torch._foreach_copy_(copies, [gradients[place] for place in others])
        for place, copy in zip(others, copies, strict=True):
            gradients[place] = copy
    return gradients


def _in_the_same_order(weight: Any, gradient: Any) -> bool:
    if weight.stride() == gradient.stride():
        return True
    strides = zip(weight.shape, weight.stride(), gradient.stride(), strict=True)
    return all(size == 1 or ours == theirs for size, ours, theirs in strides)
