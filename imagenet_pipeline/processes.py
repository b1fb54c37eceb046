"""Processes: this machine's processors and memory, ranks under a launcher, local workers, and signals to stop.

A launcher (torchrun, or `train` itself on several devices) and its processes talk in the words of torch's elastic
launcher: RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE number a process among all machines' and among this
machine's; a process leaves its error in TORCHELASTIC_ERROR_FILE.

Local worker processes never outlive the process that started them.

SIGINT and SIGTERM ask politely: finish the step, save, leave. A second signal leaves at once.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import functools
import gc
import json
import math
import multiprocessing
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path, PurePosixPath
from types import FrameType, TracebackType
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe, PipelineError, error_said

_WORDS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_ROOT = Path("/")
_NO_LIMIT_BYTES = 2**62
"""More than any machine has: the largest whole pages of 63 bits, cgroup v1's word for no limit, lie above it."""


def available_processors(root: Path = _ROOT) -> int:
    """Number of processors this process may use, at least 1: those it may run on, within the quota of its container.

    A quota of one and a half processors is two: with one the half would idle. All of the machine's where the system
    does not say. `root` holds the system's /proc and /sys.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([own, *_processor_quotas(root)])))


def memory_bytes(root: Path = _ROOT) -> int | None:
    """Memory of this machine, or what its container may take of it, in bytes; None where the system does not say."""
    if not hasattr(os, "sysconf"):
        return None
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_memory_quotas(root)])


def available_memory_bytes(root: Path = _ROOT) -> int | None:
    """Memory that this process may still take, in bytes; None where the system does not say.

    Free memory and what the system can give up, such as cached files; within a container, of its own; within a limit
    of the address space (`ulimit -v`), what is left of it.
    """
    free = [
        int(line.split()[1]) << 10
        for line in _text(root / "proc/meminfo").splitlines()
        if line.startswith("MemAvailable:")
    ]
    limits, used, parts = (
        list(_limits(root, "memory", unified, separate))
        for unified, separate in (
            ("memory.max", "memory.limit_in_bytes"),
            ("memory.current", "memory.usage_in_bytes"),
            ("memory.stat", "memory.stat"),
        )
    )
    for limit, taken, stat in zip(limits, used, parts, strict=True):
        if limit.isdecimal() and taken.isdecimal():
            # "total_" is v1's word for a group with those within it.
            cached = [
                int(words[-1]) for words in map(str.split, stat.splitlines()) if words[0].endswith("inactive_file")
            ]
            free.append(max(0, int(limit) - int(taken) + max(cached, default=0)))
    return min([*free, *_address_space_left(root)], default=None)


def quotas(root: Path = _ROOT) -> tuple[float | None, int | None]:
    """Processors, and memory in bytes, that the control groups around this process leave it; None for no limit."""
    processors = min(_processor_quotas(root), default=math.inf)
    memory = min(_memory_quotas(root), default=_NO_LIMIT_BYTES)
    return (None if math.isinf(processors) else processors), (None if memory >= _NO_LIMIT_BYTES else memory)


def _processor_quotas(root: Path) -> list[float]:
    return [_processors(text) for text in _limits(root, "cpu", "cpu.max", "cpu.cfs_quota_us cpu.cfs_period_us")]


def _memory_quotas(root: Path) -> list[int]:
    return [int(text) for text in _limits(root, "memory", "memory.max", "memory.limit_in_bytes") if text.isdecimal()]


def hardware() -> dict[str, Any]:
    """Describe this machine; its GPUs, where an engine uses some, are among the event's `devices`."""
    return {
        "processor": processor_name(),
        "processors": available_processors(),
        "memory_bytes": memory_bytes(),
        "system": platform.platform(),
    }


def processor_name() -> str:
    """The processor's model, as well as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _address_space_left(root: Path) -> list[int]:
    pages = _text(root / "proc/self/statm").split()
    if sys.platform == "win32" or not pages:
        return []
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(pages[0]) * os.sysconf("SC_PAGE_SIZE")
    return [] if limit == resource.RLIM_INFINITY else [max(0, limit - taken)]


def _processors(quota: str) -> float:
    """Processors of a quota, "150000 100000": microseconds of their time in a period of so many; of none, no limit."""
    time_us, _, period_us = quota.partition(" ")
    limited = time_us.isdecimal() and period_us.isdecimal() and int(period_us)
    return int(time_us) / int(period_us) if limited else math.inf


def _limits(root: Path, controller: str, unified: str, separate: str) -> Iterator[str]:
    """The limits that this process's control groups and those around them set on what a controller controls.

    `unified` is the file of cgroup v2, `separate` those of v1, whose words come joined (Linux,
    Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/).
    """
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            # The folder has the name of all, or of this controller alone.
            folders, names = [mounts / controllers, mounts / controller], separate.split()
        elif number == "0" and not controllers:
            folders, names = [mounts, mounts / "unified"], [unified]
        else:
            continue
        # Within a container its own group is often mounted as the root, whatever name it has outside.
        parents = [PurePosixPath(group), *PurePosixPath(group).parents]
        for folder in (folder / str(parent).lstrip("/") for folder in folders for parent in parents):
            yield " ".join(_text(folder / name) for name in names)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _end_with_parent(number: signal.Signals) -> None:
    """Be sent this signal when the parent dies; on Linux, other systems cannot."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


@dataclass(frozen=True)
class RankedProcess:
    """A process as its launcher numbers it: `rank` of all `ranks`, `local_rank` of the `local_ranks` on its machine."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_ranks: int = 1
    launched: bool = False


ALONE = RankedProcess()


def this_process(environment: Mapping[str, str] = os.environ) -> RankedProcess:
    """Read the ranks that a launcher gave this process, or ALONE. Raises BadRecipe where they are not numbers."""
    if not all(environment.get(word) for word in _WORDS):
        return ALONE
    numbers = [environment[word] for word in _WORDS[:4]]
    if not all(number.isdecimal() for number in numbers):
        raise BadRecipe(
            "the launcher's variables must be numbers", where=", ".join(_WORDS[:4]), found=" ".join(numbers)
        )
    rank, ranks, local_rank, local_ranks = map(int, numbers)
    return RankedProcess(rank, ranks, local_rank, local_ranks, launched=True)


def tell_launcher(line: str) -> bool:
    """Leave this process's error to the launcher, which tells the user once for all; False without a launcher."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or this_process().ranks == 1:
        return False
    try:
        files.write_whole(Path(file), json.dumps({"message": line, "timestamp": int(time.time())}))
    except (OSError, PipelineError):
        return False
    return True


def end_with_launcher() -> None:
    """Be asked to save and leave, as by SIGTERM, when the launcher itself is killed (on Linux).

    Signals that our launcher held back from a process that was only starting come now.
    """
    if this_process().launched:
        _end_with_parent(signal.SIGTERM)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Keep Python from looking for garbage meanwhile: a tenth of the time of a framework's import."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def run_apart(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a command line of this program in a process of its own, which ends with this one; what it has answered.

    Raises its own error.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with _started(words, signal.SIGTERM, env=environment, **pipes) as process:
        try:
            answer, said = process.communicate()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise error_said(said, process.returncode)
    return str(answer)


def run_along(words: Sequence[str], captured: bool = False) -> tuple[int, str]:
    """Run a command line of this program in a process of its own, at the same terminal: its exit code and, where it
    is `captured`, what it answered on stdout.

    It ends with this process. A Ctrl-C is passed on to it, and this process waits for what it makes of it. Raises
    KeyboardInterrupt where that is nothing: it came as the other was ending, all done.
    """
    asked = False
    with _started(words, signal.SIGTERM, stdout=subprocess.PIPE if captured else None, text=True) as process:
        while True:
            try:
                answer, _ = process.communicate()
                break
            except KeyboardInterrupt:
                asked = True
                process.send_signal(signal.SIGINT)
    if asked and not process.returncode:
        raise KeyboardInterrupt
    return process.returncode, answer or ""


def started_apart(words: Sequence[str], said: Path) -> subprocess.Popen[Any]:
    """Start a command line of this program in a process of its own, which is killed if this one dies.

    What it says, answer and log lines, goes into the file `said`, behind what is there.
    """
    with said.open("ab") as output:
        return _started(words, signal.SIGKILL, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _started(words: Sequence[str], number: signal.Signals, **options: Any) -> subprocess.Popen[Any]:
    """Start a command line of this program, to be sent this signal when this process dies.

    It is a process group of its own: of a Ctrl-C at the terminal this process alone hears.
    """
    ends = functools.partial(_end_with_parent, number)
    command = [sys.executable, "-m", "imagenet_pipeline", *words]
    return subprocess.Popen(command, process_group=0, preexec_fn=ends, **options)


class _Worker(SpawnProcess):
    """A spawned process that does not run the program's own script again: a worker needs nothing of it."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        script = vars(sys.modules["__main__"])
        hidden: dict[str, Any] = {name: script[name] for name in ("__file__", "__spec__") if name in script}
        script.update(dict.fromkeys(hidden))
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            script.update(hidden)


class _Workers(SpawnContext):
    Process = _Worker


@contextlib.contextmanager
def local_pool(workers: int) -> Iterator[Executor]:
    """Pool of fresh (spawned) processes, which inherit no locks; on an error they are ended at once."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers,
        mp_context=_Workers(),
        initializer=_settle,
        initargs=(os.getpid(),),
    )
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _settle(parent: int) -> None:
    """Keep a worker quiet and let it die with its parent."""
    # libjpeg and others write warnings that name no file; our own errors go home as exceptions.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    if sys.platform == "linux":  # Windows has no SIGKILL
        _end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it died before we could ask
        os._exit(1)


SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_OF_ECHO = 0.2
"""A signal this soon after another is the same signal, sent to a process and to its group."""
SECONDS_OF_LAUNCHERS_ECHO = 1.0
"""And passed on by a launcher besides, which may be busy."""
SECONDS_TO_LEAVE = 1.0
"""Time the main thread has to end by itself, which it cannot from within a long step."""


class Interruption:
    """Signals heard while the block runs: `asked` tells whether somebody wants the program to end.

    They are told at once: the line that `tell` makes of how they asked ("Ctrl-C", "SIGTERM"); none where it is empty.
    A thread hears the signals, since Python calls a handler only once a step of the engine, long as it may be, is over.
    A block in another thread than the main thread, to which Python gives no signals, is never asked.
    """

    def __init__(self, tell: Callable[[str], str]) -> None:
        self.asked = False
        self._tell = tell
        self._insists = False
        self._left = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        self._hears = threading.current_thread() is threading.main_thread()
        if not self._hears:
            return self
        heard, self._sent = socket.socketpair()  # Windows has no pipe that does not block
        self._sent.setblocking(False)
        self._sent_before = signal.set_wakeup_fd(self._sent.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._thread = threading.Thread(target=self._listen, args=(heard,), name="interruption", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._hears:
            return
        self._restore()
        signal.set_wakeup_fd(self._sent_before)
        self._left.set()
        self._sent.close()
        self._thread.join()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._insists:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _listen(self, heard: socket.socket) -> None:
        """Read the numbers of signals as they arrive, a byte each, until the block is left."""
        echo_seconds = SECONDS_OF_LAUNCHERS_ECHO if this_process().launched else SECONDS_OF_ECHO
        first = None
        with heard:
            while number := heard.recv(1):
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
