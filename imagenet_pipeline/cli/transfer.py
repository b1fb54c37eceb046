"""The verbs about what a trained network knows: features, probe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from imagenet_pipeline.cli.output import LARGEST_SEED, Checkpoint, Json, Overrides, list_names, say, say_json, say_table
from imagenet_pipeline.config import parse_overrides
from imagenet_pipeline.errors import BadRecipe


def features(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    layer: Annotated[str, typer.Option(help="Layer, or a group of layers, as `networks NAME` shows it.")],
    out: Annotated[Path, typer.Option(help="File to write, a NumPy archive: NAME.npz.")],
    overrides: Overrides = None,
    splits: Annotated[str, typer.Option(help="Which splits, with commas [default: all]")] = "",
    checkpoint: Checkpoint = "best",
    records: Annotated[Path | None, typer.Option(help="Another data set, of any classes.")] = None,
    as_json: Json = False,
) -> None:
    """Write the activations of one layer for every record.

    The network runs up to the layer, on the centre crop of each image. Memory is that of a batch; the file takes 4
    bytes a number. For a split, say train, it holds train_features [n, k] float32 (of an image [channels, height,
    width], flattened), train_labels and train_records [n]; also classes and, as JSON, about.

    \b
    Examples:
      imagenet-pipeline features output/runs/demo --layer flatten --out output/demo.npz
      imagenet-pipeline features output/runs/imagenet-resnet18 --layer stage3.unit2 --records output/flowers
                        --out output/flowers.npz batch_size=64
      python -c "import numpy; print(numpy.load('output/demo.npz')['train_features'].shape)"
    """
    from imagenet_pipeline.evaluation.features import extract

    chosen = [word.strip() for word in splits.split(",") if word.strip()]
    extraction, images_per_second = extract(
        run, layer, out, chosen, checkpoint, records, parse_overrides(overrides or [])
    )
    if as_json:
        answer = {**dataclasses.asdict(extraction), "images_per_second": round(images_per_second, 1)}
        say_json({**answer, "file": out, "bytes": out.stat().st_size})
        return
    shape = f" ({'x'.join(map(str, extraction.shape))})" if len(extraction.shape) > 1 else ""
    say(f"{extraction.network}, {extraction.checkpoint}: {layer} gives {extraction.features:,} numbers{shape}")
    say(f"{out}: {list_names(extraction.images)}, {out.stat().st_size:,} bytes, {images_per_second:,.0f} images/s")


def probe(
    file: Annotated[Path, typer.Argument(help="A file of `features`.")],
    kind: Annotated[str, typer.Option(help="logistic (regression) or svm (linear).")] = "logistic",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Draws the folds.")] = 42,
    out: Annotated[Path | None, typer.Option(help="Write the classifier's weights here: NAME.npz.")] = None,
    as_json: Json = False,
) -> None:
    """Fit a linear classifier on a file of features.

    scikit-learn's logistic regression or linear SVM; rank-1 and rank-5 on val and test.

    Features are standardised. The regularisation C is chosen by a stratified cross-validation on train, of five
    folds, among 1e-6 to 10, up from the smallest until rank-1 falls; then all of train is fitted, and val and test
    are scored once each. Memory is 12 bytes for each number of the training features, 36 with svm: 1.2 and 3.6 GB
    for 10,000 x 10,000.

    \b
    Examples:
      imagenet-pipeline probe output/flowers.npz
      imagenet-pipeline probe output/flowers.npz --kind svm --json
    """
    from imagenet_pipeline.evaluation.probe import probe as fit_probe
    from imagenet_pipeline.training.metrics import chance_percent, says_rank5

    if kind not in ("logistic", "svm"):
        raise BadRecipe("--kind", expected="logistic or svm", found=kind)
    result: Any = fit_probe(file, kind, seed, out)  # type: ignore[arg-type]
    if as_json:
        say_json(result)
        return
    say_table(
        ["C", "rank-1 %", "deviation"],
        [(f"{one.c:g}", f"{one.rank1:.2f}", f"{one.deviation:.2f}") for one in result.tried],
    )
    say(f"{kind}, C = {result.c:g}: {result.images:,} training images, {result.features:,} features")
    for split, scored in result.splits.items():
        chance = f"chance: {chance_percent(result.classes):.3g} %"
        say(f"{split}: rank-1  {scored.rank1:.2f} %  ({scored.rank1_hits:,} of {scored.images:,}; {chance})")
        if not says_rank5(result.classes):
            continue
        say(f"{split}: rank-5  {scored.rank5:.2f} %  ({scored.rank5_hits:,} of {scored.images:,})")
    if out is not None:
        say(f"weights: {out}")
