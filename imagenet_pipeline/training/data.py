"""The records a network is trained and scored on, and whether they are its own."""

from __future__ import annotations

import logging
from pathlib import Path

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading.augment import Augmentation
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.loading.order import WHOLE, Share
from imagenet_pipeline.records.classes import require_same
from imagenet_pipeline.records.manifest import DataSet, read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import State

log = logging.getLogger("imagenet_pipeline")

IMPORTED = ""
"""Data digest of a network that was imported without records: any of its classes will do."""
NUMBERED = "numbered"
"""Class order of a network that was imported without a class table."""


def records_of(recipe: Recipe) -> DataSet:
    """The data set of a recipe. Raises BadRecipe where it names none, as that of an import without records."""
    if not recipe.records:
        raise BadRecipe("the recipe names no records", advice="give train records=DIR, or evaluate --records DIR")
    return read_data_set(Path(recipe.records))


def steps_per_epoch(recipe: Recipe, data: DataSet) -> int:
    """How many whole batches the training records make. Raises BadRecipe where there is not even one."""
    images = data.counts.get("train", 0)
    if images < recipe.batch_size:
        raise BadRecipe(
            "batch_size exceeds the training records", where=data.folder, expected=f"at most {images}",
            found=recipe.batch_size,
        )  # fmt: skip
    return images // recipe.batch_size


def loader_of(recipe: Recipe, records: RecordSet, classes: int, size: int, share: Share = WHOLE) -> Loader:
    """The loader of a recipe's batches at `size` pixels; of several processes, of one's share of them."""
    return Loader(
        records,
        size,
        recipe.batch_size,
        threads=recipe.loader.threads,
        prefetch=recipe.loader.prefetch,
        classes=classes,
        share=share,
    )


def augmentation_of(recipe: Recipe) -> Augmentation:
    """The recipe's random changes to training images."""
    return Augmentation(**recipe.augmentation.model_dump())


def require_validation(recipe: Recipe, data: DataSet) -> None:
    """Raise BadRecipe where the recipe goes by validation scores and `data` has no split to validate on."""
    keys = {
        "schedule.kind": recipe.schedule.kind == "plateau",
        "stopping.patience_epochs": recipe.stopping.patience_epochs,
    }
    for key, goes_by_scores in keys.items():
        if goes_by_scores and not data.counts.get("val"):
            raise BadRecipe(
                f"recipe key {key!r} goes by the scores on the split val, and there is none",
                where=data.folder,
                found=", ".join(data.counts),
                advice=f"leave {key} as it is by default, or build the records with a split val",
            )


def require_its_classes(state: State, data: DataSet) -> None:
    """Raise BadInput unless `data` numbers a network's classes as the network does.

    Classes that nobody named when it was imported are taken to be those of `data`, where there are as many.
    """
    unnamed = state.data_digest == IMPORTED and state.class_order == NUMBERED
    if not unnamed or len(state.classes) != len(data.classes):
        require_same(state.class_table, data.classes, where=data.folder)
    elif state.classes != data.classes.ids:
        log.info(
            "the network was imported without the names of its %d classes: they are taken to be those of %s, in "
            "its order (%s); nothing here can check their order",
            len(state.classes), data.folder, data.classes.order,
        )  # fmt: skip
