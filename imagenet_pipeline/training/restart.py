"""What a restart may change of a recipe, and what the run was told before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagenet_pipeline.config import Recipe, options
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.training.journal import Event
from imagenet_pipeline.training.schedule import relative_rate, warmup_steps

log = logging.getLogger("imagenet_pipeline")

_OF_WEIGHTS = ("network", "input.size")
"""Keys a restart cannot change: the weights would not mean the same."""
_OF_PLACE = ("seed", "batch_size")
"""Nor these, once there was a step: the place in the order of images would not."""
_KEPT_ON_OR_OFF = ("average_decay",)
"""These may change but not be switched: no average could make up for the steps it did not see."""
_INITIAL = ("initial.kind", "initial.weights", "initial.new_head", "initial.zero_last_scale")
"""Keys that a restart would not even read."""


def carried_overrides(events: list[Event]) -> dict[str, Any]:
    """Those that the last start of a run had."""
    starts = [event for event in events if event["event"] in ("start", "resume")]
    return dict(starts[-1]["overrides"]) if starts else {}


def with_rate_now(recipe: Recipe, step: int, steps_per_epoch: int, rows: Sequence[Event] = ()) -> Recipe:
    """The recipe whose schedule has the given rate at `step`, or inside a warm-up rises to it.

    `rows` are those of the history before the step's epoch. A rate is for the reference batch, where there is one.
    """
    given = recipe.optimizer.learning_rate
    if step + 1 < warmup_steps(recipe.schedule, steps_per_epoch, recipe.epochs):
        log.info("learning rate %g at the end of the warm-up, as asked", given)
        return recipe
    peak = given / relative_rate(recipe.schedule, step, steps_per_epoch, recipe.epochs, rows)
    log.info("learning rate %g at step %d, as asked: the schedule's highest becomes %g", given, step, peak)
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"learning_rate": peak})})


def changes_of(begun: Recipe, now: Recipe) -> dict[str, Any]:
    """The keys whose values differ from those of the last start, told to the reader."""
    before, after = dict(options(begun)), dict(options(now))
    changes = {key: value for key, value in after.items() if value != before[key]}
    for key, value in changes.items():
        log.info("changed since the last start: %s = %r, was %r", key, value, before[key])
    return changes


def require_unchanged(begun: Recipe, now: Recipe, step: int, folder: Path) -> None:
    """Raise BadRecipe for a key whose change at this step would spoil the run, or do nothing."""
    before, after = dict(options(begun)), dict(options(now))
    switched = [key for key in _KEPT_ON_OR_OFF if step and bool(before[key]) != bool(after[key])]
    for key in (*_OF_WEIGHTS, *(_OF_PLACE if step else ()), *switched, *_INITIAL):
        if before[key] != after[key]:
            why = "acts at the start of a run alone" if key in _INITIAL else "cannot change within a run"
            raise BadRecipe(
                f"recipe key {key!r} {why}",
                where=folder,
                expected=repr(before[key]),
                found=repr(after[key]),
                advice="start a new run with --run",
            )
