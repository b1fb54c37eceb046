"""What has been done of an epoch: its steps, counts and losses, and whether these are finite and tell of learning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import NO_TOTALS, Totals
from imagenet_pipeline.errors import BadRecipe, Damaged
from imagenet_pipeline.loading.loader import Batch
from imagenet_pipeline.training.checkpoint import find_checkpoint, has_checkpoint
from imagenet_pipeline.training.run import Run
from imagenet_pipeline.training.schedule import warmup_steps

LEARNED_BY_STEPS = 10
"""After the warm-up; by then even a poor start is left behind."""
LEARNED_AT_LAST_BY_STEPS = 200
"""In the longest of warm-ups."""
FAR_ABOVE = 10
"""A validation loss of so many times that of guessing is of no network that training made."""


@dataclass
class Pass:
    """The steps of one epoch so far, those done before a restart too; `rate` is the last one's learning rate.

    `totals.step_losses` is one number, added up step by step: the same whether or not there was a restart.
    """

    step: int
    totals: Totals
    rate: float = 0.0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    images: int = 0

    def count(self, batch: Batch, ranks: int) -> None:
        """Count a step on a batch of which every rank had as large a share."""
        self.step += 1
        self.images += ranks * len(batch.labels)
        self.wait_seconds += batch.wait_seconds

    def add(self, read: Totals) -> None:
        """Count what was read off the devices."""
        totals = self.totals + read
        # Not np.sum, whose order of adding depends on how many there are.
        in_order = np.cumsum(totals.step_losses)[-1:]
        self.totals = Totals(totals.images, totals.rank1_hits, totals.rank5_hits, in_order)

    def state(self) -> list[str]:
        """Loss, rank-1, speed, waiting for data and learning rate, for the progress bar."""
        return [
            f"loss {self.totals.loss:.3f}",
            f"rank-1 {self.totals.rank1:.1f} %",
            f"{self.images / self.seconds:.0f} img/s",
            f"wait {self.wait_seconds / self.seconds:.1%}",
            f"rate {self.rate:.3g}",
        ]

    def partial(self) -> dict[str, int | float]:
        """The totals as a checkpoint inside the epoch keeps them, and what its line of the history says besides."""
        totals = self.totals
        return {
            "images": totals.images,
            "rank1_hits": totals.rank1_hits,
            "rank5_hits": totals.rank5_hits,
            "loss_sum": float(totals.step_losses.sum()),
            "learning_rate": self.rate,
            "seconds": self.seconds,
            "wait_seconds": self.wait_seconds,
            "timed_images": self.images,
        }


def begun(run: Run, epoch: int) -> Pass:
    """What the run's start had done of an epoch already."""
    step = max(run.step, epoch * run.steps_per_epoch)
    if run.start is None or not run.start.state.partial or run.epoch != epoch:
        return Pass(step, NO_TOTALS)
    partial = run.start.state.partial
    try:
        images, rank1_hits, rank5_hits = (int(partial[key]) for key in ("images", "rank1_hits", "rank5_hits"))
        totals = Totals(images, rank1_hits, rank5_hits, np.array([partial["loss_sum"]], np.float64))
    except KeyError as error:
        what, advice = f"the part of an epoch has no {error}", "take another checkpoint"
        raise Damaged(what, where=run.start.folder, advice=advice) from error
    # Earlier versions kept no clock: theirs begins again.
    rate, seconds, waited = (float(partial.get(key, 0)) for key in ("learning_rate", "seconds", "wait_seconds"))
    return Pass(step, totals, rate, seconds, waited, int(partial.get("timed_images", 0)))


def require_finite(run: Run, read: Totals, step: int) -> None:
    """Raise BadRecipe, naming the step and where to go on, for a loss not finite among those read after `step`."""
    wrong = np.flatnonzero(~np.isfinite(read.step_losses))
    if len(wrong):
        first = step - len(read.step_losses) + int(wrong[0])
        raise diverged(run, f"the loss is no longer finite ({read.step_losses[wrong[0]]})", first)


def diverged(run: Run, what: str, step: int) -> BadRecipe:
    """The error of a run whose numbers have left the finite."""
    lower = "lower optimizer.learning_rate"
    advice = f"nothing was saved yet: {lower} and begin again"
    if has_checkpoint(run.folder):
        good = find_checkpoint(run.folder, "latest")
        advice = f"{good} is the last good checkpoint: {lower}, --resume latest optimizer.learning_rate=..."
    return BadRecipe(f"{what} at step {step}, counted from 0", advice=advice)


def guessing_loss(recipe: Recipe, classes: int) -> float:
    """The loss of equal scores for all classes, in training and validation; no smoothing or mixing changes it."""
    return classes - 1.0 if recipe.loss.kind == "hinge" else math.log(classes)


def not_learning(recipe: Recipe, classes: int, steps_per_epoch: int, row: Mapping[str, Any]) -> str:
    """What is wrong with the losses of a history row, in one line, once there were steps enough; else nothing."""
    enough = warmup_steps(recipe.schedule, steps_per_epoch, recipe.epochs) + LEARNED_BY_STEPS
    if row.get("step", 0) - steps_per_epoch / 2 < min(enough, LEARNED_AT_LAST_BY_STEPS):
        return ""
    guessing = guessing_loss(recipe, classes)
    lower = "lower optimizer.learning_rate (imagenet-pipeline find-rate RECIPE looks for one)"
    said = f"that of guessing among {classes:,} classes, {guessing:.3f}: {lower}"
    if row.get("train_loss", 0.0) > guessing:
        small = ", or take config/photos.toml for a small set from scratch"
        return f"the training loss of epoch {row['epoch']}, {row['train_loss']:.3f}, is above {said}{small}"
    if row.get("validation_loss", 0.0) > FAR_ABOVE * guessing > 0:
        why = "the running statistics of normalisation may lag behind weights that move too fast"
        return f"the validation loss of epoch {row['epoch']}, {row['validation_loss']:,.0f}, is far above {said}; {why}"
    return ""
