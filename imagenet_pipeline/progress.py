"""Progress of long work: a bar where stderr is a terminal, else a log line a minute."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any

import progressbar

log = logging.getLogger("imagenet_pipeline")

SECONDS_BETWEEN_LINES = 60.0


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
            self._bar.finish(dirty=error is not None or self._done < self._total)

    def show(self, done: int, total: int, state: str = "") -> None:
        """Bring it up to date; `state` is what else is worth reading."""
        self._done, self._total = min(done, total), total
        if not self._shown:
            return
        if sys.stderr.isatty():
            self._draw(state)
        elif time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            log.info("%s: %s of %s %s%s", self._label, f"{self._done:,}", f"{total:,}", self._unit, state)

    def _draw(self, state: str) -> None:
        if self._bar is None:
            widgets = [
                f"{self._label} ",
                progressbar.SimpleProgress(),
                f" {self._unit} ",
                progressbar.Bar(),
                " ",
                progressbar.ETA(),
                progressbar.Variable("state", format="{formatted_value}", width=1),
            ]
            self._bar = progressbar.ProgressBar(max_value=self._total, widgets=widgets, fd=sys.stderr).start()
        self._bar.update(self._done, state=state)
