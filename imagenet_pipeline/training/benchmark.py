"""Benchmarks of this machine: a recipe's training step, what the loader costs it, and the loader by itself."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice, repeat, takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imagenet_pipeline.config import Augmentation, Recipe, override_words
from imagenet_pipeline.engines import Engine, gpus_seen, in_cluster
from imagenet_pipeline.engines.devices import parse_devices
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.loading.loader import DEFAULT_AUGMENTATION, Batch, Loader, Records
from imagenet_pipeline.loading.order import Share
from imagenet_pipeline.processes import available_processors, processor_name, run_apart, this_process
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.data import endless_batches, records_of
from imagenet_pipeline.training.engine_setup import fresh_engine, settled
from imagenet_pipeline.training.schedule import learning_rate

SETTLING_STEPS = 2
"""Unmeasured at the start of a round, after those whose batches were ready before it."""


@dataclass(frozen=True)
class StepSpeed:
    """Seconds a step, the median of all rounds, of which each measures `steps` steps at a stretch."""

    engine: str
    processes: int
    """Processes that trained together, each on as many devices."""
    devices: tuple[str, ...]
    """Devices of the first process."""
    precision: str
    batch_size: int
    steps: int
    rounds: int
    seconds: float
    """Median seconds a step with the loader feeding it."""
    best_seconds: float
    """Seconds a step of the best round."""
    wait_share: float
    """Share of the time spent waiting for the loader."""
    images_per_second: float
    synthetic_seconds: float | None
    """On a single batch, made once, in memory."""
    best_synthetic_seconds: float | None
    ratio: float | None
    """Fed to synthetic: the median over the rounds, which take turns."""


def measure_steps(
    recipe: Recipe, steps: int, rounds: int, synthetic: bool, show: Callable[[int, int], None]
) -> StepSpeed | None:
    """Time training steps of a fresh network, as an epoch runs them; keeps nothing.

    Processes that train together do so here, and all but the first return None. Every fed round starts the loader
    anew and first uses up what it had prepared ahead, so that loading keeps pace in what is measured. `show` is told
    (rounds done, rounds). Raises BadRecipe for counts below 1.
    """
    if steps < 1 or rounds < 1:
        raise BadRecipe("too few", where="--steps and --rounds", expected="at least 1", found=f"{steps}, {rounds}")
    data = records_of(recipe)
    recipe = settled(recipe, data)
    engine = fresh_engine(recipe, data)
    share = Share(engine.rank, engine.ranks)
    stepping = _Stepping(engine, learning_rate(recipe, 0, 1), steps)
    fed: list[_Round] = []
    still: list[float] = []
    with RecordSet.of(data, "train") as records:
        for done in range(rounds):
            if synthetic:
                still.append(stepping.run(repeat(_first(recipe, data, records, share)), SETTLING_STEPS).seconds)
            with closing(endless_batches(recipe, data, records, share, engine.host_array)) as batches:
                fed.append(stepping.run(batches, recipe.loader.prefetch + SETTLING_STEPS))
            if engine.rank == 0:
                show(done + 1, rounds)
    return None if engine.rank else _speed(recipe, engine, steps, fed, still)


@dataclass(frozen=True)
class _Round:
    seconds: float
    wait_seconds: float


@dataclass(frozen=True)
class _Stepping:
    engine: Engine
    rate: float
    steps: int

    def run(self, batches: Iterable[Batch], unmeasured: int) -> _Round:
        """Seconds a step, and of these seconds waiting for the loader, the mean of all processes."""
        batches = iter(batches)
        self._step(islice(batches, unmeasured))
        started = time.perf_counter()
        waited = self._step(islice(batches, self.steps))
        return _Round((time.perf_counter() - started) / self.steps, waited / self.steps)

    def _step(self, batches: Iterator[Batch]) -> float:
        waited = 0.0
        for batch in batches:
            self.engine.train_batch(batch.images, batch.training_targets, self.rate, 0)
            waited += batch.wait_seconds
        self.engine.totals()  # waits for the device
        (total,) = self.engine.sum_over_ranks(np.array([waited]))  # waits for all
        return float(total) / self.engine.ranks


def _first(recipe: Recipe, data: DataSet, records: RecordSet, share: Share) -> Batch:
    with closing(endless_batches(recipe, data, records, share)) as batches:
        batch = next(batches)
        targets = None if batch.targets is None else batch.targets.copy()
        return dataclasses.replace(batch, images=batch.images.copy(), labels=batch.labels.copy(), targets=targets)


def _speed(recipe: Recipe, engine: Engine, steps: int, fed: list[_Round], still: list[float]) -> StepSpeed:
    seconds = statistics.median(turn.seconds for turn in fed)
    return StepSpeed(
        engine=engine.name,
        processes=engine.ranks,
        devices=engine.device_names,
        precision=engine.precision,
        batch_size=recipe.images_per_step,
        steps=steps,
        rounds=len(fed),
        seconds=seconds,
        best_seconds=min(turn.seconds for turn in fed),
        wait_share=sum(turn.wait_seconds for turn in fed) / sum(turn.seconds for turn in fed),
        images_per_second=recipe.images_per_step / seconds,
        synthetic_seconds=statistics.median(still) if still else None,
        best_synthetic_seconds=min(still) if still else None,
        ratio=statistics.median(turn.seconds / alone for turn, alone in zip(fed, still, strict=True))
        if still
        else None,
    )


@dataclass(frozen=True)
class ScaledSpeed:
    """Speed on some of a recipe's devices, each with as many images a step as on all of them."""

    devices: int
    """Number in use."""
    efficiency: float
    """Images a second a device, as a share of what a single device does."""
    speed: dict[str, Any]
    """Fields of StepSpeed."""


def measure_scaling(
    recipe: Path, changes: Mapping[str, Any], planned: Recipe, words: Sequence[str], show: Callable[[int, int], None]
) -> list[ScaledSpeed]:
    """Time a recipe's step on the first 1, 2, 4 ... of its devices and on all, each by `benchmark step` on its own.

    `planned` is the recipe with its changes, `words` are options to pass on; `show` is told (numbers of devices done,
    all). On CPUs a device has the same share of the processors, however many are in use. Raises BadRecipe for a single
    device, for a batch of which they cannot have as much each, and among processes that a launcher started.
    """
    kind, numbers = _listed(planned)
    threads = max(1, available_processors() // len(numbers))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ} if kind == "cpu" else dict(os.environ)
    own = {"loader.threads": threads} if kind == "cpu" and planned.loader.threads == "auto" else {}
    counts = [*takewhile(len(numbers).__gt__, (2**power for power in count())), len(numbers)]
    measured: list[ScaledSpeed] = []
    for devices in counts:
        show(len(measured), len(counts))
        batch_size = planned.images_per_step // len(numbers) * devices
        keys = {"engine": planned.engine, "devices": f"{kind}:{','.join(numbers[:devices])}", "batch_size": batch_size}
        changed = override_words({**changes, **own, **keys})
        speed = json.loads(run_apart(["benchmark", "step", str(recipe), *changed, *words, "--json"], environment))
        alone = measured[0].speed["images_per_second"] if measured else speed["images_per_second"]
        measured.append(ScaledSpeed(devices, speed["images_per_second"] / (devices * alone), speed))
    return measured


def _listed(planned: Recipe) -> tuple[str, list[str]]:
    """The kind of a recipe's devices and their numbers, over which its batch divides."""
    if this_process().launched or in_cluster():
        what = "a launcher has settled how many processes there are"
        raise BadRecipe(what, where="--scaling", advice="launch `benchmark step` once with each number of them")
    kind, numbers = parse_devices(planned.devices, gpus_seen(planned.engine), expected="gpu:all or cpu:0,1")
    if len(numbers) < 2:
        advice = "give devices=gpu:all, or a list as devices=gpu:0,1,2,3"
        raise BadRecipe("there is a single device", where=f"--scaling, devices = {planned.devices!r}", advice=advice)
    if planned.images_per_step % len(numbers):
        what, expected = f"does not divide by the {len(numbers)} devices", f"a multiple of {len(numbers)}"
        raise BadRecipe(what, where="--scaling, batch_size", expected=expected, found=planned.batch_size)
    return kind, numbers


@dataclass(frozen=True)
class LoaderSpeed:
    """Speed of loading: whole epochs of training batches, the best of which counts."""

    images_per_second: float
    seconds: float
    """Seconds of the best epoch."""
    images: int
    """In an epoch."""
    epochs: int
    """Measured; another went before them, unmeasured, so that files and code are warm."""
    threads: int
    batch_size: int
    size: int
    processor: str
    processors: int


def measure(
    records: Records,
    size: int = 224,
    threads: int | Literal["auto"] = "auto",
    batch_size: int = 64,
    prefetch: int = 4,
    augmentation: Augmentation = DEFAULT_AUGMENTATION,
    epochs: int = 3,
) -> LoaderSpeed:
    """Load `epochs` epochs, by default with random-resized crop and flip, and report the best.

    Raises BadInput when there is no record.
    """
    if not len(records):
        raise BadInput("no records to measure with", where=records.name)
    loader = Loader(records, size, min(batch_size, len(records)), threads, prefetch)
    seconds = [_epoch_seconds(loader, epoch, augmentation) for epoch in range(epochs + 1)]
    best = min(seconds[1:])
    images = loader.steps() * loader.batch_size
    return LoaderSpeed(
        images_per_second=images / best,
        seconds=best,
        images=images,
        epochs=epochs,
        threads=loader.threads,
        batch_size=loader.batch_size,
        size=size,
        processor=processor_name(),
        processors=available_processors(),
    )


def _epoch_seconds(loader: Loader, epoch: int, augmentation: Augmentation) -> float:
    started = time.perf_counter()
    with loader.training(0, epoch, augmentation) as batches:
        for _ in batches:
            pass
    return time.perf_counter() - started
