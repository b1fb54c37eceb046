"""A learning rate given to a restart, for every kind of schedule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.training.restart import with_rate_now
from imagenet_pipeline.training.schedule import learning_rate

SCHEDULES: list[dict[str, Any]] = [
    {"kind": "constant"},
    {"kind": "steps", "drops": (2, 5)},
    {"kind": "polynomial", "power": 2.0},
    {"kind": "cosine", "end_share": 0.1},
    {"kind": "one_cycle", "end_share": 0.1},
    {"kind": "plateau", "patience_epochs": 1, "factor": 0.5},
]
ROWS = [{"epoch": epoch, "validation_loss": loss} for epoch, loss in enumerate([5.0, 5.0, 4.0, 4.0, 4.0, 3.0, 3.0], 1)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: str(schedule["kind"]))
@given(step=st.integers(0, 79), warmup_epochs=st.floats(0.1, 4), given_rate=st.floats(1e-6, 10))
@example(step=25, warmup_epochs=2.55, given_rate=1.0)
def test_it_is_the_rate_of_the_very_next_step_or_what_a_warm_up_rises_to(
    schedule: dict[str, Any], step: int, warmup_epochs: float, given_rate: float
) -> None:
    recipe = Recipe.model_validate(
        {"network": "x", "records": "y", "epochs": 8, "batch_size": 64,
         "optimizer": {"learning_rate": given_rate, "reference_batch_size": 256},
         "schedule": {**schedule, "warmup_epochs": warmup_epochs}}
    )  # fmt: skip
    rows = ROWS[: step // 10]
    going_on = with_rate_now(recipe, step, 10, rows)
    if step + 1 < 10 * warmup_epochs:
        assert going_on == recipe
    else:
        assert learning_rate(going_on, step, 10, rows) == pytest.approx(given_rate / 4)
        assert going_on.schedule == recipe.schedule
