"""Pictures of predictions: copies with the classes below, and a contact sheet, the least certain first."""

from __future__ import annotations

import bisect
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from imagenet_pipeline import files
from imagenet_pipeline.drawing import (
    BACKGROUND,
    INK,
    bar,
    contact_sheet,
    fit,
    jpeg,
    lettering,
    require_png,
    shortened,
    tile,
    write_png,
)
from imagenet_pipeline.errors import BadRecipe, printable
from imagenet_pipeline.evaluation.predict import Amount, Choice, Prediction, read_picture
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import Rejected
from imagenet_pipeline.training.checkpoint import Checkpoint

SHEET_LIMIT = 100
"""Pictures on a contact sheet."""
_TILE = 180
_SMALLEST_LETTERS, _LARGEST_LETTERS = 14, 120
_ROWS_LIMIT = 100
"""Classes below an annotated picture: a JPEG of many thousand rows of pixels cannot be written."""
_JPEG_ENDINGS = (".jpg", ".jpeg")


def caption_of(run: Path, checkpoint: Checkpoint) -> str:
    """The caption of a picture: network, checkpoint and run."""
    return f"{checkpoint.state.network_name}, {checkpoint.folder.name} of {run.resolve().name}"


class Drawings:
    """Draws predictions as they come: into a folder, on a sheet, or both; memory is that of a picture and the sheet.

    Annotated pictures keep their folders, from the folder that holds all pictures down, so that no two share
    a name; what is no JPEG gets ".jpg" added.
    """

    def __init__(self, paths: Sequence[Path], folder: Path | None, sheet: Path | None) -> None:
        if sheet is not None:
            require_png(sheet)
        self._folder, self._sheet = folder, sheet
        self._tiles: list[tuple[float, int, Image.Image]] = []
        self._seen = 0
        self._doubted = False
        self._pictures = len(paths)
        self.annotated = 0
        if folder is not None:
            self._require_folder(folder, paths)
            self._top = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
            self._names = {self._name(path) for path in paths}
            files.require_separate((folder / self._free_name(path) for path in paths), paths)

    def add(self, prediction: Prediction) -> None:
        """Draw a prediction, unless its picture could not be read."""
        certainty = prediction.top[0].probability if prediction.label_kind == "class" and prediction.top else 1.0
        full = len(self._tiles) == SHEET_LIMIT
        on_sheet = self._sheet is not None and (not full or certainty < self._tiles[-1][0])
        if prediction.reason or not (self._folder or on_sheet):
            return
        try:
            pixels = read_picture(prediction.path).whole()
        except Rejected:  # gone or changed since it was looked at
            return
        if on_sheet:
            # In the order of certainty, the first of equals first.
            bisect.insort(self._tiles, (certainty, self._seen, _tile(pixels, prediction)), key=lambda kept: kept[:2])
            del self._tiles[SHEET_LIMIT:]
            self._doubted = prediction.label_kind == "class"
            self._seen += 1
        if self._folder:
            picture = jpeg(annotated(pixels, prediction.top or prediction.numbers), 92)
            files.write_whole(self._folder / self._free_name(prediction.path), picture)
            self.annotated += 1

    def finish(self, whose: str) -> str:
        """Write the sheet, titled by the count and `whose` predictions they are; return the count in words."""
        if self._sheet is None or not self._tiles:
            return ""
        columns = min(len(self._tiles), 10 if len(self._tiles) > 50 else 6)
        cut = len(self._tiles) < self._pictures
        all_of_them = f"{self._pictures:,} picture{'' if self._pictures == 1 else 's'}"
        said = f"{len(self._tiles):,} of {all_of_them}" if cut else all_of_them
        order = ", least certain first" if self._doubted and len(self._tiles) > 1 else ""
        tiles = [drawn for _, _, drawn in self._tiles]
        write_png(contact_sheet(tiles, columns, f"{said}{order}\n{printable(whose)}"), self._sheet)
        return said

    def _require_folder(self, folder: Path, paths: Sequence[Path]) -> None:
        if folder.exists() and not folder.is_dir():
            raise BadRecipe("annotated pictures go into a folder", where=folder, found="a file")
        prefix = os.path.join(os.path.realpath(folder), "")
        inside = next((path for path in paths if os.path.realpath(path).startswith(prefix)), None)
        if inside is not None:
            raise BadRecipe("annotated pictures would be written among the originals", where=folder, found=str(inside))

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self._top)

    def _free_name(self, path: Path) -> str:
        return free_name(self._name(path), _JPEG_ENDINGS, self._names)


def _tile(pixels: Pixels, prediction: Prediction) -> Image.Image:
    """A picture with what is said of it: its class with the probability, its classes, or its numbers."""
    name = prediction.path.name
    if prediction.label_kind != "class":
        said = [choice.name for choice in prediction.top]
        said += [f"{amount.name} {amount.value:.4g}" for amount in prediction.numbers]
        words = ", ".join(said)
        return tile(pixels, _TILE, (words or "none of the classes", name))
    first = prediction.top[0]
    return tile(pixels, _TILE, (first.name, f"{100 * first.probability:.1f} %  {name}"), first.probability)


def free_name(name: str, endings: tuple[str, ...], taken: Collection[str]) -> str:
    """The name of a picture's copy: its own where it has one of these endings, else with the first ending added.

    The ending is added again while another picture, in `taken`, has the name.
    """
    if name.lower().endswith(endings):
        return name
    name += endings[0]
    while name in taken:
        name += endings[0]
    return name


def annotated(pixels: Pixels, top: Sequence[Choice | Amount]) -> Image.Image:
    """A copy of a picture [H, W, 3] with its classes below it: percent, a bar, and the name; or its numbers.

    Letters grow with the picture, 14 pixels at least; a small picture is enlarged by a whole factor to be as wide as
    they need.
    """
    height, width = pixels.shape[:2]
    letters = round(max(_SMALLEST_LETTERS, min(width / 50, height / 12, _LARGEST_LETTERS)))
    across = max(width, 24 * letters)
    picture = Image.fromarray(pixels)
    if across >= 2 * max(width, height):
        picture = fit(picture, across)
    top = top[:_ROWS_LIMIT]
    row = round(1.6 * letters)
    made = Image.new("RGB", (across, picture.height + row * len(top) + letters), BACKGROUND)
    made.paste(picture, ((across - picture.width) // 2, 0))
    draw = ImageDraw.Draw(made)
    for number, choice in enumerate(top):
        _draw_row(draw, choice, picture.height + letters // 2 + number * row, row, letters, across)
    return made


def _draw_row(
    draw: ImageDraw.ImageDraw, choice: Choice | Amount, top: int, row: int, letters: int, across: int
) -> None:
    """Draw percent, bar and name on a line, from the left; a number with its name."""
    if isinstance(choice, Amount):
        words, font = lettering(f"{choice.name} {choice.value:.4g}", letters)
        words = shortened(words, font, across - letters)
        draw.text((letters // 2, top + row // 2), words, font=font, fill=INK, anchor="lm")
        return
    percent, font = lettering(f"{100 * choice.probability:.1f} %", letters)
    edge, middle = letters // 2, top + row // 2
    numbers = edge + round(font.getlength("100.0 %"))
    draw.text((numbers, middle), percent, font=font, fill=INK, anchor="rm")
    bar_left, bar_right = numbers + letters, numbers + letters + across // 5
    bar(draw, (bar_left, middle - letters // 4, bar_right, middle + letters // 4), choice.probability)
    name, font = lettering(choice.name, letters)
    name_left = bar_right + letters
    draw.text((name_left, middle), shortened(name, font, across - edge - name_left), font=font, fill=INK, anchor="lm")
