"""Pictures of what a trained network is made of and what it makes of a photo: filters, activations."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from imagenet_pipeline import files
from imagenet_pipeline.drawing import BACKGROUND, contact_sheet, require_png, tile, write_png
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.colour_maps import Numbers, enlarged, framed, signed_colours, signed_levels
from imagenet_pipeline.evaluation.evaluate import open_checkpoint
from imagenet_pipeline.evaluation.layer_engine import engine_until, input_shape, own_network
from imagenet_pipeline.evaluation.predict import read_naming_damage
from imagenet_pipeline.evaluation.probabilities import require_finite
from imagenet_pipeline.loading.augment import evaluation_transform
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.networks.layers import Conv
from imagenet_pipeline.networks.shapes import Shape, describe
from imagenet_pipeline.networks.subnetwork import until
from imagenet_pipeline.records.image import Rejected
from imagenet_pipeline.training.checkpoint import Checkpoint

FILTER_SIDE, KERNEL_SIDE, CHANNEL_SIDE, PHOTO_SIDE = 66, 33, 88, 280  # pixels
FILTERS_LIMIT, TABLE_LIMIT = 256, 16
KEY = "white is 0, blue positive, red negative"


@dataclass(frozen=True)
class LayerPicture:
    """A picture drawn: of which layer, the shape of what it shows (weights or activations), and how many of them."""

    file: str
    run: str
    checkpoint: str
    network: str
    layer: str
    shape: Shape
    drawn: int


def draw_filters(run: Path, out: Path, layer: str | None = None, which: str = "best") -> LayerPicture:
    """Draw the filters of a convolution, the first unless one is named, from a checkpoint's weights. No engine.

    Filters of three inputs are drawn in colour, the first 256; of others each row is a filter and each column an
    input, the first 16 of both.
    Raises BadRecipe for a layer that is no convolution, and for a zoo's network.
    """
    require_png(out)
    _, checkpoint = open_checkpoint(run, which, {})
    path = _convolution(checkpoint, layer)
    weights = checkpoint.weights[f"{path}.weight"].astype(np.float64)
    filters, inputs, height, width = weights.shape
    title = f"{caption_of(run, checkpoint)}: {path}, {filters} filters of {inputs}x{height}x{width}\n"
    if inputs == 3:
        shown = weights[:FILTERS_LIMIT]
        tiles = [_labelled(signed_levels(one.transpose(1, 2, 0)), FILTER_SIDE, n) for n, one in enumerate(shown)]
        sheet = contact_sheet(tiles, _columns(len(tiles)), f"{title}red, green, blue; grey is 0; each on its own scale")
    else:
        shown = weights[:TABLE_LIMIT]
        remark = (
            f"{KEY}; each filter on its own scale\na row a filter, a column an input, the first {TABLE_LIMIT} of both"
        )
        sheet = contact_sheet([_table(shown[:, :TABLE_LIMIT])], 1, title + remark)
    write_png(sheet, out)
    return _facts(out, run, checkpoint, path, weights.shape, len(shown))


def draw_activations(
    run: Path,
    image: Path,
    layer: str,
    out: Path,
    channels: int = 64,
    which: str = "best",
    overrides: dict[str, object] | None = None,
) -> LayerPicture:
    """Draw what a layer, or a group of layers, gives for a photo: the first `channels`, or the whole vector.

    Raises BadRecipe for a layer there is not and for a zoo's network, BadInput for a photo that cannot be read.
    """
    require_png(out)
    files.require_separate([out], [image])
    recipe, checkpoint = open_checkpoint(run, which, overrides or {})
    engine, shape = engine_until(recipe, checkpoint, layer, "picture activations")
    view = view_of(image, checkpoint)
    values = engine.logits(view[None])[0].astype(np.float64).reshape(shape)
    require_finite(values, checkpoint.folder)
    drawn = shape[0] if len(shape) == 1 else min(channels, shape[0])
    picture = _bars(values) if len(shape) == 1 else _channels(values[:drawn])
    photo = tile(enlarged(view, PHOTO_SIDE), PHOTO_SIDE, [image.name, f"the {len(view)} px the network sees"])
    text = f"{caption_of(run, checkpoint)}: {layer} gives {'x'.join(map(str, shape))}"
    if len(shape) > 1:
        text += f"\n{KEY}; each channel on its own scale; {drawn} of {shape[0]} channels"
    write_png(contact_sheet([_beside(photo, picture)], 1, text), out)
    return _facts(out, run, checkpoint, layer, shape, drawn)


def view_of(image: Path, checkpoint: Checkpoint) -> Pixels:
    """What a network looks at of a photo, [S, S, 3]. Raises BadInput for one that cannot be read."""
    state = checkpoint.state
    views = np.empty((1, state.input_size, state.input_size, 3), np.uint8)
    try:
        evaluation_transform(read_naming_damage(image), state.crop_fraction, views)
    except Rejected as reason:
        raise BadInput(f"cannot be used ({reason})", where=image, expected="a photo") from reason
    view: Pixels = views[0]
    return view


def _convolution(checkpoint: Checkpoint, layer: str | None) -> str:
    state = checkpoint.state
    network = own_network(state.network, len(state.classes))
    reports = describe(network, input_shape(state))
    convolutions = [report.path for report in reports if isinstance(report.layer, Conv)]
    if layer is None and convolutions:
        return convolutions[0]
    if layer is not None and layer in convolutions:
        return layer
    if layer is not None:
        until(network, layer, state.network)  # which knows what is called nearly so
    raise BadRecipe("only convolutions have filters", where=f"layer {layer}", expected=" or ".join(convolutions[:3]))


def _channels(values: Numbers) -> Image.Image:
    tiles = [_labelled(signed_colours(one), CHANNEL_SIDE, number) for number, one in enumerate(values)]
    return contact_sheet(tiles, _columns(len(tiles)), "")


def _bars(values: Numbers) -> Image.Image:
    figure = Figure(figsize=(8.4, 3.2), layout="constrained", dpi=110)
    axes = figure.subplots()
    places = np.arange(len(values))
    for sign, colour in ((1, "#1f5fa8"), (-1, "#b2372f")):
        chosen = sign * values > 0
        axes.vlines(places[chosen], 0, values[chosen], colors=colour, linewidth=min(10.0, max(0.6, 400 / len(values))))
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set_xlim(-0.5 - len(values) / 100, len(values) - 0.5 + len(values) / 100)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("feature")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream).convert("RGB")


def _table(filters: Numbers) -> Image.Image:
    """Filters [n, inputs, h, w], a row each, each on its own scale."""
    rows = []
    for planes in filters:
        colours = signed_colours(np.concatenate(list(planes), axis=1))
        cells = [framed(one, KERNEL_SIDE) for one in np.split(colours, len(planes), axis=1)]
        rows.append(np.concatenate([np.pad(one, ((0, 5), (0, 5), (0, 0)), constant_values=255) for one in cells], 1))
    return Image.fromarray(np.concatenate(rows))


def _labelled(pixels: Pixels, side: int, number: int) -> Image.Image:
    frame = framed(pixels, side)
    # A tile of just its size, so that it is not resized once more.
    return tile(frame, max(frame.shape[:2]), [str(number)])


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures; the right one has white around it, as much as a sheet has."""
    made = Image.new("RGB", (left.width + right.width, max(left.height + 14, right.height)), BACKGROUND)
    made.paste(left, (0, 14))
    made.paste(right, (left.width, 0))
    return made


def _columns(count: int) -> int:
    return min(count, 8 if count <= 64 else 16)


def caption_of(run: Path, checkpoint: Checkpoint) -> str:
    """Whose picture it is: network, checkpoint and run."""
    return f"{checkpoint.state.network}, {checkpoint.folder.name} of {run.resolve().name}"


def _facts(out: Path, run: Path, checkpoint: Checkpoint, layer: str, shape: Shape, drawn: int) -> LayerPicture:
    return LayerPicture(str(out), str(run), checkpoint.folder.name, checkpoint.state.network, layer, shape, drawn)
