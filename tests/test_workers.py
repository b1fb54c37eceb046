"""Local workers: results come back, an error ends them at once."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.processes import local_pool


def test_work_is_done_in_other_processes() -> None:
    with local_pool(2) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
    assert not multiprocessing.active_children()


def work_and_fail() -> None:
    with local_pool(1) as pool:
        pool.submit(os.getpid).result()
        pool.submit(time.sleep, 60)
        raise BadInput("stop")


def test_an_error_ends_the_workers_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(BadInput):
        work_and_fail()
    assert time.monotonic() - start < 20
    assert not multiprocessing.active_children()


def test_the_chatter_of_libraries_reaches_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with local_pool(1) as pool:
        pool.submit(os.write, 2, b"Corrupt JPEG data: 3 extraneous bytes").result()
    assert capfd.readouterr().err == ""
