"""A student's losses against NumPy's and torch.nn.functional's statements in float64, and a step of each engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as pytorch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.config import DistillationRecipe, LossRecipe, OptimizerRecipe, Recipe
from imagenet_pipeline.engines import Blueprint, Engine, create_engine, is_installed
from imagenet_pipeline.engines.pytorch import losses as pytorch_losses
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Dense, Flatten, Sequential, Tap, stack

Array = np.ndarray[Any, Any]
torch: Any = pytorch
gluon_losses: Any = None
if is_installed("gluon"):
    from imagenet_pipeline.engines.gluon import losses as gluon_losses
    from imagenet_pipeline.engines.gluon.runtime import mx

ENGINES = {"gluon": gluon_losses, "pytorch": pytorch_losses}
RECIPES = {
    "soft": DistillationRecipe(teacher="run", temperature=3.0, share=0.7),
    "plain soft": DistillationRecipe(teacher="run", temperature=1.0, share=1.0),
    "hard": DistillationRecipe(teacher="run", kind="hard", share=0.4),
}
HEADS = stack(flatten=Flatten(), tap=Tap(stack(scores=Dense(7)), 0.3), classifier=Dense(7))
WEIGHTS = (0.25, 1.0, 3.0, 0.0, 2.0, 0.5, 1.5)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def wanted(losses: Array, logits: Array, teacher: Array, recipe: DistillationRecipe) -> tuple[Array, Array]:
    """The mixed losses [n], and the gradient of the teacher's part, by the formulas of `engines/__init__.py`."""
    t = recipe.temperature
    if recipe.kind == "hard":
        aims = np.eye(logits.shape[1])[teacher.argmax(1)]
        own, slopes = -(aims * np.log(softmax(logits))).sum(1), softmax(logits) - aims
    else:
        q, p = softmax(teacher / t), softmax(logits / t)
        own, slopes = t * t * (q * np.log(q / p)).sum(1), t * (p - q)
    return (1 - recipe.share) * losses + recipe.share * own, recipe.share * slopes


def found(engine: str, losses: Array, logits: Array, teacher: Array, recipe: DistillationRecipe) -> tuple[Array, Array]:
    if engine == "pytorch":
        scores = torch.from_numpy(logits.copy()).requires_grad_()
        mixed = pytorch_losses.distilled(torch.from_numpy(losses), scores, torch.from_numpy(teacher), recipe)
        mixed.sum().backward()
        return mixed.detach().numpy(), scores.grad.numpy()
    scores = mx.nd.array(logits, dtype="float64")
    scores.attach_grad()
    with mx.autograd.record():
        first, second = (mx.nd.array(array, dtype="float64") for array in (losses, teacher))
        mixed = gluon_losses.distilled(first, scores, second, recipe)
    mixed.backward()
    return mixed.asnumpy(), scores.grad.asnumpy()


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(2, 30))
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("engine", ENGINES)
def test_losses_and_gradients_are_as_written(engine: str, name: str, seed: int, images: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    logits, teacher = (4 * random.normal(size=(images, classes)) for _ in range(2))
    losses = random.random(images)
    for one, by_hand in zip(
        found(engine, losses, logits, teacher, RECIPES[name]),
        wanted(losses, logits, teacher, RECIPES[name]),
        strict=True,
    ):
        np.testing.assert_allclose(one, by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_soft_loss_is_that_of_torch_and_nothing_for_the_teacher_itself(engine: str) -> None:
    random = np.random.default_rng(1)
    logits, teacher = (9 * random.normal(size=(6, 5)) for _ in range(2))
    alone = RECIPES["soft"].model_copy(update={"share": 1.0})
    q, p = (torch.log_softmax(torch.tensor(one) / 3.0, 1) for one in (teacher, logits))
    divergence = torch.nn.functional.kl_div(p, q, reduction="none", log_target=True).sum(1)
    mixed, _ = found(engine, np.zeros(6), logits, teacher, alone)
    np.testing.assert_allclose(mixed, 9 * divergence.numpy(), rtol=1e-12)
    nothing, flat = found(engine, np.zeros(6), teacher, teacher, alone)
    np.testing.assert_allclose(nothing, 0, atol=1e-12)
    np.testing.assert_allclose(flat, 0, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_hard_loss_takes_the_first_of_equal_classes_and_is_torch_s(engine: str) -> None:
    logits, teacher = np.random.default_rng(2).normal(size=(2, 4)), np.array([[0.0, 5, 5, 1], [2, 1, 2, 2]])
    alone = RECIPES["hard"].model_copy(update={"share": 1.0})
    mixed, _ = found(engine, np.zeros(2), logits, teacher, alone)
    aims = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor([1, 0]), reduction="none")
    np.testing.assert_allclose(mixed, aims.numpy(), rtol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("part", ["student", "teacher"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_logit_that_is_not_finite_is_seen(engine: str, name: str, part: str) -> None:
    logits, teacher = np.zeros((2, 3)), np.eye(3)[:2].copy()
    (logits if part == "student" else teacher)[1, 0] = np.nan
    if (name, part) == ("hard", "teacher"):
        pytest.skip("training refuses such a teacher's output")
    assert np.isnan(found(engine, np.ones(2), logits, teacher, RECIPES[name])[0]).tolist() == [False, True]


def make(engine: str, name: str, devices: str = "cpu", **keys: Any) -> Engine:
    network: Sequential = HEADS
    recipe = Recipe(
        network="", records="", devices=devices, precision="float64", loss=LossRecipe(label_smoothing=0.1),
        distillation=RECIPES[name], optimizer=OptimizerRecipe(momentum=0.0, weight_decay=0.0), **keys,
    )  # fmt: skip
    blueprint = Blueprint(network, 4, (120.0, 110.0, 100.0), (60.0, 61.0, 62.0), recipe)
    return create_engine(
        engine, replace(blueprint, class_weights=WEIGHTS), initial_values(network, (3, 4, 4), "msra", 1)
    )


@pytest.mark.parametrize(("accumulation", "devices"), [(1, "cpu"), (2, "cpu"), (2, "cpu:0,1")])
@pytest.mark.parametrize("soft_labels", [False, True])
@pytest.mark.parametrize("name", ["soft", "hard"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_learns_from_labels_and_teacher_with_weights_smoothing_and_taps(
    engine: str, name: str, soft_labels: bool, accumulation: int, devices: str, make_batch: Callable[..., Any]
) -> None:
    """In parts and on several devices it is the same step: the mean over all images of (w_y times) the mixed loss."""
    if engine == "pytorch" and "," in devices:
        pytest.skip("PyTorch takes a process for each device")
    (images, labels), random = make_batch(8, 0, 4), np.random.default_rng(5)
    teacher, shares = random.normal(size=(8, 7)) * 3, np.eye(7)[labels]
    if soft_labels:
        shares = random.dirichlet(np.ones(7), 8).astype(np.float32).astype(np.float64)
    made = make(engine, name, devices, accumulation=accumulation)
    before, logits = made.values(), made.logits(images)
    made.train_batch(images, shares.astype(np.float32) if soft_labels else labels, 1.0, 0, teacher)
    weights, smoothed = shares @ np.array(WEIGHTS), 0.9 * shares + 0.1 / 7
    losses, slopes = wanted(-(smoothed * np.log(softmax(logits))).sum(1), logits, teacher, RECIPES[name])
    slopes += (1 - RECIPES[name].share) * (softmax(logits) * smoothed.sum(1, keepdims=True) - smoothed)
    assert made.totals().step_losses == pytest.approx([(weights * losses).sum()], rel=1e-12)
    moved = before["classifier.bias"] - made.values()["classifier.bias"]
    np.testing.assert_allclose(moved, (weights[:, None] * slopes).mean(0), rtol=1e-9, atol=1e-13)
    plain = make(engine, name, devices, accumulation=accumulation)
    plain.train_batch(images, labels, 1.0, 0)
    tap = [one.values()["tap.scores.bias"] for one in (made, plain)]
    assert np.abs(tap[0] - tap[1]).max() > 1e-3, "the head behind a tap learns from the teacher, too"


@pytest.mark.parametrize("engine", ENGINES)
def test_scoring_knows_no_teacher(engine: str, make_batch: Callable[..., Any]) -> None:
    images, labels = make_batch(6, 0, 4)
    made = make(engine, "soft")
    made.score_batch(images, labels)
    own = softmax(made.logits(images))[np.arange(6), labels]
    assert made.totals().step_losses == pytest.approx([-np.log(own).sum()], rel=1e-12)
