"""A trained run that looks at pictures: RGB in, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.evaluation.evaluate import Crops, open_checkpoint
from imagenet_pipeline.evaluation.probabilities import log_probabilities, require_finite
from imagenet_pipeline.loading.augment import evaluation_transform
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.training.checkpoint import Checkpoint
from imagenet_pipeline.training.engine_setup import build_engine

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
        together = self.images_together(crops)
        parts = [
            self.probabilities_of(np.stack([self.views(image, crops) for image in images[at : at + together]]))
            for at in range(0, len(images), together)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes)))

    def images_together(self, crops: Crops = 1) -> int:
        """How many images go to the engine at once."""
        return max(1, self.recipe.batch_size // crops)

    def views(self, image: Pixels, crops: Crops = 1) -> Pixels:
        """What the network looks at of one RGB image [H, W, 3]: [crops, S, S, 3]. Several threads may call it."""
        side = self.checkpoint.state.input_size
        out = np.empty((crops, side, side, 3), np.uint8)
        evaluation_transform(image, self.checkpoint.state.crop_fraction, out)
        return out

    def probabilities_of(self, views: Pixels) -> Probabilities:
        """How probable each class is for each image of one batch, of which there are `views` [n, crops, S, S, 3].

        Raises BadInput where the network's output is not finite.
        """
        logits = self.engine.logits(views.reshape(-1, *views.shape[2:]))
        require_finite(logits, self.checkpoint.folder)
        return np.exp(log_probabilities(logits, views.shape[1]))


def open_classifier(run: Path, which: str = "best", overrides: dict[str, object] | None = None) -> Classifier:
    """A run's checkpoint ("best", "latest" or an epoch), recipe keys of how to compute laid over the run's own.

    Raises BadRecipe as `evaluate` does, and where several processes were started.
    """
    recipe, checkpoint = open_checkpoint(run, which, overrides or {})
    engine = build_engine(recipe.model_copy(update={"compile": False}), checkpoint.state, checkpoint.weights)
    if engine.ranks > 1:
        raise BadRecipe("this runs in one process", found=f"{engine.ranks} processes", advice="start one alone")
    return Classifier(run, recipe, checkpoint, engine, checkpoint.state.class_table)
