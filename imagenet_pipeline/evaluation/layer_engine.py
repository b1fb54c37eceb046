"""A checkpoint's network up to one of its layers, on an engine."""

from __future__ import annotations

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Blueprint, Engine, create_engine
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import Shape, output_shape, parameters
from imagenet_pipeline.networks.subnetwork import until
from imagenet_pipeline.networks.zoo import ZooNetwork
from imagenet_pipeline.training.checkpoint import Checkpoint, State


def own_network(name: str, classes: int) -> Sequential:
    """A network of this package's. Raises BadRecipe for one of another zoo."""
    network = catalog.build(name, classes)
    if isinstance(network, ZooNetwork):
        raise BadRecipe("the layers of a zoo's network are not known here", where=f"network {network}")
    return network


def input_shape(state: State) -> tuple[int, int, int]:
    """(channels, height, width) of what a checkpoint's network looks at."""
    return len(state.mean), state.input_size, state.input_size


def engine_until(recipe: Recipe, checkpoint: Checkpoint, layer: str, verb: str) -> tuple[Engine, Shape]:
    """An engine whose "logits" are the layer's output, and the shape of that for one image.

    Raises BadRecipe for a layer there is not, and where several processes were started.
    """
    state = checkpoint.state
    cut = until(own_network(state.network, len(state.classes)), layer, state.network)
    values = {name: checkpoint.weights[name] for name in parameters(cut, input_shape(state))}
    blueprint = Blueprint(
        cut, state.input_size, state.mean, state.std, recipe.optimizer, recipe.devices, recipe.precision
    )
    engine = create_engine(recipe.engine, blueprint, values)
    if engine.ranks > 1:
        raise BadRecipe(f"{verb} runs in one process", found=f"{engine.ranks} processes", advice="start one alone")
    return engine, output_shape(cut, input_shape(state))
