"""RUN/tensorboard: event files for those who watch in TensorBoard."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event as Record
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from imagenet_pipeline.training.journal import Event
from imagenet_pipeline.training.loggers import Start, figures_of, reading

FOLDER = "tensorboard"


class TensorBoard:
    """The event file of a start of a run.

    What earlier starts wrote from its step on is superseded, so that TensorBoard shows the current branch alone.
    """

    def __init__(self, start: Start) -> None:
        known = (start.folder / FOLDER).is_dir()
        self._writer = EventFileWriter(str(start.folder / FOLDER))
        # TensorBoard forgets everything from the step of a session's start on.
        begun = SessionLog(status=SessionLog.START)
        self._writer.add_event(Record(wall_time=time.time(), step=start.step, session_log=begun))
        for row in start.rows:
            # A kill between checkpoint and event file loses the row of that very step.
            if not known or row["step"] >= start.step:
                self.add_epoch(row)

    def add_epoch(self, row: Event) -> None:
        """The columns of a history row as scalars; they are in the file when this returns."""
        self._add(row["step"], figures_of(row))
        self._writer.flush()

    def add_reading(self, step: int, loss: float, rate: float) -> None:
        """The mean training loss since the last reading, and the learning rate."""
        self._add(step, reading(loss, rate))

    def add_picture(self, name: str, picture: Path, step: int) -> None:
        """A PNG file, under IMAGES."""
        encoded = picture.read_bytes()
        width, height = struct.unpack_from(">II", encoded, 16)  # of a PNG's header
        image = Summary.Image(encoded_image_string=encoded, width=width, height=height)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._writer.add_event(Record(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._writer.add_event(Record(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
