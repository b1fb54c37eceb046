"""Training steps outside a run, for what is measured and kept nowhere: batches without end, and a step on one."""

from __future__ import annotations

from collections.abc import Generator
from itertools import count

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading.loader import Batch
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.data import augmentation_of, loader_of, steps_per_epoch
from imagenet_pipeline.training.engine_setup import new_engine
from imagenet_pipeline.training.sizes import training_size


def open_fed(recipe: Recipe, data: DataSet, records: RecordSet) -> Generator[Batch, None, None]:
    """The batches of a run's epochs one after the other, without end; the generator is to be closed.

    A batch is valid until the next one is asked for. Raises BadRecipe for a batch larger than the records.
    """
    steps_per_epoch(recipe, data)
    augmentation = augmentation_of(recipe)
    for epoch in count():
        loader = loader_of(recipe, records, len(data.classes), training_size(recipe.input, epoch))
        with loader.training(recipe.seed, epoch, augmentation) as batches:
            yield from batches


def lone_engine(recipe: Recipe, data: DataSet) -> Engine:
    """A fresh engine as a run would begin with. Raises BadRecipe in one of several processes that train together."""
    engine, _ = new_engine(recipe, data)
    if engine.ranks > 1:
        raise BadRecipe("this measures one process", found=f"{engine.ranks} that train together")
    return engine


def train_on(engine: Engine, batch: Batch, rate: float, seed: int) -> None:
    """One step on a batch, hard labels or mixed ones."""
    engine.train_batch(batch.images, batch.truth, rate, seed)
