"""One photo as training would see it, many times over: through the loader itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.loading.augment import Augmentation
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.loading.order import epoch_order
from imagenet_pipeline.loading.sample import Records
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.recordio import ImageRecord


class Shown(NamedTuple):
    """An image as the network gets it, [S, S, 3], and the labels it is given: (label, share)."""

    image: Pixels
    shares: tuple[tuple[int, float], ...]


def draws_of(
    records: Records, record: int, augmentation: Augmentation, size: int, draws: int, seed: int, classes: int
) -> list[Shown]:
    """What the first epoch of this seed would make of one record, were it at each of its first positions.

    Where images are mixed, each draw's partner is another record, those that follow in the file.
    Raises BadInput where there is no such record, or none to mix it with.
    """
    if not 0 <= record < len(records):
        raise BadInput("no such record", where=records.name, expected=f"0..{len(records) - 1}", found=record)
    if augmentation.mixes and len(records) < 2:
        raise BadInput("there is no second record to mix with", where=records.name)
    every = 2 if augmentation.mixes else 1
    one_photo = _OnePhoto(records, record, draws * every, every, seed)
    loader = Loader(one_photo, size, draws * every, threads=0, classes=classes)
    with loader.training(seed, 0, augmentation) as batches:
        batch = next(batches)
        images, labels, targets = batch.images[::every].copy(), batch.labels[::every], batch.targets
    if targets is None:
        return [Shown(image, ((int(label), 1.0),)) for image, label in zip(images, labels, strict=True)]
    shares = [tuple((int(one), float(row[one])) for one in np.argsort(-row)[:2] if row[one]) for row in targets[::2]]
    return [Shown(image, share) for image, share in zip(images, shares, strict=True)]


class _OnePhoto:
    """An epoch of `count` records that has one record at every position, or at every second between its partners."""

    def __init__(self, records: Records, record: int, count: int, every: int, seed: int) -> None:
        self._records = records
        self._chosen = np.full(count, record)
        if every == 2:
            partners = record + 1 + np.arange(count // 2) % (len(records) - 1)
            self._chosen[epoch_order(count, seed, 0)[1::2]] = partners % len(records)

    @property
    def name(self) -> str:
        return self._records.name

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, position: int) -> ImageRecord:
        return self._records.read(int(self._chosen[position]))

    def place(self, position: int) -> tuple[Path, int, int]:
        return self._records.place(int(self._chosen[position]))
