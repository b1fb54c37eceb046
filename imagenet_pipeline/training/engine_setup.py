"""The engine of a run: begun, resumed, or to score with.

A new run's network starts from drawn values, or from those of a file or another run, its head perhaps drawn anew. The
normalisation of its input comes with them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe, pair
from imagenet_pipeline.config.recipe import NetworkOptions
from imagenet_pipeline.engines import (
    FRAMEWORKS,
    Array,
    Blueprint,
    Engine,
    Normalisation,
    Values,
    choose_engine,
    create_engine,
    in_cluster,
    is_installed,
)
from imagenet_pipeline.engines.zoos import ZooNetwork, network_of
from imagenet_pipeline.errors import BadInput, BadRecipe, first_few
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.catalog import (
    FILE_NAME,
    INPUT_TRANSFORM,
    LayeredNetwork,
    is_custom,
    with_threshold,
    without_threshold,
)
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import Shape
from imagenet_pipeline.processes import this_process
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.checkpoint import State, find_checkpoint, has_checkpoint, load_checkpoint, state_beside
from imagenet_pipeline.training.data import class_weights_of, input_statistics, require_fitting_loss
from imagenet_pipeline.training.distributed import facts_of, require_agreement, require_even_shares


def new_engine(recipe: Recipe, data: DataSet) -> tuple[Engine, Beginning]:
    """An engine that begins a run, and what it begins with."""
    require_fitting_loss(recipe, data)
    recipe = with_single_output(recipe, data.classes)
    network = network_for(recipe, recipe.whole_network, len(data.classes))
    beginning = beginning_of(recipe, network, data)
    frozen, kind = frozen_layers(recipe, epoch=0), data.classes.label_kind
    mean, std = beginning.normalisation
    weights = class_weights_of(recipe.loss, data)
    blueprint = Blueprint(network, recipe.input.trained_size, mean, std, recipe, frozen, kind, weights)
    return create_engine(recipe.engine, blueprint, beginning.values), beginning


def settled(recipe: Recipe, data: DataSet) -> Recipe:
    """The recipe with the batch that fits, where `batch_size` is "auto", for what trains without a run.

    Raises BadRecipe for "auto" in any of several processes that train together.
    """
    if recipe.batch_size != "auto" or this_process().ranks > 1 or in_cluster():
        return recipe.model_copy(update={"batch_size": recipe.images_per_step})
    from imagenet_pipeline.training.batch_size import find_batch_size

    return find_batch_size(recipe, data).settle(recipe)


def fresh_engine(recipe: Recipe, data: DataSet) -> Engine:
    """Create an engine that begins as a run's would, for benchmarks and the LR finder. Collective.

    Raises BadRecipe where processes that train together do not mean the same, or cannot share a batch evenly.
    """
    if recipe.distillation.teacher:
        log.info("the teacher takes no part here: the loss is that of the labels")
    engine, beginning = new_engine(recipe, data)
    facts = {"the content of initial.weights": repr(beginning.journal_entry.get("initial_weights", {}).get("sha256"))}
    require_agreement(engine, facts_of(recipe, data, engine) | facts)
    require_even_shares(recipe, engine)
    return engine


def resumed_engine(
    recipe: Recipe, state: State, values: Values, optimizer_state: Values, class_weights: tuple[float, ...] = ()
) -> Engine:
    """An engine that goes on after the epochs of `state`, with the values and the optimizer's state of then.

    `class_weights` are those of the recipe's loss (`training.data.class_weights_of`).
    """
    network = network_for(recipe, state.network, len(state.classes))
    frozen, kind = frozen_layers(recipe, state.epoch), state.label_kind
    blueprint = Blueprint(
        network, recipe.input.trained_size, state.mean, state.std, recipe, frozen, kind, class_weights
    )
    engine = create_engine(recipe.engine, blueprint, values)
    engine.set_optimizer_state(optimizer_state)
    return engine


def build_engine(recipe: Recipe, state: State, weights: Values) -> Engine:
    """Build an engine to score with, which holds a checkpoint's weights."""
    network = network_of(state.network, len(state.classes))
    blueprint = Blueprint(network, state.input_size, state.mean, state.std, recipe, label_kind=state.label_kind)
    return create_engine(scoring_engine(recipe, state), blueprint.for_scoring(), weights)


def network_for(recipe: Recipe, name: str, classes: int) -> LayeredNetwork | ZooNetwork:
    """The network `name` as the recipe trains it: with its input transform in front, in place of an earlier one.

    Raises BadRecipe as `network_of` does, and where the network cannot take the transform.
    """
    network = network_of(name, classes)
    if recipe.input.transform == "channels":
        return network
    from imagenet_pipeline.training.input_transform import with_transform

    return with_transform(network, recipe.input, image_shape(recipe))


def image_shape(recipe: Recipe) -> Shape:
    """(channels, height, width) of the images that the recipe trains on, in the end."""
    return (recipe.input.channels, *pair(recipe.input.trained_size))


def is_network_of(recipe: Recipe, name: str, classes: int) -> bool:
    """Tell whether the network `name`, of a checkpoint, is the one that the recipe trains."""
    if recipe.input.transform == "channels":
        return catalog.is_same(name, recipe.whole_network, classes)
    return network_for(recipe, name, classes) == network_for(recipe, recipe.whole_network, classes)


def own_copy(recipe: Recipe, classes: int) -> str | None:
    """The text of a run's own file of its network; None where the network's name says it all."""
    name = recipe.whole_network
    network = network_for(recipe, name, classes)
    if network.engine is not None or recipe.input.transform == "channels":
        return catalog.file_copy(name, classes) if is_custom(name) else None
    from imagenet_pipeline.networks.layer_file import NetworkFile, network_text

    shape = recipe.input
    made = NetworkFile(catalog.title(name), shape.trained_size, Sequential(network.items), channels=shape.channels)
    return network_text(made)


def with_engine(recipe: Recipe, before: str | None = None) -> Recipe:
    """Settle "auto": the engine that trained `before`, or where there is no such, what `choose_engine` says."""
    if recipe.engine != "auto":
        return recipe
    engine = before if before in FRAMEWORKS else choose_engine(recipe.devices, recipe.whole_network)
    return recipe.model_copy(update={"engine": engine})


def as_kept(recipe: Recipe) -> Recipe:
    """The recipe as a run keeps it: a custom network, its options made, or one with an input transform, is a file of
    the run's own, beside the recipe.
    """
    has_file = is_custom(recipe.whole_network) or recipe.input.transform != "channels"
    return with_network_file(recipe, FILE_NAME) if has_file else recipe


def with_single_output(recipe: Recipe, classes: ClassTable) -> Recipe:
    """The recipe whose network has a single output where its loss asks for it: binary cross-entropy of two classes.

    The threshold is part of the network from there on. Raises BadRecipe for a zoo's network.
    """
    if recipe.loss.kind != "binary_cross_entropy" or classes.label_kind != "class":
        return recipe
    name = with_threshold(recipe.whole_network, recipe.loss.threshold)
    return with_network_file(recipe, name)


def with_network_file(recipe: Recipe, file: str) -> Recipe:
    """The recipe with the network of a file, or of another whole name, as it stands there."""
    return recipe.model_copy(update={"network": file, "network_options": NetworkOptions()})


def scoring_engine(recipe: Recipe, state: State) -> str:
    """Name the engine to score with: for "auto" the engine that trained last, or where that is missing, the other."""
    if recipe.engine != "auto":
        return recipe.engine
    if state.engine not in FRAMEWORKS:  # of an imported network, which none has trained
        return choose_engine(recipe.devices, state.network)
    if is_installed(state.engine):
        return state.engine
    engine = choose_engine(recipe.devices, state.network)
    log.info("trained on %s, which is not installed here: %s takes its place", state.engine, engine)
    return engine


def frozen_layers(recipe: Recipe, epoch: int) -> tuple[str, ...]:
    """List the layers that stay as they are in an epoch, counted from 0, by the beginnings of their paths."""
    return tuple(layer for layer, epochs in recipe.transfer.frozen.items() if epoch < epochs)


log = logging.getLogger("imagenet_pipeline")


@dataclass(frozen=True)
class Beginning:
    """Initial values of a new run, the normalisation of its input, and the journal's entry on both.

    `values` is None where a zoo's network shall draw its own.
    """

    values: Values | None
    normalisation: Normalisation
    journal_entry: dict[str, Any]


def beginning_of(recipe: Recipe, network: LayeredNetwork | ZooNetwork, data: DataSet) -> Beginning:
    """The values drawn, or those of `initial.weights`: a file, a run (its best checkpoint) or a checkpoint's folder.

    With `initial.new_head` every parameter whose shape depends on the number of classes is drawn, and so are the last
    layers of a network that begins as the file's and ends in others. Mean and std are
    `initial.mean` and `initial.std`, or travel with the weights, or else are those of the records.
    Raises BadInput where the weights are another network's, or (without a new head) for other classes than there are.
    """
    channels, initial = recipe.input.channels, recipe.initial
    shape = image_shape(recipe)
    if not initial.weights:
        source = _given(recipe) or input_statistics(data, channels)
        values = network.initial_values(shape, initial.kind, recipe.seed, initial.zero_last_scale, initial.bias)
        transform, entry = _transform(recipe, network, data, source[0])
        return Beginning({**values, **transform} if transform and values else values, source[0],
                         _journal_entry(*source) | entry)  # fmt: skip
    # Only a run that begins with a file needs what reads other programs' files.
    from imagenet_pipeline.interchange.weights import starting_values

    name = recipe.whole_network
    file = _source(recipe, len(data.classes))
    found, inside = _read(file, without_threshold(name), network, shape)
    _require_channels(file, found, network, shape)
    state = state_beside(file)
    if state is not None:
        _say_other_classes(recipe, state, data)
    normalisation, origin = _given(recipe) or _travelling(file, state, inside) or _of_the_records(file, data, channels)
    log.info("%s: its input is normalised by %s, from %s", file, _words(normalisation), origin)
    head = _head(name, len(data.classes), shape) if initial.new_head else frozenset()
    transform, entry = _transform(recipe, network, data, normalisation, found)
    if head and network.engine is None:
        declared = {key: size for key, size in network.shapes(shape).items() if key not in transform}
        found, head = _with_new_end(found, declared, head)
    if network.engine is not None:
        values = _zoo_values(file, found, network, shape, head, recipe.seed)
    else:
        drawn = {**initial_values(network, shape, initial.kind, recipe.seed, bias=initial.bias), **transform}
        values = starting_values(file, found, network, shape, drawn, head | transform.keys())
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in values if name in head))
    if layers:
        log.info("values of %s, but for the new layers: %s", file, first_few(layers))
    weights = {"file": str(file), "sha256": files.sha256_of(file), "new_layers": layers}
    entry = {"initial_weights": weights, **_journal_entry(normalisation, origin), **entry}
    return Beginning(values, normalisation, entry)


def _transform(
    recipe: Recipe,
    network: LayeredNetwork | ZooNetwork,
    data: DataSet,
    normalisation: Normalisation,
    found: Values | None = None,
) -> tuple[Values, dict[str, Any]]:
    """The input transform of a new run, fitted on its records: values by name, and the journal's entry on it.

    Both are empty where there is none, and where it is among the weights `found` in a file. Raises BadRecipe where the
    network has one whose values are nowhere.
    """
    if any(name.removeprefix("arg:").startswith(INPUT_TRANSFORM) for name in found or ()):
        return {}, {}
    if recipe.input.transform != "channels":
        from imagenet_pipeline.training.input_transform import fitted

        return fitted(recipe, data, normalisation, image_shape(recipe))
    if network.engine is None and network.items[0][0] == INPUT_TRANSFORM:
        what = f"the network begins with the input transform of another run, {INPUT_TRANSFORM}"
        advice = "take that run's weights as well, initial.weights=RUN, or fit it anew: input.transform=zca"
        raise BadRecipe(what, where=f"network = {recipe.whole_network[:80]!r}", advice=advice)
    return {}, {}


def _journal_entry(normalisation: Normalisation, origin: str) -> dict[str, Any]:
    return {"normalisation": {"mean": list(normalisation[0]), "std": list(normalisation[1]), "from": origin}}


def _given(recipe: Recipe) -> tuple[Normalisation, str] | None:
    initial = recipe.initial
    return ((initial.mean, initial.std), "initial.mean and initial.std") if initial.mean else None


def _read(
    file: Path, name: str, network: LayeredNetwork | ZooNetwork, shape: Shape
) -> tuple[dict[str, Array], tuple[Normalisation, str] | None]:
    """The arrays of a file by our names, and the normalisation that it or its zoo states, with who states it.

    A zoo's network takes them by the zoo's names.
    """
    from imagenet_pipeline.interchange.torch_import import in_our_names, stated_with
    from imagenet_pipeline.interchange.weights import read_weights, without_normalisation

    found, inside = without_normalisation(file, read_weights(file))
    if inside is not None:
        return found, (inside, str(file))
    translated = in_our_names(file, found, name, network.shapes(shape)) if network.engine is None else None
    if translated is None:
        return found, None
    stated = stated_with(file, name)
    return translated, (stated.normalisation, stated.origin)


def _require_channels(
    file: Path, found: Mapping[str, Array], network: LayeredNetwork | ZooNetwork, shape: Shape
) -> None:
    """Raise BadInput for weights of this network whose input has other channels than the recipe's."""
    here = network.shapes(shape)
    unlike = [name for name in here if name in found and found[name].shape != here[name]]
    words = {1: "grey images (1 channel)", 3: "RGB images (3 channels)"}
    channels, other = shape[0], 4 - shape[0]
    if unlike and found[unlike[0]].shape == network.shapes((other, *shape[1:]))[unlike[0]]:
        what, advice = f"the weights are for {words[other]}", f"take input.channels={other}, or leave initial.weights"
        raise BadInput(what, where=file, expected=f"{words[channels]}, by input.channels", advice=advice)


def _travelling(
    file: Path, state: State | None, inside: tuple[Normalisation, str] | None
) -> tuple[Normalisation, str] | None:
    """Find a file's normalisation, and its origin: its checkpoint, its export's card, or what `_read` found."""
    if state is not None:
        return (state.mean, state.std), str(file.parent / "state.json")
    from imagenet_pipeline.interchange.export import normalisation_beside

    beside = normalisation_beside(file)
    if beside is not None:
        return beside[0], str(beside[1])
    return inside


def _of_the_records(file: Path, data: DataSet, channels: int) -> tuple[Normalisation, str]:
    log.warning(
        "%s: nothing says how its input was normalised, so mean and std of the records are taken; where it was "
        "trained with others, give initial.mean=[R,G,B] initial.std=[R,G,B]",
        file,
    )
    return input_statistics(data, channels)


def _words(normalisation: Normalisation) -> str:
    mean, std = (",".join(f"{number:g}" for number in numbers) for numbers in normalisation)
    return f"mean {mean} std {std}"


def _source(recipe: Recipe, classes: int) -> Path:
    """The file of weights that `initial.weights` means, for the recipe's network with `classes` outputs.

    A custom network with a new head may have only its beginning in common with it.
    """
    path, network = Path(recipe.initial.weights), recipe.whole_network
    if not path.is_dir():
        return path
    folder = path
    if not (path / "state.json").exists():
        if not has_checkpoint(path):
            raise BadRecipe("the folder is not a run with a checkpoint", where=f"initial.weights = {str(path)!r}")
        folder = find_checkpoint(path, "best")
    state = load_checkpoint(folder).state
    # A single output is no output of another network: of three classes there is one for each.
    outputs = classes if without_threshold(network) == network else 3
    may_differ = recipe.initial.new_head and is_custom(network)
    if not may_differ and not is_network_of(recipe, state.network, outputs):
        advice = "take network=" + state.network
        raise BadInput(
            "the checkpoint is of another network", where=folder, expected=network, found=state.network, advice=advice
        )
    return folder / "weights.safetensors"


def _say_other_classes(recipe: Recipe, state: State, data: DataSet) -> None:
    where = recipe.initial.weights
    if not recipe.initial.new_head and state.classes != data.classes.ids and len(state.classes) == len(data.classes):
        log.info("%s: tells other classes apart than the records; initial.new_head=true starts the head anew", where)


def _head(name: str, classes: int, shape: Shape) -> frozenset[str]:
    """The parameters whose shape depends on the number of classes, auxiliary classifiers' included."""
    here, there = (network_of(name, count).shapes(shape) for count in (classes, classes + 1))
    return frozenset(parameter for parameter in here if here[parameter] != there.get(parameter))


def _with_new_end(
    found: dict[str, Array], declared: dict[str, Shape], head: frozenset[str]
) -> tuple[dict[str, Array], frozenset[str]]:
    """Take what the file has for a network's beginning, and add its other layers, where all are behind, to the head.

    Where the file lacks nothing, or something in between, both stay as they are: other errors say what does not fit.
    """
    fits = [name in found and found[name].shape == shape for name, shape in declared.items()]
    common = fits.index(False) if False in fits else len(fits)
    beginning, rest = [*declared][:common], [*declared][common:]
    new = [name for name in rest if name not in head]
    if not new or not beginning or any(fits[common + rest.index(name)] for name in new):
        return found, head
    return {name: found[name] for name in beginning}, head | frozenset(new)


def _zoo_values(
    file: Path, values: dict[str, Array], network: ZooNetwork, shape: Shape, head: frozenset[str], seed: int
) -> dict[str, Array]:
    from imagenet_pipeline.interchange.weights import require_fit

    if head:
        drawn = network.drawn(shape, seed)
        values = {**values, **{name: drawn[name] for name in head}}
    require_fit(file, network.shapes(shape), values, network.classes)
    return values
