"""The work of a build shared out: tasks of some images each, in worker processes or on any executor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from imagenet_pipeline import files
from imagenet_pipeline.errors import OutOfRoom, WorkerLost
from imagenet_pipeline.processes import available_processors, local_pool

PROGRESS_STEP = 32
PROGRESS_LINE_BYTES = 2

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Task:
    """A part of the work on a split, for a worker anywhere; its files are in `building` until all is done."""

    key: str
    name: str
    split: str
    building: Path

    @property
    def images(self) -> int:
        """Number of its images."""
        return 0

    @property
    def marker(self) -> Path:
        """The file whose presence says that the task is finished; it lists rejected images: (number, path, reason)."""
        return self.building / f"{self.name}.json"

    @property
    def notes(self) -> Path:
        """The file that grows by a line for some images each."""
        return self.building / f"{self.name}.progress"


AnyTask = TypeVar("AnyTask", bound=Task)


def note_progress(task: Task, done: int) -> None:
    """Note, for `run_tasks` in another process, that so many images of a task are done."""
    if done % PROGRESS_STEP == 0 and done:
        files.append_line(task.notes, ".", durable=False)


def noted_images(task: Task) -> int:
    """About how many images of a task in work are done."""
    try:
        lines = task.notes.stat().st_size // PROGRESS_LINE_BYTES
    except OSError:
        return 0
    return min(lines * PROGRESS_STEP, task.images)


@contextlib.contextmanager
def executor_for(workers: int | None, executor: Executor | None, pending: int) -> Iterator[tuple[Executor | None, int]]:
    """Yield the executor given, or else local processes for so many pending tasks, and how many may run at a time."""
    parallel = workers or available_processors()
    if executor is not None or not pending:
        yield executor, parallel
    else:
        with local_pool(min(parallel, pending)) as pool:
            yield pool, parallel


def run_tasks(
    make: Callable[[AnyTask], int],
    tasks: Sequence[AnyTask],
    pending: Sequence[AnyTask],
    pool: tuple[Executor | None, int],
    max_rejects: int,
    progress: Progress | None,
) -> int:
    """Make the pending ones of `tasks`, at most so many at a time; the sum of what `make` returns, rejected images.

    Starts no new ones at too many rejects. Raises WorkerLost, OutOfRoom, and what `make` raises.
    """
    total = sum(task.images for task in tasks)
    done = total - sum(task.images for task in pending)
    waiting = iter(pending)
    running: dict[Future[int], AnyTask] = {}
    rejected = 0
    executor, parallel = pool
    while executor is not None:
        while len(running) < parallel and rejected <= max_rejects and (task := next(waiting, None)):
            running[executor.submit(make, task)] = task
        if not running:
            break
        for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
            rejected += _result(future, running)
            done += running.pop(future).images
        if progress is not None:
            progress(done + sum(map(noted_images, running.values())), total)
    return rejected


def _result(future: Future[int], running: dict[Future[int], AnyTask]) -> int:
    try:
        return future.result()
    except BrokenExecutor as error:
        names = ", ".join(sorted(task.name for task in running.values()))
        raise WorkerLost(
            "a worker process died",
            where=f"shards in work: {names}",
            advice="run the same build again, with fewer workers if memory ran out; finished shards are kept",
        ) from error
    except MemoryError as error:
        raise OutOfRoom("out of memory", where=running[future].name, advice="use fewer workers") from error
