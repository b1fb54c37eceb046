"""The learning rate as a pure function of the step and of the history: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Sequence

from imagenet_pipeline.config import Recipe, ScheduleRecipe
from imagenet_pipeline.errors import BadRecipe, counted
from imagenet_pipeline.training.journal import Event, epochs_without_better

LOWEST_SHARE = 1e-12
"""No schedule falls below this: the update rule divides by the last rate."""


def steps_of(recipe: Recipe, steps_per_epoch: int) -> int:
    """Steps of the whole run, by the recipe's `steps` or else its `epochs`."""
    return recipe.steps or recipe.epochs * steps_per_epoch


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, rows: Sequence[Event] = ()) -> float:
    """The rate of step `step`, counted from 0 over the whole run; always above 0.

    `rows` are those of the history before the step's epoch. With a reference batch size the recipe's rate grows in
    proportion to the batch (Goyal et al. 2017, section 2.1).
    """
    schedule = with_decay(recipe, recipe.optimizer.learning_rate, steps_per_epoch).schedule
    return highest_rate(recipe) * relative_rate(
        schedule, step, steps_per_epoch, steps_of(recipe, steps_per_epoch), rows
    )


def highest_rate(recipe: Recipe) -> float:
    """`optimizer.learning_rate` for the recipe's own batch size."""
    optimizer = recipe.optimizer
    return optimizer.learning_rate * recipe.images_per_step / (optimizer.reference_batch_size or recipe.images_per_step)


def with_decay(recipe: Recipe, learning_rate: float, steps_per_epoch: int) -> Recipe:
    """Settle "auto" of `schedule.decay`, a run's rate over its epochs; a recipe that does not read it stays."""
    if recipe.schedule.kind != "inverse_time" or recipe.schedule.decay != "auto":
        return recipe
    decay = learning_rate * steps_per_epoch / steps_of(recipe, steps_per_epoch)
    return recipe.model_copy(update={"schedule": recipe.schedule.model_copy(update={"decay": decay})})


def settled_schedule(recipe: Recipe, learning_rate: float, steps_per_epoch: int) -> Recipe:
    """The recipe with its decay settled. Raises BadRecipe where its `steps` are too few for its schedule."""
    if recipe.steps:
        try:
            recipe.schedule.require_room(recipe.steps / steps_per_epoch)
        except ValueError as error:
            key, _, what = str(error).partition(": ")
            steps = f"steps = {recipe.steps}, {counted(steps_per_epoch, 'step')} an epoch"
            raise BadRecipe(f"recipe key {key!r}: {what}", where=steps) from error
    return with_decay(recipe, learning_rate, steps_per_epoch)


def relative_rate(
    schedule: ScheduleRecipe, step: int, steps_per_epoch: int, steps: int, rows: Sequence[Event] = ()
) -> float:
    """The rate as a share of the highest rate, in (0, 1] (above 1 only for a factor above 1); `steps` are the run's.

    constant      1
    steps         factor ** (number of drops behind us), as in the AlexNet and VGG papers
    polynomial    (1 - progress) ** power
    exponential   factor ** epochs, of these the parts too
    inverse_time  1 / (1 + decay * step), Keras's `decay`; without a number rate / epochs, as books have it
    cosine        end_share + (1 - end_share) * (1 + cos(pi * progress)) / 2 (Loshchilov & Hutter 2017, no restarts)
    flat_cosine   1 for flat_share of the progress, then the cosine over the rest
    restarts      the cosine over each of several periods, each period_factor times as long as the one before
                  (Loshchilov & Hutter 2017, equation 5)
    one_cycle     along a cosine from start_share up to 1, then down to end_share (Smith & Topin 2018): 1 at the last
                  step of the warm-up, end_share at the last of the run
    plateau       factor ** (number of times that patience_epochs of `rows` in a row brought no better figure)

    Progress runs from 0 at the end of the warm-up to 1 at the end of the run, and epochs, steps and periods are counted
    from the end of the warm-up too (but drops from the run's beginning); the warm-up rises in a straight line to 1 (of
    one_cycle: as above) and its first step is already above 0. It takes at most half of the run, so that the rate
    reaches its highest in every run, and falls from there. Never below LOWEST_SHARE. Raises ValueError for a decay
    that is still "auto".
    """
    return max(_share(schedule, step, steps_per_epoch, steps, rows), LOWEST_SHARE)


def warmup_steps(schedule: ScheduleRecipe, steps_per_epoch: int, steps: int) -> float:
    """Number of steps of the warm-up, maybe fractional; of a warm-up too long half of the run's `steps`, whole ones."""
    return min(schedule.warmup_epochs * steps_per_epoch, max(1, steps // 2))


def _share(schedule: ScheduleRecipe, step: int, steps_per_epoch: int, steps: int, rows: Sequence[Event]) -> float:
    rising = warmup_steps(schedule, steps_per_epoch, steps)
    if schedule.kind == "one_cycle":
        return _one_cycle(schedule, step, max(rising - 1, 0), steps - 1)
    if step < rising:
        return min(1.0, (step + 1) / rising)
    past = step - rising
    progress = min(past / max(steps - rising, 1), 1.0)
    match schedule.kind:
        case "steps":
            return float(math.prod(schedule.factor for drop in schedule.drops if step // steps_per_epoch >= drop))
        case "polynomial":
            return math.pow(1 - progress, schedule.power)
        case "exponential":
            return math.pow(schedule.factor, past / steps_per_epoch)
        case "inverse_time":
            return 1 / (1 + float(schedule.decay) * past)
        case "cosine":
            return _along_cosine(1.0, schedule.end_share, progress)
        case "flat_cosine":
            falling = max(progress - schedule.flat_share, 0.0) / (1 - schedule.flat_share)
            return _along_cosine(1.0, schedule.end_share, min(falling, 1.0))
        case "restarts":
            return _along_cosine(1.0, schedule.end_share, _progress_of_period(schedule, past, steps_per_epoch))
        case "plateau":
            waits = epochs_without_better(rows, schedule.figure)
            # As PyTorch's ReduceLROnPlateau with threshold 0 and a patience shorter by 1: it waits for 1 epoch more.
            return math.pow(schedule.factor, sum(wait // schedule.patience_epochs for wait in waits))
        case _:
            return 1.0


def _progress_of_period(schedule: ScheduleRecipe, past: float, steps_per_epoch: int) -> float:
    """The share of its period that is behind a step so many after the warm-up. A period has a step at least."""
    period = max(schedule.period_epochs * steps_per_epoch, 1.0)
    if schedule.period_factor == 1:
        return math.fmod(past, period) / period
    while past >= period:
        past, period = past - period, period * schedule.period_factor
    return past / period


def _one_cycle(schedule: ScheduleRecipe, step: int, top: float, last: int) -> float:
    if step < top:
        return _along_cosine(schedule.start_share, 1.0, step / top)
    progress = min((step - top) / (last - top), 1.0) if last > top else 0.0
    return _along_cosine(1.0, schedule.end_share, progress)


def _along_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
