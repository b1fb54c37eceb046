"""Progress of long work: a bar where stderr is a terminal, else a log line a minute."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

log = logging.getLogger("imagenet_pipeline")

SECONDS_BETWEEN_LINES = 60.0
NARROWEST_BAR = 10
"""Columns below which a bar says less than what could stand in its place."""


def fitted(columns: int, label: str, done: int, total: int, unit: str, left: str, state: Sequence[str]) -> list[str]:
    """Fit a line of progress into `columns`, the bar left out: the text before the bar, and that after it.

    Fields fall away until it does: the last of `state` first, then the time `left`, then the words around the numbers.
    """
    percent = f"{100 * done // total if total else 100}%"
    for position in (f"{done} of {total} {unit}", f"{done}/{total}", percent):
        before = f"{label} {position}"
        if len(before) <= columns:
            after = [""]
            for field in (left, *state):
                if len(before) + len("  ".join((*after, field))) > columns:
                    break
                after.append(field)
            return [before, "  ".join(after)]
    return [f"{label[: max(0, columns - len(percent) - 1)]} {percent}"[-columns:], ""]


class Bar:
    """Shows `done` of `total`; nothing at all for work that ends before it was ever shown, or is not to be `shown`."""

    def __init__(self, label: str, unit: str, shown: bool = True) -> None:
        self._label = label
        self._unit = unit
        self._shown = shown
        self._bar: Any = None
        self._done = self._total = 0
        self._spoke = time.monotonic()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.term_width = _columns()
            self._bar.finish(dirty=error is not None or self._done < self._total)

    def show(self, done: int, total: int, state: Sequence[str] = ()) -> None:
        """Bring the bar up to date; `state` is what else is worth reading, the most important first."""
        self._done, self._total = min(done, total), total
        if not self._shown:
            return
        if sys.stderr.isatty():
            self._draw(state)
        elif time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            position = f"{self._done:,} of {total:,} {self._unit}"
            log.info("%s: %s", self._label, "  ".join((position, *state)))

    def _draw(self, state: Sequence[str]) -> None:
        # The terminal is asked each time, since it may have another size by now.
        if self._bar is None:
            import progressbar  # imports much, for terminals alone

            self._bar = progressbar.ProgressBar(
                max_value=self._total, term_width=_columns(), line_breaks=False, enable_colors=False
            )
            # Not as arguments, of which it would take a copy, and what sys.stderr was when it was imported.
            self._bar.widgets, self._bar.fd = [_Line(self._label, self._unit, progressbar)], sys.stderr
            self._bar.start()
        self._bar.widgets[0].state = state
        self._bar.term_width = _columns()
        self._bar.update(self._done, force=bool(state))


class _Line:
    """Widget of the whole line, so that no field can push another out of it."""

    def __init__(self, label: str, unit: str, progressbar: Any) -> None:
        self.label, self.unit = label, unit
        self.state: Sequence[str] = ()
        self._time, self._bar = progressbar.ETA(), progressbar.Bar()

    def __call__(self, progress: Any, data: Any) -> str:
        width = progress.term_width
        left = str(self._time(progress, data))
        before, after = fitted(width, self.label, progress.value, progress.max_value, self.unit, left, self.state)
        room = width - len(before) - len(after) - 1
        return f"{before} {self._bar(progress, data, room)}{after}" if room >= NARROWEST_BAR else before + after


def _columns() -> int:
    """Columns of the terminal, less 1: text in the last column wraps on some."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        columns = 0
    return max((columns or 80) - 1, 1)
