"""Update rules on lists of tensors: few operator calls, the written rule's numbers, and steps the device skips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as pytorch

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.engines.optimizer_state import OptimizerState, ParameterGroup, rule_of
from imagenet_pipeline.engines.pytorch import engine as pytorch_engine
from imagenet_pipeline.engines.pytorch.optimizer import Optimizer
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.shapes import parameters
from imagenet_pipeline.optimizers import OPTIMIZERS, UpdateRule, clip_factor, limited_norm, with_l1, within_share

Arrays = dict[str, np.ndarray[Any, Any]]
torch: Any = pytorch
MOST_CALLS = 60
RULES: list[dict[str, Any]] = [
    *({"name": name} for name in OPTIMIZERS.names()),
    {"nesterov": True},
    {"momentum": 0.0},
]
OPTIONS: list[dict[str, Any]] = [
    {"weight_decay": 0.0},
    {"clip_norm": 1.0},
    {"l1": 0.01},
    {"max_norm": 0.9},
    {"clip_share": 0.1},
    {"lookahead_steps": 3},
    {"decay_all": False, "clip_norm": 0.5, "l1": 0.01, "max_norm": 0.9},
]
SHAPES: dict[str, tuple[int, ...]] = {
    "stem.weight": (4, 3, 3, 3),
    "thin.weight": (1, 1, 3, 1),
    "dense.weight": (5, 9),
    "dense.bias": (5,),
    "scale": (),
    "idle.weight": (2, 2),
    "late.weight": (3, 27),
}
GROUPS = {
    "stem.weight": ParameterGroup(rate=0.1),
    "thin.weight": ParameterGroup(rate=2.0),
    "dense.weight": ParameterGroup(),
    "dense.bias": ParameterGroup(rate=2.0, decays=False),
    "scale": ParameterGroup(decays=False),
    "idle.weight": ParameterGroup(),
    "late.weight": ParameterGroup(rate=0.5),
}
LATE_FROZEN = {**GROUPS, "late.weight": ParameterGroup(frozen=True)}
RATES = [0.03, 0.02, 0.02, 0.01]


def words(options: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" if key != "name" else str(value) for key, value in options.items())


def start(dtype: Any = torch.float64) -> dict[str, Any]:
    """Weights in PyTorch, those of four dimensions channels last, as the engine has them."""
    random = np.random.default_rng(3)
    weights = {name: torch.tensor(random.normal(size=shape), dtype=dtype) for name, shape in SHAPES.items()}
    return {
        name: weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight
        for name, weight in weights.items()
    }


def slope(name: str, weight: Any, step: int) -> Any | None:
    """A gradient in memory as NumPy lays it out; one weight has none."""
    return None if name == "idle.weight" else torch.sin(3 * weight.detach() + step).contiguous()


class OnLists:
    def __init__(self, recipe: OptimizerRecipe, weights: dict[str, Any], groups: dict[str, ParameterGroup]) -> None:
        self.weights = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
        self.rule, self.groups = Optimizer(recipe, self.weights, groups), groups

    def step(self, rate: float, step: int, overflow: Any | None = None) -> None:
        for name, weight in self.weights.items():
            weight.grad = None if self.groups[name].frozen else slope(name, weight, step)
        self.rule.update(rate, overflow)

    def values(self) -> Arrays:
        return {name: weight.detach().numpy().copy() for name, weight in self.weights.items()}


class Written:
    """The written rule, and the written options, on one array after the other."""

    def __init__(self, recipe: OptimizerRecipe, weights: dict[str, Any]) -> None:
        self.recipe, self.weights = recipe, {name: weight.clone() for name, weight in weights.items()}
        count = len(rule_of(recipe).slots)
        self.slots = {name: (torch.zeros_like(weight),) * count for name, weight in weights.items()}
        self.missed = dict.fromkeys(weights, 0)

    def walk(self, groups: dict[str, ParameterGroup], rates: list[float], first: int = 0) -> Written:
        shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        state = OptimizerState(self.recipe, shapes, groups)
        state.steps, state._missed = first, self.missed
        for step, rate in enumerate(rates, first):
            state.count()
            named = ((name, slope(name, self.weights[name], step)) for name in state.moving)
            gradients = {name: gradient for name, gradient in named if gradient is not None}
            if self.recipe.clip_norm:
                length = sum((gradient * gradient).sum() for gradient in gradients.values()) ** 0.5
                gradients = {name: one * clip_factor(length, self.recipe.clip_norm) for name, one in gradients.items()}
            for name, gradient in gradients.items():
                numbers, weight = state.step(name, rate), self.weights[name]
                if self.recipe.clip_share:
                    gradient = within_share(weight, gradient, self.recipe.clip_share)
                gradient = with_l1(weight, gradient, numbers.recipe.l1)
                moved, self.slots[name] = state.rule.update(weight, gradient, self.slots[name], numbers)
                self.weights[name] = limited_norm(moved, self.recipe.max_norm) if self.recipe.max_norm else moved
        return self

    def values(self) -> Arrays:
        return {name: weight.numpy() for name, weight in self.weights.items()}


def walk(stepper: OnLists, rates: list[float], first: int = 0) -> OnLists:
    for step, rate in enumerate(rates, first):
        stepper.step(rate, step)
    return stepper


def require_near(found: Arrays, wanted: Arrays) -> None:
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("options", OPTIONS, ids=words)
@pytest.mark.parametrize("rule", RULES, ids=words)
def test_lists_take_the_written_steps_also_after_a_restart(rule: dict[str, Any], options: dict[str, Any]) -> None:
    """Rates, decay and counts of steps that differ; a scalar; gradients in another order; one weight without any."""
    recipe = OptimizerRecipe(**{"weight_decay": 0.1, **rule, **options})
    groups, frozen = (
        {name: replace(group, decays=group.decays or recipe.decay_all is True) for name, group in each.items()}
        for each in (GROUPS, LATE_FROZEN)
    )
    wanted = Written(recipe, start()).walk(frozen, RATES).walk(groups, RATES, len(RATES)).values()
    half = walk(OnLists(recipe, start(), frozen), RATES)
    again = OnLists(recipe, half.weights, groups)
    again.rule.set_state(half.rule.state())
    require_near(walk(again, RATES, len(RATES)).values(), wanted)


def resnet50() -> dict[str, Any]:
    """Its 161 trained arrays, with two outputs each; their rows are as long as they are."""
    described = parameters(catalog.build("resnet50", 1000), (3, 224, 224)).items()
    return {
        name: torch.ones((min(2, one.shape[0]), *one.shape[1:]), requires_grad=True)
        for name, one in described
        if one.trainable
    }


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=words)
@pytest.mark.parametrize("rule", RULES, ids=words)
def test_a_step_of_resnet50_is_few_operator_calls(
    rule: dict[str, Any], options: dict[str, Any], counting: Callable[..., Any]
) -> None:
    weights = resnet50()
    recipe = OptimizerRecipe(**{"weight_decay": 0.1, **rule, **options})
    optimizer = Optimizer(recipe, weights)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer.update(0.1)
    with counting() as calls:
        optimizer.update(0.1)
    assert len(weights) == 161
    # Muon multiplies the matrices of each weight: there is no operation of lists for that.
    most = {"muon": 80 * len(weights), "lamb": MOST_CALLS + 15 * (recipe.clip_share > 0)}
    assert len(calls) <= most.get(recipe.name, MOST_CALLS)


@pytest.mark.parametrize("options", [{}, OPTIONS[-1]], ids=words)
@pytest.mark.parametrize("rule", RULES, ids=words)
def test_a_step_that_overflows_is_skipped_on_the_device(rule: dict[str, Any], options: dict[str, Any]) -> None:
    """Weights, slots and counts are then those of a run that never saw the step, to the last bit."""
    recipe = OptimizerRecipe(**{"weight_decay": 0.1, **rule, **options})
    overflows = [1, 0, 0, 1, 1, 0, 1]
    skipping, plain = OnLists(recipe, start(), LATE_FROZEN), OnLists(recipe, start(), LATE_FROZEN)
    for step, overflow in enumerate(overflows):
        skipping.step(0.02, step, torch.tensor(float(overflow)))
        if overflow:
            skipping.rule.take_back()
        else:
            plain.step(0.02, step)
    for found, wanted in ((skipping.values(), plain.values()), (skipping.rule.state(), plain.rule.state())):
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert any((value != start()[name].numpy()).any() for name, value in skipping.values().items())


@pytest.mark.parametrize("number", [np.inf, np.nan])
@pytest.mark.parametrize("rule", RULES, ids=words)
def test_no_number_of_a_skipped_step_stays(rule: dict[str, Any], number: float) -> None:
    stepper = walk(OnLists(OptimizerRecipe(**rule, **OPTIONS[-1]), start(torch.float32), GROUPS), RATES)
    before, state = stepper.values(), stepper.rule.state()
    for name, weight in stepper.weights.items():
        weight.grad = torch.full_like(weight, number) if name != "idle.weight" else None
    stepper.rule.update(0.1, torch.tensor(1.0))
    stepper.rule.take_back()
    for found, wanted in ((stepper.values(), before), (stepper.rule.state(), state)):
        assert all(found[name].tobytes() == value.tobytes() for name, value in wanted.items())


def test_another_packages_rule_is_given_one_array_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(weight: Any, gradient: Any, slots: Any, step: Any) -> Any:
        assert isinstance(weight, torch.Tensor)
        assert step.count in (1, 2)
        return weight - step.rate * gradient.clamp(-0.5, 0.5), (slots[0] + 1,)

    monkeypatch.setitem(OPTIMIZERS._items, "halved", UpdateRule(("seen",), halved))
    recipe = OptimizerRecipe().model_copy(update={"name": "halved"})
    stepper = OnLists(recipe, start(), GROUPS)
    stepper.step(0.1, 0, torch.tensor(1.0))
    stepper.rule.take_back()
    assert all((value == start()[name].numpy()).all() for name, value in stepper.values().items())
    stepper.step(0.1, 0, torch.tensor(0.0))
    stepper.step(0.1, 1)
    state = stepper.rule.state()
    assert state["steps/halved"] == [2]
    assert (state["seen/dense.bias"] == 2).all()


def test_a_step_of_float16_asks_the_device_for_nothing(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, counting: Callable[..., Any]
) -> None:
    """Averages, the loss scale and the costliest rule together; the step before was one that overflowed."""
    monkeypatch.setattr(pytorch_engine, "choose_precision", lambda *_: "float16")
    network = catalog.build("resnet18", 7)
    engine: Any = make_engine(network, size=64, engine="pytorch", average_decay=0.9, name="lamb", decay_all=False)
    engine._averages.begin()
    for number in (np.inf, 1.0):
        for tensor in engine._trained.values():
            tensor.grad = torch.full_like(tensor, number)
        with counting() as calls:
            engine._step(0.1)
    assert len(calls) <= MOST_CALLS
    assert not [name for name in calls if "_local_scalar_dense" in name or "nonzero" in name]
    state = engine.optimizer_state()
    assert state["steps/lamb"] == state["average_steps"] == [1]
    assert state["loss_scale"].tolist() == [2.0**15, 1]
