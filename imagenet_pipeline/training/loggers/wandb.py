"""Weights & Biases: a run of its own for every run folder, taken up again by its id.

W&B's own environment variables say where to: WANDB_PROJECT, WANDB_ENTITY, and so on. With WANDB_MODE=offline
`wandb sync RUN/wandb/offline-run-*` sends it later.
"""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path

import wandb

from imagenet_pipeline.training.journal import Event
from imagenet_pipeline.training.loggers import Start, figures_of, reading

log = logging.getLogger("imagenet_pipeline")

NAME = "wandb"


class WeightsAndBiases:
    """A run of W&B's. Going back to an earlier step adds the new branch's points to the old ones."""

    def __init__(self, start: Start) -> None:
        known = start.remembered(NAME)
        run_id = known or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            dir=str(start.folder),
            id=run_id,
            name=start.folder.resolve().name,
            project=os.environ.get("WANDB_PROJECT", "imagenet-pipeline"),
            config=dict(start.options),
            resume="allow",
            # A program may have other runs of W&B's open.
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )
        if not known:
            start.remember(NAME, run_id)
        # W&B's own count of steps never goes back, a run may.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if not self._run.offline:
            log.info("wandb: %s", self._run.url)
        for row in start.rows:
            if not known or row["step"] >= start.step:
                self.add_epoch(row)

    def add_epoch(self, row: Event) -> None:
        """The columns of a history row."""
        self._run.log({"step": row["step"], **figures_of(row)})

    def add_reading(self, step: int, loss: float, rate: float) -> None:
        """The mean training loss since the last reading, and the learning rate."""
        self._run.log({"step": step, **reading(loss, rate)})

    def add_picture(self, name: str, picture: Path, step: int) -> None:
        """A PNG file, among the run's media."""
        self._run.log({"step": step, name: wandb.Image(str(picture))})

    def close(self) -> None:
        """Send what is left and end the run, which may be resumed."""
        self._run.finish()
