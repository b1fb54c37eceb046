"""What the page is told of a photo: the picture to show, and bars for it or for each of its faces."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagenet_pipeline.evaluation.classifier import Classifier, open_classifier
from imagenet_pipeline.evaluation.predict import Choice, best_choices
from imagenet_pipeline.faces.detection import FaceDetector
from imagenet_pipeline.faces.drawing import draw_faces
from imagenet_pipeline.faces.emotions import EmotionReader, shows_emotions
from imagenet_pipeline.loading.geometry import Pixels
from imagenet_pipeline.records.image import Rejected, upright_rgb

SHOWN_PIXELS = 1280
"""Longest edge of the picture that goes back."""
_LETTERS_ACROSS = 30  # legible on a phone, where the picture is 340 pixels wide
_OF_MANY = 3  # emotions for each of several faces


@dataclass(frozen=True)
class Answers:
    """A run that looks at one photo at a time; `reader` for a run of emotions, else None. `top` classes are named."""

    classifier: Classifier
    reader: EmotionReader | None
    top: int

    def answer(self, data: bytes) -> dict[str, Any]:
        """For a photo's bytes: `picture` (a data address), `subjects` of `title` and `choices`, and a `message`.

        Raises Rejected, one line for the user, where it is no photo that can be used.
        """
        try:
            pixels = upright_rgb(data)
        except Rejected as reason:
            raise Rejected(f"This cannot be used: {reason}. Photos are JPEG, PNG, WebP, BMP or TIFF.") from reason
        if self.reader is None:
            row = self.classifier.probabilities([pixels])[0]
            choices = best_choices(row, self.classifier.classes, self.top)
            return {"picture": _shown(pixels), "subjects": [_subject("", choices)], "message": ""}
        faces = self.reader.look(pixels)
        letters = max(12, max(pixels.shape) // _LETTERS_ACROSS)
        picture = _shown(draw_faces(pixels, faces, letters, panels=False))
        if len(faces) == 1:
            return {"picture": picture, "subjects": [_subject("", faces[0].choices)], "message": ""}
        subjects = [_subject(f"Face {number}", face.choices[:_OF_MANY]) for number, face in enumerate(faces, 1)]
        message = (
            f"{len(faces)} faces, from the left." if faces else "No face found. It looks for faces from the front."
        )
        return {"picture": picture, "subjects": subjects, "message": message}

    def warm_up(self) -> None:
        """Let the engine make ready what it makes ready at the first picture."""
        self.classifier.probabilities([np.zeros((64, 64, 3), np.uint8)])


def open_answers(run: Path, which: str = "best", overrides: dict[str, object] | None = None, top: int = 5) -> Answers:
    """Of a run's checkpoint; one whose classes are emotions looks at the faces of a photo, any other at all of it."""
    classifier = open_classifier(run, which, overrides)
    reader = EmotionReader(classifier, FaceDetector()) if shows_emotions(classifier.classes) else None
    return Answers(classifier, reader, top)


def _shown(pixels: Pixels) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def _subject(title: str, choices: tuple[Choice, ...]) -> dict[str, Any]:
    return {
        "title": title,
        "choices": [{"name": choice.name, "probability": choice.probability} for choice in choices],
    }
