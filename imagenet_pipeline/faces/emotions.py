"""Find the faces of a picture and classify the emotion of each.

The detector is OpenCV's Haar cascade `frontalface_alt` (Lienhart, Kuranov and Pisarevsky 2003), whose file comes inside
the opencv-python-headless that is needed anyway. FER2013's faces were cut by OpenCV's detector too (Goodfellow et al.
2013, "Challenges in representation learning"), so its boxes are what the networks were trained on. On 116 faces of
FER2013 pasted into photos, and 150 photos without faces, each with five agreeing windows, `alt` found 71 % with 0.03
false boxes a photo, `default` 71 % with 0.10, `alt2` 72 % with 0.05. Newer detectors (YuNet, BlazeFace) are better at
profiles, but no maintained package was found that carries a model beside numpy < 2 and without a second OpenCV.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from imagenet_pipeline.errors import BadRecipe, Damaged, first_few
from imagenet_pipeline.evaluation.predict import Choice, Classifier, best_choices, open_classifier
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image import Box

EMOTIONS = frozenset(
    ("angry", "anger", "contempt", "disgust", "fear", "happy", "happiness", "neutral", "sad", "sadness", "surprise")
)
"""The class ids of FER2013, FER+ and CK+."""
MARGIN = 1.04
"""A face's square is this much wider than its box: the detector's boxes on FER2013's own squares are 0.96 of them."""


@dataclass(frozen=True)
class Face:
    """A face in a picture: its box, in pixels, and all emotions, the most probable first."""

    box: Box
    choices: tuple[Choice, ...]

    @property
    def best(self) -> Choice:
        """The most probable emotion."""
        return self.choices[0]


@dataclass(frozen=True)
class EmotionReader:
    """A detector and a run that was trained on faces."""

    classifier: Classifier
    detector: FaceDetector

    def look(self, image: Pixels) -> list[Face]:
        """Find and classify all faces of an RGB image [H, W, 3], from the left."""
        return self.read(image, self.detector.find(image))

    def read(self, image: Pixels, boxes: Sequence[Box]) -> list[Face]:
        """The faces in these boxes of an RGB image [H, W, 3]."""
        probabilities = self.classifier.probabilities([grey_face(image, box) for box in boxes])
        classes = self.classifier.classes
        rows = zip(boxes, probabilities, strict=True)
        return [Face(box, best_choices(row, classes, len(classes))) for box, row in rows]


def open_emotion_reader(
    run: Path, which: str = "best", overrides: dict[str, object] | None = None, smallest: int = 0
) -> EmotionReader:
    """A run's checkpoint with a detector of faces of at least `smallest` pixels (see `FaceDetector`).

    Raises BadRecipe where the run's classes are no emotions.
    """
    classifier = open_classifier(run, which, overrides)
    if not shows_emotions(classifier.classes):
        found = first_few(classifier.classes.ids)
        raise BadRecipe(
            "the run's classes are not emotions", where=run, expected="classes as happy, sad, fear", found=found
        )
    return EmotionReader(classifier, FaceDetector(smallest))


def shows_emotions(classes: ClassTable) -> bool:
    """True where all classes are emotions by their ids."""
    return {class_id.lower() for class_id in classes.ids} <= EMOTIONS


def grey_face(image: Pixels, box: Box) -> Pixels:
    """The square around a face, [S, S, 3], grey in all three channels as the faces of FER2013, FER+ and CK+ are.

    Where it reaches beyond the picture, the picture's edge is repeated.
    """
    side = round(MARGIN * max(box.width, box.height))
    top, left = box.top + (box.height - side) // 2, box.left + (box.width - side) // 2
    rows = np.clip(np.arange(top, top + side), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, image.shape[1] - 1)
    grey = cv2.cvtColor(image[rows][:, columns], cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)


SMALLEST_FACE_PIXELS = 30
"""The cascade's own window has 20; below 30 there is nothing left to read in a face."""
_FACES_ACROSS = 32
_PYRAMID_STEP = 1.1
_AGREEING_WINDOWS = 5


class FaceDetector:
    """Detector of frontal faces at least `smallest` pixels wide; 0 is a 32nd of the root of the area, or 30 if larger.

    That default makes the search as long for a large picture, of any shape, as for 1280 x 720 pixels. Only a single
    thread at a time may use it. Raises BadRecipe with OpenCV 5, whose package has no cascade.
    """

    def __init__(self, smallest: int = 0) -> None:
        self._smallest = smallest
        if not hasattr(cv2, "CascadeClassifier"):
            what = "this OpenCV has no cascades any more, which find faces"
            advice = "pip install 'opencv-python-headless<5'"
            raise BadRecipe(what, expected="OpenCV 4.11 or a later 4", found=cv2.__version__, advice=advice)
        path = str(Path(cv2.__file__).with_name("data") / "haarcascade_frontalface_alt.xml")
        self._cascade = cv2.CascadeClassifier(path)
        if self._cascade.empty():
            raise Damaged("the face detector cannot be read", where=path, advice="install opencv-python-headless anew")

    def find(self, image: Pixels) -> list[Box]:
        """The square boxes of all faces in an RGB image [H, W, 3], from the left."""
        height, width = image.shape[:2]
        smallest = self._smallest or max(SMALLEST_FACE_PIXELS, math.isqrt(height * width) // _FACES_ACROSS)
        found = self._cascade.detectMultiScale(
            cv2.cvtColor(image, cv2.COLOR_RGB2GRAY),
            scaleFactor=_PYRAMID_STEP,
            minNeighbors=_AGREEING_WINDOWS,
            minSize=(smallest, smallest),
        )
        return sorted(Box(*(int(value) for value in row)) for row in found)
