"""The bar people watch: position, speed, waiting for data, loss, rank-1, learning rate."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Protocol

import progressbar

from imagenet_pipeline.engines import Totals


class Passed(Protocol):
    """What the bar reads off an epoch under way."""

    totals: Totals
    images: int
    wait_seconds: float


class EpochBar:
    """One epoch's progress bar on stderr; silent where stderr is no terminal."""

    def __init__(self, epoch: int, epochs: int, steps: int) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            widgets = [
                f"epoch {epoch}/{epochs} ",
                progressbar.Percentage(),
                " ",
                progressbar.Bar(),
                " ",
                progressbar.ETA(),
                progressbar.Variable("state", format="  {formatted_value}", width=1),
            ]
            self._bar = progressbar.ProgressBar(max_value=steps, widgets=widgets, fd=sys.stderr)

    def __enter__(self) -> EpochBar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.finish(dirty=error is not None)

    def show(self, step: int, passed: Passed, seconds: float, rate: float) -> None:
        """Draw the bar at `step`, `seconds` into the epoch."""
        if self._bar:
            totals = passed.totals
            self._bar.update(
                step,
                state=f"{passed.images / seconds:.0f} img/s  wait {passed.wait_seconds / seconds:.1%}  "
                f"loss {totals.loss:.3f}  rank-1 {totals.rank1:.1f} %  rate {rate:.3g}",
            )
