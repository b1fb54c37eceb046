"""Sheets of small pictures with captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.records.lettering import lettering, shortened

BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)
PALE_INK = (110, 110, 110)
ACCENT = (31, 95, 168)
TRACK = (228, 232, 238)
_GAP = 14
_LINE = 17
_BAR = 5
_TITLE = 15
_LETTER = 7
"""Width of a letter below the title, pixels."""


def tile(pixels: NDArray[np.uint8], side: int, lines: Sequence[str], share: float | None = None) -> Image.Image:
    """A picture [H, W, 3] fitted into a square of `side` pixels, below it a bar of `share` (0 to 1), and lines of text.

    The pixels of very small pictures stay to be seen.
    """
    made = Image.new("RGB", (side, side + _LINE * len(lines) + 4 + (0 if share is None else _BAR + 4)), BACKGROUND)
    fitted = fit(Image.fromarray(pixels), side)
    made.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    draw = ImageDraw.Draw(made)
    top = side + 4
    if share is not None:
        bar(draw, (0, top, side, top + _BAR), share)
        top += _BAR + 4
    for number, line in enumerate(lines):
        text, font = lettering(line, 11 if number else 13)
        ink = PALE_INK if number else INK
        draw.text((0, top + _LINE * number), shortened(text, font, side), font=font, fill=ink)
    return made


def fit(picture: Image.Image, side: int) -> Image.Image:
    """A picture as large as it can be within a square; one of less than half its side by a whole factor, unsmoothed."""
    scale = side / max(picture.size)
    if scale >= 2:
        times = int(scale)
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def bar(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], share: float) -> None:
    """A bar that is filled to `share` of its box (left, top, right, bottom)."""
    left, top, right, bottom = box
    draw.rectangle((left, top, right - 1, bottom - 1), fill=TRACK)
    filled = round((right - left) * min(max(share, 0.0), 1.0))
    if filled:
        draw.rectangle((left, top, left + filled - 1, bottom - 1), fill=ACCENT)


def contact_sheet(tiles: Sequence[Image.Image], columns: int, title: str) -> Image.Image:
    """Tiles of one size in rows, below a title of a line or several; those after the first are broken to fit."""
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    across = _GAP + columns * (width + _GAP)
    first, *others = title.splitlines() or [""]
    broken = [part for line in others for part in textwrap.wrap(line, max(1, across // _LETTER))]
    lines = [first, *broken] if title else []
    head = _GAP + 22 * len(lines) + (_GAP // 2 if lines else 0)
    sheet = Image.new("RGB", (across, head + rows * (height + _GAP)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        text, font = lettering(line, 12 if number else _TITLE)
        text = shortened(text, font, across - 2 * _GAP)
        draw.text((_GAP, _GAP + 22 * number), text, font=font, fill=PALE_INK if number else INK)
    for place, one in enumerate(tiles):
        row, column = divmod(place, columns)
        sheet.paste(one, (_GAP + column * (width + _GAP), head + row * (height + _GAP)))
    return sheet


def require_png(out: Path) -> None:
    """Raise BadRecipe for a picture that is no PNG by its name."""
    if out.suffix.lower() != ".png":
        raise BadRecipe("drawn as PNG", where=out, expected="a name that ends in .png")


def write_png(picture: Image.Image, out: Path) -> None:
    """Write a picture whole."""
    with files.whole_file(out) as stream:
        picture.save(stream, format="PNG")
