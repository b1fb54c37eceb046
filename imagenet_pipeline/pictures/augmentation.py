"""A picture of a recipe's augmentation: a photo as training would see it many times, through the loader itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagenet_pipeline.config import Augmentation, Recipe, Size, pair
from imagenet_pipeline.drawing import contact_sheet, require_png, tile, write_png
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.loading.loader import Loader, Records, read_sample
from imagenet_pipeline.loading.order import epoch_order
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.classes import ClassTable, LabelKind
from imagenet_pipeline.records.inspect import words_of
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import ImageRecord
from imagenet_pipeline.training.data import records_to_read

_SMALLEST_TILE, _LARGEST_TILE = 144, 224


def draw_augmentation(recipe: Recipe, out: Path, record: int = 0, draws: int = 24) -> None:
    """Draw `out` (PNG): a training record as it is stored, then as the loader would give it to the network.

    The draws are those of the first epoch's first positions, at the recipe's input size. Where images are mixed, the
    share of each class is given. Raises BadInput where there is no such record.
    """
    require_png(out)
    data, size, channels = records_to_read(recipe), recipe.input.trained_size, recipe.input.channels
    with RecordSet.of(data, "train") as records:
        of = len(data.classes), data.classes.label_kind
        shown = draws_of(records, record, recipe.augmentation, size, draws, recipe.seed, *of, channels)
        stored = read_sample(records, record, *of)
    (height, width), (down, across) = (stored.image.height, stored.image.width), pair(size)
    side = min(max(down, across, _SMALLEST_TILE), _LARGEST_TILE)
    labels = (float(stored.label),) if isinstance(stored.label, int) else stored.label
    name = words_of(labels, data.classes) or "none of the classes"
    mixes = recipe.augmentation.mixes
    tiles = [tile(stored.image.whole(), side, ["as stored", f"{width} x {height}"][: 1 + mixes])]
    tiles += [tile(draw.image, side, _caption(draw, data.classes) if mixes else [f"draw {n}"])
              for n, draw in enumerate(shown, 1)]  # fmt: skip
    title = f"train record {record}: {name}, {width} x {height} pixels, as the network gets it at {across} x {down}"
    title += ", grey" * (channels == 1)
    columns = max(1, min(len(tiles), round((1.2 * len(tiles)) ** 0.5)))
    write_png(contact_sheet(tiles, columns, f"{title}\n{_settings(recipe)}"), out)


def _caption(shown: Shown, classes: ClassTable) -> list[str]:
    if classes.label_kind == "number":
        lines = [f"{classes.names[label]} {value:.4g}" for label, value in shown.shares]
    else:
        lines = [f"{100 * share:.0f} % {classes.names[label]}" for label, share in shown.shares]
    return [*lines, *[""] * (2 - len(lines))]


def _settings(recipe: Recipe) -> str:
    """The augmentations that are on, by key."""
    changed = recipe.augmentation.model_dump(exclude_defaults=True)
    always = {"crop": recipe.augmentation.crop, "flip": recipe.augmentation.flip}
    return ", ".join(f"{key} = {value}" for key, value in {**always, **changed}.items())


class Shown(NamedTuple):
    """An image as the network gets it, [H, W, channels], and the labels it is given: (label, share)."""

    image: Pixels
    shares: tuple[tuple[int, float], ...]


def draws_of(
    records: Records,
    record: int,
    augmentation: Augmentation,
    size: Size,
    draws: int,
    seed: int,
    classes: int,
    label_kind: LabelKind = "class",
    channels: int = 3,
) -> list[Shown]:
    """Draws of a record, as the first epoch of this seed would make them at each of its first positions.

    Where images are mixed, each draw's partner is another record, those that follow in the file.
    Raises BadInput where there is no such record, or none to mix it with.
    """
    if not 0 <= record < len(records):
        raise BadInput("no such record", where=records.name, expected=f"0..{len(records) - 1}", found=record)
    if augmentation.mixes and len(records) < 2:
        raise BadInput("the records have no second record to mix with", where=records.name)
    every = 2 if augmentation.mixes else 1
    repeated = _RepeatedRecord(records, record, draws * every, every, seed)
    count = draws * every
    loader = Loader(repeated, size, count, threads=0, classes=classes, label_kind=label_kind, channels=channels)
    with loader.training(seed, 0, augmentation) as batches:
        batch = next(batches)
        images, labels, targets = batch.images[::every].copy(), batch.labels[::every], batch.targets
    if targets is None:
        return [Shown(image, ((int(label), 1.0),)) for image, label in zip(images, labels, strict=True)]
    shares = [
        tuple((int(label), float(row[label])) for label in np.argsort(-row)[:2] if row[label])
        for row in targets[::every]
    ]
    return [Shown(image, share) for image, share in zip(images, shares, strict=True)]


class _RepeatedRecord:
    """An epoch of `count` records: the chosen record at every position, or at every second, between its partners."""

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

    def location(self, position: int) -> tuple[Path, int, int]:
        return self._records.location(int(self._chosen[position]))
