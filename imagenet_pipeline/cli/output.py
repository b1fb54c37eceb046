"""Output of the command line: a first line on stderr, the answer on stdout, as text or exactly one JSON object."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import tomllib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from imagenet_pipeline.cli.completion import complete_key, complete_run, shipped_recipes
from imagenet_pipeline.errors import BadRecipe, counted, printable
from imagenet_pipeline.processes import this_process

log = logging.getLogger("imagenet_pipeline")
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]
LARGEST_SEED = 2**32 - 1
"""Largest seed that scikit-learn's cuts take."""
WHICH = '"best" (by validation rank-1 or stopping.figure, the earliest of equals), "latest" or an epoch'
Checkpoint = Annotated[str, typer.Option(help=f"{WHICH}.")]
Run = Annotated[Path, typer.Argument(help="Run folder.", autocompletion=complete_run)]
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


Parameters = Mapping[str, Any]
"""The arguments and options of a command as they were given, or their defaults."""


def _train(given: Parameters) -> str:
    """The recipe as it is written, with what the command line changes: it is checked later.

    A run that is resumed has keys of earlier command lines, too, and says them itself.
    """
    if given["resume"]:
        which = f"epoch {given['resume']}" if given["resume"].isdecimal() else f"its {given['resume']} checkpoint"
        return f"{given['run'] or given['recipe']}: going on from {which}"
    path = _recipe_file(given["recipe"])
    if path is None:
        return ""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    values |= dict(word.split("=", 1) for word in given["overrides"] or [] if "=" in word)
    unit = "step" if str(values.get("steps", 0)) != "0" else "epoch"
    number = str(values.get(f"{unit}s", 90))
    length = counted(int(number), unit) if number.isdecimal() else f"{number} {unit}s"
    engine = f", {values['engine']}" if values.get("engine", "auto") != "auto" else ""
    return f"{given['recipe']}: {values.get('network')} on {values.get('records')}, {length}{engine}"


def _recipe_file(recipe: Path) -> Path | None:
    """The file of a recipe, a run folder or a shipped recipe's name."""
    for path in (recipe, recipe / "recipe.toml"):
        if os.path.isfile(path):
            return path
    return shipped_recipes().get(recipe.as_posix())


def _networks(given: Parameters) -> str:
    return "" if given["name"] else "networks: their parameters and multiply-adds"


FIRST_LINES: dict[str, str | Callable[[Parameters], str]] = {
    "picture network": "{name}: drawing its layers",
    "picture filters": "{run}: drawing the filters of the {checkpoint} checkpoint",
    "picture activations": "{run}: drawing what {layer} makes of {image}",
    "picture grad-cam": "{run}: looking for where it finds a class in {words}",
    "picture augmentation": "{recipe}: drawing a training photo {draws} times",
    "picture classes": "{folder}: counting the images of each class",
    "picture sizes": "{folder}: reading the size of every image",
    "verify": "{path}: checking every record",
    "inspect": "{path}: looking into it",
    "mean-image": "{path}: the mean of its training photos at {size} pixels",
    "networks": _networks,
    "find-rate": "{recipe}: raising the learning rate from {lowest} to {highest} in {steps} steps",
    "tune": "{recipe}: a search of {trials} trials",
    "train": _train,
    "average": "{out}: the mean of checkpoints of {words}",
    "plot": "{out}: drawing the curves of {runs}",
    "evaluate": "{words}: scoring the {checkpoint} checkpoint",
    "diagnose": "{run}: scoring the {checkpoint} checkpoint on every split",
    "calibrate": "{run}: fitting the temperature of the {checkpoint} checkpoint on {split}",
    "baseline": "{data}: fitting {model} on {features} at {size} pixels",
    "features": "{run}: the activations of {layer}",
    "probe": "{file}: fitting {kind}",
    "predict": "{run}: naming the classes of {words}",
    "submit": "{run}: naming the classes of the pictures in {folder}",
    "emotion": "{run}: looking for faces in {source}",
    "import": "{out}: a run of a network trained elsewhere",
    "export": "{run}: writing the {checkpoint} checkpoint as {form}",
    "export-records": "{path}: writing its records as {form}",
    "benchmark loader": "{path}: measuring the loader at {size} pixels",
    "benchmark step": "{recipe}: measuring {rounds} rounds of {steps} steps",
}
"""The line of each command, filled in with its parameters; those that answer within half a second have none."""
_SOURCES = ("recipe", "run", "path", "data", "folder", "file", "root", "words")
"""Parameters that are read: where one is not there, the error is all that is said."""


def say_first(command: str, given: Parameters) -> None:
    """Say the first line of a command, if it has one and what it reads is there."""
    line = FIRST_LINES.get(command, "")
    sources = ("recipe",) if "recipe" in given else _SOURCES  # whose run is to be made
    if any(_is_missing(name, given[name]) for name in sources if given.get(name) is not None):
        return
    said = line(given) if callable(line) else line.format(**{name: _shown(value) for name, value in given.items()})
    if said:
        announce(said)


def _is_missing(name: str, path: Any) -> bool:
    if "://" in str(path):
        return False
    if isinstance(path, list):
        path = next((word for word in path if "=" not in word), "")
    return _recipe_file(Path(path)) is None if name == "recipe" else not os.path.exists(path)


def _shown(value: Any) -> str:
    """A parameter in words; of many the first few."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value)
    shown = [str(item) for item in value if "=" not in str(item)]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3:,} more" if len(shown) > 3 else "")


def say(line: str = "") -> None:
    """Print a line of the answer; names from files in it may hold anything."""
    print(printable(line))


def say_json(value: Any) -> None:
    """Print a dataclass or plain value as a JSON object."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    print(json.dumps(_finite(value), default=_plain, allow_nan=False))


def say_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns, numbers to the right; cells are as wide as a terminal shows them."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(shown_width, column)) for column in zip(header, *cells, strict=True)]
    numeric = [all(_is_number(cell) for cell in column) for column in zip(*cells, strict=True)]
    numeric = numeric or [False] * len(header)
    for row in [list(header), *cells]:
        parts = zip(row, widths, numeric, strict=True)
        line = [_padded(cell, width, right) for cell, width, right in parts]
        say("  ".join(line).rstrip())


def shown_width(text: str) -> int:
    """Columns of a terminal that a printable text takes: two for a wide letter, none for a mark on another's."""
    return sum(
        0 if unicodedata.category(letter) in ("Mn", "Me") else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - shown_width(cell))
    return space + cell if right else cell + space


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
