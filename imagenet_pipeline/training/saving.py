"""Saving a run: checkpoints, journal lines, history, curves, and a line for the reader.

Every rank calls these; rank 0 alone writes.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_pipeline.engines import FIGURES, Totals
from imagenet_pipeline.errors import counted
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.training.checkpoint import (
    State,
    epoch_of,
    find_checkpoint,
    prune,
    save_checkpoint,
    set_aside_later,
    with_trained,
)
from imagenet_pipeline.training.curves import draw_curves
from imagenet_pipeline.training.distributed import settle, together
from imagenet_pipeline.training.engine_setup import image_shape, network_for
from imagenet_pipeline.training.journal import write_history
from imagenet_pipeline.training.metrics import said, says_rank5
from imagenet_pipeline.training.run import Pass, Run, diverged, not_learning, trained_epochs

log = logging.getLogger("imagenet_pipeline")


@dataclass
class Outcome:
    """The state of a run at the end of a training. `metrics` is the last epoch's row of the history."""

    epoch: int
    step: int
    finished: bool
    metrics: dict[str, Any] = field(default_factory=dict)


def save_epoch(run: Run, epoch: int, passed: Pass, validated: Totals | None) -> Outcome:
    """Keep a finished epoch; the checkpoint comes first, and what a kill prevents after it a restart makes good.

    Of an epoch that the recipe's `steps` cut short its totals are kept too, for a restart with more of them.
    """
    row = _row(run, epoch, passed, validated)
    said_before = any(_complaint(run, earlier) for earlier in run.rows)
    settle(run.engine)
    is_cut = passed.step < epoch * run.steps_per_epoch
    _save(run, run.state(epoch, passed.step, row, passed.partial() if is_cut else {}))
    run.rows.append({"event": "epoch", **row})
    with together(run.engine):
        if run.leads:
            run.journal.write("epoch", **row)
            run.loggers.add_epoch(row)
            write_history(run.folder, run.journal.events())
            prune(run.folder, run.recipe.checkpoint.keep)
            if not run.is_done(epoch):  # then `note_end` draws
                draw_curves([run.folder], run.folder / "curves.png", at_most_every_seconds=30)
            log.info(_summary(row, run.total_epochs, run.data.classes))
            complaint = _complaint(run, row)
            if complaint and not said_before:
                log.warning("warning: %s", complaint)
    return Outcome(epoch, passed.step, run.is_done(epoch), row)


def save_part(run: Run, epoch: int, passed: Pass) -> None:
    """Keep the part of an epoch that is done, in place of an earlier part.

    A save at a step that the recipe names synchronises batch statistics, so that the run goes on as its restart would.
    Saves triggered by the clock or a signal do not, so that they never change the run.
    """
    if run.saves_at(passed.step):
        settle(run.engine)
    _save(run, run.state(epoch, passed.step, {}, passed.partial()))
    with together(run.engine):
        if run.leads:
            prune(run.folder, run.recipe.checkpoint.keep)


def _save(run: Run, state: State) -> None:
    weights, optimizer_state = run.engine.averages(), run.engine.optimizer_state()
    trained = run.engine.values() if run.recipe.average_decay else {}
    # The loss of a step is that of the weights before it: what the last step made shows only here.
    for name, value in (*weights.items(), *trained.items()):
        if not np.isfinite(value).all():
            raise diverged(run, f"the weights are no longer finite ({name})", state.step - 1)
    with together(run.engine):
        if run.leads:
            save_checkpoint(run.folder, state, weights, with_trained(optimizer_state, trained))
    run.saved_at = time.monotonic()


def _row(run: Run, epoch: int, passed: Pass, validated: Totals | None) -> dict[str, Any]:
    classes = run.data.classes
    row: dict[str, Any] = {
        "epoch": epoch,
        "step": passed.step,
        "learning_rate": passed.rate,
        "train_loss": passed.totals.loss,
        **{f"train_{name}": value for name, value in passed.totals.figures(classes).items()},
        "images_per_second": round(passed.images / passed.seconds, 1),
        "wait_percent": round(100 * passed.wait_seconds / passed.seconds, 2),
        "seconds": round(passed.seconds, 3),
    }
    if validated:
        row["validation_loss"] = validated.loss
        row |= {f"validation_{name}": value for name, value in validated.figures(classes).items()}
    return row


def _complaint(run: Run, row: dict[str, Any]) -> str:
    return not_learning(run.recipe, len(run.data.classes), run.steps_per_epoch, row)


def _summary(row: dict[str, Any], epochs: int, classes: ClassTable) -> str:
    first, second = FIGURES[classes.label_kind]
    line = f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:z.4f}  {said(first, row[f'train_{first}'])}"
    if "validation_loss" in row:
        line += f"  val loss {row['validation_loss']:z.4f}  val {said(first, row[f'validation_{first}'])}"
        if classes.label_kind != "class" or says_rank5(len(classes)):
            line += f"  val {said(second, row[f'validation_{second}'])}"
    return line + (
        f"  rate {row['learning_rate']:.4g}  {row['images_per_second']:.0f} img/s"
        f"  data wait {row['wait_percent']:.1f} %  {row['seconds']:.0f} s"
    )


def draw_weights(run: Run, step: int) -> None:
    """Draw the layers of `log.pictures` as they are now, if the recipe has them drawn after that step. Collective."""
    if not run.draws_at(step):
        return
    from imagenet_pipeline.training import weight_pictures  # few runs draw any

    values = run.engine.values()
    with together(run.engine):
        if run.leads:
            network = network_for(run.recipe, run.recipe.whole_network, len(run.data.classes))
            paths, shape = run.recipe.log.pictures, image_shape(run.recipe)
            drawn = weight_pictures.draw_weights(run.folder, network, shape, values, paths, step)
            for path, picture in drawn.items():
                run.loggers.add_picture(f"weights/{path}", picture, step)


def note_stop(run: Run, outcome: Outcome) -> Outcome:
    """Journal that a signal ended the run here, everything saved."""
    with together(run.engine):
        if run.leads:
            run.journal.write("stop", epoch=outcome.epoch, step=outcome.step)
            write_history(run.folder, run.journal.events())
            _draw(run, outcome.step)
            log.info("stopped at step %d as asked, and saved; go on with --resume latest", outcome.step)
    return outcome


def note_end(run: Run, outcome: Outcome) -> Outcome:
    """Journal that nothing is left to train, by the recipe's length or because its figure got no better.

    Then the run goes back to its best epoch, where the recipe says so; a kill in between leaves that to a restart.
    """
    trained = trained_epochs(outcome.epoch, run.rows)
    early = {"early_stop": True} if trained < run.total_epochs else {}
    with together(run.engine):
        if run.leads:
            best = _best_to_restore(run)
            restored = {} if best is None else {"restored": epoch_of(best)}
            # After a kill past the last checkpoint the line is the restart's to write.
            if restored or run.journal.last_event() != "end":
                run.journal.write("end", epoch=trained, step=outcome.step, **early, **restored)
            if early:
                more = "" if outcome.step > run.step else "; a larger stopping.patience_epochs trains on"
                log.info("%s: done after epoch %d%s", _impatience(run), trained, more)
            if best is not None:
                branch = set_aside_later(run.folder, best)
                prune(run.folder, run.recipe.checkpoint.keep)
                log.info("the run is back at its best epoch, %d; later ones are kept in %s", epoch_of(best), branch)
            _draw(run, outcome.step)
    return outcome


def _best_to_restore(run: Run) -> Path | None:
    """The checkpoint that the ended run is to go back to; None where that is none, or the latest already."""
    if not run.recipe.stopping.restore_best:
        return None
    best = find_checkpoint(run.folder, "best")
    return best if best != find_checkpoint(run.folder, "latest") else None


def _impatience(run: Run) -> str:
    stopping = run.recipe.stopping
    figure = stopping.followed_of(run.data.classes.label_kind).replace("_", " ").replace("rank", "rank-")
    least = f" by more than {stopping.min_delta:g}" if stopping.min_delta else ""
    return f"{figure} got no better{least} in {counted(stopping.patience_epochs, 'epoch')}"


def _draw(run: Run, step: int) -> None:
    picture = run.folder / "curves.png"
    draw_curves([run.folder], picture)
    run.loggers.add_picture("curves", picture, step)
    if run.recipe.log.pictures:
        from imagenet_pipeline.training.weight_pictures import animate

        for made in animate(run.folder, run.recipe.log.pictures):
            log.info("weights by step: %s", made)
