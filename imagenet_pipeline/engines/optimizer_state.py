"""Step counts and parameter groups: what both engines keep and write of an optimizer beside the slots of its rule.

`imagenet_pipeline/optimizers.py` has the rules. A parameter group says how fast its parameters move, whether they
decay, and whether they move at all.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values, check_fits
from imagenet_pipeline.errors import BadRecipe, first_few
from imagenet_pipeline.optimizers import OPTIMIZERS, Slots, Step, UpdateRule, limited_norm

SLOW_OFFSET = "slow_offset"
"""The slot of `with_lookahead`."""


def rule_of(recipe: OptimizerRecipe) -> UpdateRule:
    """The update rule of a recipe's section `optimizer`."""
    rule = OPTIMIZERS.get(recipe.name)
    if not recipe.lookahead_steps:
        return rule
    return with_lookahead(with_max_norm(rule) if recipe.max_norm else rule)


def with_max_norm(rule: UpdateRule) -> UpdateRule:
    """The rule, `max_norm` held within it: what stands around it then sees the weights that a step really makes."""

    def update(weight: Any, gradient: Any, slots: Slots, step: Step) -> tuple[Any, Slots]:
        moved, own = rule.update(weight, gradient, slots, step)
        return moved if step.as_vector else limited_norm(moved, step.recipe.max_norm), own

    return UpdateRule(rule.slots, update, rule.keys)


def with_lookahead(rule: UpdateRule) -> UpdateRule:
    """Zhang et al. 2019, algorithm 1: after k steps of the rule slow weights s go a share p of the way to the weights.

    s = s + p (w - s);  w = s. The slot, which begins at 0, is o = s - w: a step of the rule from w to w' makes it
    o + w - w', and the k-th of a parameter ends in w = w' + (1 - p) o, o = 0.
    """

    def update(weight: Any, gradient: Any, slots: Slots, step: Step) -> tuple[Any, Slots]:
        moved, own = rule.update(weight, gradient, slots[:-1], step)
        steps, share = step.recipe.lookahead_steps, step.recipe.lookahead_share
        offset = weight - moved
        offset += slots[-1]
        back = offset * step.of_count(lambda count: 0.0 if count % steps else 1 - share)
        return moved + back, (*own, offset * step.of_count(lambda count: float(count % steps > 0)))

    return UpdateRule((*rule.slots, SLOW_OFFSET), update, rule.keys, rule.on_lists)


class OptimizerState:
    """Step counts of the trained parameters, their settings, and the names of the arrays a checkpoint keeps.

    `groups` has the parameter group of each name; without it they are the recipe's, none frozen.
    """

    def __init__(
        self, recipe: OptimizerRecipe, shapes: dict[str, tuple[int, ...]], groups: Mapping[str, ParameterGroup] | None
    ) -> None:
        groups = parameter_groups(shapes, recipe) if groups is None else groups
        self._name, self._shapes = recipe.name, shapes
        self.rule = rule_of(recipe)
        self._looks_ahead = recipe.lookahead_steps > 0
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
        group = self.groups[name]
        return Step(rate * group.rate, count, self._recipes[name], group.is_head, group.as_vector)

    def has_rows(self, name: str) -> bool:
        """True where each row of a parameter is the weights of an output."""
        return is_matrix(name, self._shapes[name])

    def taken(self, name: str) -> int:
        """Steps a parameter has moved in."""
        return self.steps - self._missed[name]

    def arrays(self, slots: dict[str, Array]) -> dict[str, Array]:
        """An optimizer's state: `SLOT/PARAMETER` arrays, and but for sgd without lookahead the counts [1] int64.

        `steps/NAME` are the steps, `missed/PARAMETER` those in which a parameter was frozen, where there are any.
        """
        if self._name == "sgd" and not self._looks_ahead:
            return slots
        counts = {f"missed/{name}": count for name, count in self._missed.items() if count}
        counts[f"steps/{self._name}"] = self.steps
        numbers: dict[str, Any] = {key: np.array([count], np.int64) for key, count in counts.items()}
        return slots | numbers

    def read(self, state: Values) -> dict[str, Array]:
        """Take the counts from a state of either engine, and give its slots.

        Where it has no slow weights those begin anew; it may have some where none are wanted. Raises BadRecipe where it
        is another optimizer's state, BadInput where it is another network's.
        """
        other = next((key.removeprefix("steps/") for key in state if key.startswith("steps/")), "sgd")
        if other != self._name:
            raise BadRecipe(
                "the checkpoint's optimizer state is of another optimizer", where=f"optimizer.name = {self._name!r}",
                found=repr(other), advice=f"go on with optimizer.name={other}, or start a new run",
            )  # fmt: skip
        state = self._with_slow_weights(state)
        check_fits(self._expected(state), state, "arrays of the optimizer state")
        # Without a count, as sgd's, the first step is done all the same: there is a state.
        self.steps = max(1, _count(state, f"steps/{self._name}"))
        self._missed = {name: _count(state, f"missed/{name}") for name in self._shapes}
        return _with_velocities(state)

    def _expected(self, state: Values) -> dict[str, tuple[int, ...]]:
        fused = "learning_rate" in state
        slots = ("displacement", *self.rule.slots[1:]) if fused else self.rule.slots
        expected = {f"{slot}/{name}": shape for slot in slots for name, shape in self._shapes.items()}
        if fused:
            return {**expected, "learning_rate": (1,)}
        missed = (f"missed/{name}" for name in self._shapes)
        counts = [key for key in (*missed, "steps/sgd") if key in state]
        if self._name != "sgd":
            counts.append(f"steps/{self._name}")
        return expected | dict.fromkeys(counts, (1,))

    def _with_slow_weights(self, state: Values) -> dict[str, Array]:
        offsets = {f"{SLOW_OFFSET}/{name}": np.zeros(shape) for name, shape in self._shapes.items()}
        if not self._looks_ahead:
            return {key: array for key, array in state.items() if key not in offsets}
        return dict(state) if any(key in state for key in offsets) else {**state, **offsets}


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

    A frozen array does not move. Where it is a running statistic its layer normalises by it, in training too. The head
    is the last layer that has a matrix or kernels: `clip_share` leaves it alone, and some rules treat it apart.
    An array that is neither counts `as_vector` however many dimensions it has.
    """

    rate: float = 1.0
    decays: bool = True
    frozen: bool = False
    is_head: bool = False
    as_vector: bool = False


def parameter_groups(
    shapes: Mapping[str, tuple[int, ...]],
    optimizer: OptimizerRecipe,
    frozen: Iterable[str] = (),
    rates: Mapping[str, float] | None = None,
    layer_decay: float = 1.0,
) -> dict[str, ParameterGroup]:
    """The parameter group of every parameter and running statistic of a network, given their shapes by name.

    `frozen` and `rates` name layers by the beginnings of their paths, whole words of them: "stage1" is stage1.unit1
    and not stage10. Of several rates that fit the longest name counts, times `layer_decay` for each group of layers
    behind its own (`depths`). Without `decay_all` vectors do not decay; where it is "scales", those do that
    something is multiplied with. Raises BadRecipe for a name no layer begins with, and
    where every layer is frozen.
    """
    frozen, rates = tuple(frozen), dict(rates or {})
    layers = {name: _layer(name) for name in shapes}
    places = depths(shapes)
    deepest = max(places.values(), default=0)
    head = next((layers[name] for name in reversed(list(shapes)) if _begins_a_group(name, shapes[name])), "")
    for key, names in (("transfer.frozen", frozen), ("transfer.rates", rates)):
        _require_layers(key, names, set(layers.values()))
    groups = {
        name: ParameterGroup(
            layer_decay ** (deepest - places[name])
            * (rates[max(fitting, key=len)] if (fitting := [key for key in rates if _begins(key, layer)]) else 1.0),
            is_matrix(name, shapes[name])
            or (name.endswith(SCALES) if optimizer.decay_all == "scales" else optimizer.decay_all),
            any(_begins(key, layer) for key in frozen),
            layer == head,
            len(shapes[name]) > 1 and not is_matrix(name, shapes[name]),
        )
        for name, layer in layers.items()
    }
    if all(group.frozen for group in groups.values()):
        advice = "leave out one of its layers"
        raise BadRecipe("nothing is left to train", where="transfer.frozen", found=first_few(frozen), advice=advice)
    return groups


_GROUP = re.compile(
    r"[^.]+\.\d+\.\d+(?=\.\D)"  # timm's blocks.3.2 and GluonCV's features.4.0, which no branches.0.0 is
    r"|(?!blocks)[^.]+\.\d+\.(blocks|transformer_encoder)\.\d+(?=\.)"  # timm's stages.2.blocks.5
    r"|features\.denseblock\d+\.denselayer\d+"
    r"|[^.]+(\.(?!branch)[^.]*\d(?=\.|$))?"
)


def depths(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The group of layers of every parameter, counted from the input, given shapes by name in the order of computation.

    A group is what the first word of a path names, or, where the second ends in a digit, both: `stem`, `stage1.unit2`,
    `block3.conv1`, timm's `blocks.7` and, a word or two longer, `stages.2.blocks.5`, but the whole of a module with
    branches. What has no matrix, as a normalisation or a transformer's positions, and what is in no layer belong to the
    group before them, or else to the first. (BEiT's layer-wise decay, Bao et al. 2022, with a residual unit or
    transformer block as a layer, as timm groups them.)
    """
    keys = {name: match[0] if (match := _GROUP.match(_layer(name))) else name for name in shapes}
    beginning = {keys[name] for name, shape in shapes.items() if _begins_a_group(name, shape)}
    numbers: dict[str, int] = {}
    found, latest = {}, 0
    for name, key in keys.items():
        if key in beginning:
            latest = numbers.setdefault(key, len(numbers))
        found[name] = latest
    return found


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """True for the matrix or kernels of a layer, by whose name they are weights.

    Constants are none, whatever their shape: the positions and tokens of our networks (`tokens.positions.value`) and
    of timm's (`pos_embed`, `relative_position_bias_table`).
    """
    return len(shape) > 1 and "weight" in name.rpartition(".")[2]


def _begins_a_group(name: str, shape: tuple[int, ...]) -> bool:
    return is_matrix(name, shape) and "." in name


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


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
