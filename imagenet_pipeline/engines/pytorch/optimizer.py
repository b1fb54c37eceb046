"""The written update rules on PyTorch tensors; its fused kernels where they are the same rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.optimizer_state import OptimizerState, ParameterGroup
from imagenet_pipeline.engines.pytorch.runtime import torch
from imagenet_pipeline.optimizers import clip_factor, limited_norm, with_l1

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

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update(self, rate: float) -> None:
        """Apply the gradients, means over the batch, at this learning rate. A parameter without a gradient stays."""
        self._state.count()
        named = ((name, self._parameters[name]) for name in self._state.moving)
        moving = {name: weight for name, weight in named if weight.grad is not None}
        if self._recipe.clip_norm:
            _clip([weight.grad for weight in moving.values()], self._recipe.clip_norm)
        if self._recipe.l1:
            for name, weight in moving.items():
                weight.grad = with_l1(weight, weight.grad, self._state.step(name, rate).recipe.l1)
        if self._fused is not None:
            self._update_fused(moving, rate)
        else:
            self._update_written(moving, rate)
        if self._recipe.max_norm:
            for weight in moving.values():
                weight.copy_(limited_norm(weight, self._recipe.max_norm))

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

    def _update_written(self, moving: dict[str, Any], rate: float) -> None:
        for name, weight in moving.items():
            step = self._state.step(name, rate)
            moved, self._slots[name] = self._state.rule.update(weight, weight.grad, self._slots[name], step)
            weight.copy_(moved)

    def _update_fused(self, moving: dict[str, Any], rate: float) -> None:
        for weight in moving.values():
            weight.grad = _laid_out_as(weight, weight.grad)
        for group in self._fused.param_groups:
            group["lr"] = rate * group["factor"]
        self._fused.step()

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


def _laid_out_as(weight: Any, gradient: Any) -> Any:
    # The fused kernels of a CPU walk the memory: of a gradient in another order they take the wrong numbers.
    strides = zip(weight.shape, weight.stride(), gradient.stride(), strict=True)
    same = all(size == 1 or ours == theirs for size, ours, theirs in strides)
    return gradient if same else torch.empty_like(weight).copy_(gradient)
