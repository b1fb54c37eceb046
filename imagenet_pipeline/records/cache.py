"""The shards of a data set in object storage: fetched ahead into a bounded cache that a machine's processes share.

Beside the small files of the data set (`records/stored.py`) the cache's folder holds

    NAME.rec                     a shard, whole and once verified
    NAME.rec.part                one that is being fetched, or that a killed process left; fetching goes on with it
    locks/NAME                   held, by the kernel, while its shard is fetched

A shard counts against the bound from the moment its part begins. Whoever needs room takes away the shards that were
used longest ago and that nobody has open: readers hold a shared lock on the file itself. Where all have them open, a
read that has waited takes its shard beyond the bound: ranks that wait for each other must not wait for ever.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe, Damaged, OutOfRoom, counted
from imagenet_pipeline.processes import this_process
from imagenet_pipeline.records.manifest import PUT_AGAIN, Shard
from imagenet_pipeline.records.reader import CachedFiles, Numbers, RecordFiles
from imagenet_pipeline.storage import Storage

LOCKS = "locks"
FETCHED_TOGETHER = 4
"""Shards of a pass that are fetched side by side, room permitting."""
POLL_SECONDS = 0.05
SECONDS_WITHOUT_ROOM = 5.0
"""After which a read no longer waits for others to let go of shards."""
SECONDS_BEFORE_SAYING, SECONDS_BETWEEN_SAYING = 5.0, 60.0
"""Waiting for a shard is said after so long, and then now and then."""

log = logging.getLogger("imagenet_pipeline")


class ShardCache:
    """Whole shards of a data set in `folder`, at most `limit_bytes` of them, None for all."""

    def __init__(self, storage: Storage, folder: Path, shards: Sequence[Shard], limit_bytes: int | None) -> None:
        self.storage = storage
        self.folder = folder
        self._shards = list(shards)
        self._limit_bytes = limit_bytes

    def files(self, shards: Sequence[Shard]) -> CachedFiles:
        """Files of a split. Raises BadRecipe where the cache cannot hold the largest."""
        if self._limit_bytes is not None:
            self._require_limit(max((shard.bytes for shard in shards), default=0), "the largest shard")
        return _ShardFiles(self, shards)

    def window_shards(self, shards: Sequence[Shard], wanted: int | Literal["auto"]) -> int:
        """Settle how many of the shards are shuffled together, 0 for all of them.

        "auto" is all where the cache has room for them, else half of those it holds, so that the next come while
        these are read. Raises BadRecipe where `wanted` are more than it holds, OutOfRoom where its disk cannot.
        """
        sizes = sorted((shard.bytes for shard in shards), reverse=True)
        limit_bytes = self._limit_bytes
        if wanted == "auto" and limit_bytes is not None and sum(sizes) > limit_bytes:
            self._require_limit(sizes[0], "the largest shard")
            wanted = max(1, limit_bytes // sizes[0] // 2)
        wanted = 0 if wanted == "auto" or wanted >= len(sizes) else wanted
        if limit_bytes is not None:
            number = wanted or len(sizes)
            what = f"the {counted(number, 'shard')} that are shuffled together" if number > 1 else "the largest shard"
            self._require_limit(sum(sizes[:number]), what)
        self._require_free_space()
        return wanted

    def _require_limit(self, needed_bytes: int, what: str) -> None:
        if self._limit_bytes is not None and needed_bytes > self._limit_bytes:
            raise BadRecipe(
                f"the cache is too small for {what}",
                where="loader.cache_gb",
                expected=f"at least {gb_above(needed_bytes):g} GB",
                found=f"{self._limit_bytes / 1e9:.3g} GB",
            )

    def _require_free_space(self) -> None:
        """Raise OutOfRoom where the disk has less room than the cache is to take."""
        there = sum(shard.bytes for shard in self._shards if (self.folder / shard.file).is_file())
        whole = sum(shard.bytes for shard in self._shards)
        try:
            files.check_free_space(self.folder, min(whole, self._limit_bytes or whole) - there)
        except OutOfRoom as error:
            advice = "loader.cache_gb bounds the cache (images are then shuffled in windows), loader.cache moves it"
            raise error.replaced(advice=advice) from error

    def lock(self, name: str, stopped: Callable[[], bool] = lambda: False) -> contextlib.AbstractContextManager[Any]:
        """Hold a lock of this name among the processes and threads of the machine; waits for it.

        Raises Ended once `stopped` says so.
        """
        path = self.folder / LOCKS / name
        while True:
            if stopped():
                raise Ended
            try:
                return files.claim(path, self.folder, "fetching")
            except files.Held:
                time.sleep(POLL_SECONDS)

    def open(
        self,
        shard: Shard,
        stopped: Callable[[], bool] = lambda: False,
        admitted: Callable[[], None] = lambda: None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> int:
        """Descriptor of a shard, which is fetched where it is missing and stays in the cache until this is closed.

        `admitted` is called once there is room for it; `is_wanted` tells whether a read waits for it already. Raises
        Ended once `stopped` says so while it waits, and what `Storage.download` raises.
        """
        descriptor = self._opened(shard)
        while descriptor is None:
            with self.lock(shard.file, stopped):  # nobody takes it away before it is open
                descriptor = self._opened(shard)
                if descriptor is None:
                    self._make_room(shard, stopped, is_wanted)
                    admitted()
                    self._download(shard)
                    descriptor = self._opened(shard)
        return descriptor

    @contextlib.contextmanager
    def visited(self, shard: Shard) -> Iterator[None]:
        """While the block runs, a shard is in the cache; then it goes, unless it was there before. Raises as `open`."""
        was_there = (self.folder / shard.file).is_file()
        descriptor = self.open(shard)
        try:
            yield
        finally:
            os.close(descriptor)
            if not was_there:
                files.remove_unheld(self.folder / shard.file)

    def _opened(self, shard: Shard) -> int | None:
        path = self.folder / shard.file
        try:
            descriptor = os.open(path, files.READING)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Damaged(f"cannot be read ({error.strerror})", where=path) from error
        found = os.fstat(descriptor)
        if files.hold(descriptor) and os.fstat(descriptor).st_nlink:
            if found.st_size == shard.bytes:
                with contextlib.suppress(OSError):  # of somebody else, or on a disk that is read alone
                    os.utime(descriptor)
                return descriptor
            log.warning("%s: cut, and fetched again", path)
            with files.explaining(path):
                path.unlink(missing_ok=True)
        os.close(descriptor)
        return None

    def _download(self, shard: Shard) -> None:
        try:
            self.storage.download(shard.file, self.folder / shard.file, shard.bytes, shard.sha256)
        except Damaged as error:
            raise error.replaced(advice=PUT_AGAIN) from error

    def _make_room(self, shard: Shard, stopped: Callable[[], bool], is_wanted: Callable[[], bool]) -> None:
        """Begin the part of a shard, once the bound has room for all of it. The caller holds the shard's lock."""
        part = self.folder / f"{shard.file}.part"
        waits_until: float | None = None
        while True:
            with self.lock("room", stopped):
                has_room = self._limit_bytes is None or self._frees(self._limit_bytes - shard.bytes, shard)
                exceeds = not has_room and waits_until is not None and time.monotonic() > waits_until
                if has_room or exceeds:
                    with files.explaining(part):
                        part.open("ab").close()
            if exceeds:
                log.warning(
                    "%s: all shards of the cache are being read; %s is fetched beyond its bound; "
                    "give more loader.cache_gb, or each run a loader.cache of its own",
                    self.folder, shard.file,
                )  # fmt: skip
            if has_room or exceeds:
                return
            if waits_until is None and is_wanted():
                waits_until = time.monotonic() + SECONDS_WITHOUT_ROOM
            time.sleep(POLL_SECONDS)

    def _frees(self, limit_bytes: int, wanted: Shard) -> bool:
        """Take shards away, the longest unused first, until what is left beside `wanted` is within the limit."""
        there: list[tuple[float, Shard]] = []
        for shard in self._shards:
            # The part first: it may become the shard between the two looks, and none begins while we hold the lock.
            for path in (self.folder / f"{shard.file}.part", self.folder / shard.file):
                with contextlib.suppress(FileNotFoundError):
                    if shard.file != wanted.file:
                        there.append((path.stat().st_mtime, shard))
                        break
        taken = sum(shard.bytes for _, shard in there)
        for _, shard in sorted(there, key=lambda entry: entry[0]):
            if taken <= limit_bytes:
                break
            taken -= shard.bytes if self._taken_away(shard) else 0
        return taken <= limit_bytes

    def _taken_away(self, shard: Shard) -> bool:
        """Remove a shard and its part, unless it is being read or fetched."""
        with contextlib.suppress(files.Held), files.claim(self.folder / LOCKS / shard.file, self.folder, "fetching"):
            # What was a part when it was looked for may have become the shard since.
            return all(files.remove_unheld(self.folder / name) for name in (f"{shard.file}.part", shard.file))
        return False


class Ended(Exception):
    """The pass that wanted a shard is over."""


class _ShardFiles(CachedFiles):
    """The shards of a split, each opened for a single read and closed again: for looking at records here and there."""

    def __init__(self, cache: ShardCache, shards: Sequence[Shard]) -> None:
        self._cache, self._shards = cache, shards

    def read(self, file: int, size_bytes: int, offset: int) -> bytes:
        descriptor = self._cache.open(self._shards[file])
        try:
            return files.read_at(descriptor, size_bytes, offset)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        pass

    @contextlib.contextmanager
    def ahead(self, order: Numbers) -> Iterator[RecordFiles]:
        numbers, first = np.unique(order, return_index=True)
        reads = dict(zip(numbers.tolist(), np.bincount(order)[numbers].tolist() if len(order) else [], strict=True))
        passing = _Pass(self._cache, self._shards, numbers[np.argsort(first)].tolist(), reads)
        try:
            yield passing
        finally:
            passing.end()


class _Pass(RecordFiles):
    """The files of a pass: fetched in the order of their first use, kept open until they were read `reads` times."""

    def __init__(self, cache: ShardCache, shards: Sequence[Shard], order: list[int], reads: dict[int, int]) -> None:
        self._cache, self._shards = cache, shards
        self._upcoming = iter(order)
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._to_come, self._reading = reads, dict.fromkeys(reads, 0)
        """Reads of each file that have not begun, and that have not ended."""
        self._fetching: set[int] = set()
        self._awaited: set[int] = set()
        self._descriptors: dict[int, int] = {}
        self._error: Exception | None = None
        self._ended = False
        self._said_at = -SECONDS_BETWEEN_SAYING
        count = min(FETCHED_TOGETHER, len(order))
        # They may hang in a network for a while, which is no reason for the program to stay.
        self._threads = [threading.Thread(target=self._fetch, name=f"fetching-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def read(self, file: int, size_bytes: int, offset: int) -> bytes:
        with self._changed:
            is_counted = self._to_come.get(file, 0) > 0
            if is_counted:
                self._to_come[file] -= 1
                self._reading[file] += 1
        if not is_counted:
            return _ShardFiles(self._cache, self._shards).read(file, size_bytes, offset)
        try:
            return files.read_at(self._descriptor(file), size_bytes, offset)
        finally:
            with self._changed:
                self._reading[file] -= 1
                self._let_go(file)

    def close(self) -> None:
        self.end()

    def end(self) -> None:
        """Let go of all shards; reads that wait for one raise Ended."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            for file in list(self._descriptors):
                self._let_go(file)
        for thread in self._threads:
            thread.join(timeout=1)

    def _fetch(self) -> None:
        """Fetch the next shard and the next; they get room in their order, and then come side by side."""
        while True:
            with ExitStack() as turn:
                turn.enter_context(self._turn)
                with self._changed:
                    file = next(self._upcoming, None)
                    if file is None or self._ended or self._error:
                        return
                    self._fetching.add(file)
                error = descriptor = None
                try:
                    wanted = partial(self._awaited.__contains__, file)
                    descriptor = self._cache.open(self._shards[file], lambda: self._ended, turn.close, wanted)
                except Exception as caught:  # raised where a record of the shard is read
                    error = caught
            with self._changed:
                self._fetching.remove(file)
                self._error = self._error or error
                if descriptor is not None:
                    self._descriptors[file] = descriptor
                    self._let_go(file)
                self._changed.notify_all()

    def _descriptor(self, file: int) -> int:
        """The open shard, once it is there. Raises the error of fetching it, or Ended."""
        began = time.monotonic()

        def is_settled() -> bool:
            failed = self._error is not None and file not in self._fetching
            return file in self._descriptors or failed or self._ended

        with self._changed:
            self._awaited.add(file)
            while not self._changed.wait_for(is_settled, SECONDS_BEFORE_SAYING):
                self._say(file, time.monotonic() - began)
            if file not in self._descriptors:
                raise self._error or Ended
            return self._descriptors[file]

    def _let_go(self, file: int) -> None:
        """Close a shard that nobody will read again."""
        if file in self._descriptors and not self._reading[file] and (self._ended or not self._to_come[file]):
            os.close(self._descriptors.pop(file))

    def _say(self, file: int, waited_seconds: float) -> None:
        now = time.monotonic()
        if this_process().local_rank or now - self._said_at < SECONDS_BETWEEN_SAYING:
            return
        self._said_at = now
        shard = self._shards[file]
        part = self._cache.folder / f"{shard.file}.part"
        done_bytes = part.stat().st_size if part.exists() else 0
        log.info(
            "data wait: %s of %s is waited for, %s are here after %.0f s",
            shard.file, self._cache.storage, _mb(done_bytes, shard.bytes), waited_seconds,
        )  # fmt: skip


def gb_above(size_bytes: int) -> float:
    """GB, three digits of them, that are enough for so many bytes."""
    unit = int(10 ** max(0, len(str(size_bytes)) - 3))
    return -(-size_bytes // unit) * unit / 1e9


def _mb(done_bytes: int, whole_bytes: int) -> str:
    """Both in MB, with decimals where the whole is but a few."""
    decimals = 0 if whole_bytes >= 1e7 else 3
    return f"{done_bytes / 1e6:,.{decimals}f} MB of {whole_bytes / 1e6:,.{decimals}f} MB"
