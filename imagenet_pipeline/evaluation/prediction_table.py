"""Predictions as a table in a file: a row a picture, CSV."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.evaluation.predict import Prediction


class PredictionTable:
    """Use `prediction_table`."""

    def __init__(self, stream: io.TextIOWrapper, top: int) -> None:
        self._writer = csv.writer(stream, lineterminator="\n")
        ranks = range(1, top + 1)
        choices = [column for n in ranks for column in (f"class_{n}", f"name_{n}", f"probability_{n}")]
        self._writer.writerow(["file", "unreadable", *choices])
        self._columns = len(choices)

    def add(self, prediction: Prediction) -> None:
        """Write a picture's row."""
        choices = [cell for one in prediction.top for cell in (one.class_id, one.name, f"{one.probability:.6f}")]
        choices += [""] * (self._columns - len(choices))
        self._writer.writerow([prediction.path, prediction.reason, *choices])


def require_csv(path: Path) -> None:
    """Raise BadRecipe for a table that is no CSV by its name."""
    if path.suffix.lower() != ".csv":
        raise BadRecipe("a table is CSV", where=path, expected="a name that ends in .csv")


@contextlib.contextmanager
def prediction_table(path: Path, top: int) -> Iterator[PredictionTable]:
    """A table of `top` classes a picture, to be filled; the file appears when the block ends well.

    Columns: file, unreadable (why, or nothing), then class_1, name_1, probability_1 and so on. UTF-8; a file's name
    keeps its bytes. Raises BadRecipe for another ending.
    """
    require_csv(path)
    with files.whole_file(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
        yield PredictionTable(text, top)
        text.flush()
        text.detach()
