"""Text in pictures, in any script for which there is a font."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

from imagenet_pipeline.errors import printable

_FILE_END = re.compile(r"\w{0,4}\.\w{1,4}$")
"""The last letters of a file's name, which tell it from others, and its extension."""


def lettering(text: str, size: int) -> tuple[str, FreeTypeFont]:
    """A text as it can be drawn on one line, and the font of this size, in pixels, that can.

    The font is the one that comes with matplotlib (Latin, Greek, Cyrillic, Arabic and others), or else the first of
    those installed that has all the letters; where none has, the missing ones are written out: `\\u72ac`.
    """
    text = printable(" ".join(text.split()))
    path = _path_for(frozenset(text))
    if path is not None:
        return text, _font(path, size)
    return written_out(text), _font(_own(), size)


def written_out(text: str) -> str:
    """The text on one line, with the letters that matplotlib's own font lacks written out."""
    known = _letters(_own())
    return "".join(one if ord(one) in known else ascii(one)[1:-1] for one in printable(" ".join(text.split())))


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
    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@functools.lru_cache(maxsize=1024)
def _path_for(text: frozenset[str]) -> str | None:
    codes = {ord(one) for one in text}
    if codes <= _letters(_own()):
        return _own()
    for path in _installed():
        try:
            if codes.issubset(FT2Font(path).get_charmap()) and ImageFont.truetype(path, 20):
                return path
        except (OSError, RuntimeError):
            continue  # a font of coloured bitmaps, or none at all
    return None


@functools.lru_cache(maxsize=1)
def _letters(path: str) -> frozenset[int]:
    return frozenset(FT2Font(path).get_charmap())


@functools.lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    return tuple(sorted(font_manager.findSystemFonts()))


@functools.lru_cache(maxsize=64)
def _font(path: str, size: int) -> FreeTypeFont:
    return ImageFont.truetype(path, size)
