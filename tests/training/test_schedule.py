"""Schedules against their closed forms, and what holds for all of them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.config import Recipe, ScheduleRecipe
from imagenet_pipeline.training.schedule import learning_rate, relative_rate

schedules = st.builds(
    ScheduleRecipe,
    kind=st.sampled_from(["constant", "polynomial", "cosine", "steps"]),
    drops=st.sets(st.integers(1, 100), min_size=1).map(lambda drops: tuple(sorted(drops))),
    factor=st.floats(1e-3, 1),
    power=st.floats(0.1, 100),
    warmup_epochs=st.floats(0, 20),
)


@given(schedules, st.integers(1, 100), st.integers(1, 5000), st.integers(0, 10**6))
def test_the_rate_is_always_above_0_and_never_above_its_peak(
    schedule: ScheduleRecipe, epochs: int, steps_per_epoch: int, step: int
) -> None:
    assert 0 < relative_rate(schedule, step, steps_per_epoch, epochs) <= 1


@given(schedules, st.integers(1, 30), st.integers(1, 20))
def test_it_rises_through_the_warm_up_and_never_after(
    schedule: ScheduleRecipe, epochs: int, steps_per_epoch: int
) -> None:
    rates = [relative_rate(schedule, step, steps_per_epoch, epochs) for step in range(epochs * steps_per_epoch)]
    warm = min(math.ceil(schedule.warmup_epochs * steps_per_epoch), len(rates))
    assert all(before < after for before, after in pairwise(rates[:warm]))
    assert all(before >= after for before, after in pairwise(rates[warm:]))


def test_the_warm_up_is_a_straight_line() -> None:
    schedule = ScheduleRecipe(warmup_epochs=2)
    assert [relative_rate(schedule, step, 5, 9) for step in range(12)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1]
    )


def test_steps_drop_at_the_beginning_of_the_named_epochs() -> None:
    schedule = ScheduleRecipe(kind="steps", drops=(2, 5), factor=0.1)
    by_epoch = [relative_rate(schedule, 10 * epoch, 10, 7) for epoch in range(7)]
    assert by_epoch == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert relative_rate(schedule, 19, 10, 7) == 1
    assert relative_rate(schedule, 49, 10, 7) == pytest.approx(0.1)


@given(st.integers(0, 999), st.floats(0.5, 4), st.integers(0, 4))
def test_closed_forms(step: int, power: float, warmup_epochs: int) -> None:
    first = 100 * warmup_epochs
    if step >= first:
        progress = (step - first) / (1000 - first)
        polynomial = ScheduleRecipe(kind="polynomial", power=power, warmup_epochs=warmup_epochs)
        assert relative_rate(polynomial, step, 100, 10) == pytest.approx((1 - progress) ** power)
        cosine = ScheduleRecipe(kind="cosine", warmup_epochs=warmup_epochs)
        assert relative_rate(cosine, step, 100, 10) == pytest.approx((1 + math.cos(math.pi * progress)) / 2)


def test_the_learning_rate_is_a_share_of_the_recipes() -> None:
    recipe = Recipe.model_validate(
        {"network": "x", "records": "y", "epochs": 4, "optimizer": {"learning_rate": 0.5},
         "schedule": {"kind": "cosine"}}
    )  # fmt: skip
    assert learning_rate(recipe, 0, 10) == 0.5
    assert learning_rate(recipe, 20, 10) == pytest.approx(0.25)
