"""The work of a build shared out: tasks of some images each, in worker processes or on any executor."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, OutOfRoom, WorkerLost
from imagenet_pipeline.processes import available_processors, local_pool

PROGRESS_STEP = 32
PROGRESS_LINE_BYTES = 2

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Task:
    """A part of the work on a split, for a worker anywhere; its files are in `building` until all is done.

    `ticket` is a file there that says to a worker of a cluster that the build which gave it the task still wants it.
    `after` names the tasks that must be finished before it begins.
    """

    key: str
    name: str
    split: str
    building: Path
    ticket: str = field(default="", kw_only=True)
    after: frozenset[str] = field(default=frozenset(), kw_only=True)

    @property
    def images(self) -> int:
        """Number of its images."""
        return 0

    @property
    def first_file(self) -> Path:
        """The file that it reads first."""
        return self.building

    @property
    def marker(self) -> Path:
        """The file whose presence says that the task is finished; it lists rejected images: (number, path, reason)."""
        return self.building / f"{self.name}.json"

    @property
    def notes(self) -> Path:
        """The file that grows by a line for some images each."""
        return self.building / f"{self.name}.progress"

    @property
    def rejected(self) -> int:
        """Number of images it has rejected, once it is finished; none that another task has counted."""
        return len(files.read_json(self.marker)["rejects"])

    def make(self) -> int:
        """Do the work and write the marker; returns the number `rejected`."""
        raise NotImplementedError


AnyTask = TypeVar("AnyTask", bound=Task)


def make(task: Task) -> int:
    """Do a task in whatever process this is."""
    return task.make()


class Cluster(Executor):
    """An executor on several machines, which says itself how many tasks it takes at a time."""

    @abstractmethod
    def working_on(self, tasks: Sequence[Task]) -> AbstractContextManager[Callable[[], int]]:
        """Check the workers that are there; yield how many tasks may run now, which waits while there are no workers.

        What still runs or waits when the block ends is called off. Raises BadRecipe or BadInput for a worker that
        would make other bytes, WorkerLost.
        """

    @abstractmethod
    def result_of(self, future: Future[int], task: Task) -> int:
        """The result of a task that has ended. Raises WorkerLost, and what the task raised."""


@contextlib.contextmanager
def reached(executor: Executor | str | None) -> Iterator[Executor | None]:
    """Yield the executor at an address, "dask://10.0.0.1:8786"; one that is given, or none, as it is.

    Raises BadRecipe for an address that is none, WorkerLost for one that does not answer.
    """
    if not isinstance(executor, str):
        yield executor
        return
    try:
        from imagenet_pipeline.records import dask_cluster
    except ImportError as error:
        advice = "pip install 'imagenet-pipeline[dask]'"
        raise BadRecipe(f"Dask cannot be imported ({error})", where="--executor", advice=advice) from error
    with dask_cluster.connected(executor) as cluster:
        yield cluster


def require_wanted(task: Task) -> None:
    """Raise BadInput in a worker of a cluster that does not see the ticket of its task, or sees it no longer.

    Opened, not looked for: on a network file system opening alone asks the server.
    """
    if task.ticket:
        try:
            files.open_regular(task.building / task.ticket).close()
        except OSError as error:
            raise BadInput(
                "the folder that the build writes is not seen, or the build has ended",
                where=task.building / task.ticket,
                found=error.strerror or str(error),
                advice="every worker must see the folder of the data set under the same path",
            ) from error


def note_progress(task: Task, done: int) -> None:
    """Note, for `run_tasks` in another process, that so many images of a task are done. Raises as `require_wanted`."""
    if done % PROGRESS_STEP == 0 and done:
        require_wanted(task)
        files.append_line(task.notes, ".", durable=False)


def noted_images(task: Task) -> int:
    """About how many images of a task in work are done."""
    try:
        lines = task.notes.stat().st_size // PROGRESS_LINE_BYTES
    except OSError:
        return 0
    return min(lines * PROGRESS_STEP, task.images)


Pool = tuple[Executor | None, Callable[[], int]]
"""An executor, none where there is nothing to do, and how many tasks it takes at a time as things stand."""


@contextlib.contextmanager
def executor_for(workers: int | None, executor: Executor | None, pending: Sequence[Task]) -> Iterator[Pool]:
    """Yield the executor given, or else local processes for the pending tasks, at most so many `workers`."""
    parallel = workers or available_processors()
    if not pending:
        yield None, lambda: parallel
    elif isinstance(executor, Cluster):
        with executor.working_on(pending) as there:
            yield executor, lambda: min(there(), workers or len(pending))
    elif executor is not None:
        yield executor, lambda: parallel
    else:
        with local_pool(min(parallel, len(pending))) as pool:
            yield pool, lambda: parallel + 1  # one lies ready, so that no worker waits for its next


def run_tasks(
    make: Callable[[AnyTask], int],
    tasks: Sequence[AnyTask],
    pending: Sequence[AnyTask],
    pool: Pool,
    max_rejects: int,
    progress: Progress | None,
) -> int:
    """Make the pending ones of `tasks`, at most so many at a time; the sum of what `make` returns, rejected images.

    They begin in order, but for those that wait for others; none any more at too many rejects.
    Raises WorkerLost, OutOfRoom, and what `make` raises.
    """
    total = sum(task.images for task in tasks)
    done = total - sum(task.images for task in pending)
    waiting = deque(pending)
    unfinished = {task.name for task in pending}
    running: dict[Future[int], AnyTask] = {}
    rejected = 0
    executor, parallel = pool
    while executor is not None and (waiting or running):
        free = parallel() - len(running)
        while free > 0 and (task := _take_ready(waiting, unfinished)) is not None:
            running[executor.submit(make, task)] = task
            free -= 1
        for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
            rejected += _result(future, running, executor)
            task = running.pop(future)
            unfinished.discard(task.name)
            done += task.images
        if rejected > max_rejects:
            waiting.clear()
        if progress is not None:
            progress(done + sum(map(noted_images, running.values())), total)
    return rejected


def _take_ready(waiting: deque[AnyTask], unfinished: Set[str]) -> AnyTask | None:
    """Take the first task that waits for none of the unfinished; None where there is none."""
    for place, task in enumerate(waiting):
        if unfinished.isdisjoint(task.after):
            del waiting[place]
            return task
    return None


def _result(future: Future[int], running: dict[Future[int], Any], executor: Executor) -> int:
    try:
        return executor.result_of(future, running[future]) if isinstance(executor, Cluster) else future.result()
    except BrokenExecutor as error:
        names = ", ".join(sorted(task.name for task in running.values()))
        raise WorkerLost(
            "a worker process died",
            where=f"shards in work: {names}",
            advice="run the same build again, with fewer workers if memory ran out; what is finished is kept",
        ) from error
    except MemoryError as error:
        raise OutOfRoom("out of memory", where=running[future].name, advice="use fewer workers") from error
