"""A run: its recipe, data and engine, the running totals of an epoch, the divergence check, early stopping."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import NO_TOTALS, Engine, Normalisation, Totals
from imagenet_pipeline.errors import BadRecipe, Damaged, counted
from imagenet_pipeline.loading.loader import Batch
from imagenet_pipeline.loading.order import Share
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.checkpoint import Checkpoint, State, find_checkpoint, has_checkpoint
from imagenet_pipeline.training.data import class_weights_of
from imagenet_pipeline.training.distributed import together
from imagenet_pipeline.training.engine_setup import frozen_layers, resumed_engine
from imagenet_pipeline.training.journal import Event, Journal, epochs_without_better
from imagenet_pipeline.training.loggers import Loggers
from imagenet_pipeline.training.metrics import said
from imagenet_pipeline.training.schedule import steps_of, warmup_steps

if TYPE_CHECKING:
    from imagenet_pipeline.training.distillation import Teacher

log = logging.getLogger("imagenet_pipeline")


@dataclass
class Run:
    """The state of a training run. `start` is the checkpoint it goes on from, if any."""

    folder: Path
    recipe: Recipe
    data: DataSet
    engine: Engine
    journal: Journal
    start: Checkpoint | None
    steps_per_epoch: int
    rows: list[Event]
    """The history so far: the current branch, up to the last finished epoch.

    Of a run that went back to its best epoch as it ended, the later epochs too.
    """
    normalisation: Normalisation
    """Mean and std of the network's input, unchanged since the run's beginning."""
    teacher: Teacher | None = None
    resources: ExitStack = field(default_factory=ExitStack)
    """Open while the run is: its lock, so that no other process trains in the same folder, and its loggers."""
    loggers: Loggers = field(default_factory=Loggers)
    saved_at: float = field(default_factory=time.monotonic)
    """Time (of time.monotonic) at which the last checkpoint was written, or the run opened."""

    @property
    def leads(self) -> bool:
        """True in rank 0, the only process that writes, draws and speaks."""
        return self.engine.rank == 0

    @property
    def share(self) -> Share:
        """This process's part of every batch."""
        return Share(self.engine.rank, self.engine.ranks)

    @property
    def epoch(self) -> int:
        """Finished epochs at the start."""
        return self.start.state.epoch if self.start else 0

    @property
    def step(self) -> int:
        """Finished steps at the start."""
        return self.start.state.step if self.start else 0

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return steps_of(self.recipe, self.steps_per_epoch)

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole run; `steps` of the recipe may cut the last one short."""
        return epochs_of(self.recipe, self.steps_per_epoch)

    def end_of(self, epoch: int) -> int:
        """Steps of the run once this epoch, counted from 0, is over."""
        return min((epoch + 1) * self.steps_per_epoch, self.total_steps)

    def state(self, epoch: int, step: int, metrics: dict[str, Any], partial: dict[str, float]) -> State:
        """The state to save with a checkpoint now."""
        return State(
            epoch=epoch,
            step=step,
            network=self.recipe.whole_network,
            input_size=self.recipe.input.scored_size,
            classes=self.data.classes.ids,
            class_names=self.data.classes.names,
            class_order=self.data.classes.order,
            mean=self.normalisation[0],
            std=self.normalisation[1],
            data_digest=self.data.digest,
            engine=self.engine.name,
            versions=self.engine.versions,
            metrics=metrics,
            partial=partial,
            crop_fraction=self.recipe.input.crop_fraction,
            label_kind=self.data.classes.label_kind,
        )

    def is_done(self, epoch: int) -> bool:
        """Tell whether nothing is left to train after that many epochs: all are done, or the figure gets no better."""
        return nothing_left(self.recipe, self.steps_per_epoch, epoch, self.rows)

    def saves_at(self, step: int) -> bool:
        """Tell whether the recipe has the run saved after that many of its steps, whatever the clock says."""
        every_steps = self.recipe.checkpoint.every_steps
        return every_steps > 0 and step % every_steps == 0

    def draws_at(self, step: int) -> bool:
        """Tell whether `log.pictures` has weights drawn after that many of the run's steps."""
        wanted = self.recipe.log
        ends = not wanted.pictures_every_steps and step == self.total_steps  # maybe inside an epoch
        return bool(wanted.pictures) and (ends or step % (wanted.pictures_every_steps or self.steps_per_epoch) == 0)

    def save_is_due(self, step: int, now: float) -> bool:
        """Tell whether to save inside the epoch after that many steps, at the time `now` of time.monotonic."""
        wanted = self.recipe.checkpoint
        return self.saves_at(step) or (wanted.every_minutes > 0 and now - self.saved_at >= 60 * wanted.every_minutes)

    def thaw(self, epoch: int) -> None:
        """Build the engine anew where other layers are frozen in this epoch than in the epoch before it. Collective."""
        before, frozen = max(epoch - 1, self.epoch), frozen_layers(self.recipe, epoch)
        if frozen == frozen_layers(self.recipe, before):
            return
        state = self.state(epoch, epoch * self.steps_per_epoch, {}, {})
        values, optimizer_state = self.engine.values(), self.engine.optimizer_state()
        # Its memory goes before the next engine needs as much; its parts know each other, so counting alone keeps them.
        del self.engine
        gc.collect()
        weights = class_weights_of(self.recipe.loss, self.data)
        self.engine = resumed_engine(self.recipe, state, values, optimizer_state, weights)
        thawed = [layer for layer in frozen_layers(self.recipe, before) if layer not in frozen]
        with together(self.engine):
            if self.leads:
                left = f"; {', '.join(frozen)} still frozen" if frozen else ""
                log.info("after %s: %s thawed%s", counted(epoch, "epoch"), ", ".join(thawed), left)
                self.journal.write("thaw", epoch=epoch, thawed=thawed, frozen=[*frozen])


LEARNED_BY_STEPS = 10
"""After the warm-up; by then even a poor start is left behind."""
LEARNED_AT_LAST_BY_STEPS = 200
"""In the longest of warm-ups."""
FAR_ABOVE = 10
"""A validation loss of so many times that of guessing is of no network that training made."""


FIGURE_SUMS = ("first_figure_sum", "second_figure_sum")
"""Keys of a part of an epoch, for labels that are not one class."""


@dataclass
class Pass:
    """The steps of an epoch so far, those done before a restart too; `rate` is the last step's learning rate.

    `totals.step_losses` is a single number, added up step by step: the same whether or not there was a restart.
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
        self.totals = (self.totals + read).in_order()

    def state(self, classes: ClassTable) -> list[str]:
        """Loss, rank-1 or another first figure, speed, waiting for data and learning rate, for the progress bar."""
        return [
            f"loss {self.totals.loss:z.3f}",
            said(*next(iter(self.totals.figures(classes).items())), digits=1),
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
            **dict(zip(FIGURE_SUMS, totals.step_figures[-1].tolist(), strict=True) if len(totals.step_figures) else ()),
            "learning_rate": self.rate,
            "seconds": self.seconds,
            "wait_seconds": self.wait_seconds,
            "timed_images": self.images,
        }


def begun(run: Run, epoch: int) -> Pass:
    """Totals of the part of an epoch that was done before the run's start."""
    step = max(run.step, epoch * run.steps_per_epoch)
    if run.start is None or not run.start.state.partial or run.epoch != epoch:
        return Pass(step, NO_TOTALS)
    partial = run.start.state.partial
    try:
        images, rank1_hits, rank5_hits = (int(partial[key]) for key in ("images", "rank1_hits", "rank5_hits"))
        figures = np.array([[partial[key] for key in FIGURE_SUMS if key in partial]], np.float64).reshape(-1, 2)
        totals = Totals(images, rank1_hits, rank5_hits, np.array([partial["loss_sum"]], np.float64), figures)
    except KeyError as error:
        what, advice = f"the part of an epoch lacks {error}", "take another checkpoint"
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
    """The loss of equal scores for all classes, in training and validation; no smoothing or mixing changes it.

    Nor do balanced class weights, whose mean is 1; those of a list make it up to as many times larger in training.
    Of scores of 0 for each of several classes. No bound where labels are numbers.
    """
    loss = recipe.loss
    if loss.kind in ("mae", "mse", "huber"):
        return math.inf
    if loss.kind == "hinge":
        return (classes - 1) * loss.margin
    if loss.kind == "binary_cross_entropy":
        return math.log(2)
    return math.log(classes) * ((1 - 1 / classes) ** loss.gamma if loss.kind == "focal" else 1)


def teacher_of(recipe: Recipe, data: DataSet, folder: Path, events: Sequence[Event] = ()) -> Teacher | None:
    """The teacher of a run in `folder`, that of its earlier starts by their `events`; None where it has none."""
    if not recipe.distillation.teacher:
        return None
    from imagenet_pipeline.training.distillation import open_teacher  # few runs have one

    return open_teacher(recipe, data, folder, events)


def not_learning(recipe: Recipe, classes: int, steps_per_epoch: int, row: Mapping[str, Any]) -> str:
    """Describe what is wrong with the losses of a history row, in one line, once there were steps enough."""
    enough = warmup_steps(recipe.schedule, steps_per_epoch, steps_of(recipe, steps_per_epoch)) + LEARNED_BY_STEPS
    if row.get("step", 0) - steps_per_epoch / 2 < min(enough, LEARNED_AT_LAST_BY_STEPS):
        return ""
    guessing = guessing_loss(recipe, classes)
    lower = "lower optimizer.learning_rate (imagenet-pipeline find-rate RECIPE looks for a rate)"
    said = f"that of guessing among {classes:,} classes, {guessing:.3f}: {lower}"
    largest = max(recipe.loss.class_weights) if isinstance(recipe.loss.class_weights, tuple) else 1
    if recipe.distillation.teacher:
        squared = recipe.distillation.temperature**2 if recipe.distillation.kind == "soft" else 1.0
        largest *= max(1.0, squared * math.log(classes) / guessing)
    if row.get("train_loss", 0.0) > largest * guessing:
        small = ", or take the recipe `photos` for a small set from scratch"
        return f"the training loss of epoch {row['epoch']}, {row['train_loss']:.3f}, is above {said}{small}"
    if row.get("validation_loss", 0.0) > FAR_ABOVE * guessing > 0:
        why = "the running statistics of normalisation may lag behind weights that move too fast"
        return f"the validation loss of epoch {row['epoch']}, {row['validation_loss']:,.0f}, is far above {said}; {why}"
    return ""


def epochs_of(recipe: Recipe, steps_per_epoch: int) -> int:
    """Epochs of a run, the last maybe cut short."""
    return -(-steps_of(recipe, steps_per_epoch) // steps_per_epoch)


def trained_epochs(epoch: int, rows: Sequence[Event]) -> int:
    """Count the epochs behind a run at the end of that many; it may have gone back to them from later ones."""
    return max(epoch, *(int(row["epoch"]) for row in rows[-1:]), 0)


def nothing_left(recipe: Recipe, steps_per_epoch: int, epoch: int, rows: Sequence[Event]) -> bool:
    """Tell whether a run with this history has nothing left to train after that many epochs."""
    return trained_epochs(epoch, rows) >= epochs_of(recipe, steps_per_epoch) or gives_up(recipe, rows)


def gives_up(recipe: Recipe, rows: Sequence[Event]) -> bool:
    """Tell whether `stopping.patience_epochs` in a row brought no better `stopping.figure` (never for 0)."""
    stopping = recipe.stopping
    if not (stopping.patience_epochs and rows):
        return False
    return epochs_without_better(rows, stopping.followed, stopping.min_delta)[-1] >= stopping.patience_epochs
