"""Trains a recipe and notes which records each step was trained on; run as a script by test_training.py.

    training_harness.py RECIPE RUN TRACE THREADS     RUN is taken up where it stands

A line of TRACE is one step: its number in the run, its records. It is in the file before the step is taken.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from imagenet_pipeline.errors import PipelineError
from imagenet_pipeline.loading.loader import Batches, Loader
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run


def trace_to(path: Path) -> None:
    """From here on, note the records of every training batch."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    training, following = Loader.training, Batches.__next__

    def noted_training(self: Loader, seed: int, epoch: int, *words: Any, **named: Any) -> Batches:
        batches = training(self, seed, epoch, *words, **named)
        batches.first_step = epoch * self.steps()  # type: ignore[attr-defined]
        return batches

    def noted_next(self: Batches) -> Any:
        batch = following(self)
        if hasattr(self, "first_step"):
            step = self.first_step + batch.first_position // len(batch.records)
            os.write(file, f"{step} {' '.join(map(str, batch.records))}\n".encode())
        return batch

    Loader.training, Batches.__next__ = noted_training, noted_next  # type: ignore[method-assign]


if __name__ == "__main__":
    recipe, run, trace = map(Path, sys.argv[1:4])
    trace_to(trace)
    resume = "latest" if (run / "journal.jsonl").exists() else None
    try:
        train(open_run(recipe, {"loader.threads": int(sys.argv[4])}, run, resume))
    except PipelineError as error:
        raise SystemExit(str(error)) from error
