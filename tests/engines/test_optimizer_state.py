"""Steps of parameters that are groups differently, on both engines: against torch.optim's parameter groups."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch as pytorch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import is_installed
from imagenet_pipeline.engines.optimizer_state import ParameterGroup
from imagenet_pipeline.engines.pytorch import optimizer as pytorch_optimizer
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.optimizers import OPTIMIZERS as RULES

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Groups = dict[str, ParameterGroup]
torch: Any = pytorch
if is_installed("gluon"):
    from imagenet_pipeline.engines.gluon import optimizer as gluon_optimizer
    from imagenet_pipeline.engines.gluon.runtime import mx

SHAPES = {"stem.weight": (4, 3, 2, 2), "middle.weight": (3, 5), "head.weight": (2, 3), "head.bias": (3,)}
MIXED = {
    "stem.weight": ParameterGroup(rate=0.1),
    "middle.weight": ParameterGroup(),
    "head.weight": ParameterGroup(rate=4.0),
    "head.bias": ParameterGroup(rate=4.0, decays=False),
}
FREE = {name: ParameterGroup() for name in SHAPES}
STEM_FROZEN = {**FREE, "stem.weight": ParameterGroup(frozen=True)}
RATES = [0.02] * 6 + [0.002] * 6
# Measured: the worst of all is 3e-15, relative to the largest of the array.
FLOAT64_NOISE = 1e-12
OPTIMIZERS: list[dict[str, Any]] = [{"name": name} for name in RULES.names()] + [{"nesterov": True}, {"momentum": 0.0}]
KINDS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": functools.partial(torch.optim.RAdam, decoupled_weight_decay=True),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}


@pytest.fixture(autouse=True)
def _whole_doubles() -> Iterator[None]:
    # torch.optim.NAdam keeps the product of its momenta in the default type.
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def start(scale: float = 1.0) -> Arrays:
    random = np.random.default_rng(5)
    return {name: scale * random.normal(size=shape) for name, shape in SHAPES.items()}


def slopes(values: Arrays, step: int) -> Arrays:
    """Smooth gradients that depend on the weights, so that one wrong step spoils all later ones."""
    named = enumerate(values.items())
    return {name: np.sin(3 * value.astype(np.float64) + place + 0.3 * step) for place, (name, value) in named}


class OnGluon:
    """Gradients are sums over a batch of 8 there; frozen parameters have none."""

    def __init__(self, recipe: OptimizerRecipe, values: Arrays, groups: Groups, dtype: str = "float64") -> None:
        self.contexts = [mx.cpu(0), mx.cpu(1)]
        self.parameters = {}
        for name, value in values.items():
            kind = "null" if groups[name].frozen else "write"
            parameter = mx.gluon.Parameter(name, shape=value.shape, dtype=dtype, grad_req=kind)
            parameter.initialize(ctx=self.contexts)
            parameter.set_data(mx.nd.array(value, dtype=dtype))
            self.parameters[name] = parameter
        self.rule = gluon_optimizer.Optimizer(recipe, self.parameters, self.contexts, groups)

    def step(self, rate: float, gradients: Arrays) -> None:
        for name, parameter in self.parameters.items():
            for gradient in parameter.list_grad() if parameter.grad_req != "null" else ():
                gradient[:] = mx.nd.array(8 * gradients[name], dtype=gradient.dtype)
        self.rule.update(rate, 8)

    def values(self) -> Arrays:
        copies = {name: [copy.asnumpy() for copy in one.list_data()] for name, one in self.parameters.items()}
        assert all(np.array_equal(first, second, equal_nan=True) for first, second in copies.values())
        return {name: first for name, (first, _) in copies.items()}


class OnPyTorch:
    def __init__(self, recipe: OptimizerRecipe, values: Arrays, groups: Groups, dtype: str = "float64") -> None:
        kind = getattr(torch, dtype)
        self.weights = {
            name: torch.tensor(value, dtype=kind).requires_grad_(not groups[name].frozen)
            for name, value in values.items()
        }
        self.rule = pytorch_optimizer.Optimizer(recipe, self.weights, groups)

    def step(self, rate: float, gradients: Arrays) -> None:
        for name, weight in self.weights.items():
            weight.grad = torch.tensor(gradients[name], dtype=weight.dtype) if weight.requires_grad else None
        self.rule.update(rate)

    def values(self) -> Arrays:
        return {name: weight.detach().numpy().copy() for name, weight in self.weights.items()}


class Oracle:
    """torch.optim with a group for every parameter; torch.nn.utils.clip_grad_norm_."""

    rule = None

    def __init__(self, recipe: OptimizerRecipe, values: Arrays, groups: Groups) -> None:
        self.recipe, self.groups = recipe, groups
        self.weights = {name: torch.tensor(value).requires_grad_() for name, value in values.items()}
        groups = [
            {"params": [one], "weight_decay": recipe.weight_decay * groups[name].decays}
            for name, one in self.weights.items()
        ]
        if recipe.name == "sgd":
            self.optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov)
        else:
            options: dict[str, Any] = {"eps": recipe.epsilon}
            if recipe.name in ("rmsprop", "adadelta"):
                options["alpha" if recipe.name == "rmsprop" else "rho"] = recipe.decay
            elif recipe.name != "adagrad":
                options["betas"] = (recipe.beta1, recipe.beta2)
            self.optimizer = KINDS[recipe.name](groups, **options)

    def step(self, rate: float, gradients: Arrays, groups: Groups | None = None) -> None:
        groups = groups or self.groups
        for name, weight in self.weights.items():
            weight.grad = None if groups[name].frozen else torch.tensor(gradients[name])
        if self.recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.weights.values(), self.recipe.clip_norm)
        for group, (name, weight) in zip(self.optimizer.param_groups, self.weights.items(), strict=True):
            group["lr"] = rate * groups[name].rate
            if weight.grad is not None and groups[name].decays:
                weight.grad = weight.grad + self.recipe.l1 * weight.detach().sign()
        self.optimizer.step()

    def values(self) -> Arrays:
        return {name: weight.detach().numpy().copy() for name, weight in self.weights.items()}


ENGINES: dict[str, Any] = {"gluon": OnGluon, "pytorch": OnPyTorch}
ORACLES = [one for one in OPTIMIZERS if one.get("name", "sgd") in ("sgd", *KINDS)]


def walk(stepper: Any, rates: list[float], first: int = 0, **options: Any) -> Any:
    for step, rate in enumerate(rates, first):
        stepper.step(rate, slopes(stepper.values(), step), **options)
    return stepper


def difference(found: Arrays, wanted: Arrays) -> float:
    """The worst difference of all arrays, relative to the largest of its array."""
    assert found.keys() == wanted.keys()
    return max(float(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max()) for name in wanted)


def words(options: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" if key != "name" else str(value) for key, value in options.items())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("optimizer", ORACLES, ids=words)
def test_rates_and_decay_are_those_of_parameter_groups(optimizer: dict[str, Any], engine: str) -> None:
    recipe = OptimizerRecipe(**optimizer, weight_decay=0.1, l1=0.05)
    wanted = walk(Oracle(recipe, start(), MIXED), RATES).values()
    assert difference(walk(ENGINES[engine](recipe, start(), MIXED), RATES).values(), wanted) < FLOAT64_NOISE
    assert difference(walk(ENGINES[engine](recipe, start(), FREE), RATES).values(), wanted) > 1e-4


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["lamb", "lars", "lion", "muon"])
def test_rates_of_the_rules_pytorch_lacks(name: Any, engine: str) -> None:
    """Of one step they are factors."""
    recipe = OptimizerRecipe(name=name, weight_decay=0.1)
    plain, mixed = (walk(ENGINES[engine](recipe, start(), one), [0.1]).values() for one in (FREE, MIXED))
    for key in ("stem.weight", "middle.weight", "head.weight"):
        moves = [values[key] - start()[key] for values in (plain, mixed)]
        np.testing.assert_allclose(moves[1], MIXED[key].rate * moves[0], rtol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("optimizer", ORACLES, ids=words)
def test_an_unfrozen_parameter_begins_as_if_it_were_new(optimizer: dict[str, Any], engine: str) -> None:
    """As in torch.optim, where a parameter without a gradient takes no step; across an engine made anew."""
    recipe = OptimizerRecipe(**optimizer, weight_decay=0.1)
    oracle = walk(Oracle(recipe, start(), FREE), RATES[:5], groups=STEM_FROZEN)
    wanted = walk(oracle, RATES[5:], first=5, groups=FREE).values()
    frozen = walk(ENGINES[engine](recipe, start(), STEM_FROZEN), RATES[:5])
    assert (frozen.values()["stem.weight"] == start()["stem.weight"]).all()
    free = ENGINES[engine](recipe, frozen.values(), FREE)
    free.rule.set_state(frozen.rule.state())
    assert difference(walk(free, RATES[5:], first=5).values(), wanted) < FLOAT64_NOISE


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("first", "second"), [("gluon", "pytorch"), ("pytorch", "gluon")])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=words)
def test_a_state_with_frozen_and_slow_layers_goes_on_on_the_other_engine(
    optimizer: dict[str, Any], first: str, second: str, dtype: str
) -> None:
    recipe = OptimizerRecipe(**optimizer, clip_norm=1.0, decay_all=False)
    head_frozen = {**FREE, "head.weight": ParameterGroup(frozen=True)}
    phases = [STEM_FROZEN, FREE, head_frozen, MIXED, {**MIXED, "stem.weight": ParameterGroup(frozen=True)}, FREE]
    rates = [0.02, 0.005, 0.01, 0.03]
    names = [(first,) * 6, (first, second) * 3, (second, first) * 3]
    results = []
    for engines in names:
        values, state = start(), {}
        for place, (engine, groups) in enumerate(zip(engines, phases, strict=True)):
            stepper = ENGINES[engine](recipe, values, groups, dtype)
            stepper.rule.set_state(state)
            walk(stepper, rates, first=4 * place)
            values, state = stepper.values(), stepper.rule.state()
        results.append(values)
    # Measured worst: float64 6e-16, float32 4e-7.
    for changed in results[1:]:
        assert difference(changed, results[0]) < (FLOAT64_NOISE if dtype == "float64" else 5e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_state_counts_the_steps_a_frozen_parameter_missed(engine: str) -> None:
    recipe = OptimizerRecipe(name="adamw")
    state = walk(ENGINES[engine](recipe, start(), STEM_FROZEN), RATES[:3]).rule.state()
    assert state["steps/adamw"].tolist() == [3]
    assert state["missed/stem.weight"].tolist() == [3]
    assert sorted(name for name in state if "/stem" in name) == [
        "first_moment/stem.weight", "missed/stem.weight", "second_moment/stem.weight",
    ]  # fmt: skip
    assert len([name for name in state if name.startswith("missed/")]) == 1
    with pytest.raises(BadInput, match=r"missed/tail.weight not in this network"):
        ENGINES[engine](recipe, start(), FREE).rule.set_state({**state, "missed/tail.weight": np.array([1])})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_that_is_set_and_read_before_a_step_is_the_same(engine: str, name: Any) -> None:
    """That of sgd has no count of steps, and its momentum is not lost for that."""
    recipe = OptimizerRecipe(name=name)
    state = walk(ENGINES[engine](recipe, start(), FREE), RATES[:3]).rule.state()
    again = ENGINES[engine](recipe, start(), FREE).rule
    again.set_state(state)
    found = again.state()
    assert found.keys() == state.keys() != set()
    for key, value in state.items():
        np.testing.assert_array_equal(found[key], value)


@settings(max_examples=30, deadline=None)
@given(limit=st.sampled_from([0.01, 0.7, 3.0, 50.0]), scale=st.sampled_from([0.0, 1e-3, 1.0, 1e6]))
@pytest.mark.parametrize("engine", ENGINES)
def test_the_gradient_of_all_together_is_clipped(engine: str, limit: float, scale: float) -> None:
    """Plain steps at rate 1 show it; torch.nn.utils.clip_grad_norm_ has 1e-6 more in its denominator."""
    recipe = OptimizerRecipe(momentum=0.0, weight_decay=0.0, clip_norm=limit)
    gradients = {name: scale * value for name, value in slopes(start(), 0).items()}
    stepper = ENGINES[engine](recipe, start(), FREE)
    stepper.step(1.0, gradients)
    moves = {name: start()[name] - value for name, value in stepper.values().items()}
    norm = np.sqrt(sum(float(np.square(one).sum()) for one in gradients.values()))
    theirs = [torch.zeros(one.shape).requires_grad_() for one in gradients.values()]
    for tensor, gradient in zip(theirs, gradients.values(), strict=True):
        tensor.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_norm_(theirs, limit)
    for (name, move), tensor in zip(moves.items(), theirs, strict=True):
        wanted = gradients[name] * min(1.0, limit / max(norm, 1e-300))
        np.testing.assert_allclose(move, wanted, rtol=1e-9, atol=1e-14 * max(1.0, limit))
        np.testing.assert_allclose(move, tensor.grad.numpy(), rtol=2e-6 / min(limit, max(norm, 1e-12)), atol=1e-14)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("optimizer", ORACLES, ids=words)
def test_clipping_comes_before_l1_and_decay_and_leaves_frozen_layers_out(
    optimizer: dict[str, Any], engine: str
) -> None:
    recipe = OptimizerRecipe(**optimizer, weight_decay=0.1, l1=0.05, clip_norm=0.5)
    wanted = walk(Oracle(recipe, start(), STEM_FROZEN), RATES).values()
    found = walk(ENGINES[engine](recipe, start(), STEM_FROZEN), RATES).values()
    assert difference(found, wanted) < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_clipping_does_not_hide_a_gradient_that_is_no_number(engine: str, value: float) -> None:
    stepper = ENGINES[engine](OptimizerRecipe(clip_norm=1.0), start(), FREE)
    gradients = slopes(start(), 0)
    gradients["middle.weight"][1, 2] = value
    stepper.step(0.1, gradients)
    assert np.isnan(stepper.values()["middle.weight"][1, 2])


@pytest.mark.gluon
@pytest.mark.parametrize("options", [{"clip_norm": 0.5}, {"decay_all": False}], ids=words)
def test_fused_and_written_sgd_agree(options: dict[str, Any]) -> None:
    """On Gluon in float32 plain momentum is MXNet's kernel; a rate of its own somewhere, and it is the written rule."""
    recipe = OptimizerRecipe(weight_decay=0.1, **options)
    groups = {name: ParameterGroup(decays=len(SHAPES[name]) > 1 or recipe.decay_all) for name in SHAPES}
    almost = {**groups, "head.bias": ParameterGroup(1 + 1e-12, groups["head.bias"].decays)}
    fused, written = (walk(OnGluon(recipe, start(), one, "float32"), RATES) for one in (groups, almost))
    assert "learning_rate" in fused.rule.state()
    assert "learning_rate" not in written.rule.state()
    assert difference(fused.values(), written.values()) < 2e-6
