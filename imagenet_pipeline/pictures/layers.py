"""Pictures of a trained network's layers: filters, activations of a photo, and Grad-CAM.

Grad-CAM shows where in a picture a network finds a class (Selvaraju et al., "Grad-CAM: Visual Explanations from Deep
Networks via Gradient-based Localization", ICCV 2017, arXiv 1610.02391).

In pictures of numbers white is 0, blue is positive, red is negative.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw

from imagenet_pipeline import files
from imagenet_pipeline.config import as_size, shown_size
from imagenet_pipeline.drawing import (
    BACKGROUND,
    COLOURS,
    PALE_INK,
    contact_sheet,
    lettering,
    png,
    require_png,
    tile,
    write_png,
)
from imagenet_pipeline.engines import Array
from imagenet_pipeline.errors import BadInput, BadRecipe, did_you_mean
from imagenet_pipeline.evaluation.evaluate import open_checkpoint
from imagenet_pipeline.evaluation.features import engine_until, own_network
from imagenet_pipeline.evaluation.predict import (
    Classifier,
    least_edge_for,
    open_classifier,
    read_naming_damage,
    views_of,
)
from imagenet_pipeline.evaluation.predict_pictures import caption_of
from imagenet_pipeline.evaluation.scoring import require_finite
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.networks.layers import Conv
from imagenet_pipeline.networks.shapes import Shape, describe, output_shape
from imagenet_pipeline.networks.subnetwork import last_map, until
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image import Rejected
from imagenet_pipeline.training.checkpoint import Checkpoint

FILTER_SIDE, KERNEL_SIDE, CHANNEL_SIDE, PHOTO_SIDE = 66, 33, 88, 280  # pixels
FILTERS_LIMIT, TABLE_LIMIT = 256, 16
KEY = "white is 0, blue positive, red negative"


@dataclass(frozen=True)
class LayerPicture:
    """A finished picture: its layer, the shape of the weights or activations it shows, and how many of them."""

    file: str
    run: str
    checkpoint: str
    network: str
    layer: str
    shape: Shape
    drawn: int


def draw_filters(run: Path, out: Path, layer: str | None = None, which: str = "best") -> LayerPicture:
    """Draw the filters of a convolution, the first unless `layer` names another, from a checkpoint's weights. No
    engine.

    Filters of three inputs are drawn in colour, of one in grey, the first 256; of others each row is a filter and each
    column an input, the first 16 of both.
    Raises BadRecipe for a layer that is no convolution, and for a zoo's network.
    """
    require_png(out)
    _, checkpoint = open_checkpoint(run, which, {})
    path = _convolution(checkpoint, layer)
    weights = checkpoint.weights[f"{path}.weight"].astype(np.float64)
    filters, inputs, height, width = weights.shape
    title = f"{caption_of(run, checkpoint)}: {path}, {filters} filters of {inputs}x{height}x{width}\n"
    if inputs in (1, 3):
        shown = np.broadcast_to(weights[:FILTERS_LIMIT], (min(filters, FILTERS_LIMIT), 3, height, width))
        colours = "red, green, blue; " if inputs == 3 else ""
        tiles = [_labelled(signed_levels(planes.transpose(1, 2, 0)), FILTER_SIDE, n) for n, planes in enumerate(shown)]
        sheet = contact_sheet(tiles, _columns(len(tiles)), f"{title}{colours}grey is 0; each on its own scale")
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
    # An array of other than three axes has all but the last two for its channels.
    planes = values if len(shape) == 1 else values.reshape(-1, *shape[-2:])
    drawn = len(planes) if len(shape) == 1 else min(channels, len(planes))
    picture = _bars(values) if len(shape) == 1 else _channels(planes[:drawn])
    photo = tile(
        enlarged(view, PHOTO_SIDE),
        PHOTO_SIDE,
        [image.name, f"the {shown_size(as_size(*view.shape[:2]))} px the network sees"],
    )
    text = f"{caption_of(run, checkpoint)}: {layer} gives {'x'.join(map(str, shape))}"
    if len(shape) > 1:
        text += f"\n{KEY}; each channel on its own scale; {drawn} of {len(planes)} channels"
    write_png(contact_sheet([_beside(photo, picture)], 1, text), out)
    return _facts(out, run, checkpoint, layer, shape, drawn)


def view_of(image: Path, checkpoint: Checkpoint) -> Pixels:
    """Cut the crop of a photo that a network sees, [H, W, channels]. Raises BadInput where the photo cannot be read."""
    state = checkpoint.state
    try:
        view: Pixels = views_of(read_naming_damage(image, least_edge_for(state)), state)[0]
    except Rejected as reason:
        raise BadInput(f"the photo cannot be used ({reason})", where=image, expected="a photo") from reason
    return view


def _convolution(checkpoint: Checkpoint, layer: str | None) -> str:
    state = checkpoint.state
    network = own_network(state.network, len(state.classes))
    reports = describe(network, state.input_shape)
    convolutions = [report.path for report in reports if isinstance(report.layer, Conv)]
    if layer is None and convolutions:
        return convolutions[0]
    if layer is not None and layer in convolutions:
        return layer
    if layer is not None:
        until(network, layer, state.network)  # which knows what is called nearly so
    raise BadRecipe("only convolutions have filters", where=f"layer {layer}", expected=" or ".join(convolutions[:3]))


def _channels(values: Numbers) -> Image.Image:
    tiles = [_labelled(signed_colours(channel), CHANNEL_SIDE, number) for number, channel in enumerate(values)]
    return contact_sheet(tiles, _columns(len(tiles)), "")


def _bars(values: Numbers) -> Image.Image:
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    axes = figure.subplots()
    features = np.arange(len(values))
    for sign, colour in ((1, COLOURS[0]), (-1, "#b2372f")):
        chosen = sign * values > 0
        axes.vlines(
            features[chosen], 0, values[chosen], colors=colour, linewidth=min(10.0, max(0.6, 400 / len(values)))
        )
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set_xlim(-0.5 - len(values) / 100, len(values) - 0.5 + len(values) / 100)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("feature")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return Image.open(io.BytesIO(png(figure))).convert("RGB")


def _table(filters: Numbers) -> Image.Image:
    """Filters [n, inputs, h, w], a row each, each on its own scale."""
    rows = []
    for planes in filters:
        colours = signed_colours(np.concatenate(list(planes), axis=1))
        cells = [framed(plane, KERNEL_SIDE) for plane in np.split(colours, len(planes), axis=1)]
        rows.append(np.concatenate([np.pad(cell, ((0, 5), (0, 5), (0, 0)), constant_values=255) for cell in cells], 1))
    return Image.fromarray(np.concatenate(rows))


def _labelled(pixels: Pixels, side: int, number: int) -> Image.Image:
    frame = framed(pixels, side)
    # A tile of just its size, so that it is not resized once more.
    return tile(frame, max(frame.shape[:2]), [str(number)])


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Put two pictures side by side; the right has the white of a sheet around it."""
    made = Image.new("RGB", (left.width + right.width, max(left.height + 14, right.height)), BACKGROUND)
    made.paste(left, (0, 14))
    made.paste(right, (left.width, 0))
    return made


def _columns(count: int) -> int:
    return min(count, 8 if count <= 64 else 16)


def _facts(out: Path, run: Path, checkpoint: Checkpoint, layer: str, shape: Shape, drawn: int) -> LayerPicture:
    return LayerPicture(str(out), str(run), checkpoint.folder.name, checkpoint.state.network_name, layer, shape, drawn)


SIDE = 240  # pixels
IMAGES_LIMIT = 100
STRENGTH = 0.75
"""Share of the map in the colour of the hottest point; the rest is the picture's."""
DIM = 0.55
"""Brightness of the picture below the map, as a share of itself: white must not pass for heat."""
_BAR_WIDTH, _BAR_HEIGHT, _EDGE = 150, 12, 14  # pixels

HeatMap = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """A Grad-CAM map in figures: the class, its probability by the network, and `heat`, the map's maximum."""

    image: str
    class_id: str
    class_name: str
    probability: float
    heat: float


@dataclass(frozen=True)
class GradCam:
    """A finished picture, and the maps on it."""

    file: str
    run: str
    checkpoint: str
    network: str
    layer: str
    shape: Shape
    engine: str
    precision: str
    images: tuple[Seen, ...]


def heat_maps(activations: Array, gradients: Array) -> HeatMap:
    """The paper's equations 1 and 2 on [n, c, h, w]: max(0, sum over c of alpha_c A_c), [n, h, w].

    alpha_c is the mean of the class score's gradient over the positions of channel c.
    """
    weights = gradients.astype(np.float64).mean(axis=(2, 3))
    maps: HeatMap = np.maximum(np.einsum("nc,nchw->nhw", weights, activations.astype(np.float64)), 0.0)
    return maps


def draw_grad_cam(
    run: Path,
    images: Sequence[Path],
    out: Path,
    layer: str | None = None,
    class_name: str | None = None,
    which: str = "best",
    overrides: dict[str, object] | None = None,
) -> GradCam:
    """Draw each photo and, beside it, the heat map of its most probable class, or of the class of that name or id.

    The layer is the last whose output is an image of several pixels, unless `layer` names another. Computed in float32
    unless `overrides` say otherwise: a rectifier that rounding switches changes a gradient much.
    Raises BadRecipe for a layer that is no image and for a zoo's network, BadInput for photos that cannot be read.
    """
    require_png(out)
    files.require_separate([out], images)
    if not 1 <= len(images) <= IMAGES_LIMIT:
        raise BadRecipe(
            "the number of photos to draw is out of range", expected=f"1..{IMAGES_LIMIT}", found=len(images)
        )
    classifier = open_classifier(run, which, {"precision": "float32", **(overrides or {})})
    path, shape = _layer_of(classifier, layer)
    label = None if class_name is None else label_of(class_name, classifier.classes)
    tiles, seen = [], []
    for image in images:
        view = view_of(image, classifier.checkpoint)
        looked, heat = _look(classifier, view, path, label, image)
        photo, warm = enlarged(view, SIDE), _overlaid(enlarged(view, SIDE), heat)
        caption = f"{looked.class_name}  {100 * looked.probability:.1f} %{'' if looked.heat else ', found nowhere'}"
        tiles += [tile(photo, SIDE, [image.name]), tile(warm, SIDE, [caption])]
        seen.append(looked)
    state, folder = classifier.checkpoint.state, classifier.checkpoint.folder
    title = f"{caption_of(run, classifier.checkpoint)}: Grad-CAM"
    remarks = f"at {path}, {'x'.join(map(str, shape))}\ncolour is where the class is found, on each photo's own scale"
    write_png(_with_legend(contact_sheet(tiles, 2 if len(images) < 3 else 4, f"{title}\n{remarks}")), out)
    engine = classifier.engine
    return GradCam(
        str(out), str(run), folder.name, state.network_name, path, shape, engine.name, engine.precision, tuple(seen)
    )


def label_of(name: str, classes: ClassTable) -> int:
    """The label of a class by its id or its name. Raises BadRecipe with the nearest, or where several have the name."""
    if name in classes.ids:
        return classes.ids.index(name)
    found = [label for label, known in enumerate(classes.names) if known == name]
    if len(found) == 1:
        return found[0]
    if found:
        ids = " or ".join(classes.ids[label] for label in found[:3])
        raise BadRecipe(f"{len(found)} classes are called {name!r}", where="--class", expected=ids)
    some = f"did you mean {' or '.join(classes.names[:3])}?"
    advice = did_you_mean(name, (*classes.names, *classes.ids), some)
    raise BadRecipe(f"no class is called {name!r}", where="--class", advice=advice)


def _layer_of(classifier: Classifier, layer: str | None) -> tuple[str, Shape]:
    """The layer to look at and what it gives. Raises BadRecipe where that is no image."""
    state = classifier.checkpoint.state
    network = own_network(state.network, len(state.classes))
    path = layer or last_map(network, state.input_shape)
    if path is None:
        raise BadRecipe("no layer gives an image of several pixels", where=f"network {state.network_name}")
    shape = output_shape(until(network, path, state.network), state.input_shape)
    if len(shape) != 3:
        expected = "an image, as a convolution gives it"
        found = f"a vector of {shape[0]}" if len(shape) == 1 else f"an array of {'x'.join(map(str, shape))}"
        raise BadRecipe("Grad-CAM needs a layer with positions", where=f"layer {path}", expected=expected, found=found)
    return path, shape


def _look(classifier: Classifier, view: Pixels, path: str, label: int | None, image: Path) -> tuple[Seen, HeatMap]:
    """The heat map of a view, and its class."""
    probabilities = classifier.probabilities_of(view[None, None])[0]
    label = int(probabilities.argmax()) if label is None else label
    heat = heat_maps(*classifier.engine.layer_gradients(view[None], path, np.array([label])))[0]
    if not np.isfinite(heat).all():
        where, advice = classifier.checkpoint.folder, "take another checkpoint"
        raise BadInput("the gradients of the network are not finite", where=where, advice=advice)
    classes, maximum = classifier.classes, float(heat.max())
    seen = Seen(str(image), classes.ids[label], classes.names[label], float(probabilities[label]), maximum)
    return seen, heat / (maximum or 1.0)


def _overlaid(photo: Pixels, heat: HeatMap) -> Pixels:
    """A photo, grey and dim, with a map of 0 to 1 over it: the hotter a point, the more of the map's colour."""
    height, width = photo.shape[:2]
    large = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    shares = np.clip(np.asarray(large, np.float64), 0.0, 1.0)
    opacity = STRENGTH * shares[..., None]
    grey = DIM * photo.mean(axis=2, keepdims=True)
    mixed: Pixels = np.round((1 - opacity) * grey + opacity * heat_colours(shares)).astype(np.uint8)
    return mixed


def _with_legend(sheet: Image.Image) -> Image.Image:
    """The sheet and, below, the map's colours over middle grey, from none to most."""
    made = Image.new("RGB", (sheet.width, sheet.height + _BAR_HEIGHT + _EDGE), BACKGROUND)
    made.paste(sheet)
    grey = np.full((_BAR_HEIGHT, _BAR_WIDTH, 3), 128, np.uint8)
    colours = Image.fromarray(_overlaid(grey, np.linspace(0, 1, _BAR_WIDTH)[None]))
    draw, middle = ImageDraw.Draw(made), sheet.height + _BAR_HEIGHT // 2
    none, font = lettering("none", _BAR_HEIGHT)
    left = _EDGE + round(font.getlength(none)) + _EDGE // 2
    draw.text((_EDGE, middle), none, font=font, fill=PALE_INK, anchor="lm")
    made.paste(colours, (left, sheet.height))
    draw.text((left + _BAR_WIDTH + _EDGE // 2, middle), "most", font=font, fill=PALE_INK, anchor="lm")
    return made


Numbers = npt.NDArray[np.floating[Any]]

SIGNED, HEAT = "RdBu", "inferno"
EDGE = (205, 211, 218)


def signed_colours(numbers: Numbers) -> Pixels:
    """Numbers [h, w] as colours [h, w, 3], the farthest from 0 the darkest."""
    return _coloured(0.5 + 0.5 * numbers / _largest(numbers), SIGNED)


def signed_levels(numbers: Numbers) -> Pixels:
    """Numbers [h, w, 3] of red, green and blue as a picture, 0 the middle grey, the farthest from it black or white."""
    levels: Pixels = np.round(255 * (0.5 + 0.5 * numbers / _largest(numbers))).astype(np.uint8)
    return levels


def heat_colours(shares: Numbers) -> Pixels:
    """Numbers 0 to 1 [h, w] as colours [h, w, 3], from black over red to pale yellow."""
    return _coloured(shares, HEAT)


def framed(pixels: Pixels, side: int) -> Pixels:
    """A small picture enlarged by the largest whole factor within `side` pixels, and an edge of a pixel around."""
    times = max(1, side // max(pixels.shape[:2]))
    large = np.repeat(np.repeat(pixels, times, axis=0), times, axis=1)
    if max(large.shape[:2]) > side:
        picture = Image.fromarray(large)
        picture.thumbnail((side, side), Image.Resampling.BOX)
        large = np.asarray(picture)
    frame = np.empty((large.shape[0] + 2, large.shape[1] + 2, 3), np.uint8)
    frame[:] = EDGE
    frame[1:-1, 1:-1] = large
    return frame


def enlarged(pixels: Pixels, side: int) -> Pixels:
    """A picture [H, W, 3], or grey [H, W, 1], resized smoothly to `side` pixels along its longer edge, in RGB."""
    height, width = pixels.shape[:2]
    size = round(side * width / max(height, width)), round(side * height / max(height, width))
    rgb = np.broadcast_to(pixels, (height, width, 3))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def _coloured(shares: Numbers, name: str) -> Pixels:
    colours: Pixels = matplotlib.colormaps[name](shares, bytes=True)[..., :3]
    return colours


def _largest(numbers: Numbers) -> float:
    return float(np.abs(numbers).max()) or 1.0
