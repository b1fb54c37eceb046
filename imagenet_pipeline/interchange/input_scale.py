"""What a graph does to its input before the first layer: subtract a mean and divide by a deviation per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.attributes import Attributes
from imagenet_pipeline.interchange.frozen import Normalisation
from imagenet_pipeline.interchange.params import AnyArray

_SHIFTS = {
    "_minus_scalar": -1, "_plus_scalar": 1, "_MinusScalar": -1, "_PlusScalar": 1, "_minus": -1, "_Minus": -1,
    "elemwise_sub": -1, "broadcast_sub": -1, "broadcast_minus": -1, "_plus": 1, "_Plus": 1, "elemwise_add": 1,
    "broadcast_add": 1, "broadcast_plus": 1,
}  # fmt: skip
_FACTORS = {
    "_mul_scalar": 1, "_div_scalar": -1, "_MulScalar": 1, "_DivScalar": -1, "_mul": 1, "_Mul": 1, "elemwise_mul": 1,
    "broadcast_mul": 1, "_div": -1, "_Div": -1, "elemwise_div": -1, "broadcast_div": -1,
}  # fmt: skip
SCALING = (*_SHIFTS, *_FACTORS)
"""The operators that do such."""
SMALLEST_DEVIATION = 1e-6
"""Of an input in 0..255: float32 can divide by it and go on computing with the result."""
LARGEST_NUMBER = 1e30


@dataclass(frozen=True)
class InputScale:
    """(x - mean) / std, one number a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def none(cls, channels: int) -> InputScale:
        """That of an input used as it comes."""
        return cls((0.0,) * channels, (1.0,) * channels)


def scaled(
    before: InputScale, op: str, attributes: Attributes, others: Sequence[AnyArray | None], where: str
) -> InputScale | None:
    """The scale after an operator, or None where the operator is something else.

    `others` are the values of the operator's further inputs. Raises BadInput where it is no number a channel
    or makes no usable scale.
    """
    if op not in _SHIFTS and op not in _FACTORS:
        return None
    if others and (len(others) > 1 or others[0] is None):
        return None
    numbers = _per_channel(attributes.real("scalar") if not others else others[0], len(before.mean), where)
    with np.errstate(all="ignore"):
        if op in _SHIFTS:
            mean = np.array(before.mean) - _SHIFTS[op] * numbers * np.array(before.std)
            return _usable(mean, np.array(before.std), where)
        return _usable(np.array(before.mean), np.array(before.std) * numbers ** -_FACTORS[op], where)


def scaled_by_norm(
    before: InputScale, attributes: Attributes, others: Sequence[AnyArray | None], where: str
) -> InputScale:
    """The scale after a batch normalisation with these gamma, beta, mean and variance. Raises BadInput."""
    if len(others) != 4 or any(one is None for one in others):
        raise BadInput("a batch normalisation of the input without its four parameters", where=where)
    gamma, beta, mean, variance = (_per_channel(one, len(before.mean), where) for one in others)
    if attributes.flag("fix_gamma", True):
        gamma = np.ones_like(gamma)
    with np.errstate(all="ignore"):
        deviation = np.sqrt(variance + attributes.real("eps", 1e-3)) / gamma
        shift = mean - beta * deviation
        return _usable(before.mean + shift * before.std, before.std * deviation, where)


def is_usable(mean: Sequence[float], std: Sequence[float]) -> bool:
    """Whether float32 can subtract the one and divide by the other."""
    return all(abs(number) <= LARGEST_NUMBER for number in (*mean, *std)) and min(std) >= SMALLEST_DEVIATION


def require_usable(mean: tuple[float, ...], std: tuple[float, ...], where: object) -> Normalisation:
    """Mean and std as they are. Raises BadInput where float32 cannot compute with them."""
    if not is_usable(mean, std):
        raise BadInput("no network can compute with its mean and std", where=where, found=f"mean {mean}, std {std}")
    return mean, std


def _per_channel(value: AnyArray | float | None, channels: int, where: str) -> AnyArray:
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "fiu" or numbers.size not in (1, channels) or numbers.ndim > 4:
        expected = f"1 or {channels} numbers"
        raise BadInput("scales its input by what is no number a channel", where=where, expected=expected,
                       found=numbers.shape)  # fmt: skip
    if numbers.size > 1 and numbers.shape[-3:] not in ((channels, 1, 1), (channels,)):
        raise BadInput("scales its input along another axis than the channels", where=where, found=numbers.shape)
    return np.broadcast_to(numbers.astype(np.float64).ravel(), (channels,))


def _usable(mean: AnyArray, std: AnyArray, where: str) -> InputScale:
    scale = InputScale(tuple(map(float, mean)), tuple(map(float, std)))
    if not is_usable(scale.mean, scale.std):
        raise BadInput(
            "scales its input by no usable numbers", where=where, found=f"mean {scale.mean}, std {scale.std}"
        )
    return scale
