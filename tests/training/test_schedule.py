"""Schedules against their closed forms, and what holds for all of them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imagenet_pipeline.config import KEYS_OF_SCHEDULES, Recipe, ScheduleRecipe
from imagenet_pipeline.training.schedule import LOWEST_SHARE, learning_rate, relative_rate, with_decay

KEYS = {
    "drops": st.sets(st.integers(1, 100), min_size=1).map(lambda drops: tuple(sorted(drops))),
    "factor": st.floats(1e-3, 1, exclude_max=True),
    "power": st.floats(0.1, 100),
    "start_share": st.floats(1e-3, 0.9),
    "end_share": st.floats(0, 1),
    "patience_epochs": st.integers(1, 9),
    "decay": st.floats(1e-9, 10),
    "flat_share": st.floats(0, 0.99),
    "period_epochs": st.floats(0.01, 200),
    "period_factor": st.floats(1, 4),
    "figure": st.just("validation_loss"),
}


def schedules_of(kind: str) -> st.SearchStrategy[ScheduleRecipe]:
    read = {key: KEYS[key] for key in KEYS_OF_SCHEDULES[kind]}
    return st.builds(ScheduleRecipe, kind=st.just(kind), warmup_epochs=st.floats(0.1, 20), **read)


schedules = st.sampled_from(sorted(KEYS_OF_SCHEDULES)).flatmap(schedules_of)
falling = st.sampled_from(sorted(KEYS_OF_SCHEDULES.keys() - {"restarts"})).flatmap(schedules_of)


@given(schedules, st.integers(1, 100), st.integers(1, 5000), st.integers(0, 10**6))
def test_the_rate_is_always_above_0_and_never_above_its_peak(
    schedule: ScheduleRecipe, epochs: int, steps_per_epoch: int, step: int
) -> None:
    assert 0 < relative_rate(schedule, step, steps_per_epoch, epochs * steps_per_epoch) <= 1


@given(falling, st.integers(1, 30), st.integers(1, 20))
def test_it_rises_through_the_warm_up_and_never_after(
    schedule: ScheduleRecipe, epochs: int, steps_per_epoch: int
) -> None:
    steps = epochs * steps_per_epoch
    rates = [relative_rate(schedule, step, steps_per_epoch, steps) for step in range(steps)]
    whole = math.floor if schedule.kind == "one_cycle" else math.ceil
    warm = whole(min(schedule.warmup_epochs * steps_per_epoch, max(1, len(rates) // 2)))
    assert all(before < after for before, after in pairwise(rates[:warm]))
    assert all(before >= after for before, after in pairwise(rates[warm:]))


@given(falling, st.floats(1, 50), st.integers(1, 30), st.integers(1, 20))
def test_a_warm_up_as_long_as_the_run_or_longer_is_cut_to_half_of_it(
    schedule: ScheduleRecipe, longer: float, epochs: int, steps_per_epoch: int
) -> None:
    schedule = schedule.model_copy(update={"warmup_epochs": longer * epochs})
    steps = epochs * steps_per_epoch
    rates = [relative_rate(schedule, step, steps_per_epoch, steps) for step in range(steps)]
    assert max(rates) == 1
    assert rates.index(1) == max(1, steps // 2) - 1


def test_the_warm_up_is_a_straight_line() -> None:
    schedule = ScheduleRecipe(warmup_epochs=2)
    assert [relative_rate(schedule, step, 5, 45) for step in range(12)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1]
    )


def test_steps_drop_at_the_beginning_of_the_named_epochs() -> None:
    schedule = ScheduleRecipe(kind="steps", drops=(2, 5), factor=0.1)
    by_epoch = [relative_rate(schedule, 10 * epoch, 10, 70) for epoch in range(7)]
    assert by_epoch == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert relative_rate(schedule, 19, 10, 70) == 1
    assert relative_rate(schedule, 49, 10, 70) == pytest.approx(0.1)


@given(st.integers(0, 999), st.floats(0.5, 4), st.integers(0, 4))
def test_closed_forms(step: int, power: float, warmup_epochs: int) -> None:
    first = 100 * warmup_epochs
    if step >= first:
        progress = (step - first) / (1000 - first)
        polynomial = ScheduleRecipe(kind="polynomial", power=power, warmup_epochs=warmup_epochs)
        assert relative_rate(polynomial, step, 100, 1000) == pytest.approx((1 - progress) ** power)
        cosine = ScheduleRecipe(kind="cosine", warmup_epochs=warmup_epochs)
        assert relative_rate(cosine, step, 100, 1000) == pytest.approx((1 + math.cos(math.pi * progress)) / 2)


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
        assert relative_rate(schedule, step, 2, 2 * steps) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9), step
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


def follow(theirs: Any, steps: int) -> list[float]:
    """The rates of one of PyTorch's schedulers, step by step."""
    rates = []
    for _ in range(steps):
        rates.append(theirs.get_last_lr()[0])
        theirs.optimizer.step()
        theirs.step()
    return rates


def sgd_of_rate_1() -> tuple[Any, Any]:
    torch = pytest.importorskip("torch")
    return torch.optim.lr_scheduler, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 9), st.floats(0, 1))
def test_restarts_are_pytorchs(period: int, factor: int, steps_per_epoch: int, end_share: float) -> None:
    schedulers, optimizer = sgd_of_rate_1()
    theirs = schedulers.CosineAnnealingWarmRestarts(
        optimizer, T_0=period * steps_per_epoch, T_mult=factor, eta_min=end_share
    )
    schedule = ScheduleRecipe(kind="restarts", period_epochs=period, period_factor=factor, end_share=end_share)
    ours = [relative_rate(schedule, step, steps_per_epoch, 10**6) for step in range(120)]
    assert ours == pytest.approx(follow(theirs, 120), abs=1e-9)


def test_restarts_by_hand() -> None:
    """Two epochs, then three, of two steps each, after a warm-up of one."""
    schedule = ScheduleRecipe(kind="restarts", warmup_epochs=1, period_epochs=2, period_factor=1.5)
    shares = [relative_rate(schedule, step, 2, 22) for step in range(13)]
    first = [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2]
    assert shares[:6] == pytest.approx([0.5, 1, *first])
    assert shares[6:12] == pytest.approx([(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)])
    assert shares[12] == 1


@given(st.floats(0.5, 1, exclude_max=True), st.integers(1, 9))
def test_exponential_is_pytorchs_and_keras(factor: float, steps_per_epoch: int) -> None:
    """PyTorch's at the beginning of each epoch; Keras's ExponentialDecay at each step, rate ** (step / decay_steps)."""
    schedulers, optimizer = sgd_of_rate_1()
    schedule = ScheduleRecipe(kind="exponential", factor=factor)
    ours = [relative_rate(schedule, step, steps_per_epoch, 10**6) for step in range(12 * steps_per_epoch)]
    assert ours[::steps_per_epoch] == pytest.approx(follow(schedulers.ExponentialLR(optimizer, gamma=factor), 12))
    assert ours == pytest.approx([factor ** (step / steps_per_epoch) for step in range(len(ours))])


@given(st.integers(1, 30), st.integers(0, 29))
def test_flat_cosine_is_pytorchs_constant_then_its_cosine(cosine: int, flat: int) -> None:
    schedulers, optimizer = sgd_of_rate_1()
    theirs = schedulers.CosineAnnealingLR(optimizer, T_max=cosine, eta_min=0.01)
    schedule = ScheduleRecipe(kind="flat_cosine", flat_share=flat / (flat + cosine), end_share=0.01)
    ours = [relative_rate(schedule, step, 1, flat + cosine) for step in range(flat + cosine)]
    assert ours == pytest.approx([1.0] * flat + follow(theirs, cosine), rel=1e-6)


@given(st.floats(1e-6, 1), st.integers(1, 200), st.integers(1, 99), st.integers(0, 9999))
def test_inverse_time_is_keras_and_auto_is_the_rate_over_the_epochs(
    rate: float, epochs: int, steps_per_epoch: int, step: int
) -> None:
    """Keras's `decay`: lr * 1 / (1 + decay * iterations); the books' SGD(lr=rate, decay=rate / epochs)."""
    keys = {"network": "x", "records": "y", "epochs": epochs, "optimizer": {"learning_rate": rate}}
    books = Recipe.model_validate({**keys, "schedule": {"kind": "inverse_time"}})
    keras = rate * (1.0 / (1.0 + (rate / epochs) * step))
    assert learning_rate(books, step, steps_per_epoch) == pytest.approx(keras)
    given = Recipe.model_validate({**keys, "schedule": {"kind": "inverse_time", "decay": 0.25}})
    assert learning_rate(given, step, steps_per_epoch) == pytest.approx(rate / (1 + 0.25 * step))
    settled = with_decay(books, rate, steps_per_epoch)
    assert settled.schedule.decay == pytest.approx(rate / epochs)
    assert with_decay(settled, 9.0, 1) == settled
    assert with_decay(given, rate, 1) == given


smooth = st.sampled_from(["cosine", "flat_cosine", "exponential", "polynomial", "plateau"]).flatmap(schedules_of)


@given(smooth, st.integers(2, 30), st.integers(1, 20), st.integers(2, 5), st.integers(0, 600))
def test_it_goes_by_epochs_whatever_the_steps_they_are_cut_into(
    schedule: ScheduleRecipe, epochs: int, steps_per_epoch: int, finer: int, step: int
) -> None:
    steps = epochs * steps_per_epoch
    schedule = schedule.model_copy(update={"warmup_epochs": min(schedule.warmup_epochs, (epochs - 1) / 2)})
    step = max(step % steps, math.ceil(schedule.warmup_epochs * steps_per_epoch))
    assume(steps * finer > 2 and steps > 2)
    coarse = relative_rate(schedule, step, steps_per_epoch, steps)
    fine = relative_rate(schedule, finer * step, finer * steps_per_epoch, finer * steps)
    assert fine == pytest.approx(coarse, rel=1e-6, abs=1e-12)


@given(st.floats(0, 0.9), st.floats(1, 3), st.floats(1.1, 9), st.integers(2, 40))
def test_cosines_have_no_jumps_but_the_restarts(
    flat: float, factor: float, period: float, steps_per_epoch: int
) -> None:
    steps = 20 * steps_per_epoch
    flat_cosine = ScheduleRecipe(kind="flat_cosine", flat_share=flat)
    rates = [relative_rate(flat_cosine, step, steps_per_epoch, steps) for step in range(steps)]
    assert max(before - after for before, after in pairwise(rates)) <= math.pi / 2 / ((1 - flat) * steps) + 1e-9
    restarts = ScheduleRecipe(kind="restarts", period_epochs=period, period_factor=factor)
    rates = [relative_rate(restarts, step, steps_per_epoch, steps) for step in range(steps)]
    assert max(before - after for before, after in pairwise(rates)) <= math.pi / 2 / (period * steps_per_epoch) + 1e-9
    rises = [step for step, (before, after) in enumerate(pairwise(rates), 1) if after > before]
    lengths = [after - before for before, after in pairwise([0, *rises])]
    assert all(abs(length - period * steps_per_epoch * factor**number) <= 1 for number, length in enumerate(lengths))


@given(st.integers(1, 99), st.integers(2, 30), st.data())
def test_a_run_of_so_many_steps_has_the_rates_of_as_many_in_epochs(
    steps_per_epoch: int, epochs: int, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(["constant", "polynomial", "cosine", "flat_cosine", "inverse_time"]))
    keys = {"network": "x", "records": "y", "schedule": {"kind": kind}}
    whole = Recipe.model_validate({**keys, "epochs": epochs})
    cut = Recipe.model_validate({**keys, "steps": epochs * steps_per_epoch})
    step = data.draw(st.integers(0, epochs * steps_per_epoch - 1))
    assert learning_rate(cut, step, steps_per_epoch) == learning_rate(whole, step, steps_per_epoch)


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
        share = relative_rate(schedule, 3 * epoch, 3, 297, rows[:epoch])
        assert share == pytest.approx(max(optimizer.param_groups[0]["lr"], LOWEST_SHARE)), epoch
        if epoch < len(rows):
            theirs.step(losses[epoch])


def test_one_cycle_and_plateau_by_hand() -> None:
    cycle = ScheduleRecipe(kind="one_cycle", warmup_epochs=1, start_share=0.2, end_share=0.1)
    shares = [relative_rate(cycle, step, 3, 6) for step in range(6)]
    assert shares == pytest.approx([0.2, 0.6, 1, 0.775, 0.325, 0.1])
    assert relative_rate(ScheduleRecipe(kind="one_cycle", warmup_epochs=2), 2, 3, 6) == 1
    plateau = ScheduleRecipe(kind="plateau", patience_epochs=2, factor=0.5, warmup_epochs=1)
    rows = [{"validation_loss": loss} for loss in (1.0, 1.0, 0.9, 0.9, 0.95, 0.8, 0.9, 0.9)]
    assert [relative_rate(plateau, epoch, 1, 9, rows[:epoch]) for epoch in range(9)] == [
        1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25,
    ]  # fmt: skip
