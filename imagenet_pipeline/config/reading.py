"""Recipes from TOML and from the command line, and back."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from imagenet_pipeline import files
from imagenet_pipeline.config.keys import recipe_keys
from imagenet_pipeline.config.recipe import Recipe
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.recipe_faults import COMMAND_LINE, recipe_fault

_LARGEST_BITS = 63
"""Of a whole number's size, its sign apart; Python would not even print one of some thousand digits."""


def load_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe file and lay `overrides` (dotted key -> value) over it.

    Raises BadRecipe, one line, for a missing file, broken TOML, an unknown key (with the nearest one), a wrong type.
    """
    try:
        values = tomllib.loads(files.read_regular(path).decode())
    except FileNotFoundError as error:
        raise BadRecipe("no such recipe file", where=path) from error
    except IsADirectoryError as error:
        advice = "train RUN --resume latest goes on with a run"
        raise BadRecipe("a folder, not a recipe file", where=path, advice=advice) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadRecipe(f"not a readable TOML file ({error})", where=path) from error
    epochs = values.get("epochs", Recipe.model_fields["epochs"].default)
    for key, value in (overrides or {}).items():
        _put(values, key, value)
    return _validated(values, str(path), overrides or {}, epochs)


def load_run_recipe(run: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a run folder, `overrides` laid over it. Raises BadRecipe, also where there is no run."""
    path = Path(run) / "recipe.toml"
    if not path.exists():
        above = next((folder for folder in list(Path(run).parents)[:2] if (folder / "recipe.toml").exists()), None)
        advice = None if above is None else f"the run is {above}"
        expected = "a folder that `train` or `import` made"
        raise BadRecipe("there is no run here", where=run, expected=expected, advice=advice)
    return load_recipe(path, overrides)


def read_recipe(values: dict[str, Any], where: str) -> Recipe:
    """A recipe of plain values, as `model_dump` gives them. Raises BadRecipe as `load_recipe` does, naming `where`."""
    return _validated(values, where, {})


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Turn `key=value` words into dotted keys and values; a value is TOML, or else plain text."""
    overrides = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise BadRecipe("not an override", where=word[:80], expected="key=value, as in epochs=20")
        overrides[key.strip()] = _literal(text.strip())
    return overrides


def recipe_text(recipe: Recipe) -> str:
    """The whole recipe as TOML, defaults included; reads back equal."""
    return tomli_w.dumps(recipe.model_dump(mode="json"))


def option_names() -> list[str]:
    """Every recipe key, dotted."""
    return [key.name for key in recipe_keys()]


def options(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Every recipe key, dotted, with its value."""
    for name in option_names():
        value: Any = recipe
        for word in name.split("."):
            value = getattr(value, word)
        yield name, value


def _literal(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        # A number of too many digits, or brackets in too many brackets.
        raise BadRecipe(f"not a value ({error})", where=f"{text[:40]}... ({len(text):,} characters)") from error


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise BadRecipe("not a section", where=key, advice=f"known keys: {', '.join(option_names())}")
    place[last] = value


def _validated(values: dict[str, Any], where: str, overrides: dict[str, Any], epochs: object = 0) -> Recipe:
    # What the file says of epochs tells how its drops are meant.
    context = {"epochs": epochs} if isinstance(epochs, int) else None
    try:
        return Recipe.model_validate(_with_tuples(values, where), context=context)
    except ValidationError as error:
        words = [str(word) for word in error.errors()[0]["loc"]]
        beginnings = [".".join(words[:length]) for length in range(1, len(words) + 1)]
        given = any(key in beginnings or key.startswith(f"{'.'.join(words)}.") for key in overrides)
        raise recipe_fault(error, option_names(), COMMAND_LINE if given else where) from error


def _with_tuples(value: Any, where: str) -> Any:
    # Strict models want tuples where TOML has arrays.
    if isinstance(value, dict):
        return {key: _with_tuples(inner, f"{where}, {key[:80]}") for key, inner in value.items()}
    if isinstance(value, int) and value.bit_length() > _LARGEST_BITS:
        raise BadRecipe("a whole number that is too large", where=where, expected="at most 64 bits, as TOML has them")
    return tuple(_with_tuples(inner, where) for inner in value) if isinstance(value, list) else value
