"""One process a device on this machine, started and watched through the elastic launcher's own process layer.

Nothing is restarted: what a run needs to go on is in its checkpoints. Several machines start through `torchrun`,
which sets the same environment (`processes.this_process`).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch.distributed.elastic import multiprocessing as elastic

from imagenet_pipeline.engines.pytorch.runtime import listed_devices, torch
from imagenet_pipeline.errors import Negative, WorkerLost, error_of
from imagenet_pipeline.processes import SIGNALS

SECONDS_TO_LEAVE = 5.0
"""Time the other ranks have once a rank has failed; those that wait for it on a GPU would not leave by themselves."""
_SECONDS_BETWEEN_LOOKS = 0.05
_PASSED_ON = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")]


def launch(devices: str, words: Sequence[str]) -> None:
    """Run the command line `words` in a process for each listed device, and wait for them.

    All have this process's output, and rank 0 alone uses it. Signals are passed on, and ask every rank to save and
    leave. Raises BadRecipe for a device that is not there, before anything starts; later a rank's own error, once
    for all, with its exit code; WorkerLost naming a rank that was killed.
    """
    kind, numbers = listed_devices(devices)
    names, asked = [f"{kind}:{number}" for number in numbers], set[int]()
    with tempfile.TemporaryDirectory(prefix="imagenet_pipeline_") as folder:
        # The ranks meet at a store of this process, so that no port has to be free twice.
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        with _started(names, words, store.port, folder, asked) as context:
            failed = _wait(context.pids())
            context.wait(0)
        if not failed:
            return
        error = _error(failed, context, names, words)
    for number in asked:
        if {-number, 128 + number} & set(failed.values()):
            os.kill(os.getpid(), number)  # end as the ranks did, who were not yet where they could save
    raise error


@contextmanager
def _started(names: Sequence[str], words: Sequence[str], port: int, folder: str, asked: set[int]) -> Iterator[Any]:
    """The processes, at whose end none is left; signals passed on to them are added to `asked`."""
    # Python gives signals, and their handlers, to the main thread alone.
    heard = _PASSED_ON if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.getsignal(number) for number in heard}
    pids: dict[int, int] = {}

    def pass_on(number: int, frame: object) -> None:
        asked.add(number)
        for pid in pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def hear() -> None:
        for number in heard:
            signal.signal(number, pass_on)

    try:
        hear()
        context = _start(names, words, port, folder)
        pids.update(context.pids())
        hear()  # older releases of PyTorch have put handlers of their own in their place
        for number in [*asked]:
            pass_on(number, None)
        try:
            yield context
        finally:
            context.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(names: Sequence[str], words: Sequence[str], port: int, folder: str) -> Any:
    """Start the processes, from which signals are held back until they can answer (`processes.end_with_launcher`)."""
    ranks = range(len(names))
    # It would speak of signals and exit codes a second time.
    logging.getLogger(elastic.api.__name__).disabled = True
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a process has the mask of the thread that starts it
    try:
        return elastic.start_processes(
            name="imagenet-pipeline",
            entrypoint=sys.executable,
            args=dict.fromkeys(ranks, ("-m", "imagenet_pipeline", *words)),
            envs={rank: _environment(rank, len(names), port) for rank in ranks},
            logs_specs=elastic.DefaultLogsSpecs(folder),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        del os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"]


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _wait(pids: Mapping[int, int]) -> dict[int, int]:
    """Wait until all ranks have ended; the exit codes of those that failed of themselves (-9: killed by signal 9).

    After the first failure the others have SECONDS_TO_LEAVE before they are killed.
    """
    codes: dict[int, int] = {}
    last_moment = float("inf")
    while len(codes) < len(pids) and time.monotonic() < last_moment:
        for rank in pids.keys() - codes.keys():
            code = _exit_code(pids[rank])
            if code is not None:
                codes[rank] = code
        if any(codes.values()) and last_moment == float("inf"):
            last_moment = time.monotonic() + SECONDS_TO_LEAVE
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    for rank in pids.keys() - codes.keys():
        os.kill(pids[rank], signal.SIGKILL)
    return {rank: code for rank, code in codes.items() if code}


def _exit_code(pid: int) -> int | None:
    """None while it runs; it is left for its owner to collect."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _error(failed: Mapping[int, int], context: Any, names: Sequence[str], words: Sequence[str]) -> Exception:
    """The error of the rank that failed, rather than of a rank that only lost it."""
    rank = min(failed, key=lambda rank: failed[rank] == WorkerLost.exit_code)
    code, pid = failed[rank], context.pids()[rank]
    line = _own_line(Path(context.error_files[rank]))
    if line == "":
        return Negative()
    if line is not None:
        return error_of(line, code)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return WorkerLost(
        f"rank {rank} of {len(names)} ({names[rank]}, process {pid}) {how}",
        advice="train --resume latest goes on from the last checkpoint" if "train" in words else "start it again",
    )


def _own_line(file: Path) -> str | None:
    """Message the rank left for us (`processes.tell_launcher`); empty where its answer was no."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
