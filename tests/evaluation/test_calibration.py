"""Calibration against scikit-learn on the same arrays, and where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from imagenet_pipeline.evaluation.stats import BINS, calibration


@pytest.mark.parametrize("images", [1, 7, 1000])
def test_the_bins_are_scikit_learn_s(images: int) -> None:
    random = np.random.default_rng(images)
    confidence = random.beta(3, 2, images)
    right = random.random(images) < confidence**2
    found = calibration(confidence, right)
    shares, means = calibration_curve(right, confidence, n_bins=BINS, strategy="uniform")
    np.testing.assert_allclose([one.right.percent / 100 for one in found.bins], shares)
    np.testing.assert_allclose([one.confidence for one in found.bins], means)
    assert sum(one.right.images for one in found.bins) == images
    assert sum(one.right.hits for one in found.bins) == right.sum()
    weights = np.array([one.right.images for one in found.bins]) / images
    assert found.error == pytest.approx((weights * np.abs(shares - means)).sum())


def test_an_edge_belongs_to_the_bin_below() -> None:
    edges = np.linspace(0, 1, BINS + 1)
    found = calibration(edges[1:], np.ones(BINS, bool))
    assert [one.high for one in found.bins] == edges[1:].tolist()
    assert all(one.low < one.confidence <= one.high for one in found.bins)


def test_who_is_right_as_often_as_said_has_no_error_and_who_is_always_sure_has_the_share_of_mistakes() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.2, 1, 200_000)
    right = random.random(len(confidence)) < confidence
    assert calibration(confidence, right).error < 0.005
    sure = calibration(np.ones(len(right)), right)
    assert sure.error == pytest.approx(1 - right.mean())
    assert len(sure.bins) == 1
