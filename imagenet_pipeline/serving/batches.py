"""Photos of many requests, scored together: threads decode them, a few ahead, and one thread computes.

A batch is all that is decoded when that thread is free. It waits for more only while more are being decoded, and no
longer than LINGER_SECONDS, so that a photo that comes alone is answered as if there were no batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.evaluation.predict import Probabilities
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.processes import available_processors
from imagenet_pipeline.serving.uploads import Refused

PHOTOS_WAITING = 224
"""Photos that may wait, as bytes or decoded; fewer than the connections, so that others are told so."""
LINGER_SECONDS = 0.005
BATCHES_AHEAD = 2
"""Batches of decoded photos that are ready beside the one being computed."""
DECODERS_AT_MOST = 8
"""Threads that decode: a photo of the largest size allowed takes 300 MB."""

Row = npt.NDArray[np.float64]
"""Probabilities of a photo, [classes]."""
Outcome = Row | Exception
Note = TypeVar("Note")


@dataclass(frozen=True)
class _Decoded:
    view: Pixels
    outcome: asyncio.Future[Outcome]


class Batches:
    """`score` gives the probabilities of up to `together` views [n, crops, height, width, channels].

    `engine` is the only thread that it is called in.
    """

    def __init__(self, score: Callable[[Pixels], Probabilities], together: int, engine: Executor) -> None:
        self.waiting = self.answered = 0
        self._score, self._engine = score, engine
        self._together = together
        decoders = min(available_processors(), DECODERS_AT_MOST)
        self._decoders, self._free = ThreadPoolExecutor(decoders, "decode"), asyncio.Semaphore(decoders)
        self._decoding = 0
        self._decoded: asyncio.Queue[_Decoded] = asyncio.Queue(BATCHES_AHEAD * self._together)

    def reserve(self, photos: int) -> list[asyncio.Future[Outcome]]:
        """Take in all photos of a request, and give what will be their outcomes: each is to be begun.

        Raises Refused where too many would wait: then none of them does.
        """
        if self.waiting + photos > PHOTOS_WAITING:
            raise Refused(503, "Too many photos at once; try again in a moment.")
        outcomes: list[asyncio.Future[Outcome]] = [asyncio.get_running_loop().create_future() for _ in range(photos)]
        for outcome in outcomes:
            outcome.add_done_callback(self._count_answered)
        self.waiting += photos
        return outcomes

    async def begin(self, decode: Callable[[], tuple[Pixels, Note]], outcome: asyncio.Future[Outcome]) -> Note:
        """Decode a photo in a thread to its view and a note, and give the note once the view waits among the decoded.

        Raises as `decode`; the outcome is cancelled then.
        """
        self._decoding += 1
        try:
            async with self._free:
                view, note = await asyncio.get_running_loop().run_in_executor(self._decoders, decode)
                await self._decoded.put(_Decoded(view, outcome))
        except BaseException:
            outcome.cancel()
            raise
        finally:
            self._decoding -= 1
        return note

    async def run(self) -> None:
        """Compute batches until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                batch = await self._gather()
                outcomes = await loop.run_in_executor(self._engine, self._scored, [photo.view for photo in batch])
                for photo, outcome in zip(batch, outcomes, strict=True):
                    if not photo.outcome.done():  # its request was given up
                        photo.outcome.set_result(outcome)
        finally:
            self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _gather(self) -> list[_Decoded]:
        batch = [await self._decoded.get()]
        end = asyncio.get_running_loop().time() + LINGER_SECONDS
        while len(batch) < self._together and (self._decoding or not self._decoded.empty()):
            try:
                async with asyncio.timeout_at(end):
                    batch.append(await self._decoded.get())
            except TimeoutError:
                break
        return batch

    def _scored(self, views: Sequence[Pixels]) -> list[Outcome]:
        """The outcome of each photo. Where all together fail each is scored alone, so that none fails for another.

        Whatever an engine raises is an outcome: an error of a photo is no end of the service.
        """
        try:
            return list(self._score(np.stack(views)))
        except Exception as error:
            if len(views) == 1:
                return [error]
            return [outcome for view in views for outcome in self._scored([view])]

    def _count_answered(self, outcome: asyncio.Future[Outcome]) -> None:
        self.waiting -= 1
        self.answered += not outcome.cancelled()
