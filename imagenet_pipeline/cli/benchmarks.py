"""The verbs that measure: benchmark loader, benchmark step, find-rate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from imagenet_pipeline.cli.output import Json, Negative, Overrides, say, say_json
from imagenet_pipeline.config import load_recipe, parse_overrides
from imagenet_pipeline.progress import Bar

RecipeFile = Annotated[Path, typer.Argument(help="Recipe file, TOML.")]


benchmark_app = typer.Typer(help="Measure this machine: loading, or a training step.", rich_markup_mode=None)


@benchmark_app.callback()
def benchmark() -> None:
    """This machine's own figures."""


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


@benchmark_app.command()
def step(
    recipe: RecipeFile,
    overrides: Overrides = None,
    synthetic: Annotated[bool, typer.Option(help="Also on one batch that is there already, in turn.")] = False,
    steps: Annotated[int, typer.Option(help="Steps a round.")] = 20,
    rounds: Annotated[int, typer.Option(help="Rounds; the median of them counts.")] = 5,
    as_json: Json = False,
) -> None:
    """Measure a recipe's training step, the loader feeding it, and with --synthetic what the loader costs it.

    Example: imagenet-pipeline benchmark step config/demo.toml --synthetic
    """
    from imagenet_pipeline.training.benchmark import measure_steps

    with Bar("benchmark", "rounds") as bar:
        speed = measure_steps(load_recipe(recipe, parse_overrides(overrides or [])), steps, rounds, synthetic, bar.show)
    if as_json:
        say_json(speed)
        return
    say(f"{speed.engine} on {', '.join(speed.devices)}, {speed.precision}, batches of {speed.batch_size}")
    say(
        f"fed        {1000 * speed.seconds:.1f} ms a step (best round {1000 * speed.best_seconds:.1f}), "
        f"{speed.images_per_second:,.0f} images/s, waiting {speed.wait_share:.1%}"
    )
    if speed.ratio is not None and speed.synthetic_seconds and speed.best_synthetic_seconds:
        best = 1000 * speed.best_synthetic_seconds
        say(f"synthetic  {1000 * speed.synthetic_seconds:.1f} ms a step (best round {best:.1f})")
        say(f"fed / synthetic: {speed.ratio:.3f}, the median of {speed.rounds} rounds of {speed.steps} steps each")


def find_rate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Picture of the curve to write, PNG.")] = None,
    steps: Annotated[int, typer.Option(help="Steps from the lowest rate to the highest.")] = 100,
    lowest: Annotated[float, typer.Option("--from", help="Lowest learning rate.")] = 1e-6,
    highest: Annotated[float, typer.Option("--to", help="Highest learning rate.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Suggest a learning rate: raise it from step to step and see where the loss falls fastest (Smith 2017).

    A fresh network trains as the recipe says while the rate grows by equal factors, until the loss passes 4 times
    its best. The suggestion is where the smoothed loss falls fastest over the logarithm of the rate. Nothing of the
    training is kept. The exit code is 1 where the loss never fell.

    Example: imagenet-pipeline find-rate config/demo.toml --out rates.png
    """
    from imagenet_pipeline.drawing import require_png
    from imagenet_pipeline.training.lr_finder import draw_rates, find_rate

    if out:
        require_png(out)
    with Bar("find-rate", "steps") as bar:
        curve = find_rate(load_recipe(recipe, parse_overrides(overrides or [])), lowest, highest, steps, bar.show)
    if out:
        draw_rates(curve, out)
    if as_json:
        say_json({**dataclasses.asdict(curve), "picture": out})
    else:
        _say_curve(curve, out)
    if curve.suggestion is None:
        raise Negative


def _say_curve(curve: Any, out: Path | None) -> None:
    say(f"{len(curve.losses)} steps; the end: {curve.ended}")
    if curve.suggestion is None:
        say("the loss never fell: other rates (--from, --to), more --steps, or another recipe may show more")
    else:
        best = curve.smoothed.argmin()
        say(f"the loss falls fastest at {curve.suggestion:.2g}, and is lowest at {curve.rates[best]:.2g}")
        say(f"suggestion: optimizer.learning_rate={curve.key_value:.2g}")
    if out:
        say(f"curve: {out}")
