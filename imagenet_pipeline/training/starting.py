"""What a new run's network starts from: drawn values, or those of a file or another run, its head perhaps anew."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.zoos import zoo_table, zoo_values
from imagenet_pipeline.errors import BadInput, BadRecipe, first_few
from imagenet_pipeline.interchange.weights import read_weights, require_fit, starting_values
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import Shape, parameters
from imagenet_pipeline.networks.zoo import ZooNetwork
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.checkpoint import State, find_checkpoint, has_checkpoint, load_checkpoint

log = logging.getLogger("imagenet_pipeline")


def first_values(
    recipe: Recipe, network: Sequential | ZooNetwork, data: DataSet
) -> tuple[Values | None, dict[str, Any]]:
    """The values a run begins with, and what the journal shall say of them.

    They are drawn, or come from `initial.weights`: a file, a run (its best checkpoint) or a checkpoint's folder.
    With `initial.new_head` every parameter whose shape depends on the number of classes is drawn. None where a
    zoo's network shall draw its own.
    Raises BadInput where the weights are another network's, or (without a new head) for other classes than there are.
    """
    shape = (len(data.mean), recipe.input.size, recipe.input.size)
    if not recipe.initial.weights:
        return _drawn(recipe, network, shape), {}
    file, state = _source(Path(recipe.initial.weights), recipe.network)
    if state is not None:
        _say_differences(recipe, state, data)
    head = _head(recipe.network, len(data.classes), shape) if recipe.initial.new_head else frozenset()
    if isinstance(network, ZooNetwork):
        values = _zoo_values(file, network, shape, head, recipe.seed)
    else:
        drawn = initial_values(network, shape, recipe.initial.kind, recipe.seed)
        values = starting_values(file, network, shape, drawn, head)
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in values if name in head))
    if layers:
        log.info("values of %s, but for the new layers: %s", file, first_few(layers))
    told = {"file": str(file), "sha256": files.sha256_of(file), "new_layers": layers}
    return values, {"initial_weights": told}


def _drawn(recipe: Recipe, network: Sequential | ZooNetwork, shape: Shape) -> Values | None:
    initial = recipe.initial
    if not isinstance(network, ZooNetwork):
        return initial_values(network, shape, initial.kind, recipe.seed, initial.zero_last_scale)
    if initial.zero_last_scale:
        raise BadRecipe("a zoo's network draws its own values", where="initial.zero_last_scale", found=str(network))
    return None


def _source(path: Path, network: str) -> tuple[Path, State | None]:
    """The file of weights that `path` means, and the state beside it where that is a checkpoint of ours."""
    if not path.is_dir():
        return path, None
    folder = path
    if not (path / "state.json").exists():
        if not has_checkpoint(path):
            raise BadRecipe("a folder that is no run with a checkpoint", where=f"initial.weights = {str(path)!r}")
        folder = find_checkpoint(path, "best")
    state = load_checkpoint(folder).state
    if state.network != network:
        advice = "take network=" + state.network
        raise BadInput(
            "a checkpoint of another network", where=folder, expected=network, found=state.network, advice=advice
        )
    return folder / "weights.safetensors", state


def _say_differences(recipe: Recipe, state: State, data: DataSet) -> None:
    where = recipe.initial.weights
    if (state.mean, state.std) != (data.mean, data.std):
        fed = ", ".join(f"{name} {number:.1f}" for name, number in zip("RGB", state.mean, strict=True))
        log.info("%s: was trained on images of mean %s; here those of the records count", where, fed)
    if not recipe.initial.new_head and state.classes != data.classes.ids and len(state.classes) == len(data.classes):
        log.info("%s: tells other classes apart than the records; initial.new_head=true starts the head anew", where)


def _head(name: str, classes: int, shape: Shape) -> frozenset[str]:
    """The parameters whose shape depends on the number of classes, auxiliary classifiers' included."""
    here, there = (_shapes(catalog.build(name, count), shape) for count in (classes, classes + 1))
    return frozenset(parameter for parameter in here if here[parameter] != there.get(parameter))


def _shapes(network: Sequential | ZooNetwork, shape: Shape) -> dict[str, Shape]:
    if isinstance(network, ZooNetwork):
        return zoo_table(network, shape).shapes
    return {name: parameter.shape for name, parameter in parameters(network, shape).items()}


def _zoo_values(file: Path, network: ZooNetwork, shape: Shape, head: frozenset[str], seed: int) -> dict[str, Array]:
    values = read_weights(file)
    if head:
        drawn = zoo_values(network, shape, seed)
        values = {**values, **{name: drawn[name] for name in head}}
    require_fit(file, zoo_table(network, shape).shapes, values, network.classes)
    return values
