"""Output of the command line: text, or exactly one JSON object on stdout."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from imagenet_pipeline.cli.completion import complete_key
from imagenet_pipeline.errors import BadRecipe, printable
from imagenet_pipeline.processes import this_process

log = logging.getLogger("imagenet_pipeline")
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]
LARGEST_SEED = 2**32 - 1
"""Largest seed that scikit-learn's cuts take."""
WHICH = '"best" (by validation rank-1 or stopping.figure, the earliest of equals), "latest" or an epoch'
Checkpoint = Annotated[str, typer.Option(help=f"{WHICH}.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Recipe keys to change, as devices=cpu (`keys` lists them).",
        autocompletion=complete_key,
    ),
]


def overrides_of(words: Sequence[str] | None) -> dict[str, Any]:
    """Recipe keys given as words, dotted key -> value. Raises BadRecipe for a word that is none, or two lengths."""
    from imagenet_pipeline.config import parse_overrides

    overrides = parse_overrides(words or [])
    if overrides.get("steps") and overrides.get("epochs"):
        found = f"steps={overrides['steps']} epochs={overrides['epochs']}"
        raise BadRecipe("two lengths of the run", where="command line", expected="epochs or steps", found=found)
    return overrides


def announce(line: str) -> None:
    """Say on stderr what a verb is about to do, before it imports what takes seconds.

    Processes that a launcher started say nothing: it has been said.
    """
    if not this_process().launched:
        log.info("%s", printable(line))


def say(line: str = "") -> None:
    """Print a line of the answer; names from files in it may hold anything."""
    print(printable(line))


def say_json(value: Any) -> None:
    """Print a dataclass or plain value as a JSON object."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    print(json.dumps(_finite(value), default=_plain, allow_nan=False))


def say_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numeric = [all(_is_number(cell) for cell in column) for column in zip(*cells, strict=True)]
    numeric = numeric or [False] * len(header)
    for row in [list(header), *cells]:
        parts = zip(row, widths, numeric, strict=True)
        line = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in parts]
        say("  ".join(line).rstrip())


def list_names(counts: dict[str, int]) -> str:
    """ "1,231,167 train, 50,000 val": counts as a phrase."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").replace("-", "").isdigit() or cell in ("", "-")


def _finite(value: Any) -> Any:
    # JSON has no word for these.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"no JSON form for {type(value).__name__}")
