"""A run folder made of a network trained elsewhere, to be evaluated, exported or trained on like any other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from imagenet_pipeline import __version__, files
from imagenet_pipeline.config import (
    InitialRecipe,
    InputRecipe,
    OptimizerRecipe,
    Recipe,
    ScheduleRecipe,
    option_names,
    recipe_text,
)
from imagenet_pipeline.engines import Array
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.interchange.frozen import Normalisation
from imagenet_pipeline.interchange.mxnet_import import Imported
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.shapes import parameters
from imagenet_pipeline.recipe_faults import recipe_fault
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.checkpoint import State, prune, save_checkpoint
from imagenet_pipeline.training.journal import Journal, write_history
from imagenet_pipeline.training.records import IMPORTED, NUMBERED

BATCH_SIZE = 64
NOTE = """\
# Made by `import`: a network trained elsewhere. Evaluation needs `records`; training on goes by what stands here:
# train THIS_FILE --run THE_RUN --resume latest [key=value ...]
"""
COMMAND_LINE = "the command line"
_WNID = re.compile(r"n\d{8}")


def make_run(
    folder: Path,
    imported: Imported,
    classes: ClassTable,
    normalisation: Normalisation,
    data: DataSet | None,
    origin: Mapping[str, Any],
) -> None:
    """Make the run folder `folder`, whole or not at all, with the one checkpoint of epoch 0.

    Its recipe fine-tunes: a small rate falling to 0 over ten epochs. Auxiliary classifiers start from drawn values.
    `origin` goes into the journal.
    Raises BadRecipe where the folder exists or no recipe may have this input, BadInput where the number of classes
    differs.
    """
    if folder.exists():
        raise BadRecipe("something is here already", where=folder, advice="choose another --out")
    if len(classes) != imported.classes:
        what = "the class table is not that of the network"
        raise BadInput(what, where=folder, expected=f"{imported.classes} classes", found=len(classes))
    recipe = _recipe(imported, data)
    state = State(
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
    )
    with files.whole_folder(folder) as part:
        (part / "recipe.toml").write_text(NOTE + recipe_text(recipe), encoding="utf-8")
        save_checkpoint(part, state, _with_auxiliary(imported, recipe), {})
        journal = Journal(part)
        journal.write("import", network=imported.network, **origin)
        write_history(part, journal.events())
        prune(part, "all")


def normalisation_of(
    imported: Imported, given: Normalisation | None, data: DataSet | None
) -> tuple[Normalisation, str]:
    """What to subtract and divide by, and in words where that is from: the graph, the user, or else the records.

    Raises BadRecipe where nothing says it, or two do.
    """
    if imported.normalisation is not None:
        if given is not None:
            raise BadRecipe("the network normalises its input itself", advice="leave --mean and --std out")
        return imported.normalisation, "the graph"
    if given is not None:
        return given, COMMAND_LINE
    if data is not None:
        return (data.mean, data.std), str(data.folder / "mean.json")
    raise BadRecipe(
        "nothing says how the network's input is normalised",
        advice="give --mean R,G,B and --std R,G,B (0,0,0 and 1,1,1 for not at all), or --records",
    )


def read_classes(path: Path) -> ClassTable:
    """A class table from a `classes.json` of ours, from the card of an export, or from a text of one class a line.

    Such a line is the id, a space, the names. Raises BadInput or Damaged where it is none of them, or calls a class
    what cannot be printed.
    """
    try:
        with files.regular_file(path) as (stream, _):
            text = stream.read().decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"not a readable text file ({error})", where=path) from error
    if path.suffix == ".json":
        try:
            content = json.loads(text)
            table = content["classes"] if isinstance(content, dict) and "classes" in content else content
            return _printable(ClassTable.from_json(table, where=path), path)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"not a JSON file ({error})", where=path) from error
    rows = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    ids = tuple(first for first, _, _ in rows)
    if len(set(ids)) < len(ids):
        repeated = next(one for one in ids if ids.count(one) > 1)
        raise BadInput("a class id stands twice", where=path, found=repr(repeated))
    sorted_wnids = all(map(_WNID.fullmatch, ids)) and list(ids) == sorted(ids)
    names = tuple(rest.strip() or first for first, _, rest in rows)
    return _printable(ClassTable("wnid" if sorted_wnids else "list", ids, names), path)


def _printable(table: ClassTable, path: Path) -> ClassTable:
    for text in (table.order, *table.ids, *table.names):
        if not text.isprintable():
            raise BadInput("a class is called what cannot be printed", where=path, found=ascii(text[:80]))
    return table


def numbered_classes(count: int) -> ClassTable:
    """A table for a network whose classes nobody named."""
    return ClassTable(NUMBERED, tuple(map(str, range(count))), tuple(f"class {number}" for number in range(count)))


def _recipe(imported: Imported, data: DataSet | None) -> Recipe:
    batch_size = min(BATCH_SIZE, data.counts.get("train") or BATCH_SIZE) if data else BATCH_SIZE
    try:
        return Recipe(
            network=imported.network,
            records=str(data.folder) if data else "",
            epochs=10,
            batch_size=batch_size,
            input=InputRecipe(size=imported.input_size),
            initial=InitialRecipe(),
            optimizer=OptimizerRecipe(learning_rate=0.001),
            schedule=ScheduleRecipe(kind="cosine"),
        )
    except ValidationError as error:
        raise recipe_fault(error, option_names(), f"the recipe of {imported.network}") from error


def _with_auxiliary(imported: Imported, recipe: Recipe) -> dict[str, Array]:
    network = catalog.entry(imported.network).build(imported.classes)
    shape = (3, imported.input_size, imported.input_size)
    declared = parameters(network, shape)
    values: dict[str, Any] = dict(imported.values)
    if any(name not in values for name in declared):
        drawn = initial_values(network, shape, recipe.initial.kind, recipe.seed)
        values = {name: values.get(name, drawn[name]) for name in declared}
    return values
