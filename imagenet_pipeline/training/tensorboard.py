"""RUN/tensorboard: what history.csv holds, and the training loss between, for those who watch in TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.training.journal import COLUMNS, Event

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Raise BadRecipe where the package `tensorboard` cannot be imported."""
    try:
        import tensorboard.summary.writer.event_file_writer  # noqa: F401
    except ImportError as error:
        raise BadRecipe(
            f"tensorboard cannot be imported ({error})",
            where="log.tensorboard = true",
            advice="pip install 'imagenet-pipeline[tensorboard]', or leave the key out",
        ) from error


class Scalars:
    """The event file of one start of a run; does nothing where `wanted` is false.

    The run goes on at `step`: what earlier starts wrote from there on is superseded, so that TensorBoard shows
    the current branch alone. `rows` is that branch's history so far. Raises BadRecipe without the package.
    """

    def __init__(self, run: Path, wanted: bool, step: int = 0, rows: Sequence[Event] = ()) -> None:
        self._writer: Any = None
        if not wanted:
            return
        require_tensorboard()
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        known = (run / FOLDER).is_dir()
        self._writer = EventFileWriter(str(run / FOLDER))
        self._supersede(step)
        for row in rows:
            # A kill between checkpoint and event file loses the row of that very step.
            if not known or row["step"] >= step:
                self.add_epoch(row)

    def __enter__(self) -> Scalars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer:
            self._writer.close()

    def add_epoch(self, row: Event) -> None:
        """The columns of a history row, `train_loss` as `train/loss`; they are in the file when this returns."""
        values = {_tag(column): row[column] for column in COLUMNS if column in row and column != "step"}
        self._add(row["step"], values)
        if self._writer:
            self._writer.flush()

    def add_reading(self, step: int, loss: float, rate: float) -> None:
        """The mean training loss of the steps since the last reading, and the learning rate of the latest."""
        self._add(step, {"steps/loss": loss, "steps/learning_rate": rate})

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        if not self._writer:
            return
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._writer.add_event(Record(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def _supersede(self, step: int) -> None:
        # TensorBoard forgets everything from the step of a session's start on.
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog

        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Record(wall_time=time.time(), step=step, session_log=start))


def _tag(column: str) -> str:
    """`train_loss` is `train/loss`: TensorBoard draws what shares a beginning together."""
    beginning, _, rest = column.partition("_")
    return f"{beginning}/{rest}" if beginning in ("train", "validation") else column
