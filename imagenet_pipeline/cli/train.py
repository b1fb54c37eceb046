"""The verbs about networks and runs: networks, keys, train, plot."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from imagenet_pipeline.cli.output import Json, Overrides, say, say_json, say_table
from imagenet_pipeline.config import parse_overrides, recipe_keys
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.recipe_faults import reason_for_none


def networks(
    name: Annotated[str | None, typer.Argument(help="One network, layer by layer.")] = None,
    input_size: Annotated[int | None, typer.Option("--input", min=1, help="Side of the input, pixels.")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Number of classes.")] = 1000,
    as_json: Json = False,
) -> None:
    """List the networks, or one of them layer by layer.

    Parameters, multiply-adds and shapes; no engine is needed.

    Those of other zoos are shown by their parameters' names and shapes; their library must be installed.

    \b
    Examples:
      imagenet-pipeline networks resnet50 --input 160
      imagenet-pipeline networks gluoncv:
      imagenet-pipeline networks timm:resnet18
    """
    from imagenet_pipeline.networks.zoo import is_zoo_name

    if name is not None and is_zoo_name(name):
        _show_zoo(name, classes, input_size or 224, as_json)
    elif name is not None:
        _show_network(name, classes, input_size, as_json)
    else:
        _show_networks(classes, input_size, as_json)


def _show_networks(classes: int, input_size: int | None, as_json: bool) -> None:
    from imagenet_pipeline.networks.summary import network_rows

    rows = network_rows(classes, input_size)
    if as_json:
        say_json({"networks": [dataclasses.asdict(row) for row in rows]})
        return
    header = ["network", "input", "parameters", "million multiply-adds", "what it is"]
    say_table(
        header,
        [(r.name, r.input_size, _count(r.parameters), _millions(r.multiply_adds), r.summary) for r in rows],
    )


def _show_network(name: str, classes: int, input_size: int | None, as_json: bool) -> None:
    from imagenet_pipeline.networks.summary import network_table

    table = network_table(name, classes, input_size)
    if as_json:
        say_json(table)
        return
    say_table(
        ["layer", "what", "output", "parameters", "multiply-adds"],
        [
            (
                f"{row.path} *" if row.auxiliary else row.path,
                row.layer,
                "x".join(map(str, row.output_shape)),
                f"{row.parameters:,}",
                f"{row.multiply_adds:,}",
            )
            for row in table.layers
        ],
    )
    say(f"{table.name}: {table.parameters:,} parameters, {table.multiply_adds:,} multiply-adds; {table.summary}")
    if table.auxiliary_parameters:
        say(f"* auxiliary, in training only: {table.auxiliary_parameters:,} parameters more")


def keys(
    word: Annotated[
        str,
        typer.Argument(
            help="Only those with this in their name or meaning, or called so elsewhere.", show_default=False
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """List the keys of a recipe and what they mean.

    Each with its default and the words it may be.

    \b
    Examples:
      imagenet-pipeline keys
      imagenet-pipeline keys warmup
      imagenet-pipeline keys lr
    """
    found = recipe_keys(word)
    if not found:
        advice = reason_for_none(word) or "`keys` lists all"
        raise BadRecipe("no recipe key has this in its name or meaning", where=word, advice=advice)
    if as_json:
        say_json({"keys": [dataclasses.asdict(key) for key in found]})
        return
    for key in found:
        say(f"{key.name} = {json.dumps(key.default)}" if not key.required else key.name)
        choices = f"  [{' | '.join(key.choices)}]" if key.choices else ""
        say(f"    {key.meaning}{choices}")


def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="Recipe file, TOML; or a run folder, to go on with it.")],
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Run folder [default: output/runs/RECIPE's name]")] = None,
    resume: Annotated[str | None, typer.Option(help='Take the run up again: "latest", "best" or an epoch.')] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe, or go on with a run from any epoch.

    A learning rate given with --resume is the rate of the very next step, and stays that of this step whatever a later
    --resume changes. Ctrl-C saves and leaves, a second one ends at once. `keys` lists what a
    recipe can say.

    \b
    Examples:
      imagenet-pipeline train config/demo.toml
      imagenet-pipeline train config/demo.toml epochs=30 devices=cpu:0,1
      imagenet-pipeline train config/demo.toml --resume latest
      imagenet-pipeline train output/runs/demo --resume latest epochs=40
      imagenet-pipeline train config/demo.toml --resume 8 optimizer.learning_rate=0.001
    """
    from imagenet_pipeline.engines import launch_ranks
    from imagenet_pipeline.engines.gluon.membership import taking_part
    from imagenet_pipeline.training.loop import train as train_run
    from imagenet_pipeline.training.resume import open_run, planned_recipe

    changes = parse_overrides(overrides or [])
    with taking_part():
        planned = planned_recipe(recipe, changes, run, resume)
        if launch_ranks(planned.engine, planned.devices, context.obj):
            return
        opened = open_run(recipe, changes, run, resume)
        outcome = train_run(opened)
    if not opened.leads:
        return
    if as_json:
        say_json({"run": opened.folder, **dataclasses.asdict(outcome)})
        return
    state = "finished" if outcome.finished else "stopped"
    epochs = "1 epoch" if outcome.epoch == 1 else f"{outcome.epoch} epochs"
    say(f"{opened.folder}: {state} after {epochs}, {outcome.step:,} steps")
    say(f"curves: {opened.folder / 'curves.png'}  history: {opened.folder / 'history.csv'}")


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, and training logs of MXNet's and GluonCV's.")],
    out: Annotated[Path, typer.Option(help="Picture to write, PNG.")],
) -> None:
    """Draw the curves of one run or several on one picture, restarts marked.

    Each run is a curve of its own. Logs that continue one another make one curve, in the order given: a log that
    does not begin with the first epoch goes on with the log before it, and takes the place of what it repeats.

    \b
    Examples:
      imagenet-pipeline plot output/runs/a output/runs/b --out curves.png
      imagenet-pipeline plot training_0.log training_65.log training_85.log output/runs/alexnet --out curves.png
    """
    from imagenet_pipeline.training.curves import draw_curves

    draw_curves(runs, out)
    say(f"curves: {out}")


def _show_zoo(name: str, classes: int, input_size: int, as_json: bool) -> None:
    from imagenet_pipeline.engines.zoos import zoo_names, zoo_table
    from imagenet_pipeline.networks.zoo import zoo_network

    if name.endswith(":"):
        known = zoo_names(name.removesuffix(":"))
        if as_json:
            say_json({"networks": known})
            return
        for one in known:
            say(one)
        return
    table = zoo_table(zoo_network(name, classes), (3, input_size, input_size))
    if as_json:
        say_json(table)
        return
    say_table(["parameter", "shape"], [(key, "x".join(map(str, shape))) for key, shape in table.shapes.items()])
    say(f"{table.name}: {table.parameters:,} trained parameters, {input_size} px; runs on the {table.engine} engine")


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _millions(number: int | None) -> str:
    return "-" if number is None else f"{number / 1e6:,.0f}"
