"""The first signal is noted, its echo is not heard, and a second one is obeyed at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from imagenet_pipeline.training.interruption import SIGNALS, Interruption


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = {one: signal.getsignal(one) for one in SIGNALS}
    with Interruption() as interruption:
        assert not interruption.asked
        os.kill(os.getpid(), number)
        assert interruption.asked
    assert {one: signal.getsignal(one) for one in SIGNALS} == before


def test_an_error_in_the_block_puts_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), Interruption():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("pause_seconds", "code", "said"), [(0.0, 0, "True\nstill here\n"), (1.2, -signal.SIGTERM, "True\n")]
)
def test_a_second_signal_ends_the_program_unless_it_is_an_echo(pause_seconds: float, code: int, said: str) -> None:
    program = (
        "import os, signal, time\nfrom imagenet_pipeline.training.interruption import Interruption\n"
        "with Interruption() as i:\n    os.kill(os.getpid(), signal.SIGTERM)\n    print(i.asked, flush=True)\n"
        f"    time.sleep({pause_seconds})\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here', flush=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (code, said)
