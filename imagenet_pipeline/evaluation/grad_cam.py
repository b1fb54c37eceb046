"""Grad-CAM: where in a picture a network finds a class (Selvaraju et al., "Grad-CAM: Visual Explanations from Deep
Networks via Gradient-based Localization", ICCV 2017, arXiv 1610.02391)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from imagenet_pipeline import files
from imagenet_pipeline.drawing import (
    BACKGROUND,
    PALE_INK,
    contact_sheet,
    require_png,
    tile,
    write_png,
)
from imagenet_pipeline.engines import Array
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.classifier import Classifier, open_classifier
from imagenet_pipeline.evaluation.colour_maps import enlarged, heat_colours
from imagenet_pipeline.evaluation.layer_engine import input_shape, own_network
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.networks.shapes import Shape, output_shape
from imagenet_pipeline.networks.subnetwork import last_map, until
from imagenet_pipeline.pictures.layers import caption_of, view_of
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.lettering import lettering

SIDE = 240  # pixels
IMAGES_LIMIT = 100
STRENGTH = 0.75
"""How much of the hottest place's colour is the map's; the rest is the picture's."""
DIM = 0.55
"""How bright the picture below the map is, as a share of itself: white must not pass for heat."""
_BAR_WIDTH, _BAR_HEIGHT, _EDGE = 150, 12, 14  # pixels

HeatMap = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """For which class a picture was looked at, and how probable the network finds it; `heat` is the map's maximum."""

    image: str
    class_id: str
    class_name: str
    probability: float
    heat: float


@dataclass(frozen=True)
class GradCam:
    """A picture drawn, and what is on it."""

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

    The layer is the last whose output is an image of several pixels, or one that is named. Computed in float32
    unless `overrides` say otherwise: a rectifier that rounding switches changes a gradient much.
    Raises BadRecipe for a layer that is no image and for a zoo's network, BadInput for photos that cannot be read.
    """
    require_png(out)
    files.require_separate([out], images)
    if not 1 <= len(images) <= IMAGES_LIMIT:
        raise BadRecipe("number of photos to draw", expected=f"1..{IMAGES_LIMIT}", found=len(images))
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
        str(out), str(run), folder.name, state.network, path, shape, engine.name, engine.precision, tuple(seen)
    )


def label_of(name: str, classes: ClassTable) -> int:
    """The label of a class by its id or its name. Raises BadRecipe with the nearest, or where several have the name."""
    if name in classes.ids:
        return classes.ids.index(name)
    found = [label for label, one in enumerate(classes.names) if one == name]
    if len(found) == 1:
        return found[0]
    if found:
        ids = " or ".join(classes.ids[label] for label in found[:3])
        raise BadRecipe(f"{len(found)} classes are called {name!r}", where="--class", expected=ids)
    near = difflib.get_close_matches(name, (*classes.names, *classes.ids), n=3, cutoff=0.5)
    some = near or list(classes.names[:3])
    raise BadRecipe(f"no class is called {name!r}", where="--class", advice=f"did you mean {' or '.join(some)}?")


def _layer_of(classifier: Classifier, layer: str | None) -> tuple[str, Shape]:
    """The layer to look at and what it gives. Raises BadRecipe where that is no image."""
    state = classifier.checkpoint.state
    network = own_network(state.network, len(state.classes))
    path = layer or last_map(network, input_shape(state))
    if path is None:
        raise BadRecipe("no layer gives an image of several pixels", where=f"network {state.network}")
    shape = output_shape(until(network, path, state.network), input_shape(state))
    if len(shape) != 3:
        expected, found = "an image, as a convolution gives it", f"a vector of {shape[0]}"
        raise BadRecipe("Grad-CAM needs a layer with positions", where=f"layer {path}", expected=expected, found=found)
    return path, shape


def _look(classifier: Classifier, view: Pixels, path: str, label: int | None, image: Path) -> tuple[Seen, HeatMap]:
    """The heat map of one view, and for which class it is."""
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
    """A photo, grey and dim, with a map of 0 to 1 over it: the hotter a place, the more of the map's colour."""
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
