"""The verb picture: data (augmentation, classes, sizes) and networks (network, filters, activations, grad-cam)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imagenet_pipeline.cli.output import Checkpoint, Json, Overrides, Run, overrides_of, say, say_json, say_table
from imagenet_pipeline.errors import BadRecipe, counted
from imagenet_pipeline.progress import Bar

Png = Annotated[Path, typer.Option(help="Picture to write, PNG.")]


def network(
    name: Annotated[str, typer.Argument(help="A network, as `networks` lists them, or a run folder.")],
    out: Annotated[Path, typer.Option(help="File to write: .dot, .svg, .png or .pdf.")],
    input_size: Annotated[
        int | None, typer.Option("--input", min=1, help="Side of the input, pixels [default: the network's or run's]")
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Number of classes [default: the run's, or 1000]")] = None,
    full: Annotated[bool, typer.Option("--full", help="Every layer by itself, repeated units too.")] = False,
    as_json: Json = False,
) -> None:
    """Draw a network's diagram: every layer with its windows, what leaves it and its parameters.

    Units that repeat are drawn once, with their number; normalisation and activation share the box of their layer.
    No engine is needed; all but .dot is drawn by Graphviz (Debian: apt-get install graphviz).

    \b
    Examples:
      imagenet-pipeline picture network resnet50 --out resnet50.svg
      imagenet-pipeline picture network output/runs/demo --full --out demo.pdf
    """
    from imagenet_pipeline.pictures.graphviz import draw_network

    made = draw_network(name, out, input_size, classes, full)
    if as_json:
        say_json(made)
        return
    size = "x".join(map(str, made.input_shape))
    say(f"{made.network}, {size}: {made.parameters:,} parameters, {made.multiply_adds:,} multiply-adds")
    say(f"diagram: {out}")


def filters(
    run: Run,
    out: Png,
    layer: Annotated[
        str | None, typer.Option(help="Another convolution, or a dense layer [default: the first convolution]")
    ] = None,
    checkpoint: Checkpoint = "best",
    as_json: Json = False,
) -> None:
    """Draw what a layer's filters look for, out of a checkpoint's weights. No engine is needed.

    The weights of a dense layer are drawn as images where it reads one (behind Flatten). `log.pictures=["LAYER"]` of a
    recipe draws them while a run trains, and makes an animation.

    \b
    Examples:
      imagenet-pipeline picture filters output/runs/imagenet-alexnet --out filters.png
      imagenet-pipeline picture filters output/runs/demo --layer conv2 --out conv2.png
    """
    from imagenet_pipeline.pictures.layers import draw_filters

    made = draw_filters(run, out, layer, checkpoint)
    if as_json:
        say_json(made)
        return
    say(f"{made.network}, {made.checkpoint}: {made.drawn} of the {made.shape[0]} filters of {made.layer}")
    say(f"picture: {out}")


def activations(
    run: Run,
    image: Annotated[Path, typer.Argument(help="A photo.")],
    layer: Annotated[str, typer.Option(help="Layer, or a group of layers, as `networks NAME` shows it.")],
    out: Png,
    overrides: Overrides = None,
    channels: Annotated[int, typer.Option(min=1, max=1024, help="How many channels to draw, the first ones.")] = 64,
    checkpoint: Checkpoint = "best",
    as_json: Json = False,
) -> None:
    """Draw what a layer makes of a photo, channel by channel, or as bars where it gives a vector.

    \b
    Examples:
      imagenet-pipeline picture activations output/runs/imagenet-resnet18 cat.jpg --layer stage1 --out cat.png
      imagenet-pipeline picture activations output/runs/demo seven.png --layer dense1 --out seven.png engine=pytorch
    """
    from imagenet_pipeline.pictures.layers import draw_activations

    made = draw_activations(run, image, layer, out, channels, checkpoint, overrides_of(overrides))
    if as_json:
        say_json(made)
        return
    kind = "channels" if len(made.shape) > 1 else "numbers"
    say(f"{made.network}, {made.checkpoint}: {made.drawn} of the {made.shape[0]} {kind} of {made.layer}")
    say(f"picture: {out}")


def grad_cam(
    run: Run,
    words: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE|KEY=VALUE", help="Photos, 100 at most; recipe keys, as devices=cpu."),
    ],
    out: Png,
    layer: Annotated[
        str | None, typer.Option(help="Another layer that gives an image [default: the last of several pixels]")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Class by name or id [default: the most probable]")
    ] = None,
    checkpoint: Checkpoint = "best",
    as_json: Json = False,
) -> None:
    """Draw where in photos a network finds a class (Grad-CAM, Selvaraju et al. 2017).

    Computed in float32 unless precision=... says otherwise.

    \b
    Examples:
      imagenet-pipeline picture grad-cam output/runs/imagenet-resnet50 cat.jpg dog.jpg --out where.png
      imagenet-pipeline picture grad-cam output/runs/imagenet-resnet50 cat.jpg --class tabby --layer stage3
                        --out tabby.png
    """
    from imagenet_pipeline.pictures.layers import draw_grad_cam

    changes = [word for word in words if "=" in word and not Path(word).exists()]
    images = [Path(word) for word in words if word not in changes]
    if not images:
        expected = "picture grad-cam RUN IMAGE... [key=value...]"
        raise BadRecipe("no photo is named", where=" ".join(words), expected=expected)
    made = draw_grad_cam(run, images, out, layer, class_name, checkpoint, overrides_of(changes))
    if as_json:
        say_json(made)
        return
    rows = [(image.image, image.class_name, f"{100 * image.probability:.2f}") for image in made.images]
    say_table(["photo", "class", "probability, %"], rows)
    say(f"{made.network}, {made.checkpoint}: at {made.layer}, {'x'.join(map(str, made.shape))}")
    say(f"picture: {out}")


Out = Annotated[Path, typer.Option(help="Picture to write, PNG.")]
DataSet = Annotated[Path, typer.Argument(help="A data set folder, or a .rec file.")]


def augmentation(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, name of a shipped recipe, or run folder.")],
    out: Out,
    overrides: Overrides = None,
    record: Annotated[int, typer.Option(min=0, help="Which training record.")] = 0,
    draws: Annotated[int, typer.Option(min=1, max=200, help="How often it is changed.")] = 24,
) -> None:
    """Draw a training photo as it is stored, and as training would see it many times over.

    It goes through the loader itself. Where images are mixed, the captions tell the share of each class.

    \b
    Examples:
      imagenet-pipeline picture augmentation config/imagenet/resnet50.toml --out draws.png
      imagenet-pipeline picture augmentation output/runs/demo augmentation.policy=trivial_augment --out draws.png
    """
    from imagenet_pipeline.config import load_recipe
    from imagenet_pipeline.pictures.augmentation import draw_augmentation

    path = recipe / "recipe.toml" if (recipe / "recipe.toml").exists() else recipe
    draw_augmentation(load_recipe(path, overrides_of(overrides)), out, record, draws)
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
        say(f"{split}: {counted(int(each.sum()), 'image')}, {each.min():,} to {each.max():,} a class")
    say(f"classes: {out}")


def sizes(folder: DataSet, out: Out, as_json: Json = False) -> None:
    """Draw how large the stored images are, in pixels and in bytes. Their headers alone are read.

    Example: imagenet-pipeline picture sizes output/imagenet --out sizes.png
    """
    from numpy import median

    from imagenet_pipeline.pictures.data import draw_sizes, read_sizes

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
            say(f"{split}: {counted(count, 'image')} whose header cannot be read")
    say(f"sizes: {out}")


picture_app = typer.Typer(help="Pictures of data and of networks.", rich_markup_mode=None)
picture_app.command()(augmentation)
picture_app.command()(classes)
picture_app.command()(sizes)
picture_app.command()(network)
picture_app.command()(filters)
picture_app.command()(activations)
picture_app.command()(grad_cam)
