"""EMA: moving averages of an engine's arrays on their devices, and the arrays an optimizer state keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from imagenet_pipeline.engines import Array, Values, check_fits

Copies = Mapping[str, list[Any]]
"""Arrays by name; several where devices have different arrays, as of running statistics."""
_PREFIX, _STEPS, _LOSS_SCALE = "average/", "average_steps", "loss_scale"


class Averages:
    """See `engines.Engine.averages`. They start from the arrays as they are before the first step.

    `copy(array)` gives a new array; `approach(means, arrays, share)` gives every mean moved by this share of the way to
    its array. An engine whose arrays can be written may give the old means, moved in place.
    """

    def __init__(
        self,
        decay: float,
        arrays: Copies,
        copy: Callable[[Any], Any],
        approach: Callable[[list[Any], list[Any], float], list[Any]],
    ) -> None:
        self._decay = decay
        self._arrays = arrays
        self._copy = copy
        self._approach = approach
        self.steps = 0
        self.means: dict[str, list[Any]] = {}

    def begin(self) -> None:
        """Start, where that has not been done; called before a step."""
        if self._decay and not self.means:
            self.means = {name: [self._copy(array) for array in copies] for name, copies in self._arrays.items()}

    def update(self) -> None:
        """Move the means; called after a step."""
        if self._decay:
            self.steps += 1
            kept = min(self._decay, self.steps / (self.steps + 9))
            moved = iter(self._approach(_flat(self.means), _flat(self._arrays), 1 - kept))
            self.means = {name: [next(moved) for _ in means] for name, means in self.means.items()}

    def take_back(self) -> None:
        """Count the last update as not done, because its step was not taken and the means have stayed."""
        self.steps -= bool(self._decay)

    def state(self, means: Values) -> dict[str, Array]:
        """`average/NAME` and `average_steps` [1], given the means as NumPy arrays; empty before the first step."""
        if not means:
            return {}
        steps: dict[str, Any] = {_STEPS: np.array([self.steps], np.int64)}
        return {f"{_PREFIX}{name}": mean for name, mean in means.items()} | steps

    def restore(self, state: Values, fill: Callable[[Any, Array], None]) -> None:
        """Go on from the averages in a state, or start anew where it has none; `fill(array, values)`.

        Raises BadInput where they are another network's.
        """
        self.steps, self.means = 0, {}
        found = {name: array for name, array in state.items() if name.startswith(_PREFIX) or name == _STEPS}
        if not (self._decay and found):
            return
        shapes = {f"{_PREFIX}{name}": copies[0].shape for name, copies in self._arrays.items()}
        check_fits({**shapes, _STEPS: (1,)}, found, "moving averages")
        self.begin()
        for name, copies in self.means.items():
            for mean in copies:
                fill(mean, found[f"{_PREFIX}{name}"])
        self.steps = int(found[_STEPS][0])


def rule_state(state: Values) -> dict[str, Array]:
    """The update rule's part of an optimizer state."""
    return {
        name: array
        for name, array in state.items()
        if not name.startswith(_PREFIX) and name not in (_STEPS, _LOSS_SCALE)
    }


def _flat(arrays: Copies) -> list[Any]:
    return [array for copies in arrays.values() for array in copies]
