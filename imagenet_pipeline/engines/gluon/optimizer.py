"""The written update rules on MXNet arrays; MXNet's fused kernel for plain momentum in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.engines.optimizer_state import OptimizerState, ParameterGroup
from imagenet_pipeline.optimizers import clip_factor, limited_norm, with_l1

Moving = tuple[str, Any, Any, list[Any]]
"""A parameter's name, its weight, gradient and slots on one context."""


class Optimizer:
    """An optimizer of Gluon parameters, each with a copy on every context.

    MXNet's fused sgd is the written rule in terms of the last displacement u = -r v:
    u' = m (r' / r) u - r' G. The rate r of the last step is kept beside u, so nothing is lost when the rate changes
    or a run restarts. It knows a single rate, so where layers have their own, or stay, the written rule steps.
    Without `groups` every parameter is in the recipe's own group (`optimizer_state.parameter_groups`).
    """

    _ARRAYS_A_CALL = 45  # the fused kernel takes at most 60

    def __init__(
        self,
        recipe: OptimizerRecipe,
        parameters: dict[str, Any],
        contexts: list[Any],
        groups: Mapping[str, ParameterGroup] | None = None,
    ) -> None:
        self._recipe = recipe
        self._parameters = parameters
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        self._state = OptimizerState(recipe, shapes, groups)
        self._last_rate = 1.0
        is_float32 = all(np.dtype(parameter.dtype) == np.float32 for parameter in parameters.values())
        at_one_rate = all(group.rate == 1 and not group.frozen for group in self._state.groups.values())
        self._fused = recipe.name == "sgd" and is_float32 and at_one_rate and not (recipe.nesterov or recipe.l1)
        self._slot_names = ("displacement",) if self._fused else self._state.rule.slots
        self._slots = {
            name: [[mx.nd.zeros_like(parameter.data(context)) for _ in self._slot_names] for context in contexts]
            for name, parameter in parameters.items()
        }

    def update(self, rate: float, batch_size: int) -> None:
        """Apply the gradients, summed over `batch_size` images, at this learning rate."""
        self._state.count()
        moving = list(self._moving())
        if self._recipe.clip_norm:
            self._clip(moving, 1.0 / batch_size)
        if self._fused:
            for group in self._groups(moving):
                self._update_fused(group, rate, 1.0 / batch_size)
            self._last_rate = rate
        else:
            self._update_written(moving, rate, 1.0 / batch_size)
        if self._recipe.max_norm:
            for _, weight, _, _ in moving:
                weight[:] = limited_norm(weight, self._recipe.max_norm)

    def state(self) -> dict[str, Array]:
        """The optimizer state by name (`OptimizerState.arrays`; the fused sgd's: `displacement/PARAMETER` and the
        `learning_rate` [1] they were made with); empty before the first update."""
        if not self._state.steps:
            return {}
        arrays = {
            f"{slot}/{name}": copies[0][index].asnumpy()
            for index, slot in enumerate(self._slot_names)
            for name, copies in self._slots.items()
        }
        if self._fused:
            return {**arrays, "learning_rate": np.array([self._last_rate], np.float64)}
        return self._state.arrays(arrays)

    def set_state(self, state: Values) -> None:
        """Go on from a state. Raises BadRecipe or BadInput where it is another optimizer's or network's."""
        if not state:
            return
        arrays = self._state.read(state)
        if self._fused:
            self._last_rate, arrays = _displacements(state, arrays)
        for index, slot in enumerate(self._slot_names):
            for name, copies in self._slots.items():
                for slots in copies:
                    slots[index][:] = mx.nd.array(arrays[f"{slot}/{name}"], dtype=slots[index].dtype)

    def _moving(self) -> Iterator[Moving]:
        for name in self._state.moving:
            parameter = self._parameters[name]
            for copies in zip(parameter.list_data(), parameter.list_grad(), self._slots[name], strict=True):
                yield name, *copies

    def _clip(self, moving: list[Moving], rescale: float) -> None:
        """Every context has the same gradients, and takes their norm for itself."""
        on_contexts: dict[str, list[Any]] = {}
        for _, _, gradient, _ in moving:
            on_contexts.setdefault(str(gradient.context), []).append(gradient)
        for gradients in on_contexts.values():
            squares = mx.nd.add_n(*[(gradient * gradient).sum() for gradient in gradients])
            factor = clip_factor(squares.sqrt() * rescale, self._recipe.clip_norm)
            for gradient in gradients:
                gradient *= factor.reshape((1,) * gradient.ndim)

    def _update_written(self, moving: list[Moving], rate: float, rescale: float) -> None:
        for name, weight, gradient, slots in moving:
            step = self._state.step(name, rate)
            gradient *= rescale
            gradient = with_l1(weight, gradient, step.recipe.l1)
            moved, slots[:] = self._state.rule.update(weight, gradient, tuple(slots), step)
            moved.copyto(weight)

    def _groups(self, moving: list[Moving]) -> Iterator[list[Moving]]:
        """Arrays of the same device and length, which the fused kernel walks side by side.

        It looks at every array of a call for each number of the longest: with VGG-16's in a single call it took 1.5 s.
        """
        alike: dict[tuple[str, int], list[Moving]] = {}
        for name, weight, gradient, slots in moving:
            alike.setdefault((str(weight.context), weight.size), []).append((name, weight, gradient, slots))
        for group in alike.values():
            for first in range(0, len(group), self._ARRAYS_A_CALL):
                yield group[first : first + self._ARRAYS_A_CALL]

    def _update_fused(self, group: list[Moving], rate: float, rescale: float) -> None:
        mx.nd.multi_sgd_mom_update(
            *[array for _, weight, gradient, slots in group for array in (weight, gradient, *slots)],
            out=[weight for _, weight, _, _ in group],
            num_weights=len(group),
            lrs=[rate] * len(group),
            wds=[self._state.step(name, rate).recipe.weight_decay for name, *_ in group],
            momentum=self._recipe.momentum * rate / self._last_rate if self._last_rate else self._recipe.momentum,
            rescale_grad=rescale,
        )


def _displacements(state: Values, velocities: dict[str, Array]) -> tuple[float, dict[str, Array]]:
    if "learning_rate" in state:
        return float(state["learning_rate"][0]), {key: np.asarray(value) for key, value in state.items()}
    return 1.0, {key.replace("velocity/", "displacement/", 1): -value for key, value in velocities.items()}
