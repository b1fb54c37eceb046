"""Anchors, matching, offsets and suppression: MXNet's MultiBox operators are the oracle; precision by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from imagenet_pipeline.extras.boxes import (
    Detection,
    decode,
    encode,
    match,
    mean_average_precision,
    multibox_detection,
    multibox_prior,
    multibox_target,
    overlaps,
)


def boxes(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    corners = random.uniform(0, 0.7, (count, 2))
    return np.hstack([corners, corners + random.uniform(0.1, 0.3, (count, 2))])


@pytest.mark.gluon
@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5), (1, 1)])
def test_anchors_are_mxnet_s(mx: Any, height: int, width: int) -> None:
    sizes, ratios = (0.2, 0.4, 0.7), (1.0, 2.0, 0.5)
    theirs = mx.nd.contrib.MultiBoxPrior(mx.nd.zeros((1, 3, height, width)), sizes=sizes, ratios=ratios)
    np.testing.assert_allclose(multibox_prior(height, width, sizes, ratios), theirs[0].asnumpy(), atol=1e-6)


@pytest.mark.gluon
@pytest.mark.parametrize("seed", range(1, 9))
def test_targets_are_mxnet_s(mx: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Not those of a grid, among which ties are common: float32 breaks them by its last bits.
    anchors = boxes(random, 80)
    objects = np.hstack([random.integers(0, 3, (seed, 1)), boxes(random, seed)])
    padded = np.full((1, 8, 5), -1.0)
    padded[0, :seed] = objects
    predictions = mx.nd.zeros((1, 4, len(anchors)))
    offsets, mask, classes = mx.nd.contrib.MultiBoxTarget(mx.nd.array(anchors[None]), mx.nd.array(padded), predictions)
    found = multibox_target(anchors, objects)
    np.testing.assert_array_equal(found.classes, classes[0].asnumpy())
    np.testing.assert_allclose(found.offsets, offsets[0].asnumpy().reshape(-1, 4), atol=2e-4)
    np.testing.assert_array_equal(found.classes > 0, mask[0].asnumpy().reshape(-1, 4)[:, 0] > 0)


@pytest.mark.gluon
@pytest.mark.parametrize("seed", range(8))
def test_detections_are_mxnet_s(mx: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    anchors = multibox_prior(4, 4, (0.3, 0.5), (1.0, 2.0))
    scores = np.exp(random.normal(0, 2, (len(anchors), 4)))
    scores /= scores.sum(axis=1, keepdims=True)
    offsets = random.normal(0, 1, (len(anchors), 4))
    theirs = mx.nd.contrib.MultiBoxDetection(
        mx.nd.array(scores.T[None]), mx.nd.array(offsets.reshape(1, -1)), mx.nd.array(anchors[None]), threshold=0.3
    )[0].asnumpy()
    theirs = theirs[theirs[:, 0] >= 0]
    found = multibox_detection(scores, offsets, anchors, score=0.3)
    assert [detection.class_number for detection in found] == theirs[:, 0].astype(int).tolist()
    np.testing.assert_allclose([detection.score for detection in found], theirs[:, 1], rtol=1e-5)
    np.testing.assert_allclose([detection.box for detection in found], theirs[:, 2:], atol=1e-5)


@given(st.integers(0, 2**32 - 1))
def test_offsets_lead_back_to_the_box(seed: int) -> None:
    random = np.random.default_rng(seed)
    objects, anchors = boxes(random, 5), boxes(random, 5)
    np.testing.assert_allclose(decode(encode(objects, anchors), anchors), objects, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(1, 12))
def test_every_object_that_an_anchor_touches_is_matched_once_at_least(seed: int, objects: int, anchors: int) -> None:
    iou = np.random.default_rng(seed).uniform(0.01, 1, (anchors, objects))
    owners = match(iou, threshold=0.5)
    assert len(set(owners[owners >= 0].tolist())) >= min(objects, anchors)


def test_overlaps_of_known_boxes() -> None:
    first = np.array([[0, 0, 0.5, 1.0], [0, 0, 0, 0]])
    second = np.array([[0.25, 0, 0.75, 1.0], [0.5, 0, 1, 1]])
    np.testing.assert_allclose(overlaps(first, second), [[1 / 3, 0], [0, 0]])


def test_average_precision_by_hand() -> None:
    box, other = np.array([0.1, 0.1, 0.4, 0.4]), np.array([0.6, 0.6, 0.9, 0.9])
    objects = [np.array([[0, *box], [0, *other]])]
    right, wrong, late = Detection(0, 0.9, box), Detection(0, 0.8, box), Detection(0, 0.7, other)
    assert mean_average_precision([[right, late]], objects, 1) == 1
    # The second finds the same object again: precision 1 to a recall of 1/2, then 2/3.
    assert mean_average_precision([[right, wrong, late]], objects, 1) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert mean_average_precision([[]], objects, 2) == 0
