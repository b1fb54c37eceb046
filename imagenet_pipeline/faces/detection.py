"""Where the faces in a picture are.

The detector is OpenCV's Haar cascade `frontalface_alt` (Lienhart, Kuranov and Pisarevsky 2003), whose file comes inside
the opencv-python-headless that is needed anyway. FER2013's faces were cut by OpenCV's detector too (Goodfellow et al.
2013, "Challenges in representation learning"), so its boxes are what the networks were trained on. On 116 faces of
FER2013 pasted into photos, and 150 photos without faces, each with five agreeing windows, `alt` found 71 % with 0.03
false boxes a photo, `default` 71 % with 0.10, `alt2` 72 % with 0.05. Newer detectors (YuNet, BlazeFace) are better at
profiles, but no maintained package was found that carries a model beside numpy < 2 and without a second OpenCV.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2

from imagenet_pipeline.errors import Damaged
from imagenet_pipeline.loading.transforms import Box, Pixels

SMALLEST_FACE_PIXELS = 30
"""The cascade's own window has 20; below 30 there is nothing left to read in a face."""
_FACES_ACROSS = 32
_PYRAMID_STEP = 1.1
_AGREEING_WINDOWS = 5


class FaceDetector:
    """Finds frontal faces at least `smallest` pixels wide; 0 is a 32nd of the root of the area, but 30 pixels or more.

    That default makes the search as long for a large picture, of any shape, as for one of 1280 x 720. One thread at a
    time may use it.
    """

    def __init__(self, smallest: int = 0) -> None:
        self._smallest = smallest
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
