"""Which record comes when, and with which random numbers: pure functions of (seed, epoch, position).

Nothing here has a state: resuming is starting at a position, and neither threads nor machines change a draw.
A key is the whole tuple, never a sum: with seed + epoch, runs of neighbouring seeds would share their epochs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadRecipe

BLOCK = 256
"""Positions whose random numbers are drawn together; another value would change every draw."""

_ORDER, _UNIFORMS = 1, 2  # one stream for each use of a (seed, epoch)
_WORD = 1 << 32


def epoch_order(count: int, seed: int, epoch: int, shuffle: bool = True) -> NDArray[np.int64]:
    """The records of one epoch in the order of their use: int64 [count], a permutation of 0..count-1.

    Raises BadRecipe for a negative seed or epoch.
    """
    if not shuffle:
        return np.arange(count, dtype=np.int64)
    return _generator(seed, _ORDER, epoch).permutation(count).astype(np.int64, copy=False)


def uniforms(seed: int, epoch: int, positions: range, columns: int) -> NDArray[np.float64]:
    """Random numbers in [0, 1) for consecutive positions of an epoch: float64 [len(positions), columns].

    A row depends on (seed, epoch, its position, columns) alone: any slice of positions equals that slice of
    the whole epoch. Raises BadRecipe for a negative seed or epoch.
    """
    if len(positions) == 0:
        return np.empty((0, columns))
    first, last = positions.start // BLOCK, (positions.stop - 1) // BLOCK
    drawn = [_generator(seed, _UNIFORMS, epoch, block).random((BLOCK, columns)) for block in range(first, last + 1)]
    start = positions.start - first * BLOCK
    rows: NDArray[np.float64] = np.concatenate(drawn)[start : start + len(positions)]
    return rows


def _generator(seed: int, stream: int, epoch: int, block: int = 0) -> np.random.Generator:
    if seed < 0 or epoch < 0:
        raise BadRecipe("a seed and an epoch cannot be negative", expected="0 or more", found=f"{seed}, {epoch}")
    # The seed always fills two words, so that no long seed can run into the words that follow it.
    return np.random.default_rng([seed % _WORD, seed // _WORD % _WORD, stream, epoch, block])
