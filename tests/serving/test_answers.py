"""One photo, however large and however full of faces, is answered in bounded work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline.faces.emotions import FaceDetector
from imagenet_pipeline.serving.answers import FACES_READ, SEARCHED_PIXELS, Answers, open_answers


@pytest.fixture(scope="module")
def answers(emotion_run: Path) -> Answers:
    return open_answers(emotion_run)


def jpeg(pixels: Any) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.mark.faces
def test_of_very_many_faces_the_largest_are_read_and_it_says_so(
    answers: Answers, portraits: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tile = cv2.resize(portraits[0][50:190, 150:290], (100, 100), interpolation=cv2.INTER_AREA)
    crowd = np.hstack([np.tile(tile, (8, 8, 1)), np.tile(cv2.resize(tile, (200, 200)), (4, 1, 1))])
    read: list[int] = []
    look = type(answers.reader).read

    def read_and_note(reader: Any, image: Any, boxes: Any) -> Any:
        read.extend(box.width for box in boxes)
        return look(reader, image, boxes)

    monkeypatch.setattr(type(answers.reader), "read", read_and_note)
    answer = answers.answer(jpeg(crowd))
    assert answer["message"] == f"68 faces; the {FACES_READ} largest, from the left."
    assert [subject["title"] for subject in answer["subjects"]] == [f"Face {n}" for n in range(1, FACES_READ + 1)]
    assert len(read) == FACES_READ
    assert sum(width > 100 for width in read) == 4


@pytest.mark.faces
def test_a_damaged_photo_is_answered_and_called_damaged(answers: Answers, portraits: tuple[Any, Any]) -> None:
    data = jpeg(portraits[0])
    whole = answers.answer(data)["message"]
    message = answers.answer(data[: len(data) * 3 // 4] + b"\xff\xd9")["message"]
    assert "damaged" in message
    assert "damaged" not in whole


@pytest.mark.faces
@pytest.mark.parametrize("shape", [(720, 16384), (16384, 720), (7000, 7000), (40, 16384)])
def test_the_search_is_bounded_for_every_shape(
    answers: Answers, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    searched: list[tuple[int, int]] = []

    def find(_: FaceDetector, image: Any) -> list[Any]:
        searched.append(image.shape[:2])
        return []

    monkeypatch.setattr(FaceDetector, "find", find)
    assert "No face" in answers.answer(jpeg(np.full((*shape, 3), 90, np.uint8)))["message"]
    ((height, width),) = searched
    assert height * width <= 1.01 * SEARCHED_PIXELS
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.02)


@pytest.mark.faces
def test_faces_in_a_large_photo_are_still_found(answers: Answers, two_faces: Callable[[int], Any]) -> None:
    scene = cv2.resize(two_faces(0), None, fx=6, fy=6, interpolation=cv2.INTER_LINEAR)
    assert scene.size // 3 > SEARCHED_PIXELS
    assert answers.answer(jpeg(scene))["message"] == "2 faces, from the left."
