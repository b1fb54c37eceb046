"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from imagenet_pipeline.config import Recipe, ScheduleRecipe

LOWEST_SHARE = 1e-12
"""No schedule falls below this: the update rule divides by the last rate."""


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of step `step`, counted from 0 over the whole run; always above 0."""
    return recipe.optimizer.learning_rate * relative_rate(recipe.schedule, step, steps_per_epoch, recipe.epochs)


def relative_rate(schedule: ScheduleRecipe, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The rate as a share of `optimizer.learning_rate`, in (0, 1] (above 1 only for a factor above 1).

    constant    1
    steps       factor ** (number of drops behind us), as in the AlexNet and VGG papers
    polynomial  (1 - progress) ** power
    cosine      (1 + cos(pi * progress)) / 2 (Loshchilov & Hutter 2017, without restarts)

    Progress runs from 0 at the end of the warm-up to 1 at the end of the run; the warm-up rises in a straight
    line to 1 and its first step is already above 0. Never below LOWEST_SHARE.
    """
    return max(_share(schedule, step, steps_per_epoch, epochs), LOWEST_SHARE)


def _share(schedule: ScheduleRecipe, step: int, steps_per_epoch: int, epochs: int) -> float:
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    epoch = step // steps_per_epoch
    progress = min((step - warmup_steps) / max(epochs * steps_per_epoch - warmup_steps, 1), 1.0)
    match schedule.kind:
        case "steps":
            return float(math.prod(schedule.factor for drop in schedule.drops if epoch >= drop))
        case "polynomial":
            return math.pow(1 - progress, schedule.power)
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case _:
            return 1.0
