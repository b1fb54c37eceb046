from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from imagenet_pipeline.loading.mixup import MIXING_COLUMNS, Mix, mix_pair, mixed_target, mixtures
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import Box

SIZE = 32


def numbers(count: int) -> NDArray[np.float64]:
    return np.random.default_rng(8).random((count, MIXING_COLUMNS))


def drawn(mixup: float, cutmix: float, count: int = 20_000, size: int = SIZE) -> list[Mix]:
    return [mix for mix in mixtures(mixup, cutmix, numbers(count), size) if mix]


def noise(seed: int, size: int = SIZE) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixups_shares_are_beta_and_each_images_own(alpha: float) -> None:
    mixes = drawn(alpha, 0)
    assert {mix.box for mix in mixes} == {None}
    shares = np.array([mix.own for mix in mixes])
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert abs(np.corrcoef(shares[::2], shares[1::2])[0, 1]) < 0.04


def test_cutmixs_boxes_are_the_papers() -> None:
    """Against the paper's r = W sqrt(1 - lambda) about an even point, lambda even for alpha 1, by simulation."""
    size = 1000
    mixes = drawn(0, 1.0, size=size)
    rng = np.random.default_rng(0)
    half = np.sqrt(1 - rng.random(20_000)) / 2
    x, y = rng.random((2, 20_000))
    widths = np.minimum(x + half, 1) - np.maximum(x - half, 0)
    heights = np.minimum(y + half, 1) - np.maximum(y - half, 0)
    boxes = [mix.box for mix in mixes if mix.box]
    assert len(boxes) == len(mixes)
    assert stats.ks_2samp([box.width / size for box in boxes], widths).pvalue > 0.01
    assert stats.ks_2samp([box.height / size for box in boxes], heights).pvalue > 0.01
    assert stats.ks_2samp([1 - mix.own for mix in mixes], widths * heights).pvalue > 0.01
    assert stats.ks_2samp([box.left / size for box in boxes], np.maximum(x - half, 0)).pvalue > 0.01
    assert stats.ks_2samp([box.top / size for box in boxes], np.maximum(y - half, 0)).pvalue > 0.01


def test_with_both_on_each_image_gets_either_by_chance() -> None:
    cut = np.array([mix.box is not None for mix in drawn(0.2, 1.0)])
    assert cut.mean() == pytest.approx(0.5, abs=0.015)
    assert np.mean(cut[::2] == cut[1::2]) == pytest.approx(0.5, abs=0.02)
    shares = np.array([mix.own for mix in drawn(0.2, 1.0) if mix.box is None])
    assert stats.kstest(shares, stats.beta(0.2, 0.2).cdf).pvalue > 0.01


def test_with_neither_nothing_is_mixed() -> None:
    assert mixtures(0, 0, numbers(3), SIZE) == [None] * 3


@pytest.mark.parametrize("alpha", [1e-300, 1e-9, 1e9, 1e300])
def test_extreme_alphas_are_all_or_nothing_and_halves(alpha: float) -> None:
    shares = np.array([mix.own for mix in drawn(alpha, 0, 200)])
    assert np.minimum(np.minimum(abs(shares), abs(1 - shares)), abs(shares - 0.5)).max() < 1e-4


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 999), st.integers(1, 40), st.sampled_from([(0.2, 0), (0, 1.0), (0.4, 0.7)]))
def test_a_pair_is_mixed_as_a_plain_statement_says(row: int, size: int, alphas: tuple[float, float]) -> None:
    first, second = noise(1, size), noise(2, size)
    one, other = mixtures(*alphas, numbers(1000)[[row, row - 1]], size)
    assert one is not None
    assert other is not None
    expected = [plainly(first, second, one), plainly(second, first, other)]
    mix_pair(first, second, one, other)
    assert np.abs(first - expected[0]).max() <= 0.5 + 1e-4
    assert np.abs(second - expected[1]).max() <= 0.5 + 1e-4


def plainly(image: Pixels, partner: Pixels, mix: Mix) -> NDArray[np.float64]:
    own = np.full(image.shape[:2], mix.own)
    if mix.box:
        rows, columns = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
        left, top, width, height = mix.box
        within = (left <= columns) & (columns < left + width) & (top <= rows) & (rows < top + height)
        own = np.where(within, 0.0, 1.0)
        # The label's share is the image's exactly: so many pixels are its own.
        assert own.mean() == pytest.approx(mix.own, abs=1e-12)
    return own[..., None] * image + (1 - own[..., None]) * partner


def test_a_box_may_be_all_or_nothing() -> None:
    first, second = noise(1), noise(2)
    mix_pair(first, second, Mix(1.0, Box(5, 5, 0, 0)), Mix(0.0, Box(0, 0, SIZE, SIZE)))
    assert np.array_equal(first, noise(1))
    assert np.array_equal(second, noise(1))


def test_targets_hold_both_shares() -> None:
    target = np.full(5, 9, np.float32)
    mixed_target(target, 1, 3, Mix(0.75, None))
    assert target.tolist() == [0, 0.75, 0, 0.25, 0]
    mixed_target(target, 2, 2, Mix(0.1, None))
    assert target.tolist() == [0, 0, 1, 0, 0]
