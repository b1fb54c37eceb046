"""A run behind the page, from its opening to its end: while it warms up and once it drains it takes no photos.

It is opened in the thread that computes, and the server answers meanwhile, so that a page or an orchestrator sees how
far it is. At the end what was taken is answered first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from imagenet_pipeline.errors import counted
from imagenet_pipeline.serving.answers import Answers
from imagenet_pipeline.serving.batches import Batches
from imagenet_pipeline.serving.uploads import Refused

Status = Literal["warming", "ready", "draining"]
log = logging.getLogger("imagenet_pipeline")


class Service:
    """`open_run` opens what is called `name`; `warm` is told once it answers, with the seconds that took.

    Everything but the opening happens in the event loop; an engine is always used from the same thread.
    """

    def __init__(
        self, name: str, open_run: Callable[[], Answers], warm: Callable[[Answers, float], None] | None = None
    ) -> None:
        self.name = name
        self.failure: Exception | None = None
        self.stop: Callable[[], None] = lambda: None
        self._open_run, self._tell_warm = open_run, warm
        self._engine = ThreadPoolExecutor(1, "engine")
        self._ready: tuple[Answers, Batches] | None = None
        self._draining = False
        self._in_work = 0

    @property
    def status(self) -> Status:
        """Whether it takes photos: "ready"."""
        return "draining" if self._draining else "ready" if self._ready else "warming"

    @property
    def answers(self) -> Answers | None:
        """The run that answers; None while it is being opened."""
        return self._ready and self._ready[0]

    @contextlib.contextmanager
    def work(self) -> Iterator[tuple[Answers, Batches]]:
        """Take a request; the end waits for it. Raises Refused while warming up or draining."""
        if self._draining or self._ready is None:
            reason = "ending" if self._draining else "still warming up"
            raise Refused(503, f"{self.name} is {reason}; try again in a moment.")
        self._in_work += 1
        try:
            yield self._ready
        finally:
            self._in_work -= 1

    async def alone(self, answer: Callable[[bytes], dict[str, Any]], data: bytes) -> dict[str, Any]:
        """Call `answer` in the engine's thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._engine, answer, data)

    def health(self) -> dict[str, Any]:
        """The status, and of a run that is open what it is, how many photos wait and how many were answered."""
        said: dict[str, Any] = {"status": self.status, "model": {"name": self.name}}
        if self._ready:
            answers, batches = self._ready
            said |= {"model": answers.about, "waiting": batches.waiting, "answered": batches.answered}
        return said

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the run and compute, until the block ends."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            self._engine.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        began = time.monotonic()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._engine, self._open)
            batches = Batches(answers.score, answers.together, self._engine)
            if self._tell_warm:
                self._tell_warm(answers, time.monotonic() - began)
            self._ready = answers, batches
            await batches.run()
        except Exception as error:
            self.failure = error
            self.stop()

    def _open(self) -> Answers:
        answers = self._open_run()
        answers.warm_up()
        return answers

    async def drain(self, hurried: Callable[[], bool]) -> None:
        """Take nothing more, and wait until what was taken is answered, nothing computes any more, or it is `hurried`.

        Photos arrive and are computed in bounded time; who wants less kills, as orchestrators do.
        """
        self._draining = True
        if self._in_work:
            log.info("ending after %s", counted(self._in_work, "request"))
        while self._in_work and not (self.failure or hurried()):
            await asyncio.sleep(0.02)
