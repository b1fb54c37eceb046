"""Kinds of failure a user can meet, each with its exit code.

A message is one line: what is wrong, where, what was expected, what was found, what to do.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Iterable
from typing import Any, Self


def printable(text: str) -> str:
    """Write out what would move a terminal's cursor, or hide in it: `\\x1b`."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def first_few(names: Collection[str]) -> str:
    """Shorten names to a phrase: "a, b, c, ... (8 in all)"."""
    shown = [name[:80] for name in itertools.islice(names, 3)]
    return f"{', '.join(shown)}{', ...' if len(names) > len(shown) else ''} ({len(names)} in all)"


def counted(count: int, noun: str) -> str:
    """Put a number before a noun: "1 class", "1,000 classes"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def extent(lowest: int, highest: int) -> str:
    """Phrase a range of whole numbers: "0..9", and of a single one "4"."""
    return f"{lowest:,}..{highest:,}" if lowest != highest else f"{lowest:,}"


_ELSEWHERE = {"silu": "swish"}
"""Names that others have for what is called so here."""


def did_you_mean(name: str, names: Iterable[str], otherwise: str) -> str:
    """Advise the nearest of `names`, whatever their capitals, or `otherwise` where none is near."""
    by_folded = {known.casefold(): known for known in names}
    name = _ELSEWHERE.get(name.casefold(), name)
    near = [by_folded[folded] for folded in difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(near)}?" if near else otherwise


_OUT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "not enough memory", "failed to allocate", "bad_alloc", "alloc_failed",
    "allocation_failed", "cudaerrormemoryallocation",
)  # fmt: skip
"""Words of PyTorch, MXNet, ONNX Runtime, CUDA, cuBLAS, cuDNN and C++, in small letters."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an error of NumPy or a framework that ran out of memory, on any device, from all others."""
    if isinstance(error, MemoryError):
        return True
    # ONNX Runtime's own have no base but Exception.
    of_framework = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime.")
    said = str(error).lower()
    return of_framework and any(words in said for words in _OUT_OF_MEMORY)


class PipelineError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        advice: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.advice = advice
        super().__init__(self._line())

    def replaced(self, **fields: Any) -> Self:
        """The same error but for some of where, expected, found and advice."""
        kept = {name: getattr(self, name) for name in ("where", "expected", "found", "advice")}
        return type(self)(self.what, **kept | fields)

    def _line(self) -> str:
        line = self.what if self.where is None else f"{self.where}: {self.what}"
        if self.expected is not None:
            line += f"; expected {self.expected}"
        if self.found is not None:
            line += f"; found {self.found}"
        if self.advice is not None:
            line += f"; {self.advice}"
        return printable(" ".join(line.split()))

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments do not survive Exception's own pickling, and workers send errors home.
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(kind: type[PipelineError], fields: dict[str, object]) -> PipelineError:
    what = str(fields.pop("what"))
    return kind(what, **fields)  # type: ignore[arg-type]


class BadRecipe(PipelineError):
    """Usage, or a recipe that cannot be run (exit code 2)."""

    exit_code = 2


class BadInput(PipelineError):
    """The user's data: metadata, lists, images, records of another data set (exit code 3)."""

    exit_code = 3


class Damaged(PipelineError):
    """Files this project wrote and that are no longer as it wrote them (exit code 4)."""

    exit_code = 4


class OutOfRoom(PipelineError):
    """Disk or memory ran out (exit code 5)."""

    exit_code = 5


class WorkerLost(PipelineError):
    """A worker process died (exit code 6)."""

    exit_code = 6


def error_of(line: str, exit_code: int) -> PipelineError:
    """The error with which another process of this program has ended: its line and its exit code."""
    kind = next((kind for kind in PipelineError.__subclasses__() if kind.exit_code == exit_code), PipelineError)
    error = kind(line)
    error.exit_code = exit_code
    return error


class Negative(Exception):
    """The check said no (exit code 1); what it found has been printed."""


def error_said(said: str, exit_code: int) -> PipelineError:
    """The error that a command of ours ended with, by what it said: the last line of it."""
    lines = [line for line in said.splitlines() if line.strip()] or [f"ended with exit code {exit_code}"]
    return error_of(lines[-1].removeprefix("error: "), exit_code)
