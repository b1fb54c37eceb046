"""What the user sees: text or exactly one JSON object on stdout, bars on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import progressbar
import typer

from imagenet_pipeline.errors import PipelineError

Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]


class Negative(Exception):
    """The check said no (exit code 1); what it found has been printed."""


def say(line: str = "") -> None:
    """Print one line of the answer."""
    print(line)


def say_json(value: Any) -> None:
    """Print a dataclass or plain value as one JSON object."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    print(json.dumps(value, default=_plain))


def say_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numeric = [all(_is_number(cell) for cell in column) for column in zip(*cells, strict=True)]
    numeric = numeric or [False] * len(header)
    for row in [list(header), *cells]:
        parts = zip(row, widths, numeric, strict=True)
        line = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in parts]
        print("  ".join(line).rstrip())


def list_names(counts: dict[str, int]) -> str:
    """ "1,231,167 train, 50,000 val": counts as a phrase."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


@contextmanager
def image_bar() -> Iterator[Any]:
    """A progress callback (done, total) that draws a bar on stderr, or does nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    widgets = [progressbar.SimpleProgress(), " images ", progressbar.Bar(), " ", progressbar.AdaptiveETA()]
    bar = progressbar.ProgressBar(widgets=widgets, fd=sys.stderr)

    def update(done: int, total: int) -> None:
        if bar.start_time is None:
            bar.start(total)
        bar.update(min(done, total))

    try:
        yield update
    except PipelineError:
        bar.finish(dirty=True)
        raise
    bar.finish()


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").replace("-", "").isdigit() or cell in ("", "-")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"no JSON form for {type(value).__name__}")
