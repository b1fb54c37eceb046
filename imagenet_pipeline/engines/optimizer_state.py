"""Step counts and parameter groups: what both engines keep and write of an optimizer beside the slots of its rule.

`imagenet_pipeline/optimizers.py` has the rules. A parameter group says how fast its parameters move, whether they
decay, and whether they move at all.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values, check_fits
from imagenet_pipeline.errors import BadRecipe, first_few
from imagenet_pipeline.optimizers import OPTIMIZERS, Step


class OptimizerState:
    """Step counts of the trained parameters, their settings, and the names of the arrays a checkpoint keeps.

    `groups` has the parameter group of each name; without it they are the recipe's, none frozen.
    """

    def __init__(
        self, recipe: OptimizerRecipe, shapes: dict[str, tuple[int, ...]], groups: Mapping[str, ParameterGroup] | None
    ) -> None:
        groups = parameter_groups(shapes, recipe) if groups is None else groups
        self._name, self._shapes = recipe.name, shapes
        self.rule = OPTIMIZERS.get(recipe.name)
        self.groups = {name: groups[name] for name in shapes}
        self.moving = [name for name, group in self.groups.items() if not group.frozen]
        self.steps = 0
        self._missed = dict.fromkeys(shapes, 0)
        undecayed = recipe.model_copy(update={"weight_decay": 0.0, "l1": 0.0})
        self._recipes = {name: recipe if group.decays else undecayed for name, group in self.groups.items()}

    def count(self, steps: int = 1) -> None:
        """Count another step of all parameters that move; -1 takes back one that turns out not to have been taken."""
        self.steps += steps
        for name, group in self.groups.items():
            self._missed[name] += steps * group.frozen

    def step(self, name: str, rate: float, steps: int | None = None) -> Step:
        """The numbers of a parameter's step at this learning rate: of the step counted last, or of another."""
        count = (self.steps if steps is None else steps) - self._missed[name]
        return Step(rate * self.groups[name].rate, count, self._recipes[name])

    def taken(self, name: str) -> int:
        """Steps a parameter has moved in."""
        return self.steps - self._missed[name]

    def arrays(self, slots: dict[str, Array]) -> dict[str, Array]:
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
                "the checkpoint's optimizer state is of another optimizer", where=f"optimizer.name = {self._name!r}",
                found=repr(other), advice=f"go on with optimizer.name={other}, or start a new run",
            )  # fmt: skip
        check_fits(self._expected(state), state, "arrays of the optimizer state")
        # Without a count, as sgd's, the first step is done all the same: there is a state.
        self.steps = max(1, _count(state, f"steps/{self._name}"))
        self._missed = {name: _count(state, f"missed/{name}") for name in self._shapes}
        return _with_velocities(state)

    def _expected(self, state: Values) -> dict[str, tuple[int, ...]]:
        fused = "learning_rate" in state
        slots = ("displacement",) if fused else self.rule.slots
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


SCALES = (".weight", ".slope", ".gamma")
"""Ends of names of scales, among those of vectors."""


@dataclass(frozen=True)
class ParameterGroup:
    """Settings of a parameter: `rate` is a factor of the learning rate; weight_decay and l1 act where it `decays`.

    A frozen array does not move. Where it is a running statistic its layer normalises by it, in training too.
    """

    rate: float = 1.0
    decays: bool = True
    frozen: bool = False


def parameter_groups(
    shapes: Mapping[str, tuple[int, ...]],
    optimizer: OptimizerRecipe,
    frozen: Iterable[str] = (),
    rates: Mapping[str, float] | None = None,
) -> dict[str, ParameterGroup]:
    """The parameter group of every parameter and running statistic of a network, given their shapes by name.

    `frozen` and `rates` name layers by the beginnings of their paths, whole words of them: "stage1" is stage1.unit1
    and not stage10. Of several rates that fit the longest name counts. Without `decay_all` vectors do not decay; where
    it is "scales", those do that something is multiplied with. Raises BadRecipe for a name no layer begins with, and
    where every layer is frozen.
    """
    frozen, rates = tuple(frozen), dict(rates or {})
    layers = {name: name.rpartition(".")[0] or name for name in shapes}
    for key, names in (("transfer.frozen", frozen), ("transfer.rates", rates)):
        _require_layers(key, names, set(layers.values()))
    groups = {
        name: ParameterGroup(
            rates[max(fitting, key=len)] if (fitting := [key for key in rates if _begins(key, layer)]) else 1.0,
            len(shapes[name]) > 1
            or (name.endswith(SCALES) if optimizer.decay_all == "scales" else optimizer.decay_all),
            any(_begins(key, layer) for key in frozen),
        )
        for name, layer in layers.items()
    }
    if all(group.frozen for group in groups.values()):
        advice = "leave out one of its layers"
        raise BadRecipe("nothing is left to train", where="transfer.frozen", found=first_few(frozen), advice=advice)
    return groups


def _begins(beginning: str, layer: str) -> bool:
    return layer == beginning or layer.startswith(f"{beginning}.")


def _require_layers(key: str, names: Iterable[str], layers: Collection[str]) -> None:
    for name in names:
        if any(_begins(name, layer) for layer in layers):
            continue
        beginnings = [".".join(words[:count]) for words in map(_words, layers) for count in range(1, len(words) + 1)]
        near = difflib.get_close_matches(name, dict.fromkeys(beginnings), n=1)
        advice = f"did you mean {near[0]}?" if near else "the verb networks lists them"
        raise BadRecipe(f"no layer with parameters begins with {name!r}", where=key, advice=advice)


def _words(layer: str) -> list[str]:
    return layer.split(".")
