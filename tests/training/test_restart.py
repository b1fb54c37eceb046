"""A learning rate given to a restart, for every kind of schedule."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagenet_pipeline.config import LossRecipe, Recipe, load_recipe, recipe_text
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.training.engine_setup import as_kept, with_network_file
from imagenet_pipeline.training.restart import AskedRate, keys_unlike, require_unchanged, with_rate_asked
from imagenet_pipeline.training.resume import open_run
from imagenet_pipeline.training.schedule import learning_rate, relative_rate

SCHEDULES: list[dict[str, Any]] = [
    {"kind": "constant"},
    {"kind": "steps", "drops": (2, 5)},
    {"kind": "polynomial", "power": 2.0},
    {"kind": "exponential", "factor": 0.5},
    {"kind": "inverse_time", "decay": 0.02},
    {"kind": "cosine", "end_share": 0.1},
    {"kind": "flat_cosine", "flat_share": 0.5, "end_share": 0.1},
    {"kind": "restarts", "period_epochs": 2.0, "end_share": 0.1},
    {"kind": "one_cycle", "end_share": 0.1},
    {"kind": "plateau", "patience_epochs": 1, "factor": 0.5},
]
ROWS = [{"epoch": epoch, "validation_loss": loss} for epoch, loss in enumerate([5.0, 5.0, 4.0, 4.0, 4.0, 3.0, 3.0], 1)]


def recipe_of(schedule: dict[str, Any], epochs: int, warmup_epochs: float, rate: float) -> Recipe:
    """For a reference batch four times its own."""
    return Recipe.model_validate(
        {"network": "x", "records": "y", "epochs": epochs, "batch_size": 64,
         "optimizer": {"learning_rate": rate, "reference_batch_size": 256},
         "schedule": {**schedule, "warmup_epochs": warmup_epochs}}
    )  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: str(schedule["kind"]))
@given(step=st.integers(0, 79), warmup_epochs=st.floats(0.1, 4), given_rate=st.floats(1e-6, 10))
@example(step=25, warmup_epochs=2.55, given_rate=1.0)
def test_it_is_the_rate_of_the_very_next_step_or_what_a_warm_up_rises_to(
    schedule: dict[str, Any], step: int, warmup_epochs: float, given_rate: float
) -> None:
    """Unless the schedule is so far down that its highest would be absurd."""
    recipe, rows = recipe_of(schedule, 8, warmup_epochs, given_rate), ROWS[: step // 10]
    share = relative_rate(recipe.schedule, step, 10, 80, rows)
    asked = AskedRate(given_rate, step)
    if step + 1 < 10 * warmup_epochs:
        assert with_rate_asked(recipe, asked, 10, rows, 0.1) == recipe
    elif given_rate / share > 100 * max(given_rate, 0.1):
        with pytest.raises(BadRecipe, match=f"far down at step {step} that its highest rate would become"):
            with_rate_asked(recipe, asked, 10, rows, 0.1)
    else:
        going_on = with_rate_asked(recipe, asked, 10, rows, 0.1)
        assert learning_rate(going_on, step, 10, rows) == pytest.approx(given_rate / 4)
        assert going_on.schedule == recipe.schedule


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: str(schedule["kind"]))
@given(step=st.integers(0, 79), later=st.integers(0, 7), epochs=st.integers(9, 40), warmup_epochs=st.floats(0.1, 4))
def test_at_a_later_restart_with_other_epochs_the_rate_at_that_step_is_again_what_was_asked_for(
    schedule: dict[str, Any], step: int, later: int, epochs: int, warmup_epochs: float
) -> None:
    """And the form goes on from there: what follows is no higher, and as far below it as the schedule says."""
    recipe, asked = recipe_of(schedule, epochs, warmup_epochs, 0.02), AskedRate(0.02, step)
    # The history has grown since; only what was behind the step counts.
    rows = ROWS[: step // 10 + later]
    going_on = with_rate_asked(recipe, asked, 10, rows, 0.1)
    assert going_on == with_rate_asked(recipe, asked, 10, ROWS[: step // 10], 0.1)
    if step + 1 < 10 * warmup_epochs:
        assert going_on == recipe
        return
    behind = ROWS[: step // 10]
    rates = [learning_rate(going_on, at, 10, behind) for at in range(step, 10 * epochs)]
    assert rates[0] == pytest.approx(0.02 / 4)
    assert all(before >= after for before, after in pairwise(rates)) or schedule["kind"] == "restarts"
    shares = [relative_rate(recipe.schedule, at, 10, 10 * epochs, behind) for at in range(step, 10 * epochs)]
    assert [rate * shares[0] / rates[0] for rate in rates] == pytest.approx(shares)


def test_an_absurd_highest_is_refused_with_the_numbers_and_what_to_do() -> None:
    recipe = recipe_of({"kind": "cosine"}, 8, 0.1, 0.01)
    with pytest.raises(BadRecipe) as caught:
        with_rate_asked(recipe, AskedRate(0.01, 79), 10, [], 0.05)
    assert str(caught.value) == (
        "optimizer.learning_rate = 0.01: the schedule is so far down at step 79 that its highest rate would become "
        "25.3; expected at most 100 times 0.05; ask for 0.00196 or less, or give more epochs or another schedule"
    )
    assert with_rate_asked(recipe, AskedRate(0.00197, 79), 10, [], 0.05).optimizer.learning_rate < 5
    drops = recipe_of({"kind": "steps", "drops": (2, 4)}, 8, 0.1, 0.1)
    assert with_rate_asked(drops, AskedRate(0.1, 79), 10, [], 0.1).optimizer.learning_rate == pytest.approx(10)


def test_averages_may_be_switched_on_before_the_first_step_alone() -> None:
    begun, now = recipe_of({"kind": "constant"}, 8, 0.1, 0.1), recipe_of({"kind": "constant"}, 8, 0.1, 0.1)
    now = now.model_copy(update={"average_decay": 0.9, "seed": 7, "batch_size": 32})
    require_unchanged(begun, now, 0, Path("run"))
    with pytest.raises(BadRecipe, match=r"run: recipe key 'seed' cannot change .*; put it back, or start a new run"):
        require_unchanged(begun, now, 1, Path("run"))
    with pytest.raises(BadRecipe, match="'average_decay' cannot change within a run"):
        require_unchanged(begun, begun.model_copy(update={"average_decay": 0.9}), 1, Path("run"))
    require_unchanged(now, now.model_copy(update={"average_decay": 0.8}), 1, Path("run"))


@pytest.mark.parametrize(
    "keys",
    [
        {"schedule.kind": "inverse_time", "schedule.warmup_epochs": 0.5},
        {"network": "mlp:8", "network_options.dropout": 0.2},
        {"network": "networks/resnet18_cifar.toml", "input.transform": "mean_image"},
    ],
)
def test_a_recipe_is_that_of_its_run_whatever_the_run_settled(
    recipe: Path, tmp_path: Path, engine: Any, keys: dict[str, Any]
) -> None:
    run = open_run(recipe, {**keys, "epochs": 1}, tmp_path)
    run.resources.close()
    classes = run.data.classes
    assert run.recipe != load_recipe(recipe, {**keys, "epochs": 1})
    assert keys_unlike(load_recipe(recipe, {**keys, "epochs": 1}), tmp_path, classes) == []
    other = load_recipe(recipe, {**keys, "epochs": 2, "network_options.width": 0.5})
    assert keys_unlike(other, tmp_path, classes) == ["network", "epochs"]


def test_the_single_output_that_a_loss_asks_for_is_the_runs_own_doing(tmp_path: Path) -> None:
    asked = Recipe(network="lenet", records="y", loss=LossRecipe(kind="binary_cross_entropy"))
    classes = ClassTable("folder", ("a", "b"), ("a", "b"))
    (tmp_path / "network.json").write_text(catalog.file_copy(catalog.with_threshold("lenet", 0.5), 2))
    kept = as_kept(with_network_file(asked, str(tmp_path / "network.json")))
    (tmp_path / "recipe.toml").write_text(recipe_text(kept))
    assert keys_unlike(asked, tmp_path, classes) == []
