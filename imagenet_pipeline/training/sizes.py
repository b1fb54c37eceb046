"""How large training images are: small and cheap at first, growing to the recipe's size (as in FFCV's recipes)."""

from __future__ import annotations

from imagenet_pipeline.config import InputRecipe, Recipe
from imagenet_pipeline.engines.zoos import zoo_table
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import parameters
from imagenet_pipeline.networks.zoo import ZooNetwork

MULTIPLE = 32
"""What networks divide their input by: sizes between the first and the last are multiples of it, pixels."""


def training_size(recipe: InputRecipe, epoch: int) -> int:
    """Side of the training images in an epoch, counted from 0, pixels.

    `start_size` up to epoch grow_epochs[0], `size` from grow_epochs[1] on, in a straight line in between.
    """
    first, last = recipe.grow_epochs
    if not recipe.start_size or epoch >= last:
        return recipe.size
    if epoch <= first:
        return recipe.start_size
    exact = recipe.start_size + (recipe.size - recipe.start_size) * (epoch - first) / (last - first)
    return min(max(MULTIPLE * round(exact / MULTIPLE), recipe.start_size), recipe.size)


def require_sizes(recipe: Recipe, network: Sequential | ZooNetwork) -> None:
    """Raise BadRecipe where the recipe has several sizes of input and the network's parameters depend on it."""
    sizes = {"input.start_size": recipe.input.start_size, "input.evaluation_size": recipe.input.evaluation_size}
    for key, size in sizes.items():
        if size and _shapes(network, size) != _shapes(network, recipe.input.size):
            raise BadRecipe(
                f"recipe key {key!r}: the dense layers of {recipe.network} fix its input",
                expected=f"input.size, {recipe.input.size}",
                found=size,
                advice=f"leave {key} out, or take a network that ends in global average pooling",
            )


def _shapes(network: Sequential | ZooNetwork, size: int) -> list[tuple[int, ...]]:
    if isinstance(network, ZooNetwork):
        return [*zoo_table(network, (3, size, size)).shapes.values()]
    return [parameter.shape for parameter in parameters(network, (3, size, size)).values()]
