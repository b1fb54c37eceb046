"""What the network is shown of a face, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.faces.emotions import MARGIN, grey_face, open_emotion_reader, shows_emotions
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image import Box

PHOTO = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@given(st.integers(-40, 100), st.integers(-40, 100), st.integers(1, 90))
def test_a_face_is_cut_square_and_grey_and_the_edge_goes_on_beyond_the_picture(left: int, top: int, side: int) -> None:
    face = grey_face(PHOTO, Box(left, top, side, side))
    wide = round(MARGIN * side)
    assert face.shape == (wide, wide, 3)
    assert (face == face[..., :1]).all()
    # Enough edge on all sides, by NumPy.
    pad = 300
    padded = np.pad(cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY), pad, mode="edge")
    start_y, start_x = top + (side - wide) // 2 + pad, left + (side - wide) // 2 + pad
    np.testing.assert_array_equal(face[..., 0], padded[start_y : start_y + wide, start_x : start_x + wide])


@pytest.mark.parametrize(
    ("ids", "emotions"),
    [
        (("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"), True),
        (("angry", "fear", "happy", "sad", "surprise", "neutral"), True),
        (("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise"), True),
        (("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"), True),
        (("Happy", "SAD"), True),
        (("happy", "sad", "dog"), False),
        (("n01440764", "n02102040"), False),
    ],
)
def test_a_run_of_emotions_is_known_by_its_classes(ids: tuple[str, ...], emotions: bool) -> None:
    assert shows_emotions(ClassTable("folder", ids, tuple(reversed(ids)))) is emotions


@pytest.mark.faces
def test_every_face_gets_the_probabilities_of_its_own_square(
    emotion_run: Path, two_faces: Callable[[int], Any]
) -> None:
    reader = open_emotion_reader(emotion_run)
    scene = two_faces(0)
    faces = reader.look(scene)
    assert len(faces) == 2
    for face in faces:
        alone = reader.classifier.probabilities([grey_face(scene, face.box)])[0]
        ids = reader.classifier.classes.ids
        said = {choice.class_id: choice.probability for choice in face.choices}
        assert [said[one] for one in ids] == pytest.approx(list(alone), abs=1e-5)
        assert face.best.probability == max(said.values())
        assert sum(said.values()) == pytest.approx(1)


@pytest.mark.faces
def test_no_face_is_no_question_to_the_network(emotion_run: Path) -> None:
    assert open_emotion_reader(emotion_run).look(np.zeros((100, 100, 3), np.uint8)) == []


def test_a_run_of_something_else_is_refused(drawn_run: Callable[..., Path]) -> None:
    with pytest.raises(BadRecipe, match=r"classes are not emotions.*cat, dog"):
        open_emotion_reader(drawn_run("cat", "dog"))


def test_an_opencv_without_cascades_is_one_line(emotion_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "CascadeClassifier", raising=False)
    with pytest.raises(BadRecipe, match=r"^this OpenCV has no cascades .*; pip install 'opencv-python-headless<5'$"):
        open_emotion_reader(emotion_run)
