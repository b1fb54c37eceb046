"""Intervals against SciPy, and whether they cover what they are to cover in simulations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

from imagenet_pipeline.evaluation.stats import difference, mean, rate


@pytest.mark.parametrize(("hits", "images"), [(0, 1), (1, 1), (0, 40), (40, 40), (3, 40), (38_065, 50_000)])
def test_a_rate_s_interval_is_wilson_s(hits: int, images: int) -> None:
    found = rate(hits, images)
    wilson = scipy.stats.binomtest(hits, images).proportion_ci(0.95, method="wilson")
    assert found.percent == 100.0 * hits / images
    np.testing.assert_allclose(found.interval, (100 * wilson.low, 100 * wilson.high), atol=1e-9)
    assert 0 <= found.interval[0] <= found.percent <= found.interval[1] <= 100


@pytest.mark.parametrize("images", range(1, 201))
def test_a_rate_s_interval_stays_within_0_and_100_where_none_or_all_are_hits(images: int) -> None:
    assert rate(0, images).interval[0] == 0
    assert rate(images, images).interval[1] == 100


@pytest.mark.parametrize("share", [0.05, 0.5, 0.762, 0.95])
@pytest.mark.parametrize("images", [100, 1000])
def test_a_rate_s_interval_covers_the_truth_19_times_in_20(share: float, images: int) -> None:
    drawn = np.random.default_rng(1).binomial(images, share, 4000)
    intervals = {hits: rate(int(hits), images).interval for hits in np.unique(drawn)}
    covered = np.mean([intervals[hits][0] <= 100 * share <= intervals[hits][1] for hits in drawn])
    assert 0.93 < covered < 0.975


def test_a_mean_s_interval_is_the_normal_one() -> None:
    values = np.random.default_rng(2).exponential(2.0, 50)
    found = mean(values)
    normal = scipy.stats.norm.interval(0.95, values.mean(), scipy.stats.sem(values))
    assert found.value == values.mean()
    np.testing.assert_allclose(found.interval, normal, rtol=1e-12)
    assert mean(values[:1]).interval is None


def test_a_mean_s_interval_covers_the_truth_19_times_in_20() -> None:
    losses = np.random.default_rng(3).exponential(1.7, (3000, 300))  # as skewed as losses are
    covered = [low <= 1.7 <= high for low, high in (mean(row).interval or (0, 0) for row in losses)]
    assert 0.93 < np.mean(covered) < 0.97


def pairs(images: int, both: float, gained: float, lost: float, seed: int) -> tuple[Any, Any]:
    """Whether each of two is right on each image, drawn from the shares of images."""
    kind = np.random.default_rng(seed).choice(4, images, p=[both, gained, lost, 1 - both - gained - lost])
    return np.isin(kind, (0, 1)), np.isin(kind, (0, 2))


def test_a_difference_counts_pairs() -> None:
    right, other = pairs(400, 0.6, 0.1, 0.05, seed=4)
    loss, other_loss = np.random.default_rng(5).exponential(1, (2, 400))
    found = difference(right, loss, other, other_loss)
    assert found.gained == sum(a and not b for a, b in zip(right, other, strict=True))
    assert found.lost == sum(b and not a for a, b in zip(right, other, strict=True))
    assert found.rank1 == pytest.approx(100 * (right.mean() - other.mean()))
    # McNemar's exact test in full: twice the smaller tail of a fair coin.
    tail = scipy.stats.binom.cdf(min(found.gained, found.lost), found.gained + found.lost, 0.5)
    assert found.p == pytest.approx(min(1.0, 2 * tail))
    assert found.loss.value == pytest.approx(loss.mean() - other_loss.mean())
    turned = difference(other, other_loss, right, loss)
    assert (turned.rank1, turned.gained, turned.p) == (-found.rank1, found.lost, found.p)
    np.testing.assert_allclose(turned.rank1_interval, [-found.rank1_interval[1], -found.rank1_interval[0]])


def test_two_that_agree_on_every_image_do_not_differ() -> None:
    right = np.arange(50) % 3 > 0
    found = difference(right, np.ones(50), right, np.ones(50))
    assert (found.rank1, found.gained, found.lost, found.p, found.loss.value) == (0.0, 0, 0, 1.0, 0.0)
    assert found.rank1_interval[0] < 0 < found.rank1_interval[1]


@pytest.mark.parametrize(("gained", "lost"), [(0.05, 0.02), (0.03, 0.03), (0.15, 0.1)])
def test_a_difference_s_interval_covers_the_truth_and_is_narrower_than_that_of_two_rates(
    gained: float, lost: float
) -> None:
    covered, widths, unpaired = [], [], []
    for seed in range(1200):
        right, other = pairs(500, 0.7, gained, lost, seed)
        low, high = difference(right, np.zeros(500), other, np.zeros(500)).rank1_interval
        covered.append(low <= 100 * (gained - lost) <= high)
        widths.append(high - low)
        unpaired.append(sum(np.diff(rate(int(one.sum()), 500).interval).item() for one in (right, other)))
    assert 0.93 < np.mean(covered) < 0.975
    assert np.mean(widths) < 0.8 * np.mean(unpaired)


def test_a_p_value_below_1_in_20_comes_by_chance_at_most_1_time_in_20() -> None:
    found = []
    for seed in range(1000):
        right, other = pairs(300, 0.7, 0.06, 0.06, seed)
        found.append(difference(right, np.zeros(300), other, np.zeros(300)).p)
    assert 0.005 < np.mean(np.array(found) < 0.05) <= 0.06
