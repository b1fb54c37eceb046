"""A trained run that looks at pictures: RGB in, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.evaluate import Crops, open_checkpoint
from imagenet_pipeline.evaluation.probabilities import log_probabilities
from imagenet_pipeline.loading.augment import evaluation_transform
from imagenet_pipeline.loading.geometry import Pixels
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.training.building import build_engine
from imagenet_pipeline.training.checkpoint import Checkpoint

Probabilities = npt.NDArray[np.float64]
"""[n, classes]."""


@dataclass(frozen=True)
class Classifier:
    """A checkpoint on its engine, and what its classes mean."""

    run: Path
    recipe: Recipe
    checkpoint: Checkpoint
    engine: Engine
    classes: ClassTable

    def probabilities(self, images: Sequence[Pixels], crops: Crops = 1) -> Probabilities:
        """How probable each class is for each RGB image [H, W, 3], of any size, cut as in evaluation.

        Several crops are averaged. Images go to the engine a batch of the recipe at a time.
        Raises BadInput where the network's output is not finite.
        """
        together = max(1, self.recipe.batch_size // crops)
        parts = [self._of_batch(images[at : at + together], crops) for at in range(0, len(images), together)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes)))

    def _of_batch(self, images: Sequence[Pixels], crops: Crops) -> Probabilities:
        state = self.checkpoint.state
        views = np.empty((len(images), crops, state.input_size, state.input_size, 3), np.uint8)
        for image, view in zip(images, views, strict=True):
            evaluation_transform(image, state.crop_fraction, view)
        logits = self.engine.logits(views.reshape(-1, *views.shape[2:]))
        if not np.isfinite(logits).all():
            where, advice = self.checkpoint.folder, "take another checkpoint"
            raise BadInput("the network's output is not finite", where=where, advice=advice)
        return np.exp(log_probabilities(logits, crops))


def open_classifier(run: Path, which: str = "best", overrides: dict[str, object] | None = None) -> Classifier:
    """A run's checkpoint ("best", "latest" or an epoch), recipe keys of how to compute laid over the run's own.

    Raises BadRecipe as `evaluate` does, and where several processes were started.
    """
    recipe, checkpoint = open_checkpoint(run, which, overrides or {})
    engine = build_engine(recipe.model_copy(update={"compile": False}), checkpoint.state, checkpoint.weights)
    if engine.ranks > 1:
        raise BadRecipe("this runs in one process", found=f"{engine.ranks} processes", advice="start one alone")
    return Classifier(run, recipe, checkpoint, engine, checkpoint.state.class_table)
