"""Pictures of a layer's weights: the filters of convolutions, those of dense layers as images, and how they came to be.

A run draws the layers that `log.pictures` names while it trains, and makes an animation of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagenet_pipeline import files
from imagenet_pipeline.drawing import (
    Numbers,
    contact_sheet,
    framed,
    signed_colours,
    signed_levels,
    tile,
    write_png,
)
from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.zoos import ZooNetwork
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import Conv, Dense, Sequential
from imagenet_pipeline.networks.shapes import LayerReport, Shape, describe
from imagenet_pipeline.networks.subnetwork import no_layer

FILTER_SIDE, KERNEL_SIDE, MATRIX_SIDE = 66, 33, 560  # pixels
FILTERS_LIMIT, TABLE_LIMIT = 256, 16
KEY = "white is 0, blue positive, red negative"
FOLDER = "pictures"
"""Folder of a run with the pictures of its weights: LAYER/step-00000100.png, and LAYER.gif."""
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 150, 1500


@dataclass(frozen=True)
class DrawnLayer:
    """A layer whose weights can be drawn; `image` is the shape of what a dense layer reads, if that is an image."""

    path: str
    image: Shape | None


def layer_to_draw(
    network: Sequential, input_shape: Shape, path: str | None = None, name: str = "NAME", where: str = "layer"
) -> DrawnLayer:
    """The layer at `path`, or the first convolution (without any, the first dense layer).

    Raises BadRecipe for another layer, with those that there are.
    """
    reports = describe(network, input_shape)
    able = [report.path for report in reports if isinstance(report.layer, Conv | Dense)]
    convolutions = [report.path for report in reports if isinstance(report.layer, Conv)]
    chosen = path or next(iter([*convolutions, *able]), None)
    if chosen in able:
        return DrawnLayer(chosen, _image_read(reports, chosen))
    if path is not None and path not in {report.path for report in reports}:
        raise no_layer(path, able, name, where)
    what, expected = "only convolutions and dense layers have weights to draw", " or ".join(able[:3])
    raise BadRecipe(what, where=f"{where} {path}", expected=expected)


def _image_read(reports: Sequence[LayerReport], path: str) -> Shape | None:
    """The shape of the image that a dense layer reads flattened; None where it reads the output of another vector."""
    at = next(number for number, report in enumerate(reports) if report.path == path)
    if not isinstance(reports[at].layer, Dense):
        return None
    inputs = int(np.prod(reports[at].input_shape))
    for report in reversed(reports[:at]):
        if isinstance(report.layer, Dense):
            return None
        for shape in (report.output_shape, report.input_shape):
            if int(np.prod(shape)) != inputs:
                return None
            if len(shape) == 3:
                return shape
    return None


def weights_sheet(drawn: DrawnLayer, weights: Array, caption: str) -> tuple[Image.Image, int]:
    """A sheet of a layer's weights, and the number of filters on it.

    Filters of three inputs are drawn in colour, of a single input by sign, the first 256; of others each row is a
    filter and each column an input, the first 16 of both. Weights between vectors are a picture of a row an output.
    """
    values = weights.astype(np.float64)
    if values.ndim == 2 and drawn.image is not None:
        values = values.reshape(-1, *drawn.image)
    shape = "x".join(map(str, values.shape[1:]))
    title = f"{caption}: {drawn.path}, {len(values)} filters of {shape}\n"
    if values.ndim == 2:
        rows = min(MATRIX_SIDE, len(values))
        picture = Image.fromarray(framed(signed_colours(values[:rows]), MATRIX_SIDE))
        return contact_sheet([picture], 1, f"{title}{KEY}; a row an output, a column an input"), rows
    if values.shape[1] == 3:
        tiles = [signed_levels(planes.transpose(1, 2, 0)) for planes in values[:FILTERS_LIMIT]]
        return _tiles(tiles, f"{title}red, green, blue; grey is 0; each on its own scale")
    if values.shape[1] == 1:
        tiles = [signed_colours(planes[0]) for planes in values[:FILTERS_LIMIT]]
        return _tiles(tiles, f"{title}{KEY}; each on its own scale")
    shown = values[:TABLE_LIMIT]
    remark = f"{KEY}; each filter on its own scale\na row a filter, a column an input, the first {TABLE_LIMIT} of both"
    return contact_sheet([_table(shown[:, :TABLE_LIMIT])], 1, title + remark), len(shown)


def _tiles(pictures: Sequence[NDArray[np.uint8]], title: str) -> tuple[Image.Image, int]:
    tiles = [numbered_tile(picture, FILTER_SIDE, number) for number, picture in enumerate(pictures)]
    return contact_sheet(tiles, columns_for(len(tiles)), title), len(tiles)


def _table(filters: Numbers) -> Image.Image:
    """Filters [n, inputs, h, w], a row each, each on its own scale."""
    rows = []
    for planes in filters:
        colours = signed_colours(np.concatenate(list(planes), axis=1))
        cells = [framed(plane, KERNEL_SIDE) for plane in np.split(colours, len(planes), axis=1)]
        rows.append(np.concatenate([np.pad(cell, ((0, 5), (0, 5), (0, 0)), constant_values=255) for cell in cells], 1))
    return Image.fromarray(np.concatenate(rows))


def numbered_tile(pixels: NDArray[np.uint8], side: int, number: int) -> Image.Image:
    """A small picture, enlarged, with its number below."""
    frame = framed(pixels, side)
    # A tile of just its size, so that it is not resized once more.
    return tile(frame, max(frame.shape[:2]), [str(number)])


def columns_for(count: int) -> int:
    """Columns of a sheet of so many tiles."""
    return min(count, 8 if count <= 64 else 16)


def require_drawable(network: Sequential | ZooNetwork, input_shape: Shape, paths: Sequence[str]) -> None:
    """Raise BadRecipe for a layer of `log.pictures` whose weights cannot be drawn."""
    for path in paths:
        if isinstance(network, ZooNetwork):
            raise BadRecipe("the layers of a zoo's network are not known here", where="recipe key 'log.pictures'")
        layer_to_draw(network, input_shape, path, where="recipe key 'log.pictures'")


def draw_weights(
    folder: Path, network: Sequential | ZooNetwork, input_shape: Shape, values: Values, paths: Sequence[str], step: int
) -> dict[str, Path]:
    """Draw the layers at `paths`, which `require_drawable` let pass, into the run `folder`; gives the file of each."""
    drawn: dict[str, Path] = {}
    if isinstance(network, ZooNetwork):
        return drawn
    for path in paths:
        layer = layer_to_draw(network, input_shape, path)
        sheet, _ = weights_sheet(layer, np.asarray(values[f"{path}.weight"]), f"step {step:,}")
        drawn[path] = folder / FOLDER / path / f"step-{step:08d}.png"
        drawn[path].parent.mkdir(parents=True, exist_ok=True)
        write_png(sheet, drawn[path])
    return drawn


def forget_later(folder: Path, step: int) -> None:
    """Remove the pictures of steps beyond `step`, which a restart leaves behind."""
    for picture in (folder / FOLDER).glob("*/step-*.png"):
        if int(picture.stem.rpartition("-")[2]) > step:
            files.remove(picture)


def animate(folder: Path, paths: Sequence[str]) -> list[Path]:
    """Make an animation (GIF) of the pictures of each layer, in the order of their steps; gives those made."""
    made = []
    for path in paths:
        pictures = sorted((folder / FOLDER / path).glob("step-*.png"))
        if len(pictures) < 2:
            continue
        frames = [Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE) for picture in pictures]
        durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_FRAME_MILLISECONDS]
        out = folder / FOLDER / f"{path}.gif"
        with files.whole_file(out) as stream:
            frames[0].save(
                stream, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, disposal=1
            )
        made.append(out)
    return made
