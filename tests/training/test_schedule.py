"""Schedules against their closed forms, and what holds for all of them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imagenet_pipeline.config import KEYS_OF_SCHEDULES, Recipe, ScheduleRecipe
from imagenet_pipeline.training.schedule import LOWEST_SHARE, learning_rate, relative_rate

KEYS = {
    "drops": st.sets(st.integers(1, 100), min_size=1).map(lambda drops: tuple(sorted(drops))),
    "factor": st.floats(1e-3, 1, exclude_max=True),
    "power": st.floats(0.1, 100),
    "start_share": st.floats(1e-3, 0.9),
    "end_share": st.floats(0, 1),
    "patience_epochs": st.integers(1, 9),
}


def schedules_of(kind: str) -> st.SearchStrategy[ScheduleRecipe]:
    read = {key: KEYS[key] for key in KEYS_OF_SCHEDULES[kind]}
    return st.builds(ScheduleRecipe, kind=st.just(kind), warmup_epochs=st.floats(0.1, 20), **read)


schedules = st.sampled_from(sorted(KEYS_OF_SCHEDULES)).flatmap(schedules_of)


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
    whole = math.floor if schedule.kind == "one_cycle" else math.ceil
    warm = whole(min(schedule.warmup_epochs * steps_per_epoch, max(1, len(rates) // 2)))
    assert all(before < after for before, after in pairwise(rates[:warm]))
    assert all(before >= after for before, after in pairwise(rates[warm:]))


@given(schedules, st.floats(1, 50), st.integers(1, 30), st.integers(1, 20))
def test_a_warm_up_as_long_as_the_run_or_longer_is_cut_to_half_of_it(
    schedule: ScheduleRecipe, longer: float, epochs: int, steps_per_epoch: int
) -> None:
    schedule = schedule.model_copy(update={"warmup_epochs": longer * epochs})
    steps = epochs * steps_per_epoch
    rates = [relative_rate(schedule, step, steps_per_epoch, epochs) for step in range(steps)]
    assert max(rates) == 1
    assert rates.index(1) == max(1, steps // 2) - 1


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
    scaled = recipe.model_copy(
        update={"batch_size": 1024, "optimizer": recipe.optimizer.model_copy(update={"reference_batch_size": 256})}
    )
    assert learning_rate(scaled, 0, 10) == 2.0
    assert learning_rate(scaled, 20, 10) == pytest.approx(1.0)


@given(st.integers(2, 60), st.floats(0.05, 0.5), st.floats(1e-3, 0.9), st.floats(1e-6, 0.9))
def test_one_cycle_is_pytorchs(steps: int, rise: float, start_share: float, end_share: float) -> None:
    assume(2 * steps * rise > 1)  # PyTorch divides by zero at 1
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=2 * steps, pct_start=rise, div_factor=1 / start_share,
        final_div_factor=start_share / end_share, cycle_momentum=False,
    )  # fmt: skip
    schedule = ScheduleRecipe(
        kind="one_cycle", warmup_epochs=rise * steps, start_share=start_share, end_share=end_share
    )
    for step in range(2 * steps):
        assert relative_rate(schedule, step, 2, steps) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9), step
        optimizer.step()
        if step < 2 * steps - 1:
            theirs.step()


@given(st.integers(1, 60), st.floats(1e-6, 1))
def test_cosine_is_pytorchs(steps: int, end_share: float) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=end_share)
    schedule = ScheduleRecipe(kind="cosine", end_share=end_share)
    for step in range(steps):
        assert relative_rate(schedule, step, 1, steps) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        theirs.step()


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0]), max_size=30), st.integers(1, 5), st.floats(0.1, 0.9))
def test_plateau_is_pytorchs(losses: list[float], patience_epochs: int, factor: float) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience_epochs - 1, threshold=0, eps=0
    )
    schedule = ScheduleRecipe(kind="plateau", patience_epochs=patience_epochs, factor=factor)
    rows = [{"epoch": epoch, "validation_loss": loss} for epoch, loss in enumerate(losses, 1)]
    for epoch in range(len(rows) + 1):
        share = relative_rate(schedule, 3 * epoch, 3, 99, rows[:epoch])
        assert share == pytest.approx(max(optimizer.param_groups[0]["lr"], LOWEST_SHARE)), epoch
        if epoch < len(rows):
            theirs.step(losses[epoch])


def test_one_cycle_and_plateau_by_hand() -> None:
    cycle = ScheduleRecipe(kind="one_cycle", warmup_epochs=1, start_share=0.2, end_share=0.1)
    shares = [relative_rate(cycle, step, 3, 2) for step in range(6)]
    assert shares == pytest.approx([0.2, 0.6, 1, 0.775, 0.325, 0.1])
    assert relative_rate(ScheduleRecipe(kind="one_cycle", warmup_epochs=2), 2, 3, 2) == 1
    plateau = ScheduleRecipe(kind="plateau", patience_epochs=2, factor=0.5, warmup_epochs=1)
    rows = [{"validation_loss": loss} for loss in (1.0, 1.0, 0.9, 0.9, 0.95, 0.8, 0.9, 0.9)]
    assert [relative_rate(plateau, epoch, 1, 9, rows[:epoch]) for epoch in range(9)] == [
        1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25,
    ]  # fmt: skip
