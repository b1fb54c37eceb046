"""SIGINT and SIGTERM asked politely: finish the step, save, leave. A second one leaves at once."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from imagenet_pipeline.processes import place, tell_launcher

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_OF_ECHO = 0.2
"""A signal this soon after another is the same one, sent to a process and to its group."""
SECONDS_OF_LAUNCHERS_ECHO = 1.0
"""And passed on by a launcher besides, which may be busy."""
SECONDS_TO_LEAVE = 1.0
"""How long the main thread has to end by itself, which it cannot from within a long step."""


class Interruption:
    """While the block runs, `asked` tells whether somebody wants the program to end.

    They are told at once: the line that `tell` makes of how they asked ("Ctrl-C", "SIGTERM"); none where it is empty.
    A thread hears the signals, since Python calls a handler only once a step of the engine, long as it may be, is over.
    """

    def __init__(self, tell: Callable[[str], str]) -> None:
        self.asked = False
        self._tell = tell
        self._insists = False
        self._left = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        heard, self._sent = os.pipe()
        os.set_blocking(self._sent, False)
        self._sent_before = signal.set_wakeup_fd(self._sent, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._thread = threading.Thread(target=self._listen, args=(heard,), name="interruption", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        signal.set_wakeup_fd(self._sent_before)
        self._left.set()
        os.close(self._sent)
        self._thread.join()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._insists:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _listen(self, heard: int) -> None:
        """Read the numbers of signals as they arrive, a byte each, until the block is left."""
        echo_seconds = SECONDS_OF_LAUNCHERS_ECHO if place().launched else SECONDS_OF_ECHO
        first = None
        with os.fdopen(heard, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] not in SIGNALS:
                    continue
                if first is None:
                    first = time.monotonic()
                    self._answer("Ctrl-C" if number[0] == signal.SIGINT else signal.Signals(number[0]).name)
                elif time.monotonic() - first > echo_seconds and not self._insists:
                    self._insist(signal.Signals(number[0]))

    def _answer(self, how: str) -> None:
        line = self._tell(how)
        if line:
            # Below a progress bar, and not by a stream, which may be in the midst of a line.
            _write(f"\n{line}" if os.isatty(2) else line)

    def _insist(self, number: signal.Signals) -> None:
        """End the main thread as if nobody had caught the signal, or the process where that takes too long."""
        self._insists = True
        _thread.interrupt_main(number)
        if not self._left.wait(SECONDS_TO_LEAVE):
            if not tell_launcher("interrupted"):
                _write("error: interrupted")
            os._exit(128 + number)


def _write(line: str) -> None:
    # A terminal that is gone must not keep anybody from saving.
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
