"""Progress: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from imagenet_pipeline import progress
from imagenet_pipeline.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_label_position_and_state(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bar("epoch 2/7", "steps") as bar:
        bar.show(5, 10, "  50 img/s")
        bar.show(10, 10, "  loss 2.000")
    for word in ("epoch 2/7", "steps", "50 img/s", "10 of 10", "loss 2.000"):
        assert word in screen.getvalue()


def test_work_that_stops_early_is_not_drawn_as_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bar("epoch", "steps") as bar:
        bar.show(4, 10)
    assert "10 of 10" not in screen.getvalue()


def test_work_never_shown_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bar("build", "images"):
        pass
    assert screen.getvalue() == ""


def test_a_log_file_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO), Bar("build", "images") as bar:
        for second in range(130):
            now[0] = float(second)
            bar.show(1000 * second, 200_000)
    assert [record.getMessage() for record in caplog.records] == [
        "build: 61,000 of 200,000 images",
        "build: 122,000 of 200,000 images",
    ]
