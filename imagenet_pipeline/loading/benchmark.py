"""How fast this machine loads: images a second out of a record set."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.loading.augment import Augmentation
from imagenet_pipeline.loading.loader import Loader, available_processors
from imagenet_pipeline.loading.sample import Records


@dataclass(frozen=True)
class LoaderSpeed:
    """What was measured: whole epochs of training batches, the best one."""

    images_per_second: float
    seconds: float
    """Of the best epoch."""
    images: int
    """In one epoch."""
    epochs: int
    """Measured; one more went before them, unmeasured, so that files and code are warm."""
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
    augmentation: Augmentation | None = None,
    epochs: int = 3,
) -> LoaderSpeed:
    """Load `epochs` epochs, by default with random-resized crop and flip, and report the best.

    Raises BadInput when there is no record.
    """
    if not len(records):
        raise BadInput("no records to measure with", where=records.name)
    loader = Loader(records, size, min(batch_size, len(records)), threads, prefetch)
    changes = Augmentation() if augmentation is None else augmentation
    seconds = [_epoch_seconds(loader, epoch, changes) for epoch in range(epochs + 1)]
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


def processor_name() -> str:
    """The processor's model, as well as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _epoch_seconds(loader: Loader, epoch: int, augmentation: Augmentation) -> float:
    started = time.perf_counter()
    with loader.training(0, epoch, augmentation) as batches:
        for _ in batches:
            pass
    return time.perf_counter() - started
