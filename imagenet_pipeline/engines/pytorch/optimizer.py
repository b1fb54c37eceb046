"""The written update rules on PyTorch tensors; its fused kernels where they are the same rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.optimizers import RULES, Pace, Treatment, clip_factor, limit_norm, with_l1
from imagenet_pipeline.engines.pytorch.runtime import torch

_FUSED_SLOTS = {
    "sgd": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adagrad": ("sum",),
}
"""Optimizers whose fused kernel is the written rule, with PyTorch's words for our slots."""


class Rule:
    """An optimizer at work on named tensors, all of one type and on one device.

    Without `treated` every parameter has its ordinary treatment (`treatment.treatments`).
    """

    def __init__(
        self, recipe: OptimizerRecipe, parameters: dict[str, Any], treated: Mapping[str, Treatment] | None = None
    ) -> None:
        self._recipe = recipe
        self._parameters = parameters
        self._pace = Pace(recipe, {name: tuple(weight.shape) for name, weight in parameters.items()}, treated)
        self._slots = {
            name: tuple(torch.zeros_like(weight, requires_grad=False) for _ in RULES[recipe.name].slots)
            for name, weight in parameters.items()
        }
        self._fused: Any = self._fused_optimizer()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update(self, rate: float) -> None:
        """Apply the gradients, means over the batch, at this learning rate. A parameter without one stays."""
        self._pace.count()
        named = ((name, self._parameters[name]) for name in self._pace.moving)
        moving = {name: weight for name, weight in named if weight.grad is not None}
        if self._recipe.clip_norm:
            _clip([weight.grad for weight in moving.values()], self._recipe.clip_norm)
        if self._recipe.l1:
            for name, weight in moving.items():
                weight.grad = with_l1(weight, weight.grad, self._pace.step(name, rate).recipe.l1)
        if self._fused is not None:
            self._update_fused(moving, rate)
        else:
            update = RULES[self._recipe.name].update
            for name, weight in moving.items():
                update(weight, weight.grad, self._slots[name], self._pace.step(name, rate))
        if self._recipe.max_norm:
            for weight in moving.values():
                limit_norm(weight, self._recipe.max_norm)

    def state(self) -> dict[str, Array]:
        """What the rule remembers, by name (`Pace.state`); empty before the first update."""
        if not self._pace.steps:
            return {}
        return self._pace.state(
            {
                f"{slot}/{name}": slots[index].detach().cpu().contiguous().numpy().copy()
                for index, slot in enumerate(RULES[self._recipe.name].slots)
                for name, slots in self._slots.items()
            }
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def set_state(self, state: Values) -> None:
        """Go on from a state. Raises BadRecipe or BadInput where it is another optimizer's or network's."""
        if not state:
            return
        arrays = self._pace.read(state)
        for index, slot in enumerate(RULES[self._recipe.name].slots):
            for name, slots in self._slots.items():
                slots[index].copy_(torch.from_numpy(arrays[f"{slot}/{name}"].copy()))
        for name, weight in self._parameters.items() if self._fused is not None else ():
            self._fused.state[weight]["step"].fill_(self._pace.taken(name))

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
        """Parameters of one factor of the rate and one decay; the kernels leave alone what has no gradient."""
        alike: dict[tuple[float, float], list[Any]] = {}
        for name, weight in self._parameters.items():
            step = self._pace.step(name, 1.0)
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
