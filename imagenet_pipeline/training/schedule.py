"""The learning rate as a pure function of the step and of the history: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Sequence

from imagenet_pipeline.config import Recipe, ScheduleRecipe
from imagenet_pipeline.training.journal import Event

LOWEST_SHARE = 1e-12
"""No schedule falls below this: the update rule divides by the last rate."""


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, rows: Sequence[Event] = ()) -> float:
    """The rate of step `step`, counted from 0 over the whole run; always above 0.

    `rows` are those of the history before the step's epoch. With a reference batch size the recipe's rate grows in
    proportion to the batch (Goyal et al. 2017, section 2.1).
    """
    return highest_rate(recipe) * relative_rate(recipe.schedule, step, steps_per_epoch, recipe.epochs, rows)


def highest_rate(recipe: Recipe) -> float:
    """`optimizer.learning_rate` for the recipe's own batch size."""
    optimizer = recipe.optimizer
    return optimizer.learning_rate * recipe.images_per_step / (optimizer.reference_batch_size or recipe.images_per_step)


def relative_rate(
    schedule: ScheduleRecipe, step: int, steps_per_epoch: int, epochs: int, rows: Sequence[Event] = ()
) -> float:
    """The rate as a share of the highest rate, in (0, 1] (above 1 only for a factor above 1).

    constant    1
    steps       factor ** (number of drops behind us), as in the AlexNet and VGG papers
    polynomial  (1 - progress) ** power
    cosine      end_share + (1 - end_share) * (1 + cos(pi * progress)) / 2 (Loshchilov & Hutter 2017, no restarts)
    one_cycle   along a cosine from start_share up to 1, then down to end_share (Smith & Topin 2018): 1 at the last
                step of the warm-up, end_share at the last of the run
    plateau     factor ** (number of times that patience_epochs of `rows` in a row brought no lower validation loss)

    Progress runs from 0 at the end of the warm-up to 1 at the end of the run; the warm-up rises in a straight
    line to 1 (of one_cycle: as above) and its first step is already above 0. It takes at most half of the run, so that
    the rate reaches its highest in every run, and falls from there. Never below LOWEST_SHARE.
    """
    return max(_share(schedule, step, steps_per_epoch, epochs, rows), LOWEST_SHARE)


def warmup_steps(schedule: ScheduleRecipe, steps_per_epoch: int, epochs: int) -> float:
    """Number of steps of the warm-up, maybe fractional; of a warm-up too long half of the run's, whole steps."""
    return min(schedule.warmup_epochs * steps_per_epoch, max(1, epochs * steps_per_epoch // 2))


def _share(schedule: ScheduleRecipe, step: int, steps_per_epoch: int, epochs: int, rows: Sequence[Event]) -> float:
    steps, rising = epochs * steps_per_epoch, warmup_steps(schedule, steps_per_epoch, epochs)
    if schedule.kind == "one_cycle":
        return _one_cycle(schedule, step, max(rising - 1, 0), steps - 1)
    if step < rising:
        return min(1.0, (step + 1) / rising)
    epoch = step // steps_per_epoch
    progress = min((step - rising) / max(steps - rising, 1), 1.0)
    match schedule.kind:
        case "steps":
            return float(math.prod(schedule.factor for drop in schedule.drops if epoch >= drop))
        case "polynomial":
            return math.pow(1 - progress, schedule.power)
        case "cosine":
            return _along_cosine(1.0, schedule.end_share, progress)
        case "plateau":
            return math.pow(schedule.factor, _plateaus(rows, schedule.patience_epochs))
        case _:
            return 1.0


def _one_cycle(schedule: ScheduleRecipe, step: int, top: float, last: int) -> float:
    if step < top:
        return _along_cosine(schedule.start_share, 1.0, step / top)
    progress = min((step - top) / (last - top), 1.0) if last > top else 0.0
    return _along_cosine(1.0, schedule.end_share, progress)


def _along_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _plateaus(rows: Sequence[Event], patience_epochs: int) -> int:
    # What PyTorch's ReduceLROnPlateau does with threshold 0 and a patience shorter by 1: it waits for 1 epoch more.
    lowest, waited, plateaus = math.inf, 0, 0
    for row in rows:
        waited += 1
        if row["validation_loss"] < lowest:
            lowest, waited = row["validation_loss"], 0
        elif waited == patience_epochs:
            plateaus, waited = plateaus + 1, 0
    return plateaus
