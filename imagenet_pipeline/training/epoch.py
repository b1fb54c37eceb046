"""One epoch: its steps, its validation."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from imagenet_pipeline.engines import NO_TOTALS, Totals
from imagenet_pipeline.errors import BadRecipe, Damaged
from imagenet_pipeline.loading.augment import Augmentation
from imagenet_pipeline.loading.batches import Loader
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.interruption import Interruption
from imagenet_pipeline.training.metrics import score, watched
from imagenet_pipeline.training.run import Run
from imagenet_pipeline.training.schedule import learning_rate

SECONDS_BETWEEN_READINGS = 1.0
"""How often losses are read off the device, for the bar and to notice a loss that is not finite."""


@dataclass
class Pass:
    """The steps of one epoch, or of the part a signal left; `totals` counts parts done before a restart too."""

    step: int
    totals: Totals
    seconds: float = 0.0
    wait_seconds: float = 0.0
    images: int = 0

    def add(self, read: Totals) -> None:
        """Count what was read off the device. Raises BadRecipe, naming the step, for a loss that is not finite."""
        _require_finite(read, self.step)
        self.totals = self.totals + read

    def state(self, seconds: float, rate: float) -> str:
        """Speed, waiting for data, loss, rank-1 and learning rate, `seconds` after the start."""
        return (
            f"  {self.images / seconds:.0f} img/s  wait {self.wait_seconds / seconds:.1%}  "
            f"loss {self.totals.loss:.3f}  rank-1 {self.totals.rank1:.1f} %  rate {rate:.3g}"
        )


def train_epoch(run: Run, records: RecordSet, epoch: int, interruption: Interruption) -> Pass:
    """Steps of one epoch, from the run's own place in it; ends early, after a whole step, on a signal."""
    recipe, engine, first_step = run.recipe, run.engine, epoch * run.steps_per_epoch
    passed = Pass(max(run.step, first_step), _partial_totals(run, epoch))
    loader = _loader(run, records)
    started = read_at = time.monotonic()
    with (
        Bar(f"epoch {epoch + 1}/{recipe.epochs}", "steps") as bar,
        loader.training(recipe.seed, epoch, _augmentation(run), start_step=passed.step - first_step) as batches,
    ):
        for batch in batches:
            rate = learning_rate(recipe, passed.step, run.steps_per_epoch)
            engine.train_batch(batch.images, batch.labels, rate, step_seed(recipe.seed, passed.step))
            passed.step += 1
            passed.images += len(batch.labels)
            passed.wait_seconds += batch.wait_seconds
            if interruption.asked:
                break
            if time.monotonic() - read_at > SECONDS_BETWEEN_READINGS:
                passed.add(engine.totals())
                read_at = time.monotonic()
                state = passed.state(read_at - started, rate)
                bar.show(passed.step - first_step, run.steps_per_epoch, state)
        passed.add(engine.totals())
    passed.seconds = time.monotonic() - started
    return passed


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's own randomness (dropout)."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def _require_finite(totals: Totals, step: int) -> None:
    wrong = np.flatnonzero(~np.isfinite(totals.step_losses))
    if len(wrong):
        first = step - len(totals.step_losses) + int(wrong[0])
        raise diverged(f"the loss is no longer finite ({totals.step_losses[wrong[0]]})", first)


def diverged(what: str, step: int) -> BadRecipe:
    """The error of a run whose numbers have left the finite."""
    return BadRecipe(
        f"{what} at step {step}, counted from 0",
        advice="lower optimizer.learning_rate and go on with --resume latest optimizer.learning_rate=...",
    )


def _partial_totals(run: Run, epoch: int) -> Totals:
    if not (run.start and run.start.state.partial and run.epoch == epoch):
        return NO_TOTALS
    partial = run.start.state.partial
    try:
        images, rank1_hits, rank5_hits = (int(partial[key]) for key in ("images", "rank1_hits", "rank5_hits"))
        return Totals(images, rank1_hits, rank5_hits, np.array([partial["loss_sum"]]))
    except KeyError as error:
        what, advice = f"the part of an epoch has no {error}", "take another checkpoint"
        raise Damaged(what, where=run.start.folder, advice=advice) from error


def _loader(run: Run, records: RecordSet) -> Loader:
    recipe = run.recipe
    return Loader(
        records,
        recipe.input.size,
        recipe.batch_size,
        threads=recipe.loader.threads,
        prefetch=recipe.loader.prefetch,
        classes=len(run.data.classes.ids),
    )


def _augmentation(run: Run) -> Augmentation:
    return Augmentation(**run.recipe.augmentation.model_dump())


def validate(run: Run, records: RecordSet, step: int) -> Totals:
    """Score every record once, with the very values a checkpoint would hold."""
    if len(run.engine.device_names) > 1:
        # Each device has running statistics of its own; what is saved is their mean.
        run.engine.set_values(run.engine.values())
    with _loader(run, records).evaluation(run.recipe.input.crop_fraction) as batches:
        totals = score(run.engine, watched(batches, "validation"))
    if not np.isfinite(totals.loss):
        raise diverged(f"the validation loss is not finite ({totals.loss})", step - 1)
    return totals
