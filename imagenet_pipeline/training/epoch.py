"""One epoch: its steps, its validation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from imagenet_pipeline.engines import Totals
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.interruption import Interruption
from imagenet_pipeline.training.metrics import score, watched
from imagenet_pipeline.training.passed import Pass, begun, diverged, require_finite
from imagenet_pipeline.training.ranks import agreed, reduced, settle
from imagenet_pipeline.training.records import augmentation_of, loader_of
from imagenet_pipeline.training.run import Run
from imagenet_pipeline.training.saving import save_part
from imagenet_pipeline.training.schedule import learning_rate
from imagenet_pipeline.training.sizes import training_size

SECONDS_BETWEEN_READINGS = 1.0
"""How often losses are read off the device, for the bar and to notice a loss that is not finite."""


def train_epoch(run: Run, records: RecordSet, epoch: int, interruption: Interruption) -> Pass:
    """Steps of one epoch, from the run's own place in it; ends early, after a whole step, on a signal.

    Saves on the way, as the recipe's `checkpoint` section says. All ranks do all of it at the same steps.
    """
    recipe, engine, first_step = run.recipe, run.engine, epoch * run.steps_per_epoch
    passed = begun(run, epoch)
    loader = loader_of(recipe, records, len(run.data.classes), training_size(recipe.input, epoch), run.share)
    started = read_at = time.monotonic()
    with (
        Bar(f"epoch {epoch + 1}/{recipe.epochs}", "steps", shown=run.leads) as bar,
        loader.training(recipe.seed, epoch, augmentation_of(recipe), start_step=passed.step - first_step) as batches,
    ):
        for batch in batches:
            rate = learning_rate(recipe, passed.step, run.steps_per_epoch, run.rows)
            engine.train_batch(batch.images, batch.truth, rate, step_seed(recipe.seed, passed.step))
            passed.count(batch, engine.ranks)
            now = time.monotonic()
            stop, save, read = agreed(
                engine,
                interruption.asked,
                run.leads and run.save_is_due(passed.step, now),
                run.leads and now - read_at > SECONDS_BETWEEN_READINGS,
            )
            if stop:
                break
            if save or read:
                _read(run, passed, rate)
                read_at = now
                bar.show(passed.step - first_step, run.steps_per_epoch, passed.state(now - started, rate))
            if save and len(batches):
                save_part(run, epoch, passed)
        _read(run, passed, learning_rate(recipe, passed.step - 1, run.steps_per_epoch, run.rows))
    passed.seconds = time.monotonic() - started
    return passed


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's own randomness (dropout)."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def _read(run: Run, passed: Pass, rate: float) -> None:
    read = reduced(run.engine, run.engine.totals())
    require_finite(run, read, passed.step)
    passed.add(read)
    if read.images:
        run.scalars.add_reading(passed.step, read.loss, rate)


def validate(run: Run, records: RecordSet, step: int) -> Totals:
    """Score every record once, with the very values a checkpoint would hold."""
    size = run.recipe.input.scored_size
    loader = loader_of(run.recipe, records, len(run.data.classes), size, run.share)
    settle(run.engine)
    with _averages(run), loader.evaluation(run.recipe.input.crop_fraction) as batches:
        totals = score(run.engine, watched(batches, "validation", shown=run.leads))
    if not np.isfinite(totals.loss):
        raise diverged(run, f"the validation loss is not finite ({totals.loss})", step - 1)
    return totals


@contextmanager
def _averages(run: Run) -> Iterator[None]:
    """While the block runs, the engine holds its moving averages, where the recipe has it keep some."""
    if not run.recipe.average_decay:
        yield
        return
    trained = run.engine.values()
    run.engine.set_values(run.engine.averages())
    yield
    run.engine.set_values(trained)
