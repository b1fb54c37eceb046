"""The first signal is noted, its echo is not heard, and a second one is obeyed at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from imagenet_pipeline.processes import SIGNALS, Interruption


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_answered_and_handlers_are_put_back(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {one: signal.getsignal(one) for one in SIGNALS}
    with Interruption(lambda how: f"{how} again ends at once") as interruption:
        assert not interruption.asked
        os.kill(os.getpid(), number)
        assert interruption.asked
        os.kill(os.getpid(), number)
    how = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert capfd.readouterr().err == f"{how} again ends at once\n"
    assert {one: signal.getsignal(one) for one in SIGNALS} == before


def test_an_error_in_the_block_puts_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), Interruption(lambda _: ""):
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("launched", "pause_seconds", "code", "said"),
    [
        (False, 0.0, 0, "True\nstill here\n"),
        (False, 0.4, -signal.SIGTERM, "True\n"),
        (True, 0.4, 0, "True\nstill here\n"),
        (True, 1.2, -signal.SIGTERM, "True\n"),
    ],
)
def test_a_second_signal_ends_the_program_unless_it_is_an_echo(
    launched: bool, pause_seconds: float, code: int, said: str
) -> None:
    """A launcher takes longer to pass it on than the group of a terminal."""
    program = (
        "import os, signal, time\nfrom imagenet_pipeline.processes import Interruption\n"
        "with Interruption(lambda _: '') as i:\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(i.asked, flush=True)\n"
        f"    time.sleep({pause_seconds})\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.5)\n    print('still here', flush=True)\n"
    )
    words = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {**os.environ, **(dict.fromkeys(words, "1") if launched else {})}
    result = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, env=environment
    )
    assert (result.returncode, result.stdout) == (code, said)


def test_a_long_step_keeps_nobody_waiting() -> None:
    """Python calls no handler in the midst of it: the answer comes all the same, and so does the end."""
    program = (
        "import hashlib, os, signal, threading\nfrom imagenet_pipeline.processes import Interruption\n"
        "with Interruption(lambda how: how):\n"
        "    for seconds in (0.2, 1.0):\n"
        "        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (130, "Ctrl-C\nerror: interrupted\n")


def test_in_another_thread_than_the_main_one_nobody_is_asked() -> None:
    """A program may train in one; Python refuses handlers there."""
    before, asked = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Interruption(lambda _: "") as interruption:
            asked.append(interruption.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
    assert signal.getsignal(signal.SIGTERM) == before
