"""Detections as JSON lines: an object a frame, also for a frame without a face."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from imagenet_pipeline import files
from imagenet_pipeline.faces.emotions import Face


class DetectionLines:
    """Writes a line for each frame: where it is from, and exactly the faces that were drawn on it.

    `{"source", "frame", "seconds", "looked", "faces": [{"x", "y", "width", "height", "emotion", "probability",
    "probabilities": {emotion: probability}}]}`: pixels of the source; `looked` is false where the boxes are those of
    an earlier frame.
    """

    def __init__(self, stream: BinaryIO | None) -> None:
        self._stream = stream

    def add(self, source: str, frame: int, seconds: float, faces: Sequence[Face], looked: bool = True) -> None:
        """Append a frame's line."""
        if self._stream:
            line = {"source": source, "frame": frame, "seconds": round(seconds, 3), "looked": looked}
            self._stream.write(json.dumps(line | {"faces": [_plain(face) for face in faces]}).encode() + b"\n")


@contextlib.contextmanager
def detection_lines(path: Path | None) -> Iterator[DetectionLines]:
    """Open the lines of a run of the detector; the file appears when the block ends well. None writes nothing."""
    if path is None:
        yield DetectionLines(None)
        return
    with files.whole_file(path) as stream:
        yield DetectionLines(stream)


def _plain(face: Face) -> dict[str, Any]:
    box, best = face.box, face.best
    return {
        "x": box.left,
        "y": box.top,
        "width": box.width,
        "height": box.height,
        "emotion": best.class_id,
        "probability": best.probability,
        "probabilities": {choice.class_id: choice.probability for choice in face.choices},
    }
