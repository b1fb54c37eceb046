"""The verb `tune`: a hyperparameter search over the keys of a recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_pipeline.cli.output import LARGEST_SEED, Json, say, say_json, say_table
from imagenet_pipeline.errors import counted
from imagenet_pipeline.progress import Bar

if TYPE_CHECKING:
    from imagenet_pipeline.training.tuning import Plan
    from imagenet_pipeline.training.tuning_findings import Findings


def tune(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, TOML, or a shipped recipe's name.")],
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=LOW..HIGH", help="Keys to search, KEY=a..b..c too; KEY=VALUE holds for every trial."
        ),
    ],
    trials: Annotated[int, typer.Option(min=1, help="Trials the study is to have; more go on with it.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Folder of the study [default: output/tune/RECIPE's name]")] = None,
    devices: Annotated[
        list[str] | None, typer.Option(help="Devices of a trial; several times: so many trials at a time.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of what is proposed.")] = 42,
    prune: Annotated[bool, typer.Option(help="Stop trials that are worse than the median after an epoch.")] = True,
    as_json: Json = False,
) -> None:
    """Search the keys of a recipe for the values that validate best.

    Optuna proposes trials and keeps them in OUT/study.db; each is a run of its own in OUT/trials, the recipe's own
    values the first. The same command goes on after a kill. OUT/study.png shows how much each key matters,
    OUT/best.toml is the recipe of the best trial. Two numbers are a range, logarithmic from 1 : 10 on; words, or more
    numbers, are choices.

    \b
    Examples:
      imagenet-pipeline tune demo optimizer.learning_rate=0.001..0.3 optimizer.weight_decay=1e-5..1e-2 epochs=4
      imagenet-pipeline tune photos optimizer.name=sgd..adamw optimizer.learning_rate=1e-4..1e-1 --trials 40
      imagenet-pipeline tune imagenet/resnet18 loss.label_smoothing=0..0.2 --devices gpu:0 --devices gpu:1
      imagenet-pipeline train output/tune/demo/best.toml epochs=12
    """
    from imagenet_pipeline.config import find_recipe, load_recipe
    from imagenet_pipeline.training.resume import run_name
    from imagenet_pipeline.training.tuning import Plan, tune
    from imagenet_pipeline.training.tuning_space import read_space

    path = find_recipe(recipe)
    space, changes = read_space(path, words)
    folder = out or Path("output/tune") / run_name(path)
    plan = Plan(load_recipe(path, changes), space, folder, trials, seed, prune, tuple(devices or ()))
    with Bar("tune", "trials") as bar:
        found = tune(plan, bar.show)
    if as_json:
        say_json(_answer(found))
    else:
        _say(found, plan)


def _answer(found: Findings) -> dict[str, object]:
    names = {"recipe": "best.toml", "picture": "study.png", "table": "trials.csv"}
    written = {key: path for key, name in names.items() if (path := found.folder / name).exists()}
    return {**dataclasses.asdict(found), **written}


def _say(found: Findings, plan: Plan) -> None:
    say_table(
        ["trial", "state", found.figure, "epochs", *plan.space.keys],
        [
            (trial.number, trial.state, "-" if trial.value is None else f"{trial.value:#.4g}", trial.epochs,
             *(_shown(trial.changes.get(key, "-")) for key in plan.space.keys))
            for trial in found.trials
        ],
    )  # fmt: skip
    if not found.finished:
        ended = sum(trial.has_ended for trial in found.trials)
        say(f"stopped after {counted(ended, 'trial')}; the same command goes on")
    if found.best:
        say(f"best: trial {found.best.number}, {found.figure} {found.best.value:#.4g}")
        say(f"recipe: {found.folder / 'best.toml'}  picture: {found.folder / 'study.png'}")


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
