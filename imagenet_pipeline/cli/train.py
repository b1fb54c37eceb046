"""The verbs about networks, recipes and runs: networks, keys, recipes, recipe, train, average, plot."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from imagenet_pipeline.cli.completion import complete_network, complete_recipe, complete_recipe_or_run
from imagenet_pipeline.cli.evaluate import Words, runs_and_changes
from imagenet_pipeline.cli.output import Json, Overrides, overrides_of, say, say_json, say_table
from imagenet_pipeline.errors import BadRecipe, counted, did_you_mean, first_few


def networks(
    name: Annotated[
        str | None,
        typer.Argument(help="One network, layer by layer; a file of one's own.", autocompletion=complete_network),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OPTION=VALUE]...", help="Changes to it, as network_options has them."),
    ] = None,
    input_size: Annotated[int | None, typer.Option("--input", min=1, help="Side of the input, pixels.")] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes [default: 1000, or a file's own].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the network's layers to this file, NAME.json.")] = None,
    as_json: Json = False,
) -> None:
    """List the networks, or a network layer by layer.

    Parameters, multiply-adds and shapes; no engine is needed.

    Those of other zoos are shown by their parameters' names and shapes; their library must be installed.

    With --out the layers become a file, to change and to train: a recipe's network may be such a file.

    \b
    Examples:
      imagenet-pipeline networks resnet50 --input 160
      imagenet-pipeline networks gluoncv:
      imagenet-pipeline networks timm:resnet18
      imagenet-pipeline networks resnet18 --classes 10 --out mine.json
      imagenet-pipeline networks mine.json
      imagenet-pipeline networks mine.toml dropout=0.3 activation=swish
      imagenet-pipeline networks mlp:512,512
    """
    from imagenet_pipeline.networks.catalog import is_zoo_name

    name = _with_options(name, options)
    if out is not None:
        _write_network(name, out, classes, input_size, as_json)
    elif name is not None and is_zoo_name(name):
        _show_zoo(name, classes or 1000, input_size or 224, as_json)
    elif name is not None:
        _show_network(name, classes, input_size, as_json)
    else:
        _show_networks(classes or 1000, input_size, as_json)


def _with_options(name: str | None, options: list[str] | None) -> str | None:
    """The whole name of a network with options, each as a recipe's key or as its last word."""
    from imagenet_pipeline.config import parse_overrides, read_recipe
    from imagenet_pipeline.config.reading import COMMAND_LINE
    from imagenet_pipeline.config.recipe import NetworkOptions

    if name is None or not options:
        return name
    words = {key.removeprefix("network_options."): value for key, value in parse_overrides(options).items()}
    for key in words:
        if key not in NetworkOptions.model_fields:
            known = list(NetworkOptions.model_fields)
            what, advice = f"no option of a network is called {key[:80]!r}", did_you_mean(key, known, "") or None
            raise BadRecipe(what, where=COMMAND_LINE, expected=" or ".join(known), advice=advice)
    return read_recipe({"network": name, "records": "", "network_options": words}, COMMAND_LINE).whole_network


def _write_network(name: str | None, out: Path, classes: int | None, input_size: int | None, as_json: bool) -> None:
    from imagenet_pipeline import files
    from imagenet_pipeline.config import shown_size
    from imagenet_pipeline.evaluation.features import own_network
    from imagenet_pipeline.networks import catalog
    from imagenet_pipeline.networks.layer_file import NetworkFile, network_text

    files.require_ending(out, ".json", "not the name of a network's file")
    if name is None:
        raise BadRecipe("--out writes a single network", advice="name it: networks NAME --out FILE.json")
    layers, entry = own_network(name, classes), catalog.entry(name)
    written = NetworkFile(entry.name, input_size or entry.input_size, layers, channels=entry.channels)
    made = {"file": str(out), "network": entry.name, "classes": written.classes, "input_size": written.input_size}
    files.write_whole(out, network_text(written))
    if as_json:
        say_json(made)
        return
    shown = f"{entry.name}, {counted(written.classes, 'class')}, {shown_size(written.input_size)} px"
    say(f"{out}: {shown}; train it with network={out}")


def _show_networks(classes: int, input_size: int | None, as_json: bool) -> None:
    from imagenet_pipeline.config import shown_size
    from imagenet_pipeline.networks.summary import file_rows, network_rows

    rows = network_rows(classes, input_size) + file_rows(classes, input_size)
    if as_json:
        say_json({"networks": [dataclasses.asdict(row) for row in rows]})
        return
    header = ["network", "input", "parameters", "million multiply-adds", "what it is"]
    say_table(
        header,
        [
            (
                r.name,
                shown_size(r.input_size) if r.input_size else "-",
                _count(r.parameters),
                _millions(r.multiply_adds),
                r.summary,
            )
            for r in rows
        ],
    )


def _show_network(name: str, classes: int | None, input_size: int | None, as_json: bool) -> None:
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
                row.layer + (f" of {', '.join(path or 'the image' for path in row.inputs)}" if row.inputs else ""),
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
    from imagenet_pipeline.config import recipe_keys
    from imagenet_pipeline.config.reading import reason_for_none

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


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="One recipe, as it is written.", autocompletion=complete_recipe)
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Write it to a file of your own, to change it.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write [default: NAME.toml in this folder]")] = None,
    as_json: Json = False,
) -> None:
    """List the recipes that come with this program, print a recipe, or copy it.

    `train NAME` trains the recipe as it is. A copy is written with all its comments; a file that is there stays.

    \b
    Examples:
      imagenet-pipeline recipes
      imagenet-pipeline recipes imagenet/resnet50
      imagenet-pipeline recipes --copy imagenet/resnet50 --out mine.toml
    """
    from imagenet_pipeline.config import shipped

    if name is None:
        if copy or out:
            raise BadRecipe(
                "no recipe is named", where="--copy", expected="the name of a recipe", advice="`recipes` lists them"
            )
        _show_recipes(as_json)
    elif copy or out:
        written = shipped.copy_shipped(name, out)
        if as_json:
            say_json({"name": name, "written": written})
        else:
            say(f"{name}: written to {written}")
    elif as_json:
        say_json({**dataclasses.asdict(shipped.read_shipped(name)), "text": shipped.shipped_text(name)})
    else:
        for line in shipped.shipped_text(name).splitlines():
            say(line)


def _show_recipes(as_json: bool) -> None:
    from imagenet_pipeline.config.shipped import read_shipped, shipped_paths

    found = [read_shipped(name) for name in shipped_paths()]
    if as_json:
        say_json({"recipes": [dataclasses.asdict(recipe) for recipe in found]})
        return
    say_table(["recipe", "network", "records", "what it is"], [dataclasses.astuple(recipe) for recipe in found])


def recipe(
    command: Annotated[
        str, typer.Option("--from", metavar="COMMAND", help="The command, in quotes; or a shell script that has it.")
    ],
    out: Annotated[Path | None, typer.Option(help="File to write [default: the recipe is printed]")] = None,
    records: Annotated[str | None, typer.Option(help="The data set to train on [default: as the recipe says]")] = None,
    as_json: Json = False,
) -> None:
    """Write the recipe of a command line that trained with MXNet.

    It is read, not run: GluonCV's train_imagenet.py and train_cifar10.py, and train_imagenet.py, train_cifar10.py and
    fine-tune.py of MXNet's example/image-classification. A script's own NAME=value lines are put in. The comment at the head
    of the recipe says what it assumes, and which flags have no counterpart and why. A flag that the script has not is
    an error.

    \b
    Examples:
      imagenet-pipeline recipe --from "python train_imagenet.py --model resnet50_v1b --num-gpus 4 --lr-mode cosine --num-epochs 120" --out mine.toml
      imagenet-pipeline recipe --from "python fine-tune.py --pretrained-model imagenet1k-resnet-50 --gpus 0 --data-train a.rec --data-val b.rec"
      imagenet-pipeline recipe --from "$(cat train.sh)" --records output/imagenet --out mine.toml
    """  # noqa: E501
    from imagenet_pipeline import files
    from imagenet_pipeline.interchange.script_recipe import recipe_of_command

    read = recipe_of_command(command, records)
    if out is not None:
        if out.exists() or out.is_symlink():
            raise BadRecipe("the file exists already and is kept", where=out, advice="give another --out, or remove it")
        files.write_whole(out, read.text)
    if as_json:
        answer = {"script": read.script, "recipe": read.recipe.model_dump(mode="json"), "notes": read.notes}
        say_json({**answer, "text": read.text, "written": out})
    elif out is not None:
        say(f"{out}: {read.recipe.network}, {counted(read.recipe.epochs, 'epoch')}, as {read.script} has it")
        for note in read.notes:
            say(f"- {note}")
    else:
        for line in read.text.splitlines():
            say(line)


def train(
    context: typer.Context,
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Recipe file, TOML, or a shipped recipe's name; or a run folder, to go on with it.",
            autocompletion=complete_recipe_or_run,
        ),
    ],
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Run folder [default: output/runs/RECIPE's name]")] = None,
    resume: Annotated[str | None, typer.Option(help='Take the run up again: "latest", "best" or an epoch.')] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe, or go on with a run from any epoch.

    A learning rate given with --resume is the rate of the very next step, and stays that of this step whatever a later
    --resume changes. Ctrl-C saves and leaves, a second Ctrl-C ends at once. `keys` lists what a
    recipe can say.

    \b
    Examples:
      imagenet-pipeline train demo
      imagenet-pipeline train config/demo.toml epochs=30 devices=cpu:0,1
      imagenet-pipeline train config/demo.toml --resume latest
      imagenet-pipeline train imagenet/resnet50 devices=gpu:all records=s3://bucket/imagenet loader.cache=/nvme/imagenet
      imagenet-pipeline train output/runs/demo --resume latest epochs=40
      imagenet-pipeline train config/demo.toml --resume 8 optimizer.learning_rate=0.001
    """
    from imagenet_pipeline.api import TrainingResult, run_training

    settings, outcome = run_training(recipe, overrides_of(overrides), run, resume, context.obj)
    if outcome is None:
        return
    result = TrainingResult.of(settings.folder, outcome)
    if as_json:
        say_json(result)
        return
    state = "finished" if result.finished else "stopped"
    say(f"{result.run}: {state} after {counted(result.epoch, 'epoch')}, {counted(result.step, 'step')}")
    say(f"curves: {result.run / 'curves.png'}  history: {result.run / 'history.csv'}")


def average(
    words: Words,
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    epochs: Annotated[str, typer.Option(help="Epochs to average, as 16-20 or 5,10,best.")] = "",
    last: Annotated[int, typer.Option(min=0, help="Average the last so many epochs.")] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Leave out those that make the mean worse.")] = False,
    split: Annotated[str, typer.Option(help="Which split --greedy goes by [default: val]")] = "",
    as_json: Json = False,
) -> None:
    """Average the weights of several epochs of a run, or of several runs that began with the same, into a new run.

    The mean of all (SWA: Izmailov et al. 2018), or with --greedy of those that, taken from the best on, leave it no
    worse on a split (model soups: Wortsman et al. 2022); then that split no longer measures the result. Of several runs
    it is each one's best epoch where none is named. Running statistics of batch normalisation are measured anew on
    the training records. The new run is evaluated, exported and predicted with like any other.

    \b
    Examples:
      imagenet-pipeline average output/runs/demo --last 5 --out output/runs/demo-averaged
      imagenet-pipeline average output/runs/demo --epochs 16-20 --greedy --out output/runs/demo-soup devices=cpu
      imagenet-pipeline average output/runs/tuned1 output/runs/tuned2 output/runs/tuned3 --greedy --out output/runs/soup
    """
    from imagenet_pipeline.evaluation.averaging import average as average_weights

    if split and not greedy:
        raise BadRecipe("has no effect without --greedy", where="--split", found=split)
    runs, changes = runs_and_changes(words, "average")
    made = average_weights(runs, out, epochs, last, greedy, split or "val", changes)
    if as_json:
        say_json(made)
        return
    kept = [f"{part.run} {part.checkpoint}" for part in made.parts if part.kept]
    say(f"{made.run}: the mean of {counted(len(kept), 'checkpoint')} of {made.network}: {first_few(kept)}")
    if made.greedy:
        left = len(made.parts) - len(kept)
        say(f"{made.figure} {made.value:.4f}, chosen by it; {counted(left, 'checkpoint')} left out")
    if made.statistics_images:
        say(f"batch normalisation: statistics of {counted(made.statistics_images, 'training image')}")


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, and training logs of MXNet's and GluonCV's.")],
    out: Annotated[Path, typer.Option(help="Picture to write, PNG.")],
) -> None:
    """Draw the curves of one run or several in a picture, restarts marked.

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
    from imagenet_pipeline.engines.zoos import zoo_names, zoo_network

    if name.endswith(":"):
        known = zoo_names(name.removesuffix(":"))
        if as_json:
            say_json({"networks": known})
            return
        for known_name in known:
            say(known_name)
        return
    table = zoo_network(name, classes).table((3, input_size, input_size))
    if as_json:
        say_json(table)
        return
    say_table(["parameter", "shape"], [(key, "x".join(map(str, shape))) for key, shape in table.shapes.items()])
    say(f"{table.name}: {table.parameters:,} trained parameters, {input_size} px; runs on the {table.engine} engine")


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _millions(number: int | None) -> str:
    return "-" if number is None else f"{number / 1e6:,.0f}"
