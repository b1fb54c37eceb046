"""What is kept of an epoch: checkpoint, journal line, history, curves, and a line for the reader."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagenet_pipeline.engines import Totals
from imagenet_pipeline.training.checkpoint import State, prune, save_checkpoint
from imagenet_pipeline.training.curves import draw_curves
from imagenet_pipeline.training.epoch import Pass, diverged
from imagenet_pipeline.training.journal import write_history
from imagenet_pipeline.training.run import Run
from imagenet_pipeline.training.schedule import learning_rate

log = logging.getLogger("imagenet_pipeline")


@dataclass
class Outcome:
    """How a run ended. `metrics` is the last epoch's row of the history."""

    epoch: int
    step: int
    finished: bool
    metrics: dict[str, Any] = field(default_factory=dict)


def save_epoch(run: Run, epoch: int, passed: Pass, validated: Totals | None) -> Outcome:
    """Keep a finished epoch; the checkpoint comes first, and what a kill prevents after it a restart makes good."""
    row = _row(run, epoch, passed, validated)
    _save(run, run.state(epoch, passed.step, row, {}))
    run.journal.write("epoch", **row)
    write_history(run.folder, run.journal.events())
    prune(run.folder, run.recipe.checkpoint.keep)
    draw_curves([run.folder], run.folder / "curves.png", at_most_every_seconds=30)
    log.info(_summary(row, run.recipe.epochs))
    return Outcome(epoch, passed.step, epoch == run.recipe.epochs, row)


def _save(run: Run, state: State) -> None:
    weights = run.engine.values()
    # The loss of a step is that of the weights before it: what the last step made shows only here.
    wrong = next((name for name, value in weights.items() if not np.isfinite(value).all()), None)
    if wrong is not None:
        raise diverged(f"the weights are no longer finite ({wrong})", state.step - 1)
    save_checkpoint(run.folder, state, weights, run.engine.optimizer_state())


def _row(run: Run, epoch: int, passed: Pass, validated: Totals | None) -> dict[str, Any]:
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


def save_part(run: Run, epoch: int, passed: Pass) -> Outcome:
    """Keep the part of an epoch that was done when a signal came."""
    totals = passed.totals
    partial = {
        "images": totals.images,
        "rank1_hits": totals.rank1_hits,
        "rank5_hits": totals.rank5_hits,
        "loss_sum": float(totals.step_losses.sum()),
    }
    _save(run, run.state(epoch, passed.step, {}, partial))
    prune(run.folder, run.recipe.checkpoint.keep)
    return note_stop(run, Outcome(epoch, passed.step, finished=False))


def note_stop(run: Run, outcome: Outcome) -> Outcome:
    """Journal that a signal ended the run here, everything saved."""
    outcome.finished = outcome.epoch == run.recipe.epochs
    run.journal.write("stop", epoch=outcome.epoch, step=outcome.step)
    write_history(run.folder, run.journal.events())
    draw_curves([run.folder], run.folder / "curves.png")
    log.info("stopped at step %d as asked, and saved; go on with --resume latest", outcome.step)
    return outcome
