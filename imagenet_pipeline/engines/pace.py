"""The numbers of a step for every parameter, and the state of the update rules that both engines read and write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values, check_fits
from imagenet_pipeline.engines.optimizers import RULES, Step
from imagenet_pipeline.engines.treatment import Treatment, treatments
from imagenet_pipeline.errors import BadRecipe


class Pace:
    """How far each trained parameter has come and how it goes on: its count of steps, its rate, its decay."""

    def __init__(
        self, recipe: OptimizerRecipe, shapes: dict[str, tuple[int, ...]], treated: Mapping[str, Treatment] | None
    ) -> None:
        treated = treatments(shapes, recipe) if treated is None else treated
        self._name, self._shapes = recipe.name, shapes
        self.treatments = {name: treated[name] for name in shapes}
        self.moving = [name for name, treatment in self.treatments.items() if not treatment.frozen]
        self.steps = 0
        self._missed = dict.fromkeys(shapes, 0)
        undecayed = recipe.model_copy(update={"weight_decay": 0.0, "l1": 0.0})
        self._recipes = {name: recipe if one.decays else undecayed for name, one in self.treatments.items()}

    def count(self) -> None:
        """One more step of all that move."""
        self.steps += 1
        for name, treatment in self.treatments.items():
            self._missed[name] += treatment.frozen

    def step(self, name: str, rate: float) -> Step:
        """The numbers of a parameter's step at this learning rate."""
        return Step(rate * self.treatments[name].rate, self.taken(name), self._recipes[name])

    def taken(self, name: str) -> int:
        """How many steps a parameter has moved in."""
        return self.steps - self._missed[name]

    def state(self, slots: dict[str, Array]) -> dict[str, Array]:
        """An optimizer's state: `SLOT/PARAMETER` arrays, and but for sgd the counts [1] int64.

        `steps/NAME` are the steps, `missed/PARAMETER` those in which a parameter was frozen, where there are any.
        """
        if self._name == "sgd":
            return slots
        counts = {f"missed/{name}": count for name, count in self._missed.items() if count}
        counts[f"steps/{self._name}"] = self.steps
        numbers: dict[str, Any] = {key: np.array([count], np.int64) for key, count in counts.items()}
        return slots | numbers

    def read(self, state: Values) -> dict[str, Array]:
        """Take the counts from a state of either engine, and give its slots.

        Raises BadRecipe where the state is another optimizer's, BadInput where it is another network's.
        """
        other = next((key.removeprefix("steps/") for key in state if key.startswith("steps/")), "sgd")
        if other != self._name:
            raise BadRecipe(
                "the state to go on from is another optimizer's", where=f"optimizer.name = {self._name!r}",
                found=repr(other), advice=f"go on with optimizer.name={other}, or start a new run",
            )  # fmt: skip
        check_fits(self._expected(state), state, "arrays of the optimizer state")
        # Without a count, as sgd's, the first step is done all the same: there is a state.
        self.steps = max(1, _count(state, f"steps/{self._name}"))
        self._missed = {name: _count(state, f"missed/{name}") for name in self._shapes}
        return _with_velocities(state)

    def _expected(self, state: Values) -> dict[str, tuple[int, ...]]:
        fused = "learning_rate" in state
        slots = ("displacement",) if fused else RULES[self._name].slots
        expected = {f"{slot}/{name}": shape for slot in slots for name, shape in self._shapes.items()}
        if fused:
            return {**expected, "learning_rate": (1,)}
        if self._name == "sgd":
            return expected
        missed = (f"missed/{name}" for name in self._shapes)
        return {**expected, **{key: (1,) for key in missed if key in state}, f"steps/{self._name}": (1,)}


def _count(state: Values, key: str) -> int:
    return int(state[key][0]) if key in state else 0


def _with_velocities(state: Values) -> dict[str, Array]:
    # MXNet's fused sgd keeps the displacement u = -r v, and its rate r beside it.
    if "learning_rate" not in state:
        return dict(state)
    rate = float(state["learning_rate"][0]) or 1.0
    kept = ((key.replace("displacement/", "velocity/", 1), value) for key, value in state.items())
    return {key: value / -rate for key, value in kept if key != "learning_rate"}
