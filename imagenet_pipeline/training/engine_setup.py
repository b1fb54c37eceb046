"""The engine of a run: to begin with, to go on with, or to score with."""

from __future__ import annotations

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Blueprint, Engine, Values, create_engine
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.zoo import ZooNetwork
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.checkpoint import State
from imagenet_pipeline.training.starting import Beginning, beginning_of

Three = tuple[float, ...]


def new_engine(recipe: Recipe, data: DataSet) -> tuple[Engine, Beginning]:
    """An engine that begins a run, and what it begins with."""
    network = catalog.build(recipe.network, len(data.classes))
    beginning = beginning_of(recipe, network, data)
    blueprint = _blueprint(recipe, network, *beginning.normalisation, epoch=0)
    return create_engine(recipe.engine, blueprint, beginning.values), beginning


def resumed_engine(recipe: Recipe, state: State, values: Values, remembered: Values) -> Engine:
    """An engine that goes on after the epochs of `state`, with the values and the optimizer's state of then."""
    network = catalog.build(state.network, len(state.classes))
    engine = create_engine(recipe.engine, _blueprint(recipe, network, state.mean, state.std, state.epoch), values)
    engine.set_optimizer_state(remembered)
    return engine


def build_engine(recipe: Recipe, state: State, weights: Values) -> Engine:
    """An engine to score with, which holds a checkpoint's weights."""
    network = catalog.build(state.network, len(state.classes))
    size, mean, std = state.input_size, state.mean, state.std
    blueprint = Blueprint(network, size, mean, std, recipe.optimizer, recipe.devices, recipe.precision, recipe.loss)
    return create_engine(recipe.engine, blueprint, weights)


def frozen_layers(recipe: Recipe, epoch: int) -> tuple[str, ...]:
    """The layers that stay as they are in an epoch, counted from 0, by the beginnings of their paths."""
    return tuple(layer for layer, epochs in recipe.transfer.frozen.items() if epoch < epochs)


def _blueprint(recipe: Recipe, network: Sequential | ZooNetwork, mean: Three, std: Three, epoch: int) -> Blueprint:
    return Blueprint(
        network,
        recipe.input.size,
        mean,
        std,
        recipe.optimizer,
        recipe.devices,
        recipe.precision,
        recipe.loss,
        recipe.compile,
        recipe.seed,
        frozen_layers(recipe, epoch),
        recipe.transfer.rates,
        recipe.accumulation,
        recipe.average_decay,
    )
