"""Layers that are arithmetic or another order of numbers: most are for networks from elsewhere, and for Graphs.

`layers.py` has them too, and says what all descriptions have in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Clip:
    """Every value brought into the range from `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Softmax:
    """Softmax of x / temperature along an axis, or its logarithm."""

    axis: int = 0
    log: bool = False
    temperature: float = 1.0


@dataclass(frozen=True)
class L2Norm:
    """x / sqrt(epsilon + sum of squares over `axes`)."""

    axes: tuple[int, ...]
    epsilon: float = 1e-10


@dataclass(frozen=True)
class Reduce:
    """Mean, sum, maximum or minimum over `axes`, which stay with a length of 1 where `keep` says so."""

    kind: Literal["mean", "sum", "max", "min"]
    axes: tuple[int, ...]
    keep: bool = False


@dataclass(frozen=True)
class Reshape:
    """The same numbers in the same order as an array of `shape`; a single -1 in it stands for what is left."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Transpose:
    """The axes in another order: axis i of the output is axis axes[i] of the input."""

    axes: tuple[int, ...]


@dataclass(frozen=True)
class Slice:
    """Every `step`-th of the indices from `begin` to before `end` (None: to the end) along an axis."""

    axis: int
    begin: int
    end: int | None
    step: int = 1


@dataclass(frozen=True)
class Pad:
    """Rows and columns around an image: of `value`, of its edge, or mirrored at its edge, which is not repeated."""

    top: int
    bottom: int
    left: int
    right: int
    kind: Literal["constant", "edge", "reflect"] = "constant"
    value: float = 0.0


@dataclass(frozen=True)
class Upsample:
    """Every pixel `scale` times in both directions (nearest neighbour)."""

    scale: int


@dataclass(frozen=True)
class Greyscale:
    """[3, height, width] to [1, height, width]: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)."""


GREY_SHARES = (0.299, 0.587, 0.114)  # R, G and B in a grey value
Arithmetic = Literal["add", "subtract", "multiply", "divide", "power", "maximum", "minimum"]


@dataclass(frozen=True)
class Scalar:
    """Arithmetic with a number: x - value, or value - x where it is `reverse`."""

    kind: Arithmetic
    value: float
    reverse: bool = False


@dataclass(frozen=True)
class Elementwise:
    """Arithmetic of two inputs or more, from left to right; an axis of length 1 is repeated. An item of a `Graph`."""

    kind: Arithmetic


@dataclass(frozen=True)
class Join:
    """Several inputs joined along an axis. An item of a `Graph`."""

    axis: int = 0


@dataclass(frozen=True)
class Constant:
    """An array that depends on no image: the parameter `value`, `trained` or not. A `Graph`'s item without inputs."""

    shape: tuple[int, ...]
    trained: bool = True
