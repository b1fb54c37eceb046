"""Faces in photos: each found once, where it is; none where there is none."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data

from imagenet_pipeline.faces.emotions import FaceDetector

pytestmark = pytest.mark.faces

NOSES = ((224, 118), (253, 240))
"""Of the two portraits, x and y, looked up by hand."""


def around(box: Any, point: tuple[float, float]) -> bool:
    """Whether the point is in the middle third of the box."""
    across, down = (point[0] - box.left) / box.width, (point[1] - box.top) / box.height
    return 1 / 3 < across < 2 / 3 and 1 / 3 < down < 0.75


def test_a_portrait_has_one_face_around_its_nose(portraits: tuple[Any, Any]) -> None:
    for portrait, nose in zip(portraits, NOSES, strict=True):
        (box,) = FaceDetector().find(portrait)
        assert box.width == box.height
        assert around(box, nose), box


def test_each_of_several_faces_is_found_once_from_the_left(portraits: tuple[Any, Any]) -> None:
    collins = portraits[0][:300, 80:380]
    scene = np.full((320, 900, 3), 128, np.uint8)
    places = ((5, 1.0), (320, 0.75), (560, 0.5), (730, 0.5))
    for left, scale in places:
        small = cv2.resize(collins, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        scene[10 : 10 + len(small), left : left + len(small)] = small
    boxes = FaceDetector().find(scene)
    assert len(boxes) == len(places)
    for box, (left, scale) in zip(boxes, places, strict=True):
        assert around(box, (left + (NOSES[0][0] - 80) * scale, 10 + NOSES[0][1] * scale))


@pytest.mark.parametrize("name", ["coffee", "cat", "rocket"])
def test_nothing_is_found_where_there_is_no_face(name: str) -> None:
    assert FaceDetector().find(getattr(skimage.data, name)()) == []


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (300, 5), (29, 29), (40, 40)])
def test_a_picture_too_small_for_a_face_has_none(shape: tuple[int, int]) -> None:
    assert FaceDetector().find(np.full((*shape, 3), 90, np.uint8)) == []


@pytest.mark.parametrize("shape", [(90, 9000), (9000, 90)])
def test_the_smallest_face_goes_by_the_area_not_by_an_edge(portraits: tuple[Any, Any], shape: tuple[int, int]) -> None:
    # Of 90 x 9,000 pixels the root is 900, like that of a photo in which 30 pixels are enough; of three times the
    # edges faces of 84 pixels are needed.
    face = cv2.resize(portraits[0][50:190, 150:290], (90, 90), interpolation=cv2.INTER_AREA)
    for times, found in ((1, 1), (3, 0)):
        scene = np.full((times * shape[0], times * shape[1], 3), 128, np.uint8)
        scene[:90, :90] = face
        assert len(FaceDetector().find(scene)) == found
        assert len(FaceDetector(30).find(scene[:300, :300])) == 1


def test_faces_smaller_than_asked_for_are_left_out(portraits: tuple[Any, Any]) -> None:
    assert len(FaceDetector(80).find(portraits[0])) == 1
    assert FaceDetector(160).find(portraits[0]) == []
