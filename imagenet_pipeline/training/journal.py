"""The run's journal: a JSON line an event, append only. History and curves come from it.

Each line has its own checksum, and that of the line before it, so that none can be lost between two others; those
that older versions of this program wrote have their own alone.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c

from imagenet_pipeline import files
from imagenet_pipeline.config import LOWER_IS_BETTER
from imagenet_pipeline.errors import Damaged

Event = dict[str, Any]
COLUMNS = (
    "epoch",
    "step",
    "learning_rate",
    "train_loss",
    "train_rank1",
    "train_rank5",
    "validation_loss",
    "validation_rank1",
    "validation_rank5",
    "images_per_second",
    "wait_percent",
    "seconds",
)
ADVICE = "put back a copy of the journal, or start a new run from this run's weights with initial.weights"


class Journal:
    """Events of a run, in the order they happened."""

    def __init__(self, run: Path) -> None:
        self._path = run / "journal.jsonl"

    def exists(self) -> bool:
        return self._path.exists()

    def write(self, event: str, **fields: Any) -> None:
        """Append an event; it is on the disk when this returns."""
        before = self._lines()[-1:]
        line = {"event": event, **fields, "after": _checksum(before[0] if before else b"")}
        files.append_line(self._path, json.dumps({**line, "crc32c": _own_checksum(line)}))

    def events(self) -> list[Event]:
        """Every event. A torn last line (a kill while writing) is left out; any other damage raises Damaged."""
        if not self.exists():
            raise Damaged("the journal cannot be read (no such file)", where=self._path)
        events, before, chained = [], b"", False
        for number, line in enumerate(self._lines(), 1):
            event = _event(line, f"{self._path}:{number}")
            after = event.pop("after", None)
            if (chained or after is not None) and after != _checksum(before):
                what = "the line does not follow the line before it: lines are gone, or were changed, between the two"
                raise Damaged(what, where=f"{self._path}:{number}", advice=ADVICE)
            events.append(event)
            before, chained = line, after is not None
        return events

    def last_event(self) -> str:
        """The name of the last event, "end" or "stop" where the run came to that; "" where there is none yet."""
        events = self.events() if self.exists() else []
        return str(events[-1]["event"]) if events else ""

    def _lines(self) -> list[bytes]:
        """The whole ones."""
        try:
            *lines, _torn = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Damaged(f"the journal cannot be read ({error})", where=self._path) from error
        return lines


def _event(line: bytes, where: str) -> Event:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Damaged("not a JSON line", where=where) from error
    if not isinstance(event, dict) or event.pop("crc32c", None) != _own_checksum(event):
        raise Damaged("the line has changed since it was written", where=where)
    return event


def _own_checksum(event: Event) -> str:
    return _checksum(json.dumps(event).encode())


def _checksum(line: bytes) -> str:
    return f"{google_crc32c.value(line):08x}"


def goodness(row: Mapping[str, Any], figure: str) -> float | None:
    """A figure of a history row, its sign turned where lower is better; None where the row lacks it.

    Rows of labels that are not one class have no ranks: for validation rank-1 their validation loss stands.
    """
    if figure == "validation_rank1" and figure not in row:
        figure = "validation_loss"
    value = row.get(figure)
    return None if value is None else float(-value if figure in LOWER_IS_BETTER else value)


def epochs_without_better(rows: Sequence[Event], figure: str, min_delta: float = 0.0) -> list[int]:
    """Count the epochs after each that was better than those before it, up to the next such; [] without rows.

    Better is by more than `min_delta`, than the last that was better. Raises KeyError where a row lacks the figure.
    """
    best, waits = -math.inf, list[int]()
    for row in rows:
        value = goodness(row, figure)
        if value is None:
            raise KeyError(figure)
        if not waits or value - min_delta > best:
            best = value
            waits.append(0)
        else:
            waits[-1] += 1
    return waits


def branches(events: list[Event]) -> list[list[Event]]:
    """The epoch rows of each start: what was left behind by a restart stays in its own list; the last is current."""
    rows: list[list[Event]] = [[]]
    for event in events:
        if event["event"] == "start" and rows[-1]:
            rows.append([])
        elif event["event"] == "resume" and any(row["epoch"] > event["epoch"] for row in rows[-1]):
            rows.append([row for row in rows[-1] if row["epoch"] <= event["epoch"]])
        elif event["event"] == "epoch":
            rows[-1].append(event)
    return rows


def rows_until(events: list[Event], epoch: int, metrics: Event, where: Path) -> list[Event]:
    """The current branch of the history up to a checkpoint of `epoch`, whose own row, `metrics`, may be in no line yet.

    Raises Damaged, at `where`, for an epoch without a row.
    """
    rows = [row for row in branches(events)[-1] if row["epoch"] <= epoch]
    if metrics and epoch not in [row["epoch"] for row in rows]:
        rows.append({"event": "epoch", **metrics})
    # What was trained elsewhere, before an import, is in no row.
    first = max((event.get("epoch", 0) for event in events if event["event"] == "import"), default=0) + 1
    missing = sorted({*range(first, epoch + 1)} - {row["epoch"] for row in rows})
    if missing:
        what = f"the journal lacks epoch {missing[0]}, which comes before epoch {epoch}"
        raise Damaged(what, where=where, advice=ADVICE)
    return rows


def restarts(events: list[Event]) -> list[float]:
    """List where the current branch was resumed, in epochs and parts of them, each position once."""
    # Every epoch has as many steps, but the last may be cut short.
    steps = max((row["step"] / row["epoch"] for row in branches(events)[-1] if row.get("step")), default=0)
    positions: list[float] = []
    for event in events:
        if event["event"] == "start":
            positions = []
        elif event["event"] == "resume":
            position = event["step"] / steps if steps and "step" in event else event["epoch"]
            positions = [*(earlier for earlier in positions if earlier < position), position]
    return positions


def write_history(run: Path, events: list[Event]) -> Path:
    """Write `history.csv`: the current branch, a row an epoch."""
    text, rows = io.StringIO(), branches(events)[-1]
    writer = csv.DictWriter(text, _columns(rows), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_whole(run / "history.csv", text.getvalue())
    return run / "history.csv"


def figures_of(rows: list[Event]) -> list[str]:
    """The figures beside the loss that a history has, rank-1 and rank-5 where it has none yet."""
    found = [key.removeprefix("train_") for key in (rows[-1] if rows else ()) if key.startswith("train_")]
    return [figure for figure in found if figure != "loss"] or ["rank1", "rank5"]


def _columns(rows: list[Event]) -> list[str]:
    """The columns of a history, in which ranks give way to the figures of labels that are not one class."""
    names = dict(zip(("rank1", "rank5"), figures_of(rows), strict=False))
    split = [column.partition("_") for column in COLUMNS]
    return [f"{part}{line}{names.get(figure, figure)}" for part, line, figure in split]
