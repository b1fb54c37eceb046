"""The update rules, each written once, in operations that MXNet's arrays and PyTorch's tensors share.

w weights, g gradient of the mean loss over the batch, r learning rate of the step, d weight decay (L2), t the
step, counted from 1 (frozen, a parameter takes no step). What a rule remembers of a parameter are its slots, which
start at 0. Before any rule the gradient of all parameters together is scaled down to `clip_norm`, then
`l1 * sign(w)` is added to g (with d > 0 this is the elastic net; Zou & Hastie 2005); after it `max_norm` holds.

The rate stands outside everything remembered, so a change of rate acts at once (as in PyTorch, unlike MXNet's own
SGD). Where PyTorch has the optimizer its formula is the rule. A rule reads no number off the device.

The numbers of a step for every parameter, and the state of the update rules that both engines read and write.

What a step does to each parameter besides the update rule: how fast it moves, if it decays, if it moves at all.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values, check_fits
from imagenet_pipeline.errors import BadRecipe, first_few


@dataclass(frozen=True)
class Step:
    """The numbers of one step: the rate, the count of steps with this one, and the recipe's constants."""

    rate: float
    count: int
    recipe: OptimizerRecipe


@dataclass(frozen=True)
class UpdateRule:
    """What an optimizer remembers, and how it changes `weight` and the slots in place.

    `update(weight, gradient, slots, step)`; `gradient` is not changed.
    """

    slots: tuple[str, ...]
    update: Callable[[Any, Any, tuple[Any, ...], Step], None]


def sgd(weight: Any, gradient: Any, slots: tuple[Any, ...], step: Step) -> None:
    """Momentum (Polyak 1964) in the form of Sutskever et al. 2013, as PyTorch has it.

    G = g + d w;  v = m v + G;  w = w - r v        (Nesterov: w = w - r (G + m v))
    """
    (velocity,) = slots
    gradient = _decayed(weight, gradient, step)
    velocity *= step.recipe.momentum
    velocity += gradient
    weight -= step.rate * (gradient + step.recipe.momentum * velocity if step.recipe.nesterov else velocity)


def adam(weight: Any, gradient: Any, slots: tuple[Any, ...], step: Step) -> None:
    """Kingma & Ba 2015, algorithm 1, with L2 in the gradient.

    G = g + d w;  a = b1 a + (1 - b1) G;  s = b2 s + (1 - b2) G^2
    w = w - r (a / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + epsilon)
    """
    weight -= step.rate * _adam_direction(_decayed(weight, gradient, step), slots, step)


def adamw(weight: Any, gradient: Any, slots: tuple[Any, ...], step: Step) -> None:
    """Loshchilov & Hutter 2019, in PyTorch's form: w = w - r d w, then Adam's step without L2."""
    weight *= 1 - step.rate * step.recipe.weight_decay
    weight -= step.rate * _adam_direction(gradient, slots, step)


def nadam(weight: Any, gradient: Any, slots: tuple[Any, ...], step: Step) -> None:
    """Dozat 2016, with his schedule of the momentum: mu(t) = b1 (1 - 0.96^(0.004 t) / 2).

    G, a, s as Adam's;  M(t) = mu(1) mu(2) .. mu(t)
    w = w - r (G (1 - mu(t)) / (1 - M(t)) + a mu(t+1) / (1 - M(t+1))) / (sqrt(s / (1 - b2^t)) + epsilon)
    """
    first, second = slots
    gradient = _decayed(weight, gradient, step)
    _remember_moments(gradient, first, second, step.recipe)
    here, ahead = (_nadam_momentum(step.recipe.beta1, count) for count in (step.count, step.count + 1))
    product, product_ahead = (_nadam_product(step.recipe.beta1, count) for count in (step.count, step.count + 1))
    mixed = gradient * ((1 - here) / (1 - product)) + first * (ahead / (1 - product_ahead))
    weight -= step.rate * (mixed / _root_of_moment(second, step))


def rmsprop(weight: Any, gradient: Any, slots: tuple[Any, ...], step: Step) -> None:
    """Tieleman & Hinton 2012, lecture 6.5: neither centred nor with momentum.

    G = g + d w;  s = decay s + (1 - decay) G^2;  w = w - r G / (sqrt(s) + epsilon)
    """
    (squares,) = slots
    gradient = _decayed(weight, gradient, step)
    _remember(squares, gradient * gradient, step.recipe.decay)
    weight -= step.rate * (gradient / (squares.sqrt() + step.recipe.epsilon))


def adagrad(weight: Any, gradient: Any, slots: tuple[Any, ...], step: Step) -> None:
    """Duchi et al. 2011, diagonal:  G = g + d w;  s = s + G^2;  w = w - r G / (sqrt(s) + epsilon)."""
    (squares,) = slots
    gradient = _decayed(weight, gradient, step)
    squares += gradient * gradient
    weight -= step.rate * (gradient / (squares.sqrt() + step.recipe.epsilon))


def adadelta(weight: Any, gradient: Any, slots: tuple[Any, ...], step: Step) -> None:
    """Zeiler 2012, algorithm 1, times the rate (1 is the paper's).

    G = g + d w;  s = decay s + (1 - decay) G^2;  u = G sqrt(q + epsilon) / sqrt(s + epsilon)
    q = decay q + (1 - decay) u^2;  w = w - r u
    """
    squares, moves = slots
    gradient = _decayed(weight, gradient, step)
    _remember(squares, gradient * gradient, step.recipe.decay)
    move = gradient * ((moves + step.recipe.epsilon).sqrt() / (squares + step.recipe.epsilon).sqrt())
    _remember(moves, move * move, step.recipe.decay)
    weight -= step.rate * move


def lamb(weight: Any, gradient: Any, slots: tuple[Any, ...], step: Step) -> None:
    """You et al. 2020, algorithm 2, with phi(z) = z; |.| is the norm over one parameter.

    A = Adam's direction without L2;  U = A + d w;  w = w - r (|w| / |U|) U        (1 for the ratio where a norm is 0)
    """
    direction = _adam_direction(gradient, slots, step)
    direction = direction + step.recipe.weight_decay * weight
    lengths = _length(weight), _length(direction)
    weight -= step.rate * (_trusted(lengths[0] / _not_zero(lengths[1]), *lengths) * direction)


def lars(weight: Any, gradient: Any, slots: tuple[Any, ...], step: Step) -> None:
    """You et al. 2017, algorithm 1, except that the rate is outside the velocity; |.| is the norm over one parameter.

    L = trust |w| / (|g| + d |w| + epsilon), but 1 where |w| or |g| is 0;  v = m v + L (g + d w);  w = w - r v
    """
    (velocity,) = slots
    lengths = _length(weight), _length(gradient)
    local = step.recipe.trust * lengths[0] / (lengths[1] + step.recipe.weight_decay * lengths[0] + step.recipe.epsilon)
    velocity *= step.recipe.momentum
    velocity += _trusted(local, *lengths) * _decayed(weight, gradient, step)
    weight -= step.rate * velocity


RULES = {
    "sgd": UpdateRule(("velocity",), sgd),
    "adam": UpdateRule(("first_moment", "second_moment"), adam),
    "adamw": UpdateRule(("first_moment", "second_moment"), adamw),
    "nadam": UpdateRule(("first_moment", "second_moment"), nadam),
    "rmsprop": UpdateRule(("mean_square",), rmsprop),
    "adagrad": UpdateRule(("sum_square",), adagrad),
    "adadelta": UpdateRule(("mean_square", "mean_square_move"), adadelta),
    "lamb": UpdateRule(("first_moment", "second_moment"), lamb),
    "lars": UpdateRule(("velocity",), lars),
}


def with_l1(weight: Any, gradient: Any, l1: float) -> Any:
    """The gradient of the loss plus l1 |w|."""
    return gradient + l1 * weight.sign() if l1 else gradient


def limit_norm(weight: Any, limit: float) -> None:
    """Scale each output's weights, a row [units, ...] of the array, down to the norm `limit` (Srebro & Shraibman 2005).

    Arrays of one dimension (biases, batch normalisation) have no rows and stay.
    """
    if len(weight.shape) < 2:
        return
    rows = weight.reshape((weight.shape[0], -1))
    lengths = (rows * rows).sum(1).sqrt()
    excess = (lengths > limit) * (lengths / limit - 1)
    weight /= (1 + excess).reshape((-1,) + (1,) * (len(weight.shape) - 1))


def clip_factor(length: Any, limit: float) -> Any:
    """What to multiply a gradient of this norm by: min(1, limit / norm) (Pascanu et al. 2013, algorithm 1)."""
    return 1 / (1 + (length > limit) * (length / limit - 1))


def _decayed(weight: Any, gradient: Any, step: Step) -> Any:
    return gradient + step.recipe.weight_decay * weight if step.recipe.weight_decay else gradient


def _remember(mean: Any, value: Any, share: float) -> None:
    mean *= share
    mean += (1 - share) * value


def _remember_moments(gradient: Any, first: Any, second: Any, recipe: OptimizerRecipe) -> None:
    _remember(first, gradient, recipe.beta1)
    _remember(second, gradient * gradient, recipe.beta2)


def _root_of_moment(second: Any, step: Step) -> Any:
    return second.sqrt() / math.sqrt(1 - step.recipe.beta2**step.count) + step.recipe.epsilon


def _adam_direction(gradient: Any, slots: tuple[Any, ...], step: Step) -> Any:
    first, second = slots
    _remember_moments(gradient, first, second, step.recipe)
    return first / _root_of_moment(second, step) / (1 - step.recipe.beta1**step.count)


def _nadam_momentum(beta1: float, count: int) -> float:
    return float(beta1 * (1 - 0.5 * 0.96 ** (0.004 * count)))


def _nadam_product(beta1: float, count: int) -> float:
    # The first 64 factors are below 0.57, so later ones change 1 - product by less than its last bit.
    return math.prod(_nadam_momentum(beta1, one) for one in range(1, min(count, 64) + 1))


def _length(array: Any) -> Any:
    # MXNet's own norm() adds float32 squares one by one: measured 13 % short on a weight of 4096 x 25088.
    return (array * array).sum().sqrt()


def _not_zero(length: Any) -> Any:
    return length + (length == 0) * 1.0


def _trusted(ratio: Any, first: Any, second: Any) -> Any:
    # A comparison and no branch: a branch would wait for the device.
    known = (first > 0) * 1.0 * (second > 0)
    return ratio * known + (1 - known)


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


@dataclass(frozen=True)
class Treatment:
    """`rate` is a factor of the learning rate; `decays` says whether weight_decay and l1 act.

    A frozen array does not move. Where it is a running statistic its layer normalises by it, in training too.
    """

    rate: float = 1.0
    decays: bool = True
    frozen: bool = False


def treatments(
    shapes: Mapping[str, tuple[int, ...]],
    optimizer: OptimizerRecipe,
    frozen: Iterable[str] = (),
    rates: Mapping[str, float] | None = None,
) -> dict[str, Treatment]:
    """The treatment of every parameter and running statistic of a network, given their shapes by name.

    `frozen` and `rates` name layers by the beginnings of their paths, whole words of them: "stage1" is stage1.unit1
    and not stage10. Of several rates that fit the longest name counts. Without `decay_all` arrays of one dimension
    do not decay. Raises BadRecipe for a name no layer begins with, and where every layer is frozen.
    """
    frozen, rates = tuple(frozen), dict(rates or {})
    layers = {name: name.rpartition(".")[0] or name for name in shapes}
    for key, names in (("transfer.frozen", frozen), ("transfer.rates", rates)):
        _require_layers(key, names, set(layers.values()))
    found = {
        name: Treatment(
            rates[max(fitting, key=len)] if (fitting := [one for one in rates if _begins(one, layer)]) else 1.0,
            optimizer.decay_all or len(shapes[name]) > 1,
            any(_begins(one, layer) for one in frozen),
        )
        for name, layer in layers.items()
    }
    if all(treatment.frozen for treatment in found.values()):
        advice = "leave out one of its layers"
        raise BadRecipe("nothing is left to train", where="transfer.frozen", found=first_few(frozen), advice=advice)
    return found


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
