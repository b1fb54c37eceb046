"""Pairs of near hashes against each compared with each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.perceptual_hash import Hashes, distances, near_pairs


def clustered(seed: int, count: int) -> Hashes:
    """Hashes around a few, some bits from them, so that every distance occurs."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, 1 + count // 8, np.uint64)[random.integers(0, 1 + count // 8, count)]
    for _ in range(6):
        bits = np.uint64(1) << random.integers(0, 64, count).astype(np.uint64)
        hashes ^= np.where(random.random(count) < 0.5, bits, np.uint64(0))
    return hashes


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(0, 10))
def test_the_pairs_are_those_of_each_compared_with_each(seed: int, count: int, distance: int) -> None:
    hashes = clustered(seed, count)
    first, second, bits = near_pairs(hashes, distance)
    numbers = hashes.tolist()
    wanted = [
        (i, j, (numbers[i] ^ numbers[j]).bit_count())
        for i in range(count)
        for j in range(i + 1, count)
        if (numbers[i] ^ numbers[j]).bit_count() <= distance
    ]
    assert list(zip(first.tolist(), second.tolist(), bits.tolist(), strict=True)) == wanted


def test_many_candidates_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = clustered(3, 300)
    whole = near_pairs(hashes, 7)
    monkeypatch.setattr("imagenet_pipeline.records.perceptual_hash._TOGETHER", 50)
    for found, wanted in zip(near_pairs(hashes, 7), whole, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert len(whole[0]) > 100


def test_the_bits_are_counted_alike_by_every_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes, others = clustered(1, 500), clustered(2, 500)
    wanted = [(a ^ b).bit_count() for a, b in zip(hashes.tolist(), others.tolist(), strict=True)]
    assert distances(hashes, others).tolist() == wanted
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert distances(hashes, others).tolist() == wanted


def test_too_many_alike_are_said_in_a_line() -> None:
    with pytest.raises(BadInput, match=r"more than 100 pairs of alike pictures; expected photos.*found 30 pictures of"):
        near_pairs(np.zeros(30, np.uint64), 4, most=100)
