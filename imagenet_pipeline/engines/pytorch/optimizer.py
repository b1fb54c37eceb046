"""The written update rules on lists of PyTorch tensors; its fused kernels where they are the same rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.optimizer_state import OptimizerState, ParameterGroup
from imagenet_pipeline.engines.pytorch.runtime import torch
from imagenet_pipeline.engines.pytorch.tensor_list import Rows, TensorList, copy_unless, joint_step
from imagenet_pipeline.optimizers import Step, clip_factor, not_zero, with_l1


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
        self._fused = self._has_kernel()
        self._counts = (
            {name: torch.zeros((), dtype=torch.float32, device=weight.device) for name, weight in parameters.items()}
            if self._fused and recipe.name != "sgd"
            else {}
        )
        self._alike = self._groups()
        self._rows: dict[tuple[str, ...], Rows] = {}

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
        if self._recipe.clip_share:
            self._clip_units(moving, gradients)
        if self._recipe.l1:
            l1 = joint_step(self._steps(moving, rate)).recipe.l1
            gradients = with_l1(TensorList(weights), TensorList(gradients), l1).tensors
        if self._fused:
            self._update_fused(moving, gradients, rate, overflow)
        elif self._state.rule.on_lists:
            self._update_lists(moving, gradients, joint_step(self._steps(moving, rate)), overflow)
        else:
            self._update_written(moving, gradients, self._steps(moving, rate), overflow)
        if self._recipe.max_norm:
            matrices = {name: weight for name, weight in moving.items() if self._state.has_rows(name)}
            if matrices:
                self._rows_of(matrices).limit(self._recipe.max_norm, overflow)

    @contextmanager
    def uphill(self, radius: float) -> Iterator[None]:
        """Context in which weights are w + radius g / |g| (Foret et al. 2021, equation 2); then w, to the last bit."""
        weights = [weight for weight in self._parameters.values() if weight.grad is not None]
        with torch.no_grad():
            kept = torch._foreach_clone(weights)
            gradients = [weight.grad for weight in weights]
            factor = radius / not_zero(torch.nn.utils.get_total_norm(gradients))
            torch._foreach_add_(weights, torch._foreach_mul(gradients, factor))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, kept)

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
        for name, count in self._counts.items():
            count.fill_(self._state.taken(name))

    def _steps(self, names: Iterable[str], rate: float) -> list[Step]:
        return [self._state.step(name, rate) for name in names]

    def _clip_units(self, moving: dict[str, Any], gradients: list[Any]) -> None:
        body = {name: place for place, name in enumerate(moving) if not self._state.groups[name].is_head}
        if body:
            rows = self._rows_of({name: self._in_rows(name, moving[name]) for name in body})
            inside = [self._in_rows(name, gradients[place]) for name, place in body.items()]
            clipped = rows.clipped(inside, self._recipe.clip_share)
            for (name, place), gradient in zip(body.items(), clipped, strict=True):
                gradients[place] = gradient[0] if self._state.groups[name].as_vector else gradient

    def _in_rows(self, name: str, array: Any) -> Any:
        return array[None] if self._state.groups[name].as_vector else array

    def _rows_of(self, weights: dict[str, Any]) -> Rows:
        names = tuple(weights)
        if names not in self._rows:
            self._rows = dict(list(self._rows.items())[-1:]) | {names: Rows(list(weights.values()))}
        return self._rows[names]

    def _update_fused(
        self, moving: dict[str, Any], gradients: Sequence[Any], rate: float, overflow: Any | None
    ) -> None:
        found = dict(zip(moving, gradients, strict=True))
        for (factor, decay), group in self._alike.items():
            names = [name for name in group if name in found]
            if not names:
                continue
            counts = [self._counts[name] for name in names] if self._counts else []
            if counts:
                torch._foreach_add_(counts, 1)
            options = {"lr": rate * factor, "weight_decay": decay, "maximize": False, "found_inf": overflow}
            slots = [list(slot) for slot in zip(*(self._slots[name] for name in names), strict=True)]
            self._call_kernel([moving[name] for name in names], [found[name] for name in names], slots, counts, options)
            if counts and overflow is not None:
                torch._foreach_sub_(counts, [overflow] * len(counts))

    def _call_kernel(
        self, weights: list[Any], gradients: list[Any], slots: list[list[Any]], counts: list[Any], options: Any
    ) -> None:
        # What torch.optim calls. Its classes bring in PyTorch's compiler, 2 s of imports before the first step.
        recipe = self._recipe
        match recipe.name:
            case "sgd":
                options |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
                torch._fused_sgd_(weights, gradients, *slots, dampening=0.0, is_first_step=False, **options)
            case "adam" | "adamw":
                kernel = torch._fused_adam_ if recipe.name == "adam" else torch._fused_adamw_
                options |= {"beta1": recipe.beta1, "beta2": recipe.beta2, "eps": recipe.epsilon}
                kernel(weights, gradients, *slots, [], counts, amsgrad=False, **options)
            case "adagrad":
                torch._fused_adagrad_(weights, gradients, *slots, counts, lr_decay=0.0, eps=recipe.epsilon, **options)

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

    def _has_kernel(self) -> bool:
        """Tell whether the rule is that of a fused kernel of PyTorch's."""
        if self._recipe.lookahead_steps:
            return False
        match self._recipe.name:
            case "sgd":  # without momentum the kernel keeps no velocity for a restart with it
                return self._recipe.momentum > 0
            case "adagrad":
                return all(weight.device.type == "cpu" for weight in self._parameters.values())
        return self._recipe.name in ("adam", "adamw")

    def _groups(self) -> dict[tuple[float, float], list[str]]:
        """Names of parameters by their factor of the rate and their decay."""
        alike: dict[tuple[float, float], list[str]] = {}
        for name in self._parameters:
            step = self._state.step(name, 1.0)
            alike.setdefault((step.rate, step.recipe.weight_decay), []).append(name)
        return alike


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
