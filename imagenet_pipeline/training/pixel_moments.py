"""Mean and covariance of pixels over training images: exact, whatever the number of threads and the batches."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.networks.catalog import INPUT_TRANSFORM
from imagenet_pipeline.networks.shapes import Shape
from imagenet_pipeline.processes import this_process
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.data import loader_of

Numbers = npt.NDArray[np.float64]
_BATCH = 256
"""Images whose products float32 adds up exactly: fewer than 1,024, since each is at most 2**14."""
_BATCH_NUMBERS = 2**25
"""Numbers of a batch, at most."""
_MIDDLE = 128
"""Subtracted from the pixels, so that their products are small."""


class Moments:
    """Mean and covariance of the numbers of an image, [channels, height, width], from exact sums.

    Of the `kind` "mean_image" the mean alone, of "pixels" the variances; of any other all covariances.
    """

    def __init__(self, numbers: int, kind: str) -> None:
        self.count = 0
        self._kind = kind
        self._sums = np.zeros(numbers)
        self._products = np.zeros({"mean_image": 0, "pixels": numbers}.get(kind, (numbers, numbers)))

    def add(self, images: npt.NDArray[np.uint8]) -> None:
        """Count a batch, [n, height, width, channels]."""
        for first in range(0, len(images), _BATCH):
            part = images[first : first + _BATCH].transpose(0, 3, 1, 2).reshape(-1, len(self._sums))
            rows = part.astype(np.float32) - _MIDDLE
            self.count += len(rows)
            self._sums += rows.sum(0, dtype=np.float64)
            if self._kind == "pixels":
                self._products += np.square(rows, dtype=np.float64).sum(0)
            elif self._kind != "mean_image":
                self._products += rows.T @ rows

    @property
    def mean(self) -> Numbers:
        """Mean of each number, in 0..255."""
        return self._sums / self.count + _MIDDLE

    @property
    def covariance(self) -> Numbers:
        """Covariance of every two numbers [n, n], or of kind "pixels" the variance of each [n]."""
        products = np.square(self._sums) if self._kind == "pixels" else np.outer(self._sums, self._sums)
        return (self._products - products / self.count) / (self.count - 1)


def fitted_on(recipe: Recipe, data: DataSet, shape: Shape) -> Moments:
    """The moments of the training images that a recipe's transform is fitted on."""
    moments = Moments(math.prod(shape), recipe.input.transform)
    for batch in fitting_batches(recipe, data, shape):
        moments.add(batch)
    return moments


def fitting_batches(recipe: Recipe, data: DataSet, shape: Shape) -> Iterator[npt.NDArray[np.uint8]]:
    """Centre crops [n, height, width, channels] of the training images to fit on, each valid until the next."""
    leads = not this_process().rank
    with RecordSet.of(data, "train") as records, Bar("input transform", "images", shown=leads) as bar:
        chosen = np.arange(len(records), dtype=np.int64)
        bound = recipe.input.transform_images
        if 0 < bound < len(records):
            draw = np.random.default_rng([recipe.seed, *INPUT_TRANSFORM.encode()])
            chosen = np.sort(draw.choice(len(records), bound, replace=False))
        batches = recipe.model_copy(update={"batch_size": max(1, min(_BATCH, _BATCH_NUMBERS // math.prod(shape)))})
        loader = loader_of(batches, records, recipe.input.trained_size, len(data.classes))
        done = 0
        with loader.evaluation(recipe.input.crop_fraction, chosen=chosen) as crops:
            for batch in crops:
                yield batch.images
                done += len(batch.images)
                bar.show(done, len(chosen))
