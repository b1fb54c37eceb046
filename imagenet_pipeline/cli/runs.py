"""The verbs about networks and runs: networks, train, evaluate, plot, benchmark."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from imagenet_pipeline.cli.output import Json, say, say_json, say_table
from imagenet_pipeline.config import parse_overrides
from imagenet_pipeline.errors import BadRecipe

benchmark_app = typer.Typer(help="This machine's own figures.", rich_markup_mode=None)


@benchmark_app.callback()
def benchmark() -> None:
    """This machine's own figures."""


def networks(
    name: Annotated[str | None, typer.Argument(help="One network, layer by layer.")] = None,
    input_size: Annotated[int | None, typer.Option("--input", min=1, help="Side of the input, pixels.")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Number of classes.")] = 1000,
    as_json: Json = False,
) -> None:
    """List the networks with parameters and multiply-adds, or one of them layer by layer. No engine is needed.

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
    from imagenet_pipeline.networks.tables import network_rows

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
    from imagenet_pipeline.networks.tables import network_table

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


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, TOML.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Recipe keys to change, key=value.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder [default: output/runs/RECIPE's name]")] = None,
    resume: Annotated[str | None, typer.Option(help='Take the run up again: "latest", "best" or an epoch.')] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe, or go on with a run from any epoch.

    A learning rate given with --resume is the rate of the very next step. Ctrl-C saves and leaves.

    \b
    Examples:
      imagenet-pipeline train config/demo.toml
      imagenet-pipeline train config/demo.toml epochs=30 devices=cpu:0,1
      imagenet-pipeline train config/demo.toml --resume latest
      imagenet-pipeline train config/demo.toml --resume 8 optimizer.learning_rate=0.001
    """
    from imagenet_pipeline.training.loop import train as train_run
    from imagenet_pipeline.training.run import open_run

    opened = open_run(recipe, parse_overrides(overrides or []), run, resume)
    outcome = train_run(opened)
    if as_json:
        say_json({"run": opened.folder, **dataclasses.asdict(outcome)})
        return
    state = "finished" if outcome.finished else "stopped"
    say(f"{opened.folder}: {state} after {outcome.epoch} epochs, {outcome.step:,} steps")
    say(f"curves: {opened.folder / 'curves.png'}  history: {opened.folder / 'history.csv'}")


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Recipe keys to change, as devices=cpu.")] = None,
    checkpoint: Annotated[str, typer.Option(help='"best", "latest" or an epoch.')] = "best",
    split: Annotated[str, typer.Option(help="Which split to score.")] = "test",
    crops: Annotated[int, typer.Option(help="1 (centre), 2 (and its mirror) or 10.")] = 1,
    records: Annotated[Path | None, typer.Option(help="Another data set of the same classes.")] = None,
    report: Annotated[Path | None, typer.Option(help="Where the page goes [default: RUN/report-SPLIT.html]")] = None,
    as_json: Json = False,
) -> None:
    """Score a checkpoint on every record of a split once: exact rank-1, rank-5 and loss.

    Example: imagenet-pipeline evaluate output/runs/demo --split test --json
    """
    from imagenet_pipeline.evaluation.evaluate import evaluate as evaluate_run
    from imagenet_pipeline.evaluation.report import write_report

    if crops not in (1, 2, 10):
        raise BadRecipe("--crops", expected="1, 2 or 10", found=crops)
    result = evaluate_run(run, checkpoint, split, crops, records, parse_overrides(overrides or []))  # type: ignore[arg-type]
    name = f"report-{split}.html" if crops == 1 else f"report-{split}-{crops}-crops.html"
    page = write_report(result, report or run / name)
    if as_json:
        say_json({**dataclasses.asdict(result), "report": page})
        return
    seen = "centre crop" if crops == 1 else f"{crops} crops"
    say(f"{result.network}, {result.checkpoint}: {result.images:,} {result.split} images, {seen}")
    say(f"rank-1  {result.rank1:.2f} %  ({result.rank1_hits:,} of {result.images:,})")
    say(f"rank-5  {result.rank5:.2f} %  ({result.rank5_hits:,} of {result.images:,})")
    say(f"loss    {result.loss:.4f} {'nats' if result.loss_kind == 'cross_entropy' else f'({result.loss_kind})'}")
    say(f"report: {page}")


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path, typer.Option(help="Picture to write, PNG.")],
) -> None:
    """Draw the curves of one run or several on one picture, restarts marked.

    Example: imagenet-pipeline plot output/runs/a output/runs/b --out curves.png
    """
    from imagenet_pipeline.training.curves import draw_curves

    draw_curves(runs, out)
    say(f"curves: {out}")


@benchmark_app.command()
def loader(
    path: Annotated[Path, typer.Argument(help="A data set folder or a .rec file.")],
    split: Annotated[str | None, typer.Option(help="Split of a folder.")] = "train",
    size: Annotated[int, typer.Option(min=1, help="Side of the crops, pixels.")] = 224,
    threads: Annotated[int | None, typer.Option(min=0, help="Decoding threads [default: one a processor]")] = None,
    as_json: Json = False,
) -> None:
    """Measure loading: random-resized crop and flip into batches, images a second.

    Example: imagenet-pipeline benchmark loader output/imagenet --size 224 --threads 2
    """
    from imagenet_pipeline.loading.benchmark import measure
    from imagenet_pipeline.records.reader import RecordSet

    with RecordSet.open(path, split if path.is_dir() else None) as records:
        figure: Any = measure(records, size=size, threads="auto" if threads is None else threads)
    if as_json:
        say_json(figure)
        return
    say(
        f"{figure.images_per_second:,.0f} images/s, {figure.threads} threads, {size} px, "
        f"{figure.images:,} images in {figure.seconds:.2f} s"
    )


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
