"""The batch that `batch_size = "auto"` stands for: the largest that fits, found by steps on blank images.

The steps are done in a process of their own, which nothing else of the run has to share its memory with and which takes
all of it along. After a batch that did not fit there is another process: frameworks are not sure to go on then.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from imagenet_pipeline.config import Recipe, pair, require_room_for_repeats
from imagenet_pipeline.engines import Engine, Targets, gpus_seen, in_cluster
from imagenet_pipeline.errors import OutOfRoom, WorkerLost, counted
from imagenet_pipeline.processes import RankedProcess, available_memory_bytes, local_pool, this_process
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.data import records_of
from imagenet_pipeline.training.engine_setup import new_engine
from imagenet_pipeline.training.schedule import highest_rate

log = logging.getLogger("imagenet_pipeline")

FINENESS = 8
"""The largest that fits is found to within an eighth."""
MARGIN = 16
"""A batch fits where one larger by a sixteenth does: a run has more beside it, such as copies of gradients."""
SHARE_OF_MEMORY = 0.8
"""Share, of the machine's memory that is free, for all of its processes together."""
SECONDS_A_TRIAL = 5.0
"""On a CPU, batches larger than one that took so long are extrapolated, and the one that is found is tried."""
GROWTH_BYTES = 2**26
"""Least growth of the memory from batch to batch that is taken for theirs alone."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Found:
    """Images a step of all processes together, on each device at a time, and what kept them from being more."""

    images: int
    images_a_device: int
    limit: str

    def entry(self) -> dict[str, Any]:
        """Entry of the journal about the search."""
        return {"batch_size_found": asdict(self)}

    def settle(self, recipe: Recipe) -> Recipe:
        """The recipe with this batch, which is told together with what becomes of the learning rate.

        Raises BadRecipe where `loader.repeats` asks for more copies than half of it.
        """
        settled = recipe.model_copy(update={"batch_size": self.images})
        given, reference = recipe.optimizer.learning_rate, recipe.optimizer.reference_batch_size
        rate = f"the learning rate stays {given:g}, optimizer.reference_batch_size=N would scale it from a batch of N"
        if reference:
            rate = f"the learning rate, {given:g} for a batch of {reference}, becomes {highest_rate(settled):g}"
        each = counted(self.images_a_device, "image")
        log.info(
            "batch_size = %d: %s at a time on a device, limited by the %s; %s", self.images, each, self.limit, rate
        )
        require_room_for_repeats(recipe.loader.repeats, self.images)
        if self.limit == "records":
            ten = max(1, self.images // 10)
            log.warning(
                "warning: all training images fit, so that an epoch is a single step, and few steps teach little; "
                "batch_size=auto is for more images than memory holds: batch_size=%d makes ten steps of it", ten,
            )  # fmt: skip
        return settled


def find_batch_size(recipe: Recipe, data: DataSet) -> Found:
    """Find the largest batch that fits on this process's devices, as if those of all others had the same.

    At most as many images as there are to train on. Raises OutOfRoom where not even the smallest batch fits.
    """
    here = this_process()
    ranks = int(os.environ.get("DMLC_NUM_WORKER", 1)) if in_cluster() else here.ranks
    own = recipe.model_copy(update={"devices": own_device(recipe.devices, here)})
    log.info("batch_size = auto: looking for the largest batch that fits")
    with _Trials(own, here.local_ranks) as trials:
        devices = trials.devices()
        unit = math.lcm(2 if recipe.augmentation.mixes else 1, recipe.accumulation * devices)
        most = max(1, data.counts.get("train", 0) // (unit * ranks))
        units = largest(lambda units: trials.fits(unit * (units + units // MARGIN)), most)
        while units and not trials.holds(unit * (units + units // MARGIN)):
            units -= max(1, units // FINENESS)
    if not units:
        what = f"not even a batch of {counted(unit, 'image')} fits"
        raise OutOfRoom(what, where="batch_size = 'auto'", advice="lower input.size or take a smaller network")
    held = unit * units // (recipe.accumulation * devices)
    return Found(unit * units * ranks, held, "records" if units == most else "memory")


def agreed(engine: Engine, found: Found) -> Found:
    """The smallest batch that any rank has found. Collective."""
    table = np.zeros((engine.ranks, 2))
    table[engine.rank] = found.images, found.images_a_device
    images, each = engine.sum_over_ranks(table.ravel()).reshape(table.shape).min(axis=0)
    limit = found.limit if images == found.images else "memory"
    return Found(int(images), int(each), limit)


def own_device(devices: str, here: RankedProcess) -> str:
    """The `devices` of this process alone, where a launcher started it as one of several."""
    if not here.launched:
        return devices
    kind, _, numbers = devices.partition(":")
    if kind == "cpu" or (kind == "auto" and not gpus_seen("pytorch")):
        return "cpu"
    listed = numbers.split(",") if numbers not in ("", "all") else []
    return f"gpu:{listed[here.local_rank] if here.local_rank < len(listed) else here.local_rank}"


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, to within 1/FINENESS; 0 where 1 does not.

    It is doubled while it fits, up to `most`, then looked for between the last that did and the first that did not.
    What fits must not be followed by less that does not.
    """
    fitting, failing = 0, most + 1
    while fitting < most and (failing > most or failing - fitting > max(1, fitting // FINENESS)):
        middle = (fitting + failing) // 2 if failing <= most else min(2 * fitting or 1, most)
        if fits(middle):
            fitting = middle
        else:
            failing = middle
    return fitting


class _Trials:
    """The other process, seen from here: started when it is needed, and ended where a batch did not fit."""

    def __init__(self, recipe: Recipe, neighbours: int) -> None:
        self._given = recipe, neighbours
        self._resources = ExitStack()
        self._pool: Executor | None = None

    def __enter__(self) -> _Trials:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def devices(self) -> int:
        """Count the devices among which the process shares a batch."""
        try:
            return self._ask(_devices)
        except BrokenProcessPool as error:
            what = "the process that looks for the batch size was killed"
            raise WorkerLost(what, advice="give batch_size a number") from error

    def fits(self, images: int) -> bool:
        """Try a batch of so many images, or on a CPU extrapolate what it takes."""
        return self._survives(_fits, images)

    def holds(self, images: int) -> bool:
        """Try a batch of so many images in any case, unless it was tried."""
        return self._survives(_holds, images)

    def _survives(self, question: Callable[[int], bool], images: int) -> bool:
        try:
            return self._ask(question, images)
        except (OutOfRoom, BrokenProcessPool):  # Linux kills a process that takes too much
            self._end()
            return False

    def _ask(self, question: Callable[..., _Result], *arguments: int) -> _Result:
        if self._pool is None:
            self._pool = self._resources.enter_context(local_pool(1))
            self._pool.submit(_begin, *self._given).result()
        return self._pool.submit(question, *arguments).result()

    def _end(self) -> None:
        self._pool = None
        self._resources.close()


class _Trial:
    """An engine of its own, the host's memory that it may come to take, and what smaller batches took."""

    def __init__(self, recipe: Recipe, neighbours: int) -> None:
        data = records_of(recipe)
        self._recipe, self._classes = recipe, len(data.classes)
        self._vectors = data.classes.label_kind != "class"
        self.engine, _ = new_engine(recipe, data)
        self.devices = len(self.engine.device_names)
        free = available_memory_bytes()
        self._room = math.inf if free is None else _peak_bytes() + SHARE_OF_MEMORY * free / neighbours
        self._measured: list[tuple[int, int]] = []
        self._slow = False
        self._tried = 0

    def fits(self, images: int) -> bool:
        """Take less than the room there is, as a trial or, once they take long, the smaller batches tell."""
        if self._expected_bytes(images) > self._room:
            return False
        if not self._slow:
            started = time.monotonic()
            self._try(images)
            on_cpu = self.engine.device_names[0].startswith("cpu")
            grown = len(self._measured) > 1 and self._measured[-1][1] - self._measured[-2][1] > GROWTH_BYTES
            self._slow = on_cpu and time.monotonic() - started > SECONDS_A_TRIAL and grown
        return self._expected_bytes(images) <= self._room

    def holds(self, images: int) -> bool:
        """Take less than the room there is, as a trial shows."""
        if images > self._tried:
            self._try(images)
        return self._expected_bytes(images) <= self._room

    def _try(self, images: int) -> None:
        self._train_and_score(images)
        self._tried = max(images, self._tried)
        if not self._measured or images > self._measured[-1][0]:
            self._measured.append((images, _peak_bytes()))

    def _train_and_score(self, images: int) -> None:
        """Two steps, of which the second has the rule's state beside it, and a batch of the validation."""
        shape, mixes = self._recipe.input, self._recipe.augmentation.mixes
        trained, scored = ((images, *pair(size), shape.channels) for size in (shape.trained_size, shape.scored_size))
        labels: Targets = np.zeros(images, np.int64)
        targets: Targets = np.full((images, self._classes), 1 / self._classes, np.float32) if mixes else labels
        if self._vectors:
            labels = targets = np.zeros((images, self._classes), np.float32)
        for _ in range(2):
            self.engine.train_batch(np.zeros(trained, np.uint8), targets, 1e-6, 0)
        self.engine.score_batch(np.zeros(scored, np.uint8), labels)
        self.engine.totals()

    def _expected_bytes(self, images: int) -> float:
        """The host's memory at a batch's peak: in a straight line from the last measured, and the loader's batches."""
        shape = self._recipe.input
        prepared = (self._recipe.loader.prefetch + 2) * images * shape.channels * math.prod(pair(shape.trained_size))
        if not self._measured:
            return _peak_bytes() + prepared
        *before, (last, peak) = self._measured
        slope = (peak - before[-1][1]) / (last - before[-1][0]) if before else 0.0
        return peak + slope * (images - last) + prepared


_trials: list[_Trial] = []
"""Trial of this process, once there is one."""


def _begin(recipe: Recipe, neighbours: int) -> None:
    """Build the engine of this process, which is nobody's rank."""
    for name in [name for name in os.environ if name == "RANK" or name.startswith("DMLC_")]:
        del os.environ[name]
    _trials[:] = [_Trial(recipe, neighbours)]


def _devices() -> int:
    return _trials[0].devices


def _fits(images: int) -> bool:
    return _trials[0].fits(images)


def _holds(images: int) -> bool:
    return _trials[0].holds(images)


def _peak_bytes() -> int:
    """The most memory that this process has had so far."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
