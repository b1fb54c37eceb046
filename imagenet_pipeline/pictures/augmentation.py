"""What a recipe's augmentation makes of one photo, to look at."""

from __future__ import annotations

from pathlib import Path

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.drawing import contact_sheet, require_png, tile, write_png
from imagenet_pipeline.loading.preview import Shown, draws_of
from imagenet_pipeline.loading.sample import read_sample
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.data import augmentation_of, records_of

_SMALLEST_TILE, _LARGEST_TILE = 144, 224


def draw_augmentation(recipe: Recipe, out: Path, record: int = 0, draws: int = 24) -> None:
    """Draw `out` (PNG): a training record as it is stored, then as the loader would give it to the network.

    The draws are those of the first epoch's first positions, at the recipe's input size. Where images are mixed, the
    share of each class is told. Raises BadInput where there is no such record.
    """
    require_png(out)
    data, size = records_of(recipe), recipe.input.size
    with RecordSet.open(data.folder, "train") as records:
        shown = draws_of(records, record, augmentation_of(recipe), size, draws, recipe.seed, len(data.classes))
        stored = read_sample(records, record, len(data.classes))
    height, width = stored.image.shape[:2]
    side = min(max(size, _SMALLEST_TILE), _LARGEST_TILE)
    name = data.classes.names[stored.label]
    mixes = recipe.augmentation.mixes
    tiles = [tile(stored.image, side, ["as stored", f"{width} x {height}"][: 1 + mixes])]
    tiles += [tile(one.image, side, _caption(one, data.classes) if mixes else [f"draw {n}"])
              for n, one in enumerate(shown, 1)]  # fmt: skip
    title = f"train record {record}: {name}, {width} x {height} pixels, as the network gets it at {size} x {size}"
    columns = max(1, min(len(tiles), round((1.2 * len(tiles)) ** 0.5)))
    write_png(contact_sheet(tiles, columns, f"{title}\n{_settings(recipe)}"), out)


def _caption(shown: Shown, classes: ClassTable) -> list[str]:
    lines = [f"{100 * share:.0f} % {classes.names[label]}" for label, share in shown.shares]
    return [*lines, *[""] * (2 - len(lines))]


def _settings(recipe: Recipe) -> str:
    """What is on, by its key."""
    changed = recipe.augmentation.model_dump(exclude_defaults=True)
    always = {"crop": recipe.augmentation.crop, "flip": recipe.augmentation.flip}
    return ", ".join(f"{key} = {value}" for key, value in {**always, **changed}.items())
