"""The written update rules on PyTorch tensors; its fused kernels where they are the same rule."""

from __future__ import annotations

from typing import Any

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.pytorch_import import torch
from imagenet_pipeline.engines.rules import RULES, Step, limit_norm, read_state, state_of, with_l1

_FUSED_SLOTS = {
    "sgd": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adagrad": ("sum",),
}
"""Optimizers whose fused kernel is the written rule, with PyTorch's words for our slots."""


class Rule:
    """An optimizer at work on named tensors, all of one type and on one device."""

    def __init__(self, recipe: OptimizerRecipe, parameters: dict[str, Any]) -> None:
        self._recipe = recipe
        self._parameters = parameters
        self._steps = 0
        self._slots = {
            name: tuple(torch.zeros_like(weight, requires_grad=False) for _ in RULES[recipe.name].slots)
            for name, weight in parameters.items()
        }
        self._fused = self._fused_optimizer()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update(self, rate: float) -> None:
        """Apply the gradients, means over the batch, at this learning rate. A parameter without one stays."""
        self._steps += 1
        moving = {name: weight for name, weight in self._parameters.items() if weight.grad is not None}
        if self._recipe.l1:
            for weight in moving.values():
                weight.grad = with_l1(weight, weight.grad, self._recipe.l1)
        if self._fused is not None:
            for weight in moving.values():
                weight.grad = _laid_out_as(weight, weight.grad)
            self._fused.param_groups[0]["lr"] = rate
            self._fused.step()
        else:
            step, rule = Step(rate, self._steps, self._recipe), RULES[self._recipe.name]
            for name, weight in moving.items():
                rule.update(weight, weight.grad, self._slots[name], step)
        if self._recipe.max_norm:
            for weight in moving.values():
                limit_norm(weight, self._recipe.max_norm)

    def state(self) -> dict[str, Array]:
        """What the rule remembers, by name (`rules.state_of`); empty before the first update."""
        if not self._steps:
            return {}
        arrays = {
            f"{slot}/{name}": slots[index].detach().cpu().contiguous().numpy().copy()
            for index, slot in enumerate(RULES[self._recipe.name].slots)
            for name, slots in self._slots.items()
        }
        return state_of(self._recipe.name, self._steps, arrays)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def set_state(self, state: Values) -> None:
        """Go on from a state. Raises BadRecipe or BadInput where it is another optimizer's or network's."""
        if not state:
            return
        shapes = {name: tuple(weight.shape) for name, weight in self._parameters.items()}
        steps, arrays = read_state(self._recipe.name, shapes, state)
        self._steps = max(steps, 1)
        for index, slot in enumerate(RULES[self._recipe.name].slots):
            for name, slots in self._slots.items():
                slots[index].copy_(torch.from_numpy(arrays[f"{slot}/{name}"].copy()))
        for remembered in self._fused.state.values() if self._fused is not None else ():
            remembered["step"].fill_(steps)

    def _fused_optimizer(self) -> Any | None:
        recipe, weights = self._recipe, list(self._parameters.values())
        constants: dict[str, Any] = {"lr": 0.0, "weight_decay": recipe.weight_decay, "fused": True}
        on_cpu = all(weight.device.type == "cpu" for weight in weights)
        optimizer: Any
        match recipe.name:
            case "sgd" if recipe.momentum:  # without momentum the kernel keeps no velocity for a restart with it
                nesterov, momentum = recipe.nesterov, recipe.momentum
                optimizer = torch.optim.SGD(weights, momentum=momentum, nesterov=nesterov, **constants)
            case "adam" | "adamw":
                kind = torch.optim.Adam if recipe.name == "adam" else torch.optim.AdamW
                optimizer = kind(weights, betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon, **constants)
            case "adagrad" if on_cpu:
                optimizer = torch.optim.Adagrad(weights, eps=recipe.epsilon, **constants)
            case _:
                return None
        for weight, slots in zip(weights, self._slots.values(), strict=True):
            optimizer.state[weight] = dict(zip(_FUSED_SLOTS[recipe.name], slots, strict=True))
            optimizer.state[weight]["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        return optimizer


def _laid_out_as(weight: Any, gradient: Any) -> Any:
    # The fused kernels of a CPU walk the memory: of a gradient in another order they take the wrong numbers.
    strides = zip(weight.shape, weight.stride(), gradient.stride(), strict=True)
    same = all(size == 1 or ours == theirs for size, ours, theirs in strides)
    return gradient if same else torch.empty_like(weight).copy_(gradient)
