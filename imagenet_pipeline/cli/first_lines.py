"""The line with which a verb begins, said before it imports what takes seconds: what it is about to do."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imagenet_pipeline.cli.completion import shipped_recipes
from imagenet_pipeline.cli.output import announce

Parameters = Mapping[str, Any]
"""The arguments and options of a command as they were given, or their defaults."""


def _train(given: Parameters) -> str:
    """The recipe as it is written, with what the command line changes: it is checked later."""
    path = _recipe_file(given["recipe"])
    if path is None:
        return ""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    values |= dict(word.split("=", 1) for word in given["overrides"] or [] if "=" in word)
    length = f"{values['steps']} steps" if "steps" in values else f"{values.get('epochs', 90)} epochs"
    resumed = f", from {given['resume']} on" if given["resume"] else ""
    engine = f", {values['engine']}" if values.get("engine", "auto") != "auto" else ""
    return f"{given['recipe']}: {values.get('network')} on {values.get('records')}, {length}{engine}{resumed}"


def _recipe_file(recipe: Path) -> Path | None:
    """The file of a recipe, a run folder or a shipped recipe's name."""
    for path in (recipe, recipe / "recipe.toml"):
        if path.is_file():
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
    "train": _train,
    "plot": "{out}: drawing the curves of {runs}",
    "evaluate": "{words}: scoring the {checkpoint} checkpoint",
    "diagnose": "{run}: scoring the {checkpoint} checkpoint on every split",
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
_SOURCES = ("recipe", "run", "path", "data", "folder", "file", "root")
"""Parameters that are read: where one is not there, the error is all that is said."""


def say_first(command: str, given: Parameters) -> None:
    """Say the first line of a command, if it has one and what it reads is there."""
    line = FIRST_LINES.get(command, "")
    if any(_is_missing(name, given[name]) for name in _SOURCES if given.get(name) is not None):
        return
    said = line(given) if callable(line) else line.format(**{name: _shown(value) for name, value in given.items()})
    if said:
        announce(said)


def _is_missing(name: str, path: Any) -> bool:
    if "://" in str(path):
        return False
    return _recipe_file(Path(path)) is None if name == "recipe" else not Path(path).exists()


def _shown(value: Any) -> str:
    """A parameter in words; of many the first few."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value)
    shown = [str(item) for item in value if "=" not in str(item)]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3:,} more" if len(shown) > 3 else "")
