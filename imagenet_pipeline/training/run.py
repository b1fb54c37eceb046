"""A run: what is trained, on what, with which engine, and where it stands."""

from __future__ import annotations

import gc
import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.interchange.frozen import Normalisation
from imagenet_pipeline.loading.order import Share
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.checkpoint import Checkpoint, State
from imagenet_pipeline.training.distributed import together
from imagenet_pipeline.training.engine_setup import frozen_layers, resumed_engine
from imagenet_pipeline.training.journal import Event, Journal
from imagenet_pipeline.training.stopping import gives_up
from imagenet_pipeline.training.tensorboard import Scalars

log = logging.getLogger("imagenet_pipeline")


@dataclass
class Run:
    """What the training loop works on. `start` is the checkpoint it goes on from, if any."""

    folder: Path
    recipe: Recipe
    data: DataSet
    engine: Engine
    journal: Journal
    start: Checkpoint | None
    steps_per_epoch: int
    rows: list[Event]
    """The history so far: the current branch, up to the last finished epoch."""
    normalisation: Normalisation
    """Of the network's input, from the run's very beginning."""
    held: ExitStack = field(default_factory=ExitStack)
    """Open while the run is: its lock, so that no other process trains in the same folder, and its event file."""
    scalars: Scalars = field(default_factory=lambda: Scalars(Path(), wanted=False))
    saved_at: float = field(default_factory=time.monotonic)
    """When the last checkpoint was written, or the run opened; of time.monotonic."""

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes, draws and speaks."""
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

    def state(self, epoch: int, step: int, metrics: dict[str, Any], partial: dict[str, float]) -> State:
        """The state to save with a checkpoint now."""
        return State(
            epoch=epoch,
            step=step,
            network=self.recipe.network,
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
        )

    def is_done(self, epoch: int) -> bool:
        """Whether nothing is left to train after that many epochs: all are done, or validation gets no better."""
        return epoch >= self.recipe.epochs or gives_up(self.recipe, self.rows)

    def saves_at(self, step: int) -> bool:
        """Whether the recipe has the run saved after that many of its steps, whatever the clock says."""
        every_steps = self.recipe.checkpoint.every_steps
        return every_steps > 0 and step % every_steps == 0

    def save_is_due(self, step: int, now: float) -> bool:
        """Whether to save inside the epoch after that many steps of the run, at the time `now` of time.monotonic."""
        wanted = self.recipe.checkpoint
        return self.saves_at(step) or (wanted.every_minutes > 0 and now - self.saved_at >= 60 * wanted.every_minutes)

    def thaw(self, epoch: int) -> None:
        """Build the engine anew where other layers are frozen in this epoch than in the one before it. Collective."""
        before, frozen = max(epoch - 1, self.epoch), frozen_layers(self.recipe, epoch)
        if frozen == frozen_layers(self.recipe, before):
            return
        state = self.state(epoch, epoch * self.steps_per_epoch, {}, {})
        values, remembered = self.engine.values(), self.engine.optimizer_state()
        # Its memory goes before the next one needs as much; its parts know each other, so counting alone keeps them.
        del self.engine
        gc.collect()
        self.engine = resumed_engine(self.recipe, state, values, remembered)
        thawed = [layer for layer in frozen_layers(self.recipe, before) if layer not in frozen]
        with together(self.engine):
            if self.leads:
                left = f"; {', '.join(frozen)} still frozen" if frozen else ""
                log.info("after %d epochs: %s thawed%s", epoch, ", ".join(thawed), left)
                self.journal.write("thaw", epoch=epoch, thawed=thawed, frozen=[*frozen])
