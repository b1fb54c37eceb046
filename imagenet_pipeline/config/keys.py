"""The keys of a recipe, for people: default, possible values, meaning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from imagenet_pipeline.config.recipe import Recipe
from imagenet_pipeline.recipe_faults import meant_keys


@dataclass(frozen=True)
class Key:
    """One key, dotted; `choices` are the words it may be, where there are few."""

    name: str
    required: bool
    default: Any
    choices: tuple[str, ...]
    meaning: str


def recipe_keys(word: str = "") -> list[Key]:
    """Every key whose name or meaning has `word` in it, or that others call so, in the order of a recipe.

    Capitals do not matter.
    """
    wanted, keys = word.casefold(), list(_keys(Recipe, ""))
    meant = meant_keys(word, [key.name for key in keys])
    return [key for key in keys if key.name in meant or wanted in f"{key.name} {key.meaning}".casefold()]


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            required = field.is_required()
            default = None if required else field.get_default(call_default_factory=True)
            yield Key(f"{prefix}{name}", required, default, _choices(kind), " ".join((field.description or "").split()))


def _choices(kind: Any) -> tuple[str, ...]:
    words = tuple(word for word in get_args(kind) if isinstance(word, str))
    return words if len(words) > 1 else ()
