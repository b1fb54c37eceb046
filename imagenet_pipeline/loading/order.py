"""The order of the records and the random numbers of each: pure functions of (seed, epoch, position).

Nothing here has a state: resuming is starting at a position, and neither threads nor machines change a draw.
A key is the whole tuple, never a sum: with seed + epoch, runs of neighbouring seeds would share their epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadRecipe

BLOCK = 256
"""Positions whose random numbers are drawn together; another value would change every draw."""

# One stream for each use of a (seed, epoch).
_ORDER = 1
FIRST_UNIFORMS = 2
SECOND_UNIFORMS = 3
"""A stream of its own for what came later, so that older recipes keep every draw."""
_SHARDS, _WITHIN_WINDOW = 4, 5
_CLASSES, _WITHIN_CLASS = 6, 7
THIRD_UNIFORMS = 8
"""A stream for what draws many numbers, and is rarely on."""
_DRAWN_TOGETHER = 4096
"""Records of a class whose order is drawn together at least, in whole rounds; another value would change the order."""
_WORD = 1 << 32


@dataclass(frozen=True)
class Share:
    """The part that process `rank` of `ranks` takes of what all of them go through together."""

    rank: int
    ranks: int

    def of(self, positions: range) -> range:
        """The rank's positions: the shares of all ranks, one after the other, are the whole (as np.array_split)."""
        each, left = divmod(len(positions), self.ranks)
        start = self.rank * each + min(self.rank, left)
        return positions[start : start + each + (self.rank < left)]


WHOLE = Share(0, 1)


def epoch_order(count: int, seed: int, epoch: int, shuffle: bool = True) -> NDArray[np.int64]:
    """The records of an epoch in the order of their use: int64 [count], a permutation of 0..count-1.

    Raises BadRecipe for a negative seed or epoch.
    """
    if not shuffle:
        return np.arange(count, dtype=np.int64)
    return _generator(seed, _ORDER, epoch).permutation(count).astype(np.int64, copy=False)


def window_order(sizes: Sequence[int], window_shards: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The records of an epoch in the order of their use where `window_shards` of the shards are at hand at a time.

    The shards of `sizes` records are shuffled, and then the records of every `window_shards` of them that follow each
    other: int64 [sum(sizes)], a permutation. As long as the records of one window are read, no other shard is needed.
    With 0, or as many as there are, it is `epoch_order`. Raises BadRecipe for a negative seed or epoch.
    """
    edges = np.cumsum([0, *sizes])
    if not 0 < window_shards < len(sizes):
        return epoch_order(int(edges[-1]), seed, epoch)
    shards = _generator(seed, _SHARDS, epoch).permutation(len(sizes))
    order = []
    for window, first in enumerate(range(0, len(sizes), window_shards)):
        positions = [np.arange(edges[at], edges[at + 1]) for at in shards[first : first + window_shards]]
        order.append(_generator(seed, _WITHIN_WINDOW, epoch, window).permutation(np.concatenate(positions)))
    whole: NDArray[np.int64] = np.concatenate(order).astype(np.int64, copy=False)
    return whole


def balanced_order(labels: NDArray[Any], seed: int, epoch: int) -> NDArray[np.int64]:
    """The records of an epoch in the order of their use where each class comes as often: int64 [records].

    `labels` [records] are the records' classes. An epoch is as long as any other, and each class that has records takes
    an equal share of it; where it does not divide evenly, classes take turns in having one more. A class goes through
    all its records, in an order drawn anew, before one comes again, and an epoch goes on where the one before it
    stopped: so a frequent class is all seen in time, and a rare one comes several times in an epoch.
    Raises BadRecipe for a negative seed or epoch.
    """
    of_class = _positions_by_class(labels)
    starts, stops = (_draws_before(len(labels), len(of_class), epoch + after) for after in (0, 1))
    drawn = [
        positions[_rounds(len(positions), range(start, stop), seed, number)]
        for number, (positions, start, stop) in enumerate(zip(of_class, starts, stops, strict=True))
    ]
    # Which class comes where is shuffled; each fills its places in the order of its own draws.
    places = _generator(seed, _CLASSES, epoch).permutation(np.repeat(np.arange(len(drawn)), [*map(len, drawn)]))
    order = np.empty(len(labels), np.int64)
    order[np.argsort(places, kind="stable")] = np.concatenate(drawn) if drawn else []
    return order


def repeated_order(
    order_of: Callable[[int], NDArray[np.int64]], repeats: int, batch_size: int, epoch: int
) -> NDArray[np.int64]:
    """The records of an epoch in the order of their use where a batch has each `repeats` times: int64 [records].

    `order_of(n)` is the n-th order of all records. It serves `repeats` epochs, each as long as any other, which take up
    where the one before stopped: after them every record has come `repeats` times. In a batch first copies come first,
    then second ones, and so on (a record at its border has some in the next). So neighbours, which are mixed in pairs,
    are two records where a batch has 2 * `repeats` places, and processes share out an image's copies.
    """
    order = order_of(epoch // repeats)
    if repeats == 1:
        return order
    copies = np.arange(len(order)) + epoch % repeats * len(order)
    copies = copies[np.lexsort((copies % repeats, np.arange(len(order)) // batch_size))]
    repeated: NDArray[np.int64] = order[copies // repeats]
    return repeated


def _positions_by_class(labels: NDArray[Any]) -> list[NDArray[np.int64]]:
    """The positions of each class's records, of the classes that have some, in ascending order."""
    firsts = np.unique(np.sort(labels), return_index=True)[1]
    return np.split(np.argsort(labels, kind="stable"), firsts[1:]) if len(firsts) else []


def _draws_before(records: int, classes: int, epoch: int) -> list[int]:
    """The number of records that each class has had in all epochs before this one."""
    each, left = divmod(records, max(1, classes))
    rounds, ahead = divmod(epoch * left, max(1, classes))
    return [epoch * each + rounds + (number < ahead) for number in range(classes)]


def _rounds(count: int, draws: range, seed: int, number: int) -> NDArray[np.int64]:
    """The members 0..count-1 of class `number` at these draws of a sequence without end: round after round of all.

    Rounds are drawn some at a time, so that a class of few records does not take a generator a round.
    """
    together = -(-_DRAWN_TOGETHER // count)
    length = together * count
    first, last = draws.start // length, -(-draws.stop // length)
    rows = np.tile(np.arange(count), (together, 1))
    drawn = [
        _generator(seed, _WITHIN_CLASS, piece, number).permuted(rows, axis=1).ravel() for piece in range(first, last)
    ]
    members: NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *drawn])
    return members[draws.start - first * length : draws.stop - first * length]


def uniforms(
    seed: int, epoch: int, positions: range, columns: int, stream: int = FIRST_UNIFORMS
) -> NDArray[np.float64]:
    """Random numbers in [0, 1) for consecutive positions of an epoch: float64 [len(positions), columns].

    A row depends on (seed, epoch, its position, columns, stream) alone: any slice of positions equals that slice of
    the whole epoch. They are for reading only. Raises BadRecipe for a negative seed or epoch.
    """
    if len(positions) == 0:
        return np.empty((0, columns))
    first, last = positions.start // BLOCK, (positions.stop - 1) // BLOCK
    drawn = [_block(seed, stream, epoch, block, columns) for block in range(first, last + 1)]
    start = positions.start - first * BLOCK
    rows = drawn[0] if len(drawn) == 1 else np.concatenate(drawn)
    return rows[start : start + len(positions)]


# Neighbouring positions are asked for one after the other: the last block of each stream, and those that others are at.
@lru_cache(maxsize=4)
def _block(seed: int, stream: int, epoch: int, block: int, columns: int) -> NDArray[np.float64]:
    numbers = _generator(seed, stream, epoch, block).random((BLOCK, columns))
    numbers.flags.writeable = False
    return numbers


def _generator(seed: int, stream: int, epoch: int, block: int = 0) -> np.random.Generator:
    if seed < 0 or epoch < 0:
        raise BadRecipe("a seed and an epoch cannot be negative", expected="0 or more", found=f"{seed}, {epoch}")
    # The seed always fills two words, so that no long seed can run into the words that follow it.
    return np.random.default_rng([seed % _WORD, seed // _WORD % _WORD, stream, epoch, block])
