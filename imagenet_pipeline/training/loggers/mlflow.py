"""MLflow: a run of its own for every run folder, taken up again by its id.

MLflow's own environment variables say where to: MLFLOW_TRACKING_URI (a server, or `sqlite:///mlflow.db`) and
MLFLOW_EXPERIMENT_NAME.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from imagenet_pipeline.training.journal import Event
from imagenet_pipeline.training.loggers import Start, figures_of, reading

log = logging.getLogger("imagenet_pipeline")

NAME = "mlflow"
LONGEST_VALUE = 500
"""Letters of a parameter's value; older servers take no more."""


class MLflow:
    """A run of MLflow's. Going back to an earlier step adds the new branch's points to the old ones."""

    def __init__(self, start: Start) -> None:
        self._client = MlflowClient()
        self._run = self._known(start) or self._new(start)
        written = {metric.step for metric in self._client.get_metric_history(self._run, "epoch")}
        for row in start.rows:
            if row["step"] not in written:
                self.add_epoch(row)

    def _known(self, start: Start) -> str | None:
        """The run of an earlier start, where this server has it."""
        run = start.remembered(NAME)
        if run is None:
            return None
        try:
            self._client.get_run(run)
        except MlflowException as error:
            message = "warning: mlflow: the run %s of earlier starts is not there (%s): a new run begins"
            log.warning(message, run, error)
            return None
        self._client.update_run(run, status="RUNNING")
        return run

    def _new(self, start: Start) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "imagenet-pipeline")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run: str = self._client.create_run(experiment_id, run_name=start.folder.resolve().name).info.run_id
        start.remember(NAME, run)
        parameters = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in start.options.items()]
        self._client.log_batch(run, params=parameters)
        return run

    def add_epoch(self, row: Event) -> None:
        """The columns of a history row as metrics; they are in the store when this returns."""
        self._add(row["step"], figures_of(row))

    def add_reading(self, step: int, loss: float, rate: float) -> None:
        """The mean training loss since the last reading, and the learning rate."""
        self._add(step, reading(loss, rate))

    def add_picture(self, name: str, picture: Path, step: int) -> None:
        """A PNG file, among the run's artifacts as NAME-STEP/."""
        self._client.log_artifact(self._run, str(picture), artifact_path=f"{name}-{step}")

    def close(self) -> None:
        """Mark the run as finished; a restart makes it run again."""
        self._client.set_terminated(self._run)

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self._run, metrics=[Metric(tag, value, now, step) for tag, value in values.items()])
