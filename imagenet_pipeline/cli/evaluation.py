"""The verb evaluate: one run's score, or that of several together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_pipeline.cli.output import Json, say, say_json, say_table
from imagenet_pipeline.config import load_recipe, parse_overrides
from imagenet_pipeline.errors import BadRecipe

if TYPE_CHECKING:
    from imagenet_pipeline.evaluation.ensemble import Ensemble
    from imagenet_pipeline.evaluation.evaluate import Evaluation


def evaluate(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(metavar="RUN... [KEY=VALUE]...", help="Run folders, and recipe keys to change, as devices=cpu."),
    ],
    checkpoint: Annotated[str, typer.Option(help='"best", "latest" or an epoch.')] = "best",
    split: Annotated[str, typer.Option(help="Which split to score.")] = "test",
    crops: Annotated[int, typer.Option(help="1 (centre), 2 (and its mirror) or 10.")] = 1,
    records: Annotated[Path | None, typer.Option(help="Another data set of the same classes.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Where the page goes [default: report-SPLIT.html in the first run's folder]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a checkpoint on every record of a split once: exact rank-1, rank-5 and loss.

    Several runs are an ensemble: their probabilities are averaged, on the records of the first. They may differ in
    network, engine and input size, not in their classes. Each one's own score is shown beside.

    \b
    Examples:
      imagenet-pipeline evaluate output/runs/demo --split test --json
      imagenet-pipeline evaluate output/runs/first output/runs/second devices=cpu
    """
    from imagenet_pipeline.engines import launch_ranks
    from imagenet_pipeline.engines.membership import taking_part
    from imagenet_pipeline.evaluation.ensemble import evaluate_together
    from imagenet_pipeline.evaluation.evaluate import evaluate as evaluate_run
    from imagenet_pipeline.evaluation.report import write_report

    if crops not in (1, 2, 10):
        raise BadRecipe("--crops", expected="1, 2 or 10", found=crops)
    runs, changes = _runs_and_changes(words)
    result: Evaluation | Ensemble
    with taking_part():
        planned = load_recipe(runs[0] / "recipe.toml", changes)
        if launch_ranks(planned.engine, planned.devices, context.obj):
            return
        if len(runs) == 1:
            result = evaluate_run(runs[0], checkpoint, split, crops, records, changes)  # type: ignore[arg-type]
        else:
            result = evaluate_together(runs, checkpoint, split, crops, records, changes)  # type: ignore[arg-type]
    if result.process:
        return
    page = write_report(result, report or runs[0] / _page_name(split, crops, len(runs)))
    if as_json:
        say_json({**dataclasses.asdict(result), "report": page})
        return
    _say(result)
    say(f"report: {page}")


def _runs_and_changes(words: list[str]) -> tuple[list[Path], dict[str, object]]:
    """Runs come first; what has an equals sign, and is no folder, is a recipe key."""
    runs = [Path(word) for word in words if "=" not in word or Path(word).is_dir()]
    if not runs:
        raise BadRecipe("no run to evaluate", where=" ".join(words), expected="evaluate RUN [RUN...] [key=value...]")
    return runs, parse_overrides([word for word in words if Path(word) not in runs])


def _page_name(split: str, crops: int, runs: int) -> str:
    parts = ["report", split, *([f"{crops}-crops"] if crops > 1 else []), *([f"{runs}-runs"] if runs > 1 else [])]
    return "-".join(parts) + ".html"


def _say(result: Evaluation | Ensemble) -> None:
    from imagenet_pipeline.evaluation.evaluate import Evaluation

    seen = "centre crop" if result.crops == 1 else f"{result.crops} crops"
    if isinstance(result, Evaluation):
        who, loss_kind = f"{result.network}, {result.checkpoint}", result.loss_kind
    else:
        who, loss_kind = f"{len(result.members)} runs together", "cross_entropy"
        _say_members(result)
    say(f"{who}: {result.images:,} {result.split} images, {seen}")
    say(f"rank-1  {result.rank1:.2f} %  ({result.rank1_hits:,} of {result.images:,})")
    say(f"rank-5  {result.rank5:.2f} %  ({result.rank5_hits:,} of {result.images:,})")
    say(f"loss    {result.loss:.4f} {'nats' if loss_kind == 'cross_entropy' else f'({loss_kind})'}")


def _say_members(result: Ensemble) -> None:
    say_table(
        ["run", "checkpoint", "network", "engine", "input", "rank-1 %", "rank-5 %"],
        [
            (one.run, one.checkpoint, one.network, one.engine, one.input_size, f"{one.rank1:.2f}", f"{one.rank5:.2f}")
            for one in result.members
        ],
    )
