"""The verbs that measure: benchmark loader, benchmark step, find-rate."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from imagenet_pipeline.cli.completion import complete_recipe
from imagenet_pipeline.cli.output import Json, Overrides, overrides_of, say, say_json, say_table
from imagenet_pipeline.errors import Negative, counted
from imagenet_pipeline.progress import Bar

RecipeFile = Annotated[
    Path,
    typer.Argument(
        help="Recipe file, or a shipped recipe's name (`recipes` lists them).", autocompletion=complete_recipe
    ),
]
log = logging.getLogger("imagenet_pipeline")

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
    from imagenet_pipeline.records.manifest import is_data_set
    from imagenet_pipeline.records.reader import RecordSet
    from imagenet_pipeline.training.benchmark import measure

    with RecordSet.open(path, split if is_data_set(path) else None) as records:
        figure: Any = measure(records, size=size, threads="auto" if threads is None else threads)
    if as_json:
        say_json(figure)
        return
    say(
        f"{figure.images_per_second:,.0f} images/s, {counted(figure.threads, 'thread')}, {size} px, "
        f"{counted(figure.images, 'image')} in {figure.seconds:.2f} s"
    )


@benchmark_app.command()
def step(
    context: typer.Context,
    recipe: RecipeFile,
    overrides: Overrides = None,
    synthetic: Annotated[bool, typer.Option(help="Also on a synthetic batch, in turn.")] = False,
    steps: Annotated[int, typer.Option(help="Steps a round.")] = 20,
    rounds: Annotated[int, typer.Option(help="Rounds; the median of them counts.")] = 5,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="On the first 1, 2, 4 ... of the devices, as many images on each.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a recipe's training step, the loader feeding it, and with --synthetic what the loader costs it.

    On several devices, and by a launcher in several processes, it is the step of all together. --scaling says how
    much of a device's speed is left when there are more of them: the efficiency.

    \b
    Examples:
      imagenet-pipeline benchmark step config/demo.toml --synthetic
      imagenet-pipeline benchmark step config/imagenet/resnet50.toml devices=gpu:0,1,2,3 --scaling
    """
    from imagenet_pipeline.config import find_recipe, load_recipe
    from imagenet_pipeline.engines import launch_ranks, taking_part
    from imagenet_pipeline.training.benchmark import measure_scaling, measure_steps
    from imagenet_pipeline.training.engine_setup import with_engine

    changes = overrides_of(overrides)
    planned = with_engine(load_recipe(recipe, changes))
    if scaling:
        words = ["--steps", str(steps), "--rounds", str(rounds), *(["--synthetic"] if synthetic else [])]
        with Bar("scaling", "numbers of devices") as bar:
            speeds = measure_scaling(find_recipe(recipe), changes, planned, words, bar.show)
        _say_scaling(speeds, as_json)
        return
    with taking_part(), Bar("benchmark", "rounds") as bar:
        if launch_ranks(planned.engine, planned.devices, context.obj):
            return
        speed = measure_steps(planned, steps, rounds, synthetic, bar.show)
    if as_json and speed:
        say_json(speed)
    elif speed:
        _say_speed(speed)


def _say_scaling(speeds: Sequence[Any], as_json: bool) -> None:
    if as_json:
        say_json({"scaling": [dataclasses.asdict(scaled) for scaled in speeds]})
        return
    say_table(
        ["devices", "batch", "ms a step", "images/s", "waiting %", "efficiency"],
        [
            (
                scaled.devices,
                scaled.speed["batch_size"],
                f"{1000 * scaled.speed['seconds']:.1f}",
                f"{scaled.speed['images_per_second']:,.0f}",
                f"{100 * scaled.speed['wait_share']:.1f}",
                f"{scaled.efficiency:.2f}",
            )
            for scaled in speeds
        ],
    )


def _say_speed(speed: Any) -> None:
    together = f" in each of {speed.processes} processes" if speed.processes > 1 else ""
    say(f"{speed.engine} on {', '.join(speed.devices)}{together}, {speed.precision}, batches of {speed.batch_size}")
    say(
        f"fed        {1000 * speed.seconds:.1f} ms a step (best round {1000 * speed.best_seconds:.1f}), "
        f"{speed.images_per_second:,.0f} images/s, waiting {speed.wait_share:.1%}"
    )
    if speed.ratio is not None and speed.synthetic_seconds and speed.best_synthetic_seconds:
        best = 1000 * speed.best_synthetic_seconds
        say(f"synthetic  {1000 * speed.synthetic_seconds:.1f} ms a step (best round {best:.1f})")
        rounds = f"{counted(speed.rounds, 'round')} of {counted(speed.steps, 'step')} each"
        say(f"fed / synthetic: {speed.ratio:.3f}, the median of {rounds}")


def find_rate(
    context: typer.Context,
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
    from imagenet_pipeline.config import load_recipe
    from imagenet_pipeline.drawing import require_png
    from imagenet_pipeline.engines import launch_ranks, taking_part
    from imagenet_pipeline.training.engine_setup import with_engine
    from imagenet_pipeline.training.lr_finder import SURE_STEPS, draw_rates, find_rate

    if out:
        require_png(out)
    planned = with_engine(load_recipe(recipe, overrides_of(overrides)))
    with taking_part(), Bar("find-rate", "steps") as bar:
        if launch_ranks(planned.engine, planned.devices, context.obj):
            return
        curve = find_rate(planned, lowest, highest, steps, bar.show)
    if curve is None:
        return
    if steps < SURE_STEPS:
        log.warning(
            "warning: %d steps are few, so that the loss is hardly smoothed: give --steps %d or more before you trust "
            "the suggestion", steps, SURE_STEPS,
        )  # fmt: skip
    if out:
        draw_rates(curve, out)
    if as_json:
        say_json({**dataclasses.asdict(curve), "picture": out})
    else:
        _say_curve(curve, out)
    if curve.suggestion is None:
        raise Negative


def _say_curve(curve: Any, out: Path | None) -> None:
    say(f"{counted(len(curve.losses), 'step')}; the end: {curve.ended}")
    if curve.suggestion is None:
        say("the loss never fell: other rates (--from, --to), more --steps, or another recipe may show more")
    else:
        best = curve.smoothed.argmin()
        say(f"the loss falls fastest at {curve.suggestion:.2g}, and is lowest at {curve.rates[best]:.2g}")
        say(f"suggestion: optimizer.learning_rate={curve.key_value:.2g}")
    if out:
        say(f"curve: {out}")
