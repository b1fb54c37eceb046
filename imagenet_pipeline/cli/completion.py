"""Words for the shell to complete: recipes, networks, recipe keys, runs. Nothing slow is imported for them.

Networks and keys come from the catalogue and the recipe's models, which take half a second to import: they are kept in
the user's cache folder until a file of either changes.
"""

from __future__ import annotations

import contextlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import typer

import imagenet_pipeline
from imagenet_pipeline import __version__

RUNS = "output/runs"
"""Where `train` puts runs that are given no other folder."""
_READ = ("config", "networks")
"""Folders of this package whose files say what keys and networks there are."""


@cache
def shipped_recipes() -> dict[str, Path]:
    """The file of each shipped recipe by its name, as `config.shipped` has them."""
    from imagenet_pipeline import recipes

    folder = Path(next(iter(recipes.__path__)))
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.toml"))}
    return {name: path for name, path in found.items() if not name.startswith("networks/")}


def complete_recipe(incomplete: str) -> list[str]:
    """The shipped recipes that begin so; a file is left to the shell."""
    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """The runs in the usual folder that begin so."""
    found = sorted(Path(RUNS).glob("*/recipe.toml"))
    return [path.parent.as_posix() for path in found if path.parent.as_posix().startswith(incomplete)]


def complete_recipe_or_run(incomplete: str) -> list[str]:
    """Either."""
    return complete_recipe(incomplete) + complete_run(incomplete)


def complete_network(incomplete: str) -> list[str]:
    """The networks that begin so."""
    return [name for name in _words()["networks"] if name.startswith(incomplete)]


def complete_key(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The recipe keys that begin so, each with its meaning, or the words that a key may have.

    bash takes "schedule.kind=c" for three words, of which the last is asked for.
    """
    given = list(context.params.get("overrides") or context.params.get("changes") or context.params.get("words") or [])
    key, equals, value = incomplete.partition("=")
    before = f"{key}="
    if not equals and given[1:][-1:] == ["="]:
        key, equals, value, before = given[-2], "=", incomplete, ""
    elif not equals and incomplete == "" and given and given[-1] in _words()["keys"]:
        key, equals, before = given[-1], "=", ""
    if equals:
        choices = _words()["networks"] if key == "network" else _words()["keys"].get(key, ["", []])[1]
        return [(f"{before}{choice}", "") for choice in choices if choice.startswith(value)]
    found = [(f"{name}=", meaning) for name, (meaning, _) in _words()["keys"].items() if name.startswith(incomplete)]
    # A second word keeps bash from putting a space behind the equals sign.
    return [*found, (f"{found[0][0]}VALUE", "")] if len(found) == 1 else found


def complete_run_or_key(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Runs, or else recipe keys."""
    return [(run, "") for run in complete_run(incomplete)] or complete_key(context, incomplete)


@cache
def _words() -> dict[str, Any]:
    """Keys by name, each with its meaning and choices, and networks: those kept, or looked up and kept."""
    stamp = _stamp()
    kept = _kept_file()
    with contextlib.suppress(OSError, ValueError):
        words = json.loads(kept.read_text(encoding="utf-8"))
        if isinstance(words, dict) and words.get("stamp") == stamp:
            return words
    words = {"stamp": stamp, **_looked_up()}
    with contextlib.suppress(Exception):  # the answer matters, not that it is kept
        from imagenet_pipeline import files

        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(kept, json.dumps(words))
    return words


def _stamp() -> str:
    """The version, and when a file that says what there is was last changed."""
    package = Path(imagenet_pipeline.__file__).parent
    changed = [path.stat().st_mtime_ns for folder in _READ for path in (package / folder).glob("*.py")]
    return f"{__version__} {package} {len(changed)} {max(changed, default=0)}"


def _kept_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imagenet_pipeline" / "words.json"


def _looked_up() -> dict[str, Any]:
    from imagenet_pipeline.config import recipe_keys
    from imagenet_pipeline.networks import catalog

    keys = {key.name: (key.meaning.partition(". ")[0], list(key.choices)) for key in recipe_keys()}
    return {"keys": keys, "networks": [*catalog.names()]}
