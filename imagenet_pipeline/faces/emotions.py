"""Which emotion each face of a picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from imagenet_pipeline.errors import BadRecipe, first_few
from imagenet_pipeline.evaluation.classifier import Classifier, open_classifier
from imagenet_pipeline.evaluation.predict import Choice, best_choices
from imagenet_pipeline.faces.detection import FaceDetector
from imagenet_pipeline.loading.transforms import Box, Pixels
from imagenet_pipeline.records.classes import ClassTable

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
        """All faces of an RGB image [H, W, 3], from the left."""
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
        raise BadRecipe("this run is not of emotions", where=run, expected="classes as happy, sad, fear", found=found)
    return EmotionReader(classifier, FaceDetector(smallest))


def shows_emotions(classes: ClassTable) -> bool:
    """Whether all classes are emotions by their ids."""
    return {one.lower() for one in classes.ids} <= EMOTIONS


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
