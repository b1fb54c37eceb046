"""SIGINT and SIGTERM asked politely: finish the step, save, leave. A second one leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from imagenet_pipeline.launcher import place

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_OF_ECHO = 0.2
"""A signal this soon after another is the same one, sent to a process and to its group."""
SECONDS_OF_LAUNCHERS_ECHO = 1.0
"""And passed on by a launcher besides, which may be busy."""


class Interruption:
    """While the block runs, `asked` tells whether somebody wants the program to end.

    They are told at once: the line that `tell` makes of how they asked ("Ctrl-C", "SIGTERM"); none where it is empty.
    """

    def __init__(self, tell: Callable[[str], str]) -> None:
        self.asked = False
        self._tell = tell
        self._asked_at = 0.0
        self._echo_seconds = SECONDS_OF_LAUNCHERS_ECHO if place().launched else SECONDS_OF_ECHO
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._asked_at = True, time.monotonic()
            self._answer("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        elif time.monotonic() - self._asked_at > self._echo_seconds:
            self._restore()
            os.kill(os.getpid(), number)

    def _answer(self, how: str) -> None:
        line = self._tell(how)
        if line:
            # Below a progress bar. Not by a stream, which the signal may have come in the midst of; and a terminal
            # that is gone must not keep anybody from saving.
            above = "\n" if os.isatty(2) else ""
            with contextlib.suppress(OSError):
                os.write(2, f"{above}{line}\n".encode())

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
