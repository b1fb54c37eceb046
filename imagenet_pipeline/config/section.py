"""What every section of a recipe is: frozen, strict, and closed to unknown keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Range = tuple[Positive, Positive]


def looks_like_0_to_1(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Whether a normalisation seems to be meant for images in 0..1, where ours are in 0..255."""
    return max(map(abs, (*mean, *std))) <= 1 and any(mean) and set(std) != {1.0}


class Section(BaseModel):
    """A table of a recipe; the docstring below a key is what `keys` says of it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
