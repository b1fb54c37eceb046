"""Types and rules that the sections of a recipe share: strict, frozen models; sizes; names of a registry."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from imagenet_pipeline.registry import Registry

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Range = tuple[Positive, Positive]
Size = int | tuple[int, int]
"""The same for height and width, or (height, width)."""


def pair(size: Size) -> tuple[int, int]:
    """(height, width) of a Size."""
    return size if isinstance(size, tuple) else (size, size)


def as_size(height: int, width: int) -> Size:
    """The Size of these sides: a single number where they are equal."""
    return height if height == width else (height, width)


def shown_size(size: Size) -> str:
    """A size in pixels for people: 224 of a square, else HEIGHTxWIDTH."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def looks_like_0_to_1(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Tell a normalisation that seems to be meant for images in 0..1, where ours are in 0..255."""
    return max(map(abs, (*mean, *std))) <= 1 and any(mean) and set(std) != {1.0}


def log_odds(probability: float) -> float:
    """The number whose sigmoid is this probability, log(p / (1 - p))."""
    return math.log(probability) - math.log1p(-probability)


class Section(BaseModel):
    """A table of a recipe; the docstring below a key is what `keys` says of it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def _require_default(self, keys: Iterable[str], reason: str) -> None:
        """Raise ValueError at the first of these keys that has another value than its default: it has no effect."""
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: has no effect {reason}")


@dataclass(frozen=True)
class NameOf:
    """Marks a key whose value is a name of the registry; another is an error as of a `Literal` of its names."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._known, handler(source))

    def _known(self, value: object) -> object:
        if not isinstance(value, str) or value not in self.registry:
            *names, last = map(repr, self.registry.names())
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(names)} or {last}"})
        return value
