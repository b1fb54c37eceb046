"""The verbs that draw data: picture augmentation, picture classes, picture sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imagenet_pipeline.cli.output import Json, Overrides, say, say_json, say_table
from imagenet_pipeline.config import load_recipe, parse_overrides
from imagenet_pipeline.progress import Bar

Out = Annotated[Path, typer.Option(help="Picture to write, PNG.")]
DataSet = Annotated[Path, typer.Argument(help="A data set folder.")]


def augmentation(
    recipe: Annotated[Path, typer.Argument(help="Recipe file or run folder.")],
    out: Out,
    overrides: Overrides = None,
    record: Annotated[int, typer.Option(min=0, help="Which training record.")] = 0,
    draws: Annotated[int, typer.Option(min=1, max=200, help="How often it is changed.")] = 24,
) -> None:
    """Draw one training photo as it is stored, and as training would see it many times over.

    It goes through the loader itself. Where images are mixed, the captions tell the share of each class.

    \b
    Examples:
      imagenet-pipeline picture augmentation config/imagenet/resnet50.toml --out draws.png
      imagenet-pipeline picture augmentation output/runs/demo augmentation.policy=trivial_augment --out draws.png
    """
    from imagenet_pipeline.pictures.augmentation import draw_augmentation

    path = recipe / "recipe.toml" if recipe.is_dir() else recipe
    draw_augmentation(load_recipe(path, parse_overrides(overrides or [])), out, record, draws)
    say(f"augmentation: {out}")


def classes(folder: DataSet, out: Out, as_json: Json = False) -> None:
    """Draw how many images each class has in each split.

    Example: imagenet-pipeline picture classes output/imagenet --out classes.png
    """
    from imagenet_pipeline.pictures.data import draw_classes

    counts = draw_classes(folder, out)
    if as_json:
        say_json({"picture": out, "images": counts})
        return
    for split, each in counts.items():
        say(f"{split}: {each.sum():,} images, {each.min():,} to {each.max():,} a class")
    say(f"classes: {out}")


def sizes(folder: DataSet, out: Out, as_json: Json = False) -> None:
    """Draw how large the stored images are, in pixels and in bytes. Their headers alone are read.

    Example: imagenet-pipeline picture sizes output/imagenet --out sizes.png
    """
    from numpy import median

    from imagenet_pipeline.records.size_picture import draw_sizes, read_sizes

    with Bar("sizes", "images") as bar:
        found = read_sizes(folder, bar.show)
    draw_sizes(folder, found, out)
    rows = [
        (split, quantity, int(values.min()), round(float(median(values))), int(values.max()))
        for split, each in found.items()
        for quantity, values in (("width", each.widths), ("height", each.heights), ("bytes", each.bytes))
        if len(values)
    ]
    unreadable = {split: each.unreadable for split, each in found.items()}
    if as_json:
        names = ("split", "quantity", "least", "median", "most")
        say_json(
            {"picture": out, "sizes": [dict(zip(names, row, strict=True)) for row in rows], "unreadable": unreadable}
        )
        return
    say_table(["split", "", "least", "median", "most"], rows)
    for split, count in unreadable.items():
        if count:
            say(f"{split}: {count:,} images whose header cannot be read")
    say(f"sizes: {out}")
