"""The perceptual hash of a picture, and pairs among many hashes that differ in few bits.

The hash is phash of the package ImageHash, 64 bits: the signs, about their median, of the lowest frequencies of the
grey picture at 32 x 32 pixels. Another size, other compression and small changes of colour leave it as it is or change
a few bits; a mirror image, another crop or a turn by more than a few degrees gives another hash.

Pairs are found without comparing each hash with each. Two within 2p - 1 bits of each other, cut into p pieces, are
within 1 bit in one of them: what agrees there but for a bit is looked up in the sorted pieces, and the rest is never
compared (multi-index hashing: Norouzi, Punjani and Fleet 2012, "Fast search in Hamming space with multi-index
hashing").
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.records.image import Rejected, decode_file, turn

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
BITS = 64
DISTANCE, LARGEST_DISTANCE = 4, 10
"""Bits by which near duplicates may differ: by default, and at most, beyond which it takes hours and finds anything."""
_LEAST_EDGE = 64
"""Pixels that a larger photo keeps along its shorter edge for the hash, which sees 32."""
MOST_PAIRS = 500_000
"""Beyond so many the pictures are no photos that somebody could look at in pairs."""
_TOGETHER = 2**21
"""Candidates compared at once: some 100 MB."""
_ONES = np.array([number.bit_count() for number in range(2**16)], np.uint8)


def require_hash() -> Any:
    """The function phash of ImageHash. Raises BadRecipe where that is not installed."""
    try:
        from imagehash import phash
    except ImportError as error:
        advice = "pip install 'imagenet-pipeline[duplicates]'"
        raise BadRecipe(f"near duplicates need the package ImageHash ({error})", advice=advice) from error
    return phash


def perceptual_hash(data: bytes, upright: bool = False) -> int | None:
    """64 bits of an encoded image, `upright` as its EXIF tag says or as it lies; None where it cannot be read."""
    try:
        header, pixels = decode_file(data, least_edge=_LEAST_EDGE)
    except Rejected:
        return None
    if upright:
        pixels = turn(pixels, header.orientation)
    bits = np.packbits(require_hash()(Image.fromarray(pixels)).hash)
    return int.from_bytes(bits.tobytes(), "big")


def require_distance(distance: int) -> None:
    """Raise BadRecipe for a distance that is none, or without ImageHash."""
    require_hash()
    if not 0 <= distance <= LARGEST_DISTANCE:
        raise BadRecipe(
            "no distance of near duplicates", expected=f"0 to {LARGEST_DISTANCE} of 64 bits", found=distance
        )


def distances(first: Hashes, second: Hashes) -> npt.NDArray[np.uint8]:
    """Bits in which hashes [n] differ from others [n]."""
    differing = first ^ second
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.asarray(np.bitwise_count(differing))
    halves = np.ascontiguousarray(differing).view(np.uint16).reshape(-1, BITS // 16)
    found: npt.NDArray[np.uint8] = _ONES[halves].sum(axis=1, dtype=np.uint8)
    return found


def near_pairs(hashes: Hashes, distance: int, most: int = MOST_PAIRS) -> tuple[Places, Places, npt.NDArray[np.uint8]]:
    """Places of all pairs of hashes [n] at most `distance` bits apart, each once, first < second, sorted; and the bits.

    Raises BadInput where there are more than `most`.
    """
    found = np.empty(0, np.int64)
    for near in _near(hashes, distance):
        found = np.union1d(found, near)
        if len(found) > most:
            raise BadInput(
                f"more than {most:,} pairs of alike pictures",
                expected="photos; drawings, digits and blank pictures are too alike for a perceptual hash",
                found=f"{np.unique(hashes, return_counts=True)[1].max():,} pictures of one and the same hash",
            )
    first, second = np.divmod(found, max(1, len(hashes)))
    return first, second, distances(hashes[first], hashes[second])


def _near(hashes: Hashes, distance: int) -> Iterator[Places]:
    """Yield the near pairs as first * n + second, some of them several times."""
    edges = np.linspace(0, BITS, distance // 2 + 2).astype(int).tolist()
    for low, high in pairwise(edges):
        keys = (hashes >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
        order = np.argsort(keys, kind="stable")
        keys, ordered = keys[order], hashes[order]
        for left, right in _candidates(keys, high - low if distance else 0):
            near = distances(ordered[left], ordered[right]) <= distance
            pairs = order[left[near]], order[right[near]]
            if len(pairs[0]):
                yield np.minimum(*pairs) * len(order) + np.maximum(*pairs)


def _candidates(keys: Hashes, bits: int) -> Iterator[tuple[Places, Places]]:
    """Yield pairs of places of sorted keys that are equal, or differ in one of so many bits, each once."""
    ends = np.searchsorted(keys, keys, side="right")
    yield from _joined(np.arange(1, len(keys) + 1), ends)
    for bit in range(bits):
        # From the key without the bit to that with it, so that no pair comes twice.
        flipped = keys ^ np.uint64(1 << bit)
        starts = np.searchsorted(keys, flipped, side="left")
        ends = np.searchsorted(keys, flipped, side="right")
        yield from _joined(starts, np.where(flipped > keys, ends, starts))


def _joined(starts: Places, ends: Places) -> Iterator[tuple[Places, Places]]:
    """Yield the pairs of each place i with those from starts[i] to ends[i], in parts of a bounded size."""
    total = np.concatenate([[0], np.cumsum(ends - starts)])
    first = 0
    while first < len(starts):
        last = max(first + 1, int(np.searchsorted(total, total[first] + _TOGETHER, side="right")) - 1)
        own = slice(first, last)
        left = np.repeat(np.arange(first, last), ends[own] - starts[own])
        if len(left):
            yield left, np.arange(len(left)) + (starts[own] - total[own] + total[first])[left - first]
        first = last
