"""Answers for a photo: to the page a picture to show, and bars for it or for each of its faces; to programs classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from imagenet_pipeline.config import shown_size
from imagenet_pipeline.drawing import data_address, jpeg
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.evaluation.exported import open_run_or_export
from imagenet_pipeline.evaluation.predict import Choice, Classifier, Probabilities, best_choices, least_edge_for
from imagenet_pipeline.faces.drawing import draw_faces
from imagenet_pipeline.faces.emotions import EmotionReader, Face, FaceDetector, shows_emotions
from imagenet_pipeline.loading.reduced import upright_image
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import LazyImage, Rejected, calm

SHOWN_PIXELS = 1280
"""Longest edge of the picture that goes back."""
SEARCHED_PIXELS = 3_000_000
"""Area that faces are looked for in: 2,000 x 1,500, in which the smallest are as large as the network's input."""
FACES_READ = 50
"""Faces read of a photo, the largest ones, so that no photo keeps the page from the others for long."""
TOGETHER_ON_CPU, TOGETHER = 8, 32
"""Photos computed at once, at most. A ResNet-18 on a CPU takes half the time a photo with 8, and 7 % less with 32, for
which it needs 270 MB more."""
_LETTERS_ACROSS = 30  # legible on a phone, where the picture is 340 pixels wide
_LETTERS_DOWN = 8  # of a panorama
_DAMAGED = "This photo is damaged: part of it is lost."
_OF_MANY = 3  # emotions for each of several faces


@dataclass(frozen=True)
class Answers:
    """A run that looks at a photo at a time; `reader` for a run of emotions, else None. `top` classes are named."""

    classifier: Classifier
    reader: EmotionReader | None
    top: int

    def answer(self, data: bytes) -> dict[str, Any]:
        """Answer a photo's bytes: `picture` (a data address), `subjects` of `title` and `choices`, and a `message`.

        Raises Rejected, a line for the user, where the photo cannot be used.
        """
        image, damage = _upright(data, self._least_edge())
        if self.reader is None:
            row = self.classifier.probabilities_of(self.classifier.views(image)[None])[0]
            choices = best_choices(row, self.classifier.classes, self.top)
            return {
                "picture": _shown(image.whole()),
                "subjects": [_subject("", choices)],
                "message": damage,
            }
        pixels = _searchable(image.whole())
        boxes = self.reader.detector.find(pixels)
        largest = sorted(boxes, key=lambda box: box.width, reverse=True)[:FACES_READ]
        faces = self.reader.read(pixels, sorted(largest))
        letters = max(12, min(max(pixels.shape) // _LETTERS_ACROSS, min(pixels.shape[:2]) // _LETTERS_DOWN))
        picture = _shown(draw_faces(pixels, faces, letters, panels=False))
        message = " ".join(filter(None, (damage, _message(len(boxes)))))
        return {"picture": picture, "subjects": _subjects(faces), "message": message}

    def view(self, data: bytes) -> tuple[Pixels, str]:
        """The view of a photo that the network sees, [1, height, width, channels], and a word on damage, or nothing.

        Threads may share it. Raises Rejected as `answer` does.
        """
        image, damage = _upright(data, least_edge_for(self.classifier.checkpoint.state))
        return self.classifier.views(image), damage

    def score(self, views: Pixels) -> Probabilities:
        """The probabilities [n, classes] of views [n, 1, height, width, channels]."""
        return self.classifier.probabilities_of(views)

    def choices(self, row: npt.NDArray[np.float64], top: int) -> list[dict[str, Any]]:
        """The `top` most probable classes of a row of probabilities, best first, as the verb predict has them."""
        named = best_choices(row, self.classifier.classes, top)
        return [{"class": choice.class_id, "name": choice.name, "probability": choice.probability} for choice in named]

    @property
    def together(self) -> int:
        """Photos that are computed at once, at most: no more than the recipe's batch."""
        on_cpu = all(name.startswith("cpu") for name in self.classifier.engine.device_names)
        return min(TOGETHER_ON_CPU if on_cpu else TOGETHER, self.classifier.images_together())

    @property
    def about(self) -> dict[str, Any]:
        """The run, its network, checkpoint and engine."""
        opened, engine = self.classifier.checkpoint, self.classifier.engine
        return {
            "name": self.classifier.run.resolve().name,
            "network": opened.state.network_name,
            "checkpoint": opened.folder.name,
            "engine": engine.name,
            "devices": list(engine.device_names),
            "precision": engine.precision,
            "classes": len(self.classifier.classes),
        }

    @property
    def title(self) -> str:
        """The network, its checkpoint and its input, for people."""
        state = self.classifier.checkpoint.state
        origin = f"epoch {state.epoch}" if state.epoch else self.classifier.engine.name
        return f"{state.network_name}, {origin}, {shown_size(state.input_size)} pixels"

    def _least_edge(self) -> int | None:
        """The shorter edge that a photo must keep, to be shown and read; faces are looked for in all of it."""
        return None if self.reader else max(SHOWN_PIXELS, least_edge_for(self.classifier.checkpoint.state))

    def warm_up(self) -> None:
        """Let the engine make ready what it makes ready at the first picture."""
        self.classifier.probabilities([np.zeros((64, 64, 3), np.uint8)])


def open_answers(run: Path, which: str = "best", overrides: dict[str, object] | None = None, top: int = 5) -> Answers:
    """Open a run's checkpoint, or an exported ONNX file.

    Of emotions it looks at the faces of a photo, of anything else at the whole photo.
    """
    calm()
    classifier = open_run_or_export(run, which, overrides)
    if classifier.classes.label_kind == "number":
        raise BadInput("the page names classes, and this run says numbers", where=run, advice="predict has them")
    reader = EmotionReader(classifier, FaceDetector()) if shows_emotions(classifier.classes) else None
    return Answers(classifier, reader, top)


def _upright(data: bytes, least_edge: int | None) -> tuple[LazyImage, str]:
    """A photo, upright, and a word on damage. Raises Rejected, a line for the user."""
    damage: list[str] = []
    try:
        image = upright_image(data, damage.append, least_edge)
    except Rejected as reason:
        raise Rejected(f"This cannot be used: {reason}. Photos are JPEG, PNG, WebP, BMP or TIFF.") from reason
    return image, _DAMAGED if damage else ""


def _searchable(pixels: Pixels) -> Pixels:
    scale = (SEARCHED_PIXELS / (pixels.shape[0] * pixels.shape[1])) ** 0.5
    if scale >= 1:
        return pixels
    return np.asarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)


def _shown(pixels: Pixels) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    return data_address(jpeg(picture, 90), "jpeg")


def _subjects(faces: Sequence[Face]) -> list[dict[str, Any]]:
    if len(faces) == 1:
        return [_subject("", faces[0].choices)]
    return [_subject(f"Face {number}", face.choices[:_OF_MANY]) for number, face in enumerate(faces, 1)]


def _message(found: int) -> str:
    if found > FACES_READ:
        return f"{found} faces; the {FACES_READ} largest, from the left."
    if found > 1:
        return f"{found} faces, from the left."
    return "" if found else "No face found. It looks for faces from the front."


def _subject(title: str, choices: tuple[Choice, ...]) -> dict[str, Any]:
    return {
        "title": title,
        "choices": [{"name": choice.name, "probability": choice.probability} for choice in choices],
    }
