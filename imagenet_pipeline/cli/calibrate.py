"""The verb calibrate: a temperature for a checkpoint, so that its confidence is honest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from imagenet_pipeline.cli.output import Checkpoint, Json, Overrides, overrides_of, say, say_json


def calibrate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    changes: Overrides = None,
    checkpoint: Checkpoint = "best",
    split: Annotated[str, typer.Option(help="Which split to fit it on; not the one to be scored.")] = "val",
    records: Annotated[Path | None, typer.Option(help="Another data set of the same classes, or of some.")] = None,
    as_json: Json = False,
) -> None:
    """Fit the temperature of a checkpoint: the number that its logits are divided by, for the least loss on a split.

    Temperature scaling (Guo et al. 2017). It is kept in the checkpoint's folder, temperature.json, for these weights
    alone, and evaluate, predict, serve and submit use it from then on and say so. No rank changes: the probabilities
    do, and so the calibration error and the cross-entropy. To do without it again, remove the file.

    \b
    Examples:
      imagenet-pipeline calibrate output/runs/demo
      imagenet-pipeline calibrate output/runs/resnet50 --checkpoint 90 devices=gpu:0
    """
    from imagenet_pipeline.evaluation.evaluate import calibrate as fit

    fitted, folder = fit(run, checkpoint, split, records, overrides_of(changes))
    if as_json:
        say_json({"checkpoint": folder, **dataclasses.asdict(fitted)})
        return
    say(f"{folder}: {fitted.words}")
    say(f"loss    {fitted.loss_before:z.4f} -> {fitted.loss_after:z.4f} nats")
    say(f"ECE     {100 * fitted.error_before:.2f} -> {100 * fitted.error_after:.2f} %  (on the images of the fit)")
