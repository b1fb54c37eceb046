"""The attributes of an MXNet node, which are texts: "True", "1e-05", "(3, 3)", "(3L, 3L)"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from imagenet_pipeline.errors import BadInput

_INTEGER = re.compile(r"[+-]?[0-9]{1,9}L?")
_REAL = re.compile(r"[+-]?([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")
_FLAGS = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
_ABSENT = ("", "None")


class Attributes:
    """Reads a node's attributes; `where` names the node in messages. Every method raises BadInput."""

    def __init__(self, texts: Mapping[str, str], where: str) -> None:
        self._texts = texts
        self._where = where

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        text = self._text(name)
        if text in _ABSENT:
            return default
        if text not in _FLAGS:
            raise self._bad(name, "True or False")
        return _FLAGS[text]

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number; without a `default` it must be there."""
        text = self._text(name)
        if text in _ABSENT and default is not None:
            return default
        if not _INTEGER.fullmatch(text):
            raise self._bad(name, "a whole number")
        return int(text.rstrip("L"))

    def real(self, name: str, default: float | None = None) -> float:
        """A finite number; without a `default` it must be there."""
        text = self._text(name)
        if text in _ABSENT and default is not None:
            return default
        if not _REAL.fullmatch(text) or not math.isfinite(float(text)):
            raise self._bad(name, "a number")
        return float(text)

    def integers(self, name: str) -> tuple[int, ...]:
        """Whole numbers in brackets, or one without; () where there is no such attribute."""
        text = self._text(name)
        if text in _ABSENT:
            return ()
        inner = text[1:-1] if (text[0], text[-1]) in (("(", ")"), ("[", "]")) else text
        words = [word.strip() for word in inner.split(",")]
        if words and words[-1] == "":
            words.pop()
        if not all(_INTEGER.fullmatch(word) for word in words):
            raise self._bad(name, "whole numbers in brackets")
        return tuple(int(word.rstrip("L")) for word in words)

    def pair(self, name: str, default: tuple[int, int] | None, least: int) -> tuple[int, int]:
        """(height, width), each at least `least`."""
        numbers = self.integers(name)
        if not numbers and default is not None:
            return default
        if len(numbers) != 2 or min(numbers) < least:
            raise self._bad(name, f"(height, width) of at least {least}")
        return numbers[0], numbers[1]

    def word(self, name: str, default: str) -> str:
        """A plain word."""
        text = self._text(name)
        return default if text in _ABSENT else text

    def _text(self, name: str) -> str:
        return self._texts.get(name, "").strip()

    def _bad(self, name: str, expected: str) -> BadInput:
        found = repr(self._text(name)[:80]) if name in self._texts else "no such attribute"
        return BadInput(f"attribute {name!r}", where=self._where, expected=expected, found=found)
