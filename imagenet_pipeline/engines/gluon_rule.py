"""The written update rules on MXNet arrays; MXNet's fused kernel for plain momentum in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.gluon_import import mx
from imagenet_pipeline.engines.rules import RULES, Step, limit_norm, read_state, state_of, with_l1


class Rule:
    """An optimizer at work on Gluon parameters, each with a copy on every context.

    MXNet's fused sgd is the written rule in terms of the last displacement u = -r v:
    u' = m (r' / r) u - r' G. The rate r of the last step is kept beside u, so nothing is lost when the rate changes
    or a run restarts.
    """

    _ARRAYS_A_CALL = 45  # the fused kernel takes at most 60

    def __init__(self, recipe: OptimizerRecipe, parameters: dict[str, Any], contexts: list[Any]) -> None:
        self._recipe = recipe
        self._parameters = parameters
        self._steps = 0
        self._last_rate = 1.0
        is_float32 = all(np.dtype(parameter.dtype) == np.float32 for parameter in parameters.values())
        self._fused = recipe.name == "sgd" and is_float32 and not (recipe.nesterov or recipe.l1)
        self._slot_names = ("displacement",) if self._fused else RULES[recipe.name].slots
        self._slots = {
            name: [tuple(mx.nd.zeros_like(parameter.data(one)) for _ in self._slot_names) for one in contexts]
            for name, parameter in parameters.items()
        }

    def update(self, rate: float, batch_size: int) -> None:
        """Apply the gradients, summed over `batch_size` images, at this learning rate."""
        self._steps += 1
        triples = list(self._triples())
        if self._fused:
            for group in self._groups(triples):
                self._update_fused(group, rate, 1.0 / batch_size)
            self._last_rate = rate
        else:
            self._update_written(triples, rate, 1.0 / batch_size)
        if self._recipe.max_norm:
            for weight, _, _ in triples:
                limit_norm(weight, self._recipe.max_norm)

    def state(self) -> dict[str, Array]:
        """What the rule remembers, by name (`rules.state_of`; the fused sgd: `displacement/PARAMETER` and the
        `learning_rate` [1] they were made with); empty before the first update."""
        if not self._steps:
            return {}
        arrays = {
            f"{slot}/{name}": copies[0][index].asnumpy()
            for index, slot in enumerate(self._slot_names)
            for name, copies in self._slots.items()
        }
        if self._fused:
            return {**arrays, "learning_rate": np.array([self._last_rate], np.float64)}
        return state_of(self._recipe.name, self._steps, arrays)

    def set_state(self, state: Values) -> None:
        """Go on from a state. Raises BadRecipe or BadInput where it is another optimizer's or network's."""
        if not state:
            return
        shapes = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        steps, arrays = read_state(self._recipe.name, shapes, state)
        self._steps = max(steps, 1)
        if self._fused:
            self._last_rate, arrays = _displacements(state, arrays)
        for index, slot in enumerate(self._slot_names):
            for name, copies in self._slots.items():
                for slots in copies:
                    slots[index][:] = mx.nd.array(arrays[f"{slot}/{name}"], dtype=slots[index].dtype)

    def _triples(self) -> Iterator[tuple[Any, Any, tuple[Any, ...]]]:
        for name, parameter in self._parameters.items():
            yield from zip(parameter.list_data(), parameter.list_grad(), self._slots[name], strict=True)

    def _update_written(self, triples: list[tuple[Any, Any, tuple[Any, ...]]], rate: float, rescale: float) -> None:
        step, rule = Step(rate, self._steps, self._recipe), RULES[self._recipe.name]
        for weight, gradient, slots in triples:
            rule.update(weight, with_l1(weight, gradient * rescale, self._recipe.l1), slots, step)

    def _groups(self, triples: list[Any]) -> Iterator[list[Any]]:
        """Arrays of one device and length, which the fused kernel walks side by side.

        It looks at every array of a call for each number of the longest: with VGG-16's in one call it took 1.5 s.
        """
        alike: dict[tuple[str, int], list[Any]] = {}
        for triple in triples:
            alike.setdefault((str(triple[0].context), triple[0].size), []).append(triple)
        for group in alike.values():
            for first in range(0, len(group), self._ARRAYS_A_CALL):
                yield group[first : first + self._ARRAYS_A_CALL]

    def _update_fused(self, group: list[Any], rate: float, rescale: float) -> None:
        mx.nd.multi_sgd_mom_update(
            *[array for weight, gradient, slots in group for array in (weight, gradient, *slots)],
            out=[weight for weight, _, _ in group],
            num_weights=len(group),
            lrs=[rate] * len(group),
            wds=[self._recipe.weight_decay] * len(group),
            momentum=self._recipe.momentum * rate / self._last_rate if self._last_rate else self._recipe.momentum,
            rescale_grad=rescale,
        )


def _displacements(state: Values, velocities: dict[str, Array]) -> tuple[float, dict[str, Array]]:
    if "learning_rate" in state:
        return float(state["learning_rate"][0]), {key: np.asarray(value) for key, value in state.items()}
    return 1.0, {key.replace("velocity/", "displacement/", 1): -value for key, value in velocities.items()}
