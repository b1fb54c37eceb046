from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading.order import (
    BLOCK,
    SECOND_UNIFORMS,
    WHOLE,
    Share,
    balanced_order,
    epoch_order,
    repeated_order,
    uniforms,
    window_order,
)

GOLDEN_ORDER = [7, 2, 0, 5, 6, 3, 4, 1]
GOLDEN_BALANCED = [[7, 0, 2, 6, 5, 3, 7, 5], [7, 1, 4, 7, 6, 7, 5, 1]]
GOLDEN_WINDOWS = [3, 1, 0, 2, 4, 7, 5, 6]
GOLDEN_UNIFORMS = [[0.08629884621401296, 0.09538921285584301], [0.45479219149261807, 0.37242006732363475]]

seeds = st.integers(0, 2**64 - 1)
epochs = st.integers(0, 500)


@settings(deadline=None)
@given(st.integers(0, 3000), seeds, epochs)
def test_an_epoch_holds_every_record_once(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(count))


def test_without_shuffling_the_order_is_the_files() -> None:
    assert epoch_order(5, 1, 2, shuffle=False).tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(seeds, epochs, st.integers(0, 4 * BLOCK), st.integers(0, 2 * BLOCK), st.integers(1, 7))
def test_any_slice_of_draws_is_that_slice_of_the_whole(
    seed: int, epoch: int, start: int, length: int, columns: int
) -> None:
    whole = uniforms(seed, epoch, range(6 * BLOCK), columns)
    part = uniforms(seed, epoch, range(start, start + length), columns)
    assert part.shape == (length, columns)
    assert np.array_equal(part, whole[start : start + length])
    assert ((whole >= 0) & (whole < 1)).all()


def test_no_two_keys_share_a_stream() -> None:
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2**32, 0), (2**32 + 1, 0), (2**63, 1)]
    for one, other in combinations(keys, 2):
        assert not np.array_equal(epoch_order(100, *one), epoch_order(100, *other)), (one, other)
        first, second = (uniforms(*key, range(3 * BLOCK), 2) for key in (one, other))
        assert not np.isin(first, second).any(), (one, other)


def test_the_second_stream_has_numbers_of_its_own() -> None:
    first = uniforms(1, 2, range(3 * BLOCK), 2)
    second = uniforms(1, 2, range(3 * BLOCK), 2, SECOND_UNIFORMS)
    assert not np.isin(first, second).any()
    assert np.array_equal(uniforms(1, 2, range(300, 310), 2, SECOND_UNIFORMS), second[300:310])


@given(st.integers(0, 400), st.integers(0, 100), st.integers(1, 9))
def test_shares_are_the_whole_cut_as_numpy_cuts(count: int, start: int, ranks: int) -> None:
    whole = range(start, start + count)
    shares = [Share(rank, ranks).of(whole) for rank in range(ranks)]
    assert [list(share) for share in shares] == [part.tolist() for part in np.array_split(np.array(whole, int), ranks)]
    assert WHOLE.of(whole) == whole


def test_values_are_the_same_on_every_machine_and_in_every_release() -> None:
    assert epoch_order(8, 42, 3).tolist() == GOLDEN_ORDER
    assert np.allclose(uniforms(42, 3, range(255, 257), 2), GOLDEN_UNIFORMS, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("seed", "epoch"), [(-1, 0), (0, -1)])
def test_negative_keys_are_refused(seed: int, epoch: int) -> None:
    with pytest.raises(BadRecipe, match="negative"):
        epoch_order(3, seed, epoch)
    with pytest.raises(BadRecipe, match="negative"):
        uniforms(seed, epoch, range(2), 1)


sizes = st.lists(st.integers(0, 40), max_size=12)


@given(sizes, st.integers(0, 14), seeds, epochs)
def test_in_windows_every_record_comes_once_and_few_shards_are_needed_at_a_time(
    sizes: list[int], window_shards: int, seed: int, epoch: int
) -> None:
    order = window_order(sizes, window_shards, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(sum(sizes)))
    assert np.array_equal(order, window_order(sizes, window_shards, seed, epoch))
    if not 0 < window_shards < len(sizes):
        assert np.array_equal(order, epoch_order(sum(sizes), seed, epoch))
        return
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[order]
    seen: list[int] = []
    for shard in shard_of.tolist():
        if shard not in seen:
            # Only once all records of the window before are out does a shard of the next one come.
            done = [(shard_of[: int(np.argmax(shard_of == shard))] == earlier).sum() for earlier in seen]
            unfinished = [earlier for earlier, count in zip(seen, done, strict=True) if count < sizes[earlier]]
            assert len(unfinished) < window_shards
            seen.append(shard)


def test_shards_and_their_records_are_shuffled_anew_each_epoch() -> None:
    orders = [window_order([9, 9, 9, 9], 2, 7, epoch) for epoch in range(6)]
    assert len({tuple(order) for order in orders}) == 6
    assert len({tuple(np.unique(order[:18] // 9)) for order in orders}) > 1
    assert any((np.diff(order[:18] // 9) != 0).sum() > 3 for order in orders)


def test_the_order_in_windows_is_written_down() -> None:
    assert window_order([3, 2, 3], 2, 7, 1).tolist() == GOLDEN_WINDOWS


labels_lists = st.lists(st.integers(0, 7), min_size=1, max_size=150)


@given(labels_lists, seeds, st.integers(0, 40))
def test_in_a_balanced_order_every_class_comes_as_often_and_none_of_its_records_again_too_soon(
    labels: list[int], seed: int, first: int
) -> None:
    found, sizes = np.unique(labels, return_counts=True)
    orders = [balanced_order(np.array(labels), seed, epoch) for epoch in (first, first + 1, first + 2)]
    for order in orders:
        assert order.dtype == np.int64
        assert len(order) == len(labels)
        times = np.bincount(np.array(labels)[order])[found]
        assert set(times) <= {len(labels) // len(found), -(-len(labels) // len(found))}
    over_all = np.bincount(np.array(labels)[np.concatenate(orders)])[found]
    assert np.ptp(over_all) <= 1, "classes take turns in having one more"
    for label, size in zip(found, sizes, strict=True):
        drawn = [record for record in np.concatenate(orders).tolist() if labels[record] == label]
        times = np.unique(drawn, return_counts=True)[1]
        assert np.ptp([*times, *[0] * (size - len(times))]) <= 2, "a round at either end may be cut"


def test_a_balanced_order_goes_on_from_epoch_to_epoch_and_does_so_anew_for_each_seed() -> None:
    labels = np.array([0] * 10 + [1] * 2)
    orders = [balanced_order(labels, 3, epoch) for epoch in range(5)]
    frequent = np.concatenate([order[order < 10] for order in orders])
    assert sorted(frequent[:10]) == sorted(frequent[10:20]) == list(range(10)), "all are seen before one comes again"
    rare = np.concatenate([order[order >= 10] for order in orders])
    assert all(sorted(rare[at : at + 2]) == [10, 11] for at in range(0, 30, 2))
    assert len({tuple(order) for order in orders}) == 5
    assert not np.array_equal(orders[0], balanced_order(labels, 4, 0))


def test_a_balanced_order_of_equal_classes_has_every_record_once_and_knows_no_class_without_records() -> None:
    labels = np.tile([4, 9, 2], 50)
    assert np.array_equal(np.sort(balanced_order(labels, 1, 6)), np.arange(150))
    assert balanced_order(np.zeros(0, int), 1, 6).tolist() == []


def test_a_balanced_order_is_written_down() -> None:
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    assert [balanced_order(labels, 7, epoch).tolist() for epoch in (0, 1)] == GOLDEN_BALANCED


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 6), st.integers(1, 40), st.integers(0, 30))
def test_in_a_repeated_order_every_record_has_come_as_often_after_so_many_epochs(
    count: int, repeats: int, batch_size: int, first: int
) -> None:
    def order_of(number: int) -> np.ndarray:
        return epoch_order(count, 3, number)

    orders = [repeated_order(order_of, repeats, batch_size, repeats * first + epoch) for epoch in range(repeats)]
    assert {(len(order), order.dtype) for order in orders} == {(count, np.dtype(np.int64))}
    assert np.array_equal(np.sort(np.concatenate(orders)), np.repeat(np.arange(count), repeats))
    if repeats == 1:
        assert np.array_equal(orders[0], order_of(first))
    # Batch for batch they have what RASampler's have together: the plain order, every record as often in a row.
    rows = np.split(np.repeat(order_of(first), repeats), repeats)
    for order, row in zip(orders, rows, strict=True):
        for at in range(0, count, batch_size):
            assert np.array_equal(np.sort(order[at : at + batch_size]), np.sort(row[at : at + batch_size]))
            pairs = order[at : at + batch_size // 2 * 2].reshape(-1, 2) if count >= at + batch_size else []
            if batch_size >= 2 * repeats and count >= 2 and batch_size % 2 == 0:
                assert all(one != other for one, other in pairs), "an image is mixed with another"


def test_processes_share_out_the_copies_of_an_image() -> None:
    """As of RASampler, DeiT's and torchvision's: where ranks are as many as copies, none has two of an image."""
    order = repeated_order(lambda number: epoch_order(96, 1, number), 3, 24, 0)
    for at in range(0, 96, 24):
        ranks = [order[Share(rank, 3).of(range(at, at + 24)).start :][:8].tolist() for rank in range(3)]
        assert ranks[0] == ranks[1] == ranks[2]
        assert len(set(ranks[0])) == 8


def test_a_repeated_order_is_written_down_and_takes_any_order() -> None:
    def balanced(number: int) -> np.ndarray:
        return balanced_order(np.array([0, 0, 0, 0, 0, 0, 1, 2]), 7, number)

    assert repeated_order(lambda number: epoch_order(8, 42, number), 2, 4, 6).tolist() == [7, 2, 7, 2, 0, 5, 0, 5]
    assert np.array_equal(np.sort(np.concatenate([repeated_order(balanced, 2, 4, epoch) for epoch in (4, 5)])),
                          np.sort(np.repeat(balanced(2), 2)))  # fmt: skip
    windows = repeated_order(lambda number: window_order([4, 4, 4], 1, 7, number), 2, 4, 1)
    assert len({record // 4 for record in windows.tolist()}) == 2, "6 records of 12, in shards of 4"
