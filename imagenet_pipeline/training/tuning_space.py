"""The keys that a hyperparameter search changes: `optimizer.learning_rate=0.001..0.1`, `optimizer.name=sgd..adamw`.

Two numbers are a range, of whole numbers where the key takes such; from one to ten times it or more, both above 0, it
is searched on a logarithmic scale. Words, or more than two numbers, are the values to choose from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_pipeline.config import Recipe, load_recipe, options, parse_overrides
from imagenet_pipeline.errors import BadRecipe, PipelineError, did_you_mean
from imagenet_pipeline.networks.catalog import entry

TO = ".."
LOGARITHMIC_FROM = 10.0
"""High over low of a range from which the logarithm is searched evenly."""
NOT_SEARCHED = {
    "records": "trials on other records cannot be compared",
    "stopping.figure": "trials are compared by it",
    "devices": "give --devices, once for each trial at a time",
    "epochs": "trials are pruned by their values at an epoch, which of other lengths mean other things",
    "steps": "trials are pruned by their values at an epoch, which of other lengths mean other things",
}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    whole: bool
    logarithmic: bool


Choices = tuple[str, ...]
"""Values as TOML writes them."""


@dataclass(frozen=True)
class Space:
    """The keys searched and their ranges or choices, in the order given."""

    keys: dict[str, Range | Choices]

    def text(self) -> str:
        """The space in a line a key."""
        return "\n".join(f"{key}={shown(self.keys[key])}" for key in self.keys)

    def changes(self, values: dict[str, Any]) -> dict[str, Any]:
        """The recipe keys of a trial, of the values that the study keeps."""
        return {
            key: parse_overrides([f"{key}={values[key]}"])[key] if isinstance(kind, tuple) else values[key]
            for key, kind in self.keys.items()
            if key in values
        }

    def own_values(self, recipe: Recipe) -> dict[str, Any] | None:
        """The recipe's own values as a trial; None where one lies outside."""
        known, own = dict(options(recipe)), dict[str, Any]()
        for key, kind in self.keys.items():
            if isinstance(kind, tuple):
                same = [text for text in kind if parse_overrides([f"{key}={text}"])[key] == known[key]]
                if not same:
                    return None
                own[key] = same[0]
            elif isinstance(known[key], str) or not kind.low <= known[key] <= kind.high:
                return None
            else:
                own[key] = known[key]
        return own


def shown(kind: Range | Choices) -> str:
    """A range or choices as a user writes them."""
    return TO.join(kind) if isinstance(kind, tuple) else f"{kind.low:g}{TO}{kind.high:g}"


def read_space(recipe: Path, words: Iterable[str]) -> tuple[Space, dict[str, Any]]:
    """Part words `key=low..high` and `key=a..b..c` from plain `key=value`, which every trial has alike.

    Raises BadRecipe for a key there is not, a range without sense, and a value the recipe cannot have.
    """
    searched, plain = dict[str, str](), list[str]()
    for word in words:
        key, _, text = word.partition("=")
        if TO in text and not text.lstrip().startswith(("[", '"', ".", "/")):
            searched[key.strip()] = text.strip()
        else:
            plain.append(word)
    changes = parse_overrides(plain)
    if not searched:
        expected = "KEY=low..high, as in optimizer.learning_rate=0.001..0.1"
        raise BadRecipe("no key is searched", where="tune", expected=expected)
    known = dict(options(load_recipe(recipe, changes)))
    keys = {key: _kind(key, text, known) for key, text in searched.items()}
    space = Space(keys)
    for key, kind in keys.items():
        ends = kind if isinstance(kind, tuple) else _ends(kind)
        for end in ends:
            _require_possible(recipe, changes, space.changes({key: end}), f"{key}={shown(kind)}")
    return space, changes


def _kind(key: str, text: str, known: dict[str, Any]) -> Range | Choices:
    where = f"{key}={text}"
    if key not in known:
        raise BadRecipe("no such recipe key", where=where, advice=did_you_mean(key, known, "`keys` lists them"))
    if key in NOT_SEARCHED:
        raise BadRecipe("this key cannot be searched", where=where, advice=NOT_SEARCHED[key])
    values = tuple(value.strip() for value in text.split(TO))
    if "" in values or len(set(values)) < len(values):
        raise BadRecipe("not a range or choices", where=where, expected="low..high, or different values a..b..c")
    numbers = [_number(value) for value in values]
    if len(values) != 2 or None in numbers:
        return values
    low, high = (float(number) for number in numbers if number is not None)
    if not math.isfinite(high - low) or low >= high:
        raise BadRecipe("not a range", where=where, expected="two finite numbers, the lower first")
    whole = not isinstance(known[key], float) and all(isinstance(number, int) for number in numbers)
    return Range(low, high, whole, low > 0 and high / low >= LOGARITHMIC_FROM)


def _number(text: str) -> int | float | None:
    try:
        value = json.loads(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _ends(kind: Range) -> tuple[float, float]:
    return (int(kind.low), int(kind.high)) if kind.whole else (kind.low, kind.high)


def _require_possible(recipe: Path, changes: dict[str, Any], values: dict[str, Any], where: str) -> None:
    try:
        possible = load_recipe(recipe, {**changes, **values})
        if "network" in values:
            entry(possible.whole_network)
    except PipelineError as error:
        raise error.replaced(where=where) from error
