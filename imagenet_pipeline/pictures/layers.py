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
    Numbers,
    contact_sheet,
    enlarged,
    heat_colours,
    lettering,
    png,
    require_png,
    signed_colours,
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
from imagenet_pipeline.networks.shapes import Shape, output_shape
from imagenet_pipeline.networks.subnetwork import last_map, until
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image import Rejected
from imagenet_pipeline.training.checkpoint import Checkpoint
from imagenet_pipeline.training.weight_pictures import (
    KEY,
    columns_for,
    layer_to_draw,
    numbered_tile,
    weights_sheet,
)

CHANNEL_SIDE, PHOTO_SIDE = 88, 280  # pixels


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

    The weights of a dense layer are drawn as filters the size of the image that it reads, or else as a single picture
    of a row an output (see `weights_sheet`).
    Raises BadRecipe for a layer that is neither, and for a zoo's network.
    """
    require_png(out)
    _, checkpoint = open_checkpoint(run, which, {})
    state = checkpoint.state
    network = own_network(state.network, len(state.classes))
    drawn = layer_to_draw(network, state.input_shape, layer, state.network)
    weights = checkpoint.weights[f"{drawn.path}.weight"]
    sheet, count = weights_sheet(drawn, weights, caption_of(run, checkpoint))
    write_png(sheet, out)
    return _facts(out, run, checkpoint, drawn.path, weights.shape, count)


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


def _channels(values: Numbers) -> Image.Image:
    tiles = [numbered_tile(signed_colours(channel), CHANNEL_SIDE, number) for number, channel in enumerate(values)]
    return contact_sheet(tiles, columns_for(len(tiles)), "")


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


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Put two pictures side by side; the right has the white of a sheet around it."""
    made = Image.new("RGB", (left.width + right.width, max(left.height + 14, right.height)), BACKGROUND)
    made.paste(left, (0, 14))
    made.paste(right, (left.width, 0))
    return made


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
    Raises BadRecipe for a layer that is no image and for a zoo's network, BadInput for photos that cannot be read and
    for a run that says numbers.
    """
    require_png(out)
    files.require_separate([out], images)
    if not 1 <= len(images) <= IMAGES_LIMIT:
        raise BadRecipe(
            "the number of photos to draw is out of range", expected=f"1..{IMAGES_LIMIT}", found=len(images)
        )
    classifier = open_classifier(run, which, {"precision": "float32", **(overrides or {})})
    path, shape = _layer_of(classifier, layer)
    if classifier.classes.label_kind == "number":
        raise BadInput("Grad-CAM asks for a class, and this run says numbers", where=run)
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
