"""Input transforms that have a number for each pixel: mean image, standardisation by pixel, whitening (PCA and ZCA).

A transform is layers in front of a network, `input_transform`, which read what the normalisation by channel gives:

    mean_image   x - mean                                        mean of each pixel
    pixels       (x - mean) / sqrt(variance + epsilon)           as scikit-learn's StandardScaler
    pca          diag(1 / sqrt(l + epsilon)) E' (x - mean)       l, E: eigenvalues and -vectors of the covariance
    zca          E diag(1 / sqrt(l + epsilon)) E' (x - mean)     the same, turned back (Bell & Sejnowski 1997)

Their parameters are not trained: they are fitted once, on centre crops of training images, as a run begins, and are
kept, exported and run like all others. Variances are those of a sample, over n - 1. The sums over the images are of
whole numbers and exact, and the eigenvectors are computed on one thread: no number of threads changes a bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.config import InputRecipe, Recipe
from imagenet_pipeline.engines import Array
from imagenet_pipeline.engines.zoos import ZooNetwork
from imagenet_pipeline.errors import BadRecipe, counted
from imagenet_pipeline.interchange.frozen import Normalisation
from imagenet_pipeline.networks.catalog import INPUT_TRANSFORM, LayeredNetwork
from imagenet_pipeline.networks.layers import (
    Constant,
    Dense,
    Elementwise,
    Flatten,
    Graph,
    Layer,
    Reshape,
)
from imagenet_pipeline.networks.shapes import Shape, output_shape
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.data import loader_of

log = logging.getLogger("imagenet_pipeline")

Numbers = npt.NDArray[np.float64]
LARGEST = 4096
"""Numbers of an image that whitening takes: its matrix has the square of that many, its eigenvectors take a minute."""
WHITENING = ("pca", "zca")
_BATCH = 256
"""Images whose products float32 adds up exactly: fewer than 1,024, since each is at most 2**14."""
_MIDDLE = 128
"""Subtracted from the pixels, so that their products are small."""


def with_transform(network: LayeredNetwork | ZooNetwork, recipe: InputRecipe, shape: Shape) -> LayeredNetwork:
    """The network with the layers of `recipe.transform` in front, in place of others that were there.

    `shape` is that of an image. Raises BadRecipe for a zoo's network, an image too large to be whitened, and a network
    that takes no vector where "pca" gives one.
    """
    where = f"input.transform = {recipe.transform!r}"
    if network.engine is not None:
        what, advice = "a zoo's network takes no transform of its input", "leave input.transform out"
        raise BadRecipe(what, where=where, found=str(network), advice=advice)
    numbers = math.prod(shape)
    if recipe.transform in WHITENING and numbers > LARGEST:
        side = math.isqrt(LARGEST // shape[0])
        raise BadRecipe(
            f"whitening looks at every two of an image's numbers, and {'x'.join(map(str, shape))} are too many",
            where=where, expected=f"at most {LARGEST:,}, as of {side}x{side} pixels", found=f"{numbers:,}",
            advice=f"input.size={side} or less, or input.transform=pixels",
        )  # fmt: skip
    items = tuple((name, item) for name, item in network.items if name != INPUT_TRANSFORM)
    made = LayeredNetwork(((INPUT_TRANSFORM, _layers(recipe, shape)), *items))
    if recipe.transform == "pca":
        _require_vectors(made, recipe, shape, where)
    return made


def _layers(recipe: InputRecipe, shape: Shape) -> Graph:
    numbers = math.prod(shape)
    items: dict[str, tuple[Layer, tuple[str, ...]]] = {
        "mean": (Constant(shape, trained=False), ()),
        "centred": (Elementwise("subtract"), ("", "mean")),
    }
    if recipe.transform == "pixels":
        items["deviation"] = (Constant(shape, trained=False), ())
        items["scaled"] = (Elementwise("divide"), ("centred", "deviation"))
    if recipe.transform in WHITENING:
        units = recipe.transform_components or numbers if recipe.transform == "pca" else numbers
        items["vector"] = (Flatten(), ("centred",))
        items["whitened"] = (Dense(units, bias=False, trained=False), ("vector",))
    if recipe.transform == "zca":
        items["image"] = (Reshape(shape), ("whitened",))
    return Graph(
        tuple((name, layer) for name, (layer, _) in items.items()), tuple(links for _, links in items.values())
    )


def _require_vectors(network: LayeredNetwork, recipe: InputRecipe, shape: Shape, where: str) -> None:
    if recipe.transform_components > math.prod(shape):
        expected, found = f"at most {math.prod(shape):,}", f"{recipe.transform_components:,}"
        what = "an image has no more components than numbers"
        raise BadRecipe(what, where=_key("components"), expected=expected, found=found)
    try:
        output_shape(network, shape)
    except BadRecipe as error:
        raise BadRecipe(
            "pca gives the network a vector of components, and it takes images",
            where=where, found=f"{error.where}: {error.what}",
            advice="take a network of dense layers, or input.transform=zca, whose output is an image",
        ) from error  # fmt: skip


def fitted(
    recipe: Recipe, data: DataSet, normalisation: Normalisation, shape: Shape
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Fit the transform of a recipe on centre crops, of `shape`, of training images that its seed draws.

    Gives the values of its parameters, float64 by name, and the journal's entry on it.

    Raises BadRecipe where there are too few images, or where more components are asked for than they have.
    """
    wanted = recipe.input
    moments = moments_of(recipe, data, shape)
    if moments.count < 2:
        raise BadRecipe("a variance needs two images", where=_key("images"), found=f"{moments.count}")
    numbers = math.prod(shape)
    if wanted.transform in WHITENING and moments.count <= numbers:
        log.warning(
            "warning: %s have no variance in some of %s directions: fit input.transform on more "
            "(input.transform_images=%d, or 0 for all), or on smaller ones",
            counted(moments.count, "image"), f"{numbers:,}", 3 * numbers,
        )  # fmt: skip
    values = values_of(wanted, moments, normalisation, shape)
    entry = {"transform": wanted.transform, "images": moments.count, "from": f"{data.name}, train"}
    return values, {INPUT_TRANSFORM: entry}


def values_of(recipe: InputRecipe, moments: Moments, normalisation: Normalisation, shape: Shape) -> dict[str, Array]:
    """The values of a transform's parameters, by name, from the moments of images of 0..255."""
    mean, std = (np.repeat(np.array(numbers, np.float64), math.prod(shape[1:])) for numbers in normalisation)
    values = {"mean.value": ((moments.mean - mean) / std).reshape(shape)}
    if recipe.transform == "pixels":
        variance = moments.covariance / std**2
        values["deviation.value"] = np.sqrt(variance + recipe.transform_epsilon).reshape(shape)
    if recipe.transform in WHITENING:
        covariance = moments.covariance / np.outer(std, std)
        components = recipe.transform_components if recipe.transform == "pca" else None
        values["whitened.weight"] = whitening(covariance, recipe.transform_epsilon, components)
    return {f"{INPUT_TRANSFORM}.{name}": value for name, value in values.items()}


def whitening(covariance: Numbers, epsilon: float, components: int | None = None) -> Numbers:
    """The matrix [components or n, n] that whitens vectors of this covariance [n, n], less their mean: ZCA's.

    With `components`, 0 for all, it is PCA's: a row a component, by falling variance, the number of a row that is
    largest by amount above 0 (as scikit-learn's PCA has it).
    """
    from threadpoolctl import threadpool_limits  # scikit-learn's own

    with threadpool_limits(1):
        variances, vectors = np.linalg.eigh(covariance)
        scales = 1 / np.sqrt(np.maximum(variances, 0) + epsilon)
        if components is None:
            return np.asarray((vectors * scales) @ vectors.T)
    rows = (vectors * scales).T[::-1][: components or None]
    largest = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1)
    return np.ascontiguousarray(rows * np.sign(largest))


class Moments:
    """Mean and covariance of images, from exact sums; those of a single number each where only `kind` "pixels" asks.

    The numbers of an image are those of [channels, height, width].
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
            elif self._kind in WHITENING:
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


def moments_of(recipe: Recipe, data: DataSet, shape: Shape) -> Moments:
    """The moments of the training images that a recipe's transform is fitted on."""
    moments = Moments(math.prod(shape), recipe.input.transform)
    images = counted(data.counts.get("train", 0), "image")
    log.info(
        "input.transform: %s is fitted on %s of the %s", recipe.input.transform, _chosen_words(recipe, data), images
    )
    for batch in fitting_batches(recipe, data):
        moments.add(batch)
    return moments


def _chosen_words(recipe: Recipe, data: DataSet) -> str:
    bound, count = recipe.input.transform_images, data.counts.get("train", 0)
    return "all" if not bound or bound >= count else f"{bound:,}"


def fitting_batches(recipe: Recipe, data: DataSet) -> Iterator[npt.NDArray[np.uint8]]:
    """Centre crops [n, height, width, channels] of the training images to fit on, each valid until the next."""
    with RecordSet.of(data, "train") as records, Bar("input transform", "images") as bar:
        chosen = np.arange(len(records), dtype=np.int64)
        bound = recipe.input.transform_images
        if 0 < bound < len(records):
            draw = np.random.default_rng([recipe.seed, *INPUT_TRANSFORM.encode()])
            chosen = np.sort(draw.choice(len(records), bound, replace=False))
        batches = recipe.model_copy(update={"batch_size": _BATCH})
        loader = loader_of(batches, records, recipe.input.trained_size, len(data.classes))
        done = 0
        with loader.evaluation(recipe.input.crop_fraction, chosen=chosen) as crops:
            for batch in crops:
                yield batch.images
                done += len(batch.images)
                bar.show(done, len(chosen))


def _key(name: str) -> str:
    return f"input.transform_{name}"
