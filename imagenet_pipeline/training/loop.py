"""The training loop."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagenet_pipeline.engines import NO_TOTALS, Totals
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading.augment import Augmentation
from imagenet_pipeline.loading.batches import Loader
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import prune, save_checkpoint
from imagenet_pipeline.training.curves import draw_curves
from imagenet_pipeline.training.interruption import Interruption
from imagenet_pipeline.training.journal import write_history
from imagenet_pipeline.training.metrics import score
from imagenet_pipeline.training.progress import EpochBar
from imagenet_pipeline.training.run import Run
from imagenet_pipeline.training.schedule import learning_rate

log = logging.getLogger("imagenet_pipeline")

SECONDS_BETWEEN_READINGS = 1.0
"""How often losses are read off the device, for the bar and to notice a loss that is not finite."""


@dataclass
class Outcome:
    """How a run ended. `metrics` is the last epoch's row of the history."""

    epoch: int
    step: int
    finished: bool
    metrics: dict[str, Any] = field(default_factory=dict)


def train(run: Run) -> Outcome:
    """Train from where the run stands to its last epoch, or until a signal asks to stop.

    Every epoch is validated, saved and journalled before the next begins. Raises BadRecipe when the loss is no
    longer finite, naming the step; the checkpoints before it stand.
    """
    recipe, outcome = run.recipe, Outcome(run.epoch, run.step, finished=True)
    if run.epoch >= recipe.epochs:
        return outcome
    records = RecordSet.open(run.data.folder, "train")
    validation = RecordSet.open(run.data.folder, "val") if run.data.counts.get("val") else None
    with Interruption() as interruption:
        for epoch in range(run.epoch, recipe.epochs):
            passed = _train_epoch(run, records, epoch, interruption)
            if passed.step < (epoch + 1) * run.steps_per_epoch:
                return _stop_inside(run, epoch, passed)
            validated = _validate(run, validation) if validation else None
            outcome = _finish_epoch(run, epoch + 1, passed, validated)
            if interruption.asked:
                return _stop(run, outcome)
    run.journal.write("end", epoch=outcome.epoch, step=outcome.step)
    draw_curves([run.folder], run.folder / "curves.png")
    return outcome


@dataclass
class _Pass:
    """One epoch's (or part's) worth of steps."""

    step: int
    totals: Totals
    seconds: float = 0.0
    wait_seconds: float = 0.0
    images: int = 0

    def add(self, read: Totals) -> None:
        _require_finite(read, self.step)
        self.totals = self.totals + read


def _train_epoch(run: Run, records: RecordSet, epoch: int, interruption: Interruption) -> _Pass:
    """Steps of one epoch, from the run's own place in it; ends early, after a whole step, on a signal."""
    recipe, engine, first_step = run.recipe, run.engine, epoch * run.steps_per_epoch
    passed = _Pass(max(run.step, first_step), _partial_totals(run, epoch))
    loader = _loader(run, records, recipe.batch_size)
    started = read_at = time.monotonic()
    with (
        EpochBar(epoch + 1, recipe.epochs, run.steps_per_epoch) as bar,
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
                bar.show(passed.step - first_step, passed, read_at - started, rate)
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
        raise BadRecipe(
            f"the loss is no longer finite ({totals.step_losses[wrong[0]]}) at step {first}, counted from 0",
            advice="lower optimizer.learning_rate and go on with --resume latest optimizer.learning_rate=...",
        )


def _partial_totals(run: Run, epoch: int) -> Totals:
    if not (run.start and run.start.state.partial and run.epoch == epoch):
        return NO_TOTALS
    partial = run.start.state.partial
    return Totals(
        int(partial["images"]),
        int(partial["rank1_hits"]),
        int(partial["rank5_hits"]),
        np.array([partial["loss_sum"]]),
    )


def _loader(run: Run, records: RecordSet, batch_size: int) -> Loader:
    recipe = run.recipe
    return Loader(
        records,
        recipe.input.size,
        batch_size,
        threads=recipe.loader.threads,
        prefetch=recipe.loader.prefetch,
        classes=len(run.data.classes.ids),
    )


def _augmentation(run: Run) -> Augmentation:
    return Augmentation(**run.recipe.augmentation.model_dump())


def _validate(run: Run, records: RecordSet) -> Totals:
    with _loader(run, records, run.recipe.batch_size).evaluation(run.recipe.input.crop_fraction) as batches:
        return score(run.engine, batches)


def _finish_epoch(run: Run, epoch: int, passed: _Pass, validated: Totals | None) -> Outcome:
    row = _row(run, epoch, passed, validated)
    state = run.state(epoch, passed.step, row, {})
    save_checkpoint(run.folder, state, run.engine.values(), run.engine.optimizer_state())
    run.journal.write("epoch", **row)
    write_history(run.folder, run.journal.events())
    prune(run.folder, run.recipe.checkpoint.keep)
    draw_curves([run.folder], run.folder / "curves.png", at_most_every_seconds=30)
    log.info(_summary(row, run.recipe.epochs))
    return Outcome(epoch, passed.step, epoch == run.recipe.epochs, row)


def _row(run: Run, epoch: int, passed: _Pass, validated: Totals | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "epoch": epoch,
        "step": passed.step,
        "learning_rate": learning_rate(run.recipe, passed.step - 1, run.steps_per_epoch),
        "train_loss": passed.totals.loss,
        "train_rank1": passed.totals.rank1,
        "train_rank5": passed.totals.rank5,
        "images_per_second": round(passed.images / passed.seconds, 1),
        "wait_percent": round(100 * passed.wait_seconds / passed.seconds, 2),
        "seconds": round(passed.seconds, 3),
    }
    if validated:
        row |= {
            "validation_loss": validated.loss,
            "validation_rank1": validated.rank1,
            "validation_rank5": validated.rank5,
        }
    return row


def _summary(row: dict[str, Any], epochs: int) -> str:
    line = f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  rank-1 {row['train_rank1']:.2f} %"
    if "validation_loss" in row:
        line += (
            f"  val loss {row['validation_loss']:.4f}  val rank-1 {row['validation_rank1']:.2f} %"
            f"  val rank-5 {row['validation_rank5']:.2f} %"
        )
    return line + (
        f"  rate {row['learning_rate']:.4g}  {row['images_per_second']:.0f} img/s"
        f"  data wait {row['wait_percent']:.1f} %  {row['seconds']:.0f} s"
    )


def _stop_inside(run: Run, epoch: int, passed: _Pass) -> Outcome:
    totals = passed.totals
    partial = {
        "images": totals.images,
        "rank1_hits": totals.rank1_hits,
        "rank5_hits": totals.rank5_hits,
        "loss_sum": float(totals.step_losses.sum()),
    }
    state = run.state(epoch, passed.step, {}, partial)
    save_checkpoint(run.folder, state, run.engine.values(), run.engine.optimizer_state())
    prune(run.folder, run.recipe.checkpoint.keep)
    return _stop(run, Outcome(epoch, passed.step, finished=False))


def _stop(run: Run, outcome: Outcome) -> Outcome:
    outcome.finished = outcome.epoch == run.recipe.epochs
    run.journal.write("stop", epoch=outcome.epoch, step=outcome.step)
    log.info("stopped at step %d as asked, and saved; go on with --resume latest", outcome.step)
    return outcome
