"""The first signal is noted, the second is obeyed at once."""

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
    assert {one: signal.getsignal(one) for one in SIGNALS} == before


def test_an_error_in_the_block_puts_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), Interruption():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_ends_the_program() -> None:
    program = (
        "import os, signal\nfrom imagenet_pipeline.training.interruption import Interruption\n"
        "with Interruption() as i:\n    os.kill(os.getpid(), signal.SIGTERM)\n    print(i.asked, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('still here', flush=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (-signal.SIGTERM, "True\n")
