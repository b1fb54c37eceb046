"""The bar: everything people watch on a terminal, nothing anywhere else."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from imagenet_pipeline.engines import Totals
from imagenet_pipeline.training.progress import EpochBar


@dataclass
class Passed:
    totals: Totals
    images: int
    wait_seconds: float


PASSED = Passed(Totals(200, 50, 100, np.array([100.0, 300.0])), 200, 1.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with EpochBar(2, 7, steps=10) as bar:
        bar.show(5, PASSED, seconds=4.0, rate=0.0125)
    text = screen.getvalue()
    for word in ("epoch 2/7", "50 img/s", "wait 25.0%", "loss 2.000", "rank-1 25.0 %", "rate 0.0125"):
        assert word in text


def test_an_error_leaves_the_bar_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())

    def fail() -> None:
        with EpochBar(1, 1, steps=10) as bar:
            bar.show(5, PASSED, seconds=4.0, rate=0.1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_a_file_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with EpochBar(1, 1, steps=10) as bar:
        bar.show(5, PASSED, seconds=4.0, rate=0.1)
    assert log.getvalue() == ""
