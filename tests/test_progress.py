"""Progress: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline import progress
from imagenet_pipeline.progress import Bar, fitted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_label_position_and_state(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bar("epoch 2/7", "steps") as bar:
        bar.show(5, 10, ["50 img/s"])
        bar.show(10, 10, ["loss 2.000"])
    for word in ("epoch 2/7", "steps", "50 img/s", "10 of 10", "loss 2.000"):
        assert word in screen.getvalue()


def test_work_that_stops_early_is_not_drawn_as_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bar("epoch", "steps") as bar:
        bar.show(4, 10, ["state"])
    assert "4 of 10" in screen.getvalue()
    assert "10 of 10" not in screen.getvalue()


def test_work_never_shown_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bar("build", "images"):
        pass
    assert screen.getvalue() == ""


def test_a_log_file_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    # Its own name for the clock alone: the program's would have any event loop sleep as long as the machine is up.
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO), Bar("build", "images") as bar:
        for second in range(130):
            now[0] = float(second)
            bar.show(1000 * second, 200_000)
    assert [record.getMessage() for record in caplog.records] == [
        "build: 61,000 of 200,000 images",
        "build: 122,000 of 200,000 images",
    ]


STATE = ["loss 2.123", "rank-1 45.2 %", "1234 img/s", "wait 10.3%", "rate 0.0123"]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (99, "epoch 12/90 1234 of 5004 steps  ETA: 0:12:34  loss 2.123  rank-1 45.2 %  1234 img/s  wait 10.3%"),
        (79, "epoch 12/90 1234 of 5004 steps  ETA: 0:12:34  loss 2.123  rank-1 45.2 %"),
        (59, "epoch 12/90 1234 of 5004 steps  ETA: 0:12:34  loss 2.123"),
        (39, "epoch 12/90 1234 of 5004 steps"),
        (29, "epoch 12/90 1234/5004"),
        (19, "epoch 12/90 24%"),
        (9, "epoch 24%"),
    ],
)  # fmt: skip
def test_the_least_important_fields_fall_away_first(columns: int, line: str) -> None:
    assert "".join(fitted(columns, "epoch 12/90", 1234, 5004, "steps", "ETA: 0:12:34", STATE)) == line


@given(
    st.integers(1, 200), st.text("ab 1", max_size=30), st.integers(0, 10**9), st.integers(0, 10**9),
    st.lists(st.text("xy 2", max_size=20), max_size=6),
)  # fmt: skip
def test_a_line_never_exceeds_its_columns(columns: int, label: str, done: int, total: int, state: list[str]) -> None:
    assert len("".join(fitted(columns, label, min(done, total), total, "images", "ETA: 0:00:00", state))) <= columns


PROGRAM = """
import sys
from imagenet_pipeline.progress import Bar
with Bar("epoch 12/90", "steps") as bar:
    for step in range(0, 5005, 417):
        if step == 2502:
            print("resize", flush=True)
            sys.stdin.readline()
        bar.show(step, 5004, ["loss 2.123", "rank-1 45.2 %", "1234 img/s", "wait 10.3%", "rate 0.0123"])
"""


def shown_on(terminal: int) -> str:
    """What came since the last time; it takes a moment from the one end of a terminal to the other."""
    shown = b""
    while select.select([terminal], [], [], 0.3)[0]:
        shown += os.read(terminal, 10**6)
    return shown.decode()


@pytest.mark.parametrize(("columns", "then"), [(80, 80), (20, 20), (120, 40), (40, 100)])
def test_a_terminal_gets_no_new_line_until_the_end(columns: int, then: int) -> None:
    """Nor a line that it would have to wrap, also once it has another size."""
    own, other = pty.openpty()
    fcntl.ioctl(own, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=other, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "resize\n"
    before = shown_on(own)
    fcntl.ioctl(own, termios.TIOCSWINSZ, struct.pack("HHHH", 24, then, 0, 0))
    process.communicate("\n", timeout=30)
    after = shown_on(own)
    os.close(own)
    os.close(other)
    assert "\n" not in before
    assert after.index("\n") == len(after) - 1
    assert "100%" in after or "5004 of 5004" in after
    for width, shown in ((columns, before), (then, after)):
        assert max(map(len, shown.replace("\n", "").split("\r"))) < width
