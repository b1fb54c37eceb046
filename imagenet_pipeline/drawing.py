"""Parts of pictures: colours, tiles on contact sheets, text in any script for which there is a font, files."""

from __future__ import annotations

import base64
import functools
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from imagenet_pipeline import files
from imagenet_pipeline.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f5fa8", "#c2571a", "#2e7d4f", "#7b4ea3", "#8a6d1d", "#a83262")
"""Blue, orange, green, purple, ochre, pink: of curves and bars, in this order."""
BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)
PALE_INK = (110, 110, 110)
ACCENT = ImageColor.getrgb(COLOURS[0])
TRACK = (228, 232, 238)
_GAP = 14
_LINE = 17
_BAR = 5
_TITLE = 15
_LETTER = 7
"""Width of a letter below the title, pixels."""


def tile(pixels: NDArray[np.uint8], side: int, lines: Sequence[str], share: float | None = None) -> Image.Image:
    """A picture [H, W, 3], or grey [H, W, 1], fitted into a square of `side` pixels.

    Below it are a bar of `share` (0 to 1) and lines of text. The pixels of very small pictures stay to be seen.
    """
    made = Image.new("RGB", (side, side + _LINE * len(lines) + 4 + (0 if share is None else _BAR + 4)), BACKGROUND)
    fitted = fit(Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))), side)
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
    """A picture as large as fits into a square; below half its side it grows by a whole factor, unsmoothed."""
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
    """Tiles of equal size in rows, below a title of a line or several; those after the first are broken to fit."""
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
    for number, picture in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(picture, (_GAP + column * (width + _GAP), head + row * (height + _GAP)))
    return sheet


def require_png(out: Path) -> None:
    """Raise BadRecipe for a picture that is no PNG by its name."""
    files.require_ending(out, ".png", "the picture is written as PNG")


def png(figure: Figure) -> bytes:
    """Draw a matplotlib figure as PNG, 110 dots per inch."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """Encode a picture as JPEG."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def data_address(content: bytes, kind: str) -> str:
    """Address of a picture that a page carries in itself; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def write_png(picture: Image.Image, out: Path) -> None:
    """Write a picture whole."""
    with files.whole_file(out) as stream:
        picture.save(stream, format="PNG")


_FILE_END = re.compile(r"\w{0,4}\.\w{1,4}$")
"""The last letters of a file's name, which tell it from others, and its extension."""


def lettering(text: str, size: int) -> tuple[str, FreeTypeFont]:
    """A text as it can be drawn on a line, and the font of this size, in pixels, that can.

    The font is the font that comes with matplotlib (Latin, Greek, Cyrillic, Arabic and others), or else the first of
    those installed that has all the letters; where none has, the missing ones are written out: `\\u72ac`.
    """
    text = printable(" ".join(text.split()))
    path = _path_for(frozenset(text))
    if path is not None:
        return text, _font(path, size)
    return written_out(text), _font(_own(), size)


def written_out(text: str) -> str:
    """The text on a line, with the letters that matplotlib's own font lacks written out."""
    known = _letters(_own())
    return "".join(
        letter if ord(letter) in known else ascii(letter)[1:-1] for letter in printable(" ".join(text.split()))
    )


def shortened(text: str, font: FreeTypeFont, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels: before the end of a file's name."""
    if font.getlength(text) <= width:
        return text
    end = f"…{''.join(_FILE_END.findall(text))}"
    if font.getlength(end) > width / 2:
        end = "…"
    fits, too_many = 0, len(text)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if font.getlength(text[:middle].rstrip() + end) <= width:
            fits = middle
        else:
            too_many = middle
    return text[:fits].rstrip() + end


def _own() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@functools.lru_cache(maxsize=1024)
def _path_for(text: frozenset[str]) -> str | None:
    codes = {ord(letter) for letter in text}
    if codes <= _letters(_own()):
        return _own()
    for path in _installed():
        try:
            if codes.issubset(_character_map(path)) and ImageFont.truetype(path, 20):
                return path
        except (OSError, RuntimeError):
            continue  # a font of coloured bitmaps, or none at all
    return None


@functools.lru_cache(maxsize=1)
def _letters(path: str) -> frozenset[int]:
    return frozenset(_character_map(path))


def _character_map(path: str) -> Mapping[int, int]:
    from matplotlib.ft2font import FT2Font

    return FT2Font(path).get_charmap()


@functools.lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    from matplotlib import font_manager

    return tuple(sorted(font_manager.findSystemFonts()))


@functools.lru_cache(maxsize=64)
def _font(path: str, size: int) -> FreeTypeFont:
    return ImageFont.truetype(path, size)
