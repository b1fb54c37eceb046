"""Boxes of a detector: anchors, overlaps, matching, offsets, non-maximum suppression and average precision.

A box is (left, top, right, bottom) as shares of the image's width and height. The rules are those of SSD (Liu et al.
2016, arXiv 1512.02325) as MXNet's operators of the same names have them (contrib MultiBoxPrior, MultiBoxTarget,
MultiBoxDetection), to which tests compare every function here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
"""[n, 4]."""
VARIANCES = (0.1, 0.1, 0.2, 0.2)
"""Offsets are divided by these: centre x and y, width and height."""


def multibox_prior(height: int, width: int, sizes: Sequence[float], ratios: Sequence[float]) -> Boxes:
    """The anchors of a map of `height` x `width` positions: at each, every size at the first ratio, then the first
    size at every other ratio (width over height); [height * width * (sizes + ratios - 1), 4].
    """
    forms = [(size, ratios[0]) for size in sizes] + [(sizes[0], ratio) for ratio in ratios[1:]]
    halves = np.array([(size * height / width * np.sqrt(ratio), size / np.sqrt(ratio)) for size, ratio in forms]) / 2
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    centres = np.stack([x, y], axis=-1)[:, :, None]
    anchors: Boxes = np.concatenate([centres - halves, centres + halves], axis=-1).reshape(-1, 4)
    return anchors


def overlaps(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    """Intersection over union (IoU) of every pair, [n, m]."""
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.prod(np.maximum(bottom_right - top_left, 0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1] - shared
    iou: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou


def match(iou: NDArray[np.float64], threshold: float = 0.5) -> NDArray[np.int64]:
    """The object of each anchor, [anchors], -1 for none, by the overlaps [anchors, objects].

    Every object first takes the free anchor that overlaps most of all that are left; then an anchor takes the object
    that it overlaps most, by the threshold or more.
    """
    owners = np.full(len(iou), -1, np.int64)
    left = iou.copy()
    for _ in range(min(iou.shape)):
        anchor, found = np.unravel_index(int(left.argmax()), left.shape)
        if left[anchor, found] <= 0:
            break
        owners[anchor] = found
        left[anchor], left[:, found] = -1, -1
    if iou.shape[1]:
        best = iou.argmax(axis=1)
        free = (owners < 0) & (iou.max(axis=1) >= threshold)
        owners[free] = best[free]
    return owners


def encode(objects: Boxes, anchors: Boxes) -> Boxes:
    """The offsets of boxes from their anchors: of the centre in anchor widths, of the size in logarithms."""
    centres, sizes = _centred(objects)
    own_centres, own_sizes = _centred(anchors)
    return np.hstack([(centres - own_centres) / own_sizes, np.log(sizes / own_sizes)]) / VARIANCES


def decode(offsets: Boxes, anchors: Boxes) -> Boxes:
    """The boxes of offsets from their anchors, cut to the image; the inverse of `encode`."""
    own_centres, own_sizes = _centred(anchors)
    scaled = offsets * VARIANCES
    centres, halves = own_centres + scaled[:, :2] * own_sizes, np.exp(scaled[:, 2:]) * own_sizes / 2
    return np.clip(np.hstack([centres - halves, centres + halves]), 0, 1)


def _centred(boxes: Boxes) -> tuple[Boxes, Boxes]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


class Target(NamedTuple):
    """The answer that a detector is to give of an image at each anchor."""

    classes: NDArray[np.int64]
    """[anchors], 0 for the background, the class of the object and 1 otherwise."""
    offsets: Boxes
    """[anchors, 4], 0 where there is no object."""


def multibox_target(anchors: Boxes, objects: NDArray[np.float64], threshold: float = 0.5) -> Target:
    """Classes and offsets for the objects of an image, [n, 5], each its class and its box."""
    owners = match(overlaps(anchors, objects[:, 1:]), threshold) if len(objects) else np.full(len(anchors), -1)
    taken = np.flatnonzero(owners >= 0)
    classes, offsets = np.zeros(len(anchors), np.int64), np.zeros((len(anchors), 4))
    classes[taken] = objects[owners[taken], 0].astype(np.int64) + 1
    offsets[taken] = encode(objects[owners[taken], 1:], anchors[taken])
    return Target(classes, offsets)


class Detection(NamedTuple):
    """An object that was found."""

    class_number: int
    score: float
    box: NDArray[np.float64]


def suppress(boxes: Boxes, classes: NDArray[np.int64], threshold: float = 0.5) -> NDArray[np.int64]:
    """Non-maximum suppression: which of the boxes stay, best first given, when each removes those of its class that
    overlap it by more than the threshold.
    """
    kept: list[int] = []
    iou = overlaps(boxes, boxes)
    for row in range(len(boxes)):
        if not any(iou[row, other] > threshold and classes[row] == classes[other] for other in kept):
            kept.append(row)
    return np.array(kept, np.int64)


def multibox_detection(
    probabilities: NDArray[Any], offsets: Boxes, anchors: Boxes, score: float = 0.01, threshold: float = 0.5
) -> list[Detection]:
    """The objects in an image, best first, by the class probabilities [anchors, 1 + classes], the background first.

    At each anchor the most probable class counts, by the `score` or more.
    """
    classes = probabilities[:, 1:].argmax(axis=1)
    scores = probabilities[np.arange(len(classes)), 1 + classes]
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= score]
    boxes = decode(offsets[order], anchors[order])
    kept = suppress(boxes, classes[order], threshold)
    return [Detection(int(classes[order[row]]), float(scores[order[row]]), boxes[row]) for row in kept]


def mean_average_precision(
    found: Sequence[Sequence[Detection]], objects: Sequence[NDArray[np.float64]], classes: int, threshold: float = 0.5
) -> float:
    """The mean over the classes that occur of the average precision (area below the interpolated curve, VOC 2010).

    `found` and `objects` [n, 5] are of each image. A detection hits the object of its class that it overlaps most, by
    the threshold or more; an object is hit once.
    """
    precisions = [
        _average_precision(*_hits(found, objects, number, threshold))
        for number in range(classes)
        if any((image[:, 0] == number).any() for image in objects)
    ]
    return float(np.mean(precisions)) if precisions else 0.0


def _hits(
    found: Sequence[Sequence[Detection]], objects: Sequence[NDArray[np.float64]], number: int, threshold: float
) -> tuple[NDArray[np.bool_], int]:
    """The hits among the detections of a class, best first, and the number of its objects."""
    own = [image[image[:, 0] == number, 1:] for image in objects]
    free = [np.ones(len(boxes), bool) for boxes in own]
    rows = [(at, detection) for at, image in enumerate(found) for detection in image if detection[0] == number]
    hits = np.zeros(len(rows), bool)
    for row, (at, detection) in enumerate(sorted(rows, key=lambda pair: -pair[1].score)):
        iou = overlaps(detection.box[None], own[at])[0]
        best = int(iou.argmax()) if len(iou) else 0
        if len(iou) and iou[best] >= threshold and free[at][best]:
            hits[row], free[at][best] = True, False
    return hits, sum(map(len, own))


def _average_precision(hits: NDArray[np.bool_], objects: int) -> float:
    right = np.cumsum(hits)
    precision, recall = right / np.arange(1, len(hits) + 1), right / objects
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * highest))
