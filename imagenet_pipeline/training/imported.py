"""A run folder made of a network trained elsewhere, to be evaluated, exported or trained on like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from imagenet_pipeline import __version__, files
from imagenet_pipeline.config import (
    InitialRecipe,
    InputRecipe,
    LossRecipe,
    OptimizerRecipe,
    Recipe,
    ScheduleRecipe,
    load_recipe,
    option_names,
    recipe_text,
)
from imagenet_pipeline.config.reading import recipe_fault
from imagenet_pipeline.engines import Array
from imagenet_pipeline.errors import BadInput, BadRecipe, counted, printable
from imagenet_pipeline.interchange.frozen import THE_GRAPH, Imported, Normalisation
from imagenet_pipeline.interchange.optimizer_states import Continued
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.catalog import FILE_NAME
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layer_file import LONGEST_NAME, NetworkFile, network_text
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import Parameter, parameters
from imagenet_pipeline.records.class_names import read_user_json
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.checkpoint import State, prune, save_checkpoint
from imagenet_pipeline.training.data import IMPORTED, LOSSES, NUMBERED, input_statistics, steps_per_epoch
from imagenet_pipeline.training.engine_setup import as_kept
from imagenet_pipeline.training.journal import Journal, write_history
from imagenet_pipeline.training.resume import recipe_entry
from imagenet_pipeline.training.schedule import learning_rate

BATCH_SIZE = 64
NOTE = """\
# Made by `import`: a network trained elsewhere. Evaluation needs `records`; training on goes by what stands here:
# train THIS_FILE --run THE_RUN --resume latest [key=value ...]
"""
COMMAND_LINE = "the command line"
_SETTLED = ("network", "records", "input.size", "input.height", "input.width", "input.channels")
_OF_MOMENTUM = ("optimizer.learning_rate", "optimizer.momentum", "optimizer.weight_decay")
_STEPS_ASSUMED = 1000
"""Steps of an epoch where no records say it: the rate at an epoch's beginning hardly depends on them."""


def make_run(
    folder: Path,
    imported: Imported,
    classes: ClassTable,
    normalisation: Normalisation,
    data: DataSet | None,
    origin: Mapping[str, Any],
    crop_fraction: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    before: Continued | None = None,
) -> None:
    """Make the run folder `folder`, whole or not at all, with a single checkpoint, of epoch 0.

    Its recipe fine-tunes: a small rate falling to 0 over ten epochs. Auxiliary classifiers start from drawn values.
    `overrides` are recipe keys. With a training `before` the checkpoint is of its last epoch and has its momentum; the
    recipe goes on at the same rate for ten epochs more.
    A network that is in no catalogue has its layers in network.json there. `origin` goes into the journal. Evaluation
    looks at `crop_fraction` of the shorter edge, None at what the network's source says, or else the default.
    Raises BadRecipe where the folder exists, no recipe may have this input or these keys, and where a training before
    has no rate; BadInput where the number of classes differs, or where the layers are none that a file can hold.
    """
    if folder.exists():
        raise BadRecipe("the folder exists already", where=folder, advice="choose another --out")
    if len(classes) != imported.classes:
        raise _other_classes(folder, imported.classes, len(classes), data)
    recipe = _recipe(imported, classes, data, crop_fraction or imported.crop_fraction, overrides or {}, before)
    epoch = before.epoch if before else 0
    steps = steps_per_epoch(recipe, data) if data and before else 0
    state = replace(_state(imported, classes, normalisation, data, recipe), epoch=epoch, step=epoch * steps)
    with files.whole_folder(folder) as part:
        if imported.layers is not None:
            own = _written_network(part / FILE_NAME, imported, imported.layers)
            recipe, state = recipe.model_copy(update={"network": own}), replace(state, network=own)
        values, declared = _with_auxiliary(imported, recipe)
        values |= before.weights if before else {}
        optimizer_state = _optimizer_state(before, declared, recipe, steps) if before else {}
        made = {"network": imported.network, **({"epoch": epoch} if before else {})}
        fill_run(part, NOTE, recipe, (state, values, optimizer_state), made, origin)


def fill_run(
    part: Path,
    note: str,
    recipe: Recipe,
    checkpoint: tuple[State, Mapping[str, Array], Mapping[str, Array]],
    made: Mapping[str, Any],
    origin: Mapping[str, Any],
) -> None:
    """Write a run of a single checkpoint (state, weights, optimizer state) into its folder.

    `note` heads its recipe; the journal tells what was `made`, and of what `origin`.
    """
    files.write_whole(part / "recipe.toml", note + recipe_text(as_kept(recipe)))
    save_checkpoint(part, *checkpoint)
    journal = Journal(part)
    journal.write("import", **made, **recipe_entry(part, recipe), **origin)
    write_history(part, journal.events())
    prune(part, "all")


def _state(
    imported: Imported, classes: ClassTable, normalisation: Normalisation, data: DataSet | None, recipe: Recipe
) -> State:
    """The state of a checkpoint before any step of ours."""
    return State(
        epoch=0,
        step=0,
        network=imported.network,
        input_size=imported.input_size,
        classes=classes.ids,
        class_names=classes.names,
        class_order=classes.order,
        mean=normalisation[0],
        std=normalisation[1],
        data_digest=data.digest if data else IMPORTED,
        engine=recipe.engine,
        versions={"imagenet_pipeline": __version__},
        crop_fraction=recipe.input.crop_fraction,
        label_kind=classes.label_kind,
    )


def _other_classes(folder: Path, count: int, found: int, data: DataSet | None) -> BadInput:
    """The error for a class table of another length than the network has outputs."""
    advice = "leave --classes out for numbered classes"
    if data is not None:
        start = f"initial.weights={folder} initial.new_head=true"
        advice = f"import it without --records (--mean, --std), then `train` on these records with {start}"
    what = "the class table does not fit the network"
    return BadInput(what, where=folder, expected=counted(count, "class"), found=found, advice=advice)


def _written_network(path: Path, imported: Imported, layers: Sequential) -> str:
    """Write a network's file, and give its path."""
    shown = printable(imported.network)[:LONGEST_NAME] or "imported"
    try:
        files.write_whole(
            path, network_text(NetworkFile(shown, imported.input_size, layers, channels=imported.channels))
        )
    except ValueError as error:
        raise BadInput(f"the network has a number that no file can hold ({error})", where=shown) from error
    return str(path)


def normalisation_of(
    imported: Imported, given: Normalisation | None, data: DataSet | None
) -> tuple[Normalisation, str]:
    """Find what to subtract and divide by, and say where it is from.

    The graph, the user, the source of the weights, or else the records. Raises BadRecipe where nothing says it, or
    both the graph and the user do.
    """
    if given is not None:
        if len(given[0]) != imported.channels:
            what, expected = "not as many numbers as the input has channels", counted(imported.channels, "number")
            raise BadRecipe(what, where="--mean and --std", expected=expected, found=len(given[0]))
        if imported.normalisation is not None and imported.normalisation_from == THE_GRAPH:
            raise BadRecipe("the network normalises its input itself", advice="leave --mean and --std out")
        return given, COMMAND_LINE
    if imported.normalisation is not None:
        return imported.normalisation, imported.normalisation_from
    if data is not None:
        return input_statistics(data, imported.channels)
    raise BadRecipe(
        "the normalisation of the network's input is unknown",
        advice="give --mean R,G,B and --std R,G,B (0,0,0 and 1,1,1 for not at all), or --records",
    )


def crop_of_card(path: Path) -> float | None:
    """The share of the shorter edge that an export's card names; None where `path` is no card."""
    if path.suffix != ".json":
        return None
    content = read_user_json(path)
    share = content.get("crop_fraction") if isinstance(content, dict) else None
    if share is None:
        return None
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise BadInput("not the card of an export", where=path, expected="crop_fraction above 0, up to 1", found=share)
    return float(share)


def notes_on(before: Continued, overrides: Mapping[str, Any]) -> list[str]:
    """Sentences on what is otherwise in the training that goes on, with these recipe keys, than in that before."""
    ours = {
        "our default augmentation": any(key.startswith("augmentation.") for key in overrides),
        "the engine's own precision": "precision" in overrides,
    }
    assumed = " and ".join(phrase for phrase, is_given in ours.items() if not is_given)
    if not assumed:
        return [*before.notes]
    note = (
        f"training goes on with {assumed}; on equal batches its losses are MXNet's with precision=float32 and "
        "augmentation.* as its iterator had it: without rand_crop and rand_mirror, on images of the input's size, "
        "augmentation.crop=centre augmentation.flip=0 (docs/mxnet.md has the others)"
    )
    return [*before.notes, note]


def numbered_classes(count: int) -> ClassTable:
    """A table for a network whose classes nobody named."""
    return ClassTable(NUMBERED, tuple(map(str, range(count))), tuple(f"class {number}" for number in range(count)))


def _recipe(
    imported: Imported,
    classes: ClassTable,
    data: DataSet | None,
    crop_fraction: float | None,
    overrides: Mapping[str, Any],
    before: Continued | None,
) -> Recipe:
    for key in (key for key in _SETTLED if key in overrides):
        raise BadRecipe(f"recipe key {key!r} is settled by what is imported", where=COMMAND_LINE, advice="leave it out")
    made = _fine_tuning(imported, classes, data, crop_fraction)
    if before is None:
        return load_recipe(made, dict(overrides)) if overrides else made
    options = {**before.options, **overrides}
    unknown = [key for key in _OF_MOMENTUM if key not in options]
    if unknown:
        advice = f"give them as they were: {' '.join(f'{key}=...' for key in unknown)}"
        raise BadRecipe("the states do not say how the training went on", where=COMMAND_LINE, advice=advice)
    going_on = {"epochs": before.epoch + made.epochs, "schedule.kind": "constant", **options}
    recipe = load_recipe(made, going_on)
    if recipe.optimizer.name != "sgd" or recipe.optimizer.nesterov:
        raise BadRecipe("the states are those of sgd with momentum", where="optimizer", expected="sgd, not nesterov")
    return recipe


def _fine_tuning(imported: Imported, classes: ClassTable, data: DataSet | None, crop_fraction: float | None) -> Recipe:
    batch_size = min(BATCH_SIZE, data.counts.get("train") or BATCH_SIZE) if data else BATCH_SIZE
    try:
        return Recipe(
            network=imported.network,
            records=data.name if data else "",
            epochs=10,
            batch_size=batch_size,
            input=_input(imported, crop_fraction or InputRecipe().crop_fraction),
            initial=InitialRecipe(),
            loss=LossRecipe.model_validate({"kind": LOSSES[classes.label_kind][0]}),
            optimizer=OptimizerRecipe(learning_rate=0.001),
            schedule=ScheduleRecipe(kind="cosine"),
        )
    except ValidationError as error:
        raise recipe_fault(error, option_names(), f"the recipe of {imported.network}") from error


def _input(imported: Imported, crop_fraction: float) -> InputRecipe:
    size, channels = imported.input_size, imported.channels
    if isinstance(size, int):
        return InputRecipe(size=size, crop_fraction=crop_fraction, channels=1 if channels == 1 else 3)
    height, width = size
    return InputRecipe(height=height, width=width, crop_fraction=crop_fraction, channels=1 if channels == 1 else 3)


def _optimizer_state(
    before: Continued, declared: Mapping[str, Parameter], recipe: Recipe, steps_per_epoch: int
) -> dict[str, Array]:
    """MXNet's momentum as both engines read it: last displacements, and the rate that the next step takes."""
    steps = steps_per_epoch or _STEPS_ASSUMED
    rate = learning_rate(recipe, before.epoch * steps, steps)
    arrays: dict[str, Array] = {
        f"displacement/{name}": before.displacements.get(name, np.zeros(parameter.shape, np.float32))
        for name, parameter in declared.items()
        if parameter.trainable
    }
    return {**arrays, "learning_rate": np.array([rate], np.float64)}


def _with_auxiliary(imported: Imported, recipe: Recipe) -> tuple[dict[str, Array], dict[str, Parameter]]:
    """The values of all parameters, and the parameters by name; a zoo's are not known here."""
    if catalog.is_zoo_name(recipe.network):
        return dict(imported.values), {}
    network = catalog.build(recipe.network, imported.classes)
    shape = imported.input_shape
    declared = parameters(network, shape)
    values: dict[str, Any] = dict(imported.values)
    if any(name not in values for name in declared):
        drawn = initial_values(network, shape, recipe.initial.kind, recipe.seed)
        values = {name: values.get(name, drawn[name]) for name in declared}
    return values, declared
