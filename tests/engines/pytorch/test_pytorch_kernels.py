"""The fused kernels as torch.optim calls them: equal bytes, steps with an overflow included."""

from __future__ import annotations

from typing import Any

import pytest
import torch as pytorch

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines.optimizer_state import ParameterGroup
from imagenet_pipeline.engines.pytorch.optimizer import Optimizer

torch: Any = pytorch
RULES: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "adam": {"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6},
    "adamw": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
    "adagrad": {"epsilon": 1e-7},
}
SHAPES = {"first.weight": (5, 3, 3, 3), "first.bias": (5,), "last.weight": (4, 45), "last.bias": (4,)}
GROUPS = {
    name: ParameterGroup(0.5 if name.startswith("last") else 1.0, len(shape) > 1, frozen=False)
    for name, shape in SHAPES.items()
}


def theirs(recipe: OptimizerRecipe, weights: dict[str, Any]) -> Any:
    kind = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adagrad": torch.optim.Adagrad,
    }
    options: dict[str, Any] = {"fused": True}
    if recipe.name == "sgd":
        options |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    else:
        options["eps"] = recipe.epsilon
        if recipe.name != "adagrad":
            options["betas"] = recipe.beta1, recipe.beta2
    groups = [
        {"params": [weight], "weight_decay": recipe.weight_decay * GROUPS[name].decays, "factor": GROUPS[name].rate}
        for name, weight in weights.items()
    ]
    return kind[recipe.name](groups, lr=0.0, **options)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_a_step_gives_the_bytes_of_torch_s_own_optimizer(rule: str, precision: str) -> None:
    recipe = OptimizerRecipe(name=rule, weight_decay=0.01, **RULES[rule])  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(1)
    dtype = getattr(torch, precision)
    ours = {name: torch.randn(shape, generator=random, dtype=dtype).requires_grad_() for name, shape in SHAPES.items()}
    other = {name: weight.detach().clone().requires_grad_() for name, weight in ours.items()}
    optimizer, reference = Optimizer(recipe, ours, GROUPS), theirs(recipe, other)
    for step, overflow in enumerate([None, 0.0, 1.0, 0.0, None]):
        rate = 0.1 / (step + 1)
        for name in SHAPES:
            ours[name].grad = torch.randn(SHAPES[name], generator=random, dtype=dtype)
            other[name].grad = ours[name].grad.clone()
        found = None if overflow is None else torch.tensor(overflow)
        optimizer.update(rate, found)
        if overflow:
            optimizer.take_back()
        for group in reference.param_groups:
            group["lr"] = rate * group["factor"]
        reference.found_inf = found
        reference.step()
        for name in SHAPES:
            assert torch.equal(ours[name], other[name]), (step, name)
