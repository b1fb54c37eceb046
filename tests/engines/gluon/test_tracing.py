"""Steps of an optimizer are a few calls of MXNet's, whatever the number of arrays, and do what the rules say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import is_installed
from imagenet_pipeline.engines.optimizer_state import ParameterGroup
from imagenet_pipeline.optimizers import OPTIMIZERS, Step, UpdateRule, limited_norm

pytestmark = pytest.mark.skipif(not is_installed("gluon"), reason="MXNet is not installed")
if is_installed("gluon"):
    from imagenet_pipeline.engines.gluon.optimizer import Approach, Optimizer
    from imagenet_pipeline.engines.gluon.runtime import mx
    from imagenet_pipeline.engines.gluon.tracing import InOneCall

ALL: dict[str, Any] = {"clip_norm": 1.0, "l1": 0.01, "max_norm": 0.9}
RECIPES: list[dict[str, Any]] = [{"name": name} for name in OPTIMIZERS.names()] + [
    {"nesterov": True},
    {"momentum": 0.0},
    {"clip_norm": 1.0},
    {"l1": 0.01},
    {"max_norm": 0.9},
    {"decay_all": False, "nesterov": True},
    {"name": "lamb", "decay_all": False} | ALL,
    {"clip_share": 0.01},
    {"name": "radam", "lookahead_steps": 2},
]
CALLS_A_CONTEXT = 8
"""Of any rule and option: its call, and one for each number that changes. More only where layers have other rates."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of Python's calls into MXNet that queue operations."""
    made: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        function = getattr(mx.base._LIB, name)

        def call(*given: Any) -> Any:
            made.append(name)
            return function(*given)

        return call

    for name in ("MXImperativeInvokeEx", "MXInvokeCachedOpEx"):
        monkeypatch.setattr(mx.base._LIB, name, counted(name))
    return made


def network(arrays: int, contexts: int, dtype: str = "float32") -> dict[str, Any]:
    random = np.random.default_rng(0)
    parameters = {}
    for index in range(arrays):
        shape = [(4, 3, 2, 2), (3, 5), (3,)][index % 3]
        parameter = mx.gluon.Parameter(f"p{index}", shape=shape, dtype=dtype)
        parameter.initialize(ctx=[mx.cpu(number) for number in range(contexts)])
        parameter.set_data(mx.nd.array(random.normal(size=shape), dtype=dtype))
        for gradient in parameter.list_grad():
            gradient[:] = mx.nd.array(np.sin(np.arange(np.prod(shape))).reshape(shape), dtype=dtype)
        parameters[f"p{index}.weight"] = parameter
    return parameters


def optimizer(recipe: OptimizerRecipe, parameters: dict[str, Any], contexts: int, **options: Any) -> Any:
    return Optimizer(recipe, parameters, [mx.cpu(index) for index in range(contexts)], **options)


@pytest.mark.parametrize("contexts", [1, 2])
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_step_is_a_few_calls_however_many_arrays_there_are(
    recipe: dict[str, Any], contexts: int, calls: list[str]
) -> None:
    counts = []
    for arrays in (3, 30):
        stepper = optimizer(OptimizerRecipe(**recipe), network(arrays, contexts), contexts)
        for step in range(3):
            calls.clear()
            stepper.update(0.1 / (1 + step), 8)
        counts.append(len(calls))
        assert calls.count("MXInvokeCachedOpEx") <= 2 * contexts
    assert counts[0] == counts[1] <= CALLS_A_CONTEXT * contexts


def test_frozen_layers_and_layers_of_other_rates_are_a_few_calls(calls: list[str]) -> None:
    parameters = network(30, 2)
    groups = {
        name: ParameterGroup(rate=[1.0, 0.1, 0.01][index // 10], frozen=index < 5)
        for index, name in enumerate(parameters)
    }
    stepper = optimizer(OptimizerRecipe(name="adam"), parameters, 2, groups=groups)
    for rate in (0.1, 0.05):
        calls.clear()
        stepper.update(rate, 8)
    assert len(calls) <= 2 * (CALLS_A_CONTEXT + 2)


def test_moving_averages_are_a_call_a_context(calls: list[str]) -> None:
    arrays = [mx.nd.full((3,), 2.0 + index, ctx=mx.cpu(index % 2)) for index in range(40)]
    means = [mx.nd.ones_like(array) for array in arrays]
    approach = Approach()
    for share in (0.5, 0.25):
        calls.clear()
        assert approach(means, arrays, share) is means
    assert len(calls) == 4
    moved = [mean.asnumpy()[0] for mean in means]
    assert np.allclose(moved, [2 + index - (1 + index) * 0.375 for index in range(40)], rtol=1e-6)


@pytest.fixture
def register() -> Iterator[Callable[[UpdateRule], OptimizerRecipe]]:
    names = []

    def registered(rule: UpdateRule) -> OptimizerRecipe:
        names.append(f"registered-{len(names)}")
        OPTIMIZERS.register(names[-1], rule)
        return OptimizerRecipe(name=names[-1])

    yield registered
    for name in names:
        del OPTIMIZERS._items[name]


def branching(weight: Any, gradient: Any, slots: Any, step: Step) -> Any:
    """Another formula every third step, and other numbers and steps for each shape."""
    share = 1 / (1 + len(weight.shape) + weight.shape[0] * step.count)
    mean = (1 - share) * slots[0] + share * gradient
    if step.count % 3 == 0:
        return weight - step.rate * abs_of(mean), (mean,)
    return weight - step.rate * share * mean, (mean,)


def abs_of(array: Any) -> Any:
    return array.abs() if hasattr(array, "abs") else np.abs(array)


def untraceable(weight: Any, gradient: Any, slots: Any, step: Step) -> Any:
    """It asks for a number."""
    length = float((gradient * gradient).sum().asscalar() if hasattr(gradient, "asscalar") else (gradient**2).sum())
    return weight - step.rate / (1 + length) * gradient, (slots[0] + length,)


def of_old_slots(weight: Any, gradient: Any, slots: Any, step: Step) -> Any:
    """What the weight is moved by is replaced by something that does not come of it."""
    return weight - step.rate * slots[0], (gradient * 2.0,)


def exchanged(weight: Any, gradient: Any, slots: Any, step: Step) -> Any:
    """The gradient becomes the slot, the slot the step."""
    return weight - step.rate * (slots[0] + gradient), (gradient,)


def remembering(weight: Any, gradient: Any, slots: Any, step: Step) -> Any:
    """The slot is the weight as it was."""
    return weight - step.rate * (gradient + slots[0]), (weight,)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("update", [branching, untraceable, of_old_slots, exchanged, remembering])
def test_a_rule_of_another_package_does_what_it_says(
    update: Callable[..., Any], dtype: str, register: Callable[[UpdateRule], OptimizerRecipe]
) -> None:
    recipe = register(UpdateRule(("kept",), update))
    parameters = network(6, 2, dtype)
    stepper = optimizer(recipe, parameters, 2)
    weights = {name: parameter.data().asnumpy().astype(np.float64) for name, parameter in parameters.items()}
    slots = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for count, rate in enumerate([0.1, 0.1, 0.03, 0.03, 0.0, 0.2, 0.2], 1):
        for name, parameter in parameters.items():
            gradient = np.sin(3 * weights[name] + count)
            for array in parameter.list_grad():
                array[:] = mx.nd.array(8 * gradient, dtype=dtype)
            step = Step(rate, count, recipe)
            weights[name], (slots[name],) = update(weights[name], gradient, (slots[name],), step)
        stepper.update(rate, 8)
    for name, parameter in parameters.items():
        for array in parameter.list_data():
            assert np.allclose(array.asnumpy(), weights[name], rtol=0, atol=1e-13 if dtype == "float64" else 1e-5)


def test_an_error_of_a_rule_is_its_own(register: Callable[[UpdateRule], OptimizerRecipe]) -> None:
    def failing(*_: Any) -> Any:
        raise ZeroDivisionError("of the rule")

    with pytest.raises(ZeroDivisionError, match="of the rule"):
        optimizer(register(UpdateRule((), failing)), network(3, 1), 1).update(0.1, 8)


@pytest.mark.parametrize("recipe", [{"name": "lamb"} | ALL, {"nesterov": True}, {"clip_norm": 0.5}], ids=str)
def test_a_shorter_batch_is_divided_by_its_own_length(recipe: dict[str, Any]) -> None:
    found = []
    for sizes in ((8, 8, 8), (8, 2, 8)):
        parameters = network(6, 1, "float64")
        stepper = optimizer(OptimizerRecipe(**recipe), parameters, 1)
        for size in sizes:
            for parameter in parameters.values():
                parameter.grad()[:] = size * mx.nd.sin(3 * parameter.data())
            stepper.update(0.1, size)
        found.append([parameter.data().asnumpy() for parameter in parameters.values()])
    assert all(np.allclose(*pair, rtol=0, atol=1e-14) for pair in zip(*found, strict=True))


OPERATIONS: list[Callable[[Any, Any, float], Any]] = [
    lambda x, y, number: x + y,
    lambda x, y, number: x - number,
    lambda x, y, number: number - y,
    lambda x, y, number: x * number * y,
    lambda x, y, number: number / (1 + y * y),
    lambda x, y, number: x / (2 + abs(number) + y.abs()),
    lambda x, y, number: (x > y) * x + (x <= number) * y,
    lambda x, y, number: (x == y) + (x != number) * 0.5,
    lambda x, y, number: x * (y * y).sum().sqrt() * 0.1,
    lambda x, y, number: x + y.sum(-1).reshape((-1, 1)) * number,
    lambda x, y, number: -x.sign() + y.abs() ** 0.5,
    lambda x, y, number: limited_norm(x, abs(number) + 0.1),
]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=6),
    st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=3),
)
def test_what_is_traced_is_what_is_computed(operations: list[Callable[..., Any]], numbers: list[float]) -> None:
    def function(indexes: list[int], items: list[list[Any]], number: float) -> list[list[Any]]:
        results = []
        for x, y in items:
            for operation in operations:
                x, y = operation(x, y, number), x
            results.append([x])
        return results

    random = np.random.default_rng(3)
    start = [[random.normal(size=shape) for _ in range(2)] for shape in ((2, 3), (4, 1))]
    wanted, found = ([[mx.nd.array(array, dtype="float64") for array in item] for item in start] for _ in range(2))
    call = InOneCall(function, [found])
    for number in numbers:
        wanted = [[x, y] for (x,), (_, y) in zip(function([0, 1], wanted, number), wanted, strict=True)]
        call(number)
    assert call._is_traced
    for item, other in zip(found, wanted, strict=True):
        for array, expected in zip(item, other, strict=True):
            np.testing.assert_allclose(array.asnumpy(), expected.asnumpy(), rtol=1e-12, atol=1e-12)


def test_adam_moves_a_large_array_by_the_written_rule(mx: Any) -> None:
    from imagenet_pipeline.engines.gluon.optimizer import Optimizer

    shape, draw = (1024, 1030), np.random.default_rng(0)
    expected, gradients = draw.normal(size=shape), draw.normal(0, 0.01, size=(3, *shape))
    parameter = mx.gluon.Parameter("w", shape=shape, dtype="float32")
    parameter.initialize(ctx=mx.cpu())
    parameter.set_data(mx.nd.array(expected))
    recipe = OptimizerRecipe(name="adam", weight_decay=0.0)
    optimizer = Optimizer(recipe, {"w": parameter}, [mx.cpu()])
    first, second = np.zeros(shape), np.zeros(shape)
    for step, gradient in enumerate(gradients, 1):
        parameter.grad()[:] = mx.nd.array(gradient)
        optimizer.update(1e-3, 1)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        expected = expected - 1e-3 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(parameter.data().asnumpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    "rule", ["sgd", "adam", "adamw", "nadam", "rmsprop", "adadelta", "adamax", "radam", "lion", "radam ahead"]
)
def test_a_number_of_a_large_array_moves_as_in_a_small_one(mx: Any, rule: str) -> None:
    from imagenet_pipeline.engines.gluon.optimizer import Optimizer

    draw = np.random.default_rng(0)
    values, gradients = draw.normal(size=(1024, 1030)), draw.normal(0, 0.01, size=(3, 1024, 1030))
    moved = []
    for rows in (1024, 16):
        parameter = mx.gluon.Parameter("w", shape=(rows, 1030), dtype="float32")
        parameter.initialize(ctx=mx.cpu())
        parameter.set_data(mx.nd.array(values[:rows]))
        name, _, ahead = rule.partition(" ")
        recipe = OptimizerRecipe(name=name, weight_decay=0.0, lookahead_steps=2 if ahead else 0)
        optimizer = Optimizer(recipe, {"w": parameter}, [mx.cpu()])
        for gradient in gradients:
            parameter.grad()[:] = mx.nd.array(gradient[:rows])
            optimizer.update(1e-2, 1)
        moved.append(parameter.data().asnumpy()[:16])
    np.testing.assert_allclose(*moved, rtol=1e-6, atol=1e-7)
    assert not np.allclose(moved[0], values[:16], atol=1e-5)


@pytest.mark.parametrize("options", [{"name": "muon"}, {"clip_share": 0.01}], ids=str)
def test_units_of_a_large_array_move_as_pytorchs_do(mx: Any, options: dict[str, Any]) -> None:
    """A matrix that is no head: rules that look at more than a number at a time."""
    torch = pytest.importorskip("torch")
    from imagenet_pipeline.engines.gluon.optimizer import Optimizer
    from imagenet_pipeline.engines.pytorch.optimizer import Optimizer as OnPyTorch

    draw, shape = np.random.default_rng(0), (4200, 256)
    value, gradients = draw.normal(size=shape), draw.normal(0, 0.01, size=(3, *shape))
    recipe, groups = OptimizerRecipe(**options), {"w": ParameterGroup()}
    parameter = mx.gluon.Parameter("w", shape=shape, dtype="float32")
    parameter.initialize(ctx=mx.cpu())
    parameter.set_data(mx.nd.array(value))
    tensor = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    steppers = Optimizer(recipe, {"w": parameter}, [mx.cpu()], groups), OnPyTorch(recipe, {"w": tensor}, groups)
    for gradient in gradients:
        parameter.grad()[:] = mx.nd.array(gradient)
        tensor.grad = torch.tensor(gradient)
        steppers[0].update(1e-2, 1)
        steppers[1].update(1e-2)
    np.testing.assert_allclose(parameter.data().asnumpy(), tensor.detach().numpy(), atol=2e-5)
    assert not np.allclose(parameter.data().asnumpy(), value, atol=1e-5)
