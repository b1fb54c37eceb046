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
from typing import Any

import numpy as np

from imagenet_pipeline.config import InputRecipe, Recipe
from imagenet_pipeline.engines import Array, Normalisation
from imagenet_pipeline.engines.zoos import ZooNetwork
from imagenet_pipeline.errors import BadRecipe, counted
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
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.mean_image import stored_mean_image
from imagenet_pipeline.training.pixel_moments import Numbers, fitted_on

log = logging.getLogger("imagenet_pipeline")

LARGEST = 4096
"""Numbers of an image that whitening takes: its matrix has the square of that many, its eigenvectors take a minute."""
WHITENING = ("pca", "zca")


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

    A mean image is that beside the records, where it is of this shape and crop. Gives the values of the parameters,
    float64 by name, and the journal's entry. Raises BadRecipe where there are too few images.
    """
    wanted, covariance = recipe.input, None
    stored = stored_mean_image(data, shape, wanted.crop_fraction) if wanted.transform == "mean_image" else None
    if stored is not None:
        mean, count, origin = stored.pixels.ravel(), stored.images, str(stored.path)
    else:
        moments = fitted_on(recipe, data, shape)
        mean, count, origin = moments.mean, moments.count, f"{data.name}, train"
        if wanted.transform != "mean_image":
            _require_enough(wanted, count, math.prod(shape), data.count("train"))
            covariance = moments.covariance
    log.info("input.transform: %s, of %s from %s", wanted.transform, counted(count, "image"), origin)
    entry = {"transform": wanted.transform, "images": count, "from": origin}
    return values_of(wanted, mean, covariance, normalisation, shape), {INPUT_TRANSFORM: entry}


def _require_enough(recipe: InputRecipe, count: int, numbers: int, images: int) -> None:
    """Raise BadRecipe where images have no variance, and say where they cannot have it in every direction."""
    if count < 2:
        raise BadRecipe("a variance needs two images", where=_key("images"), found=count)
    if recipe.transform in WHITENING and count <= numbers:
        more = f"fit input.transform on more (input.transform_images={3 * numbers}, or 0 for all), or on smaller ones"
        log.warning(
            "warning: %s vary in less than all of %s directions: %s", counted(count, "image"), f"{numbers:,}",
            more if count < images else "there are no more, so take a smaller input.size, or input.transform=pixels",
        )  # fmt: skip


def values_of(
    recipe: InputRecipe, mean: Numbers, covariance: Numbers | None, normalisation: Normalisation, shape: Shape
) -> dict[str, Array]:
    """The values of a transform's parameters, by name, from mean and covariance of pixels of 0..255 (`Moments`)."""
    centre, scale = (np.repeat(np.array(numbers, np.float64), math.prod(shape[1:])) for numbers in normalisation)
    values = {"mean.value": ((mean - centre) / scale).reshape(shape)}
    if covariance is not None and recipe.transform == "pixels":
        values["deviation.value"] = np.sqrt(covariance / scale**2 + recipe.transform_epsilon).reshape(shape)
    elif covariance is not None:
        components = recipe.transform_components if recipe.transform == "pca" else None
        values["whitened.weight"] = whitening(covariance / np.outer(scale, scale), recipe.transform_epsilon, components)
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


def _key(name: str) -> str:
    return f"input.transform_{name}"
