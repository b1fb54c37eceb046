"""From pictures, a video or a camera to the same with boxes and emotions, and their detections as JSON lines."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.picture_sources import find_pictures
from imagenet_pipeline.evaluation.predict import read_naming_damage
from imagenet_pipeline.evaluation.predict_pictures import free_name
from imagenet_pipeline.faces.drawing import draw_faces, draw_picture
from imagenet_pipeline.faces.emotions import EmotionReader, Face
from imagenet_pipeline.faces.left_parts import remove_left_parts
from imagenet_pipeline.faces.lines import DetectionLines, detection_lines
from imagenet_pipeline.faces.source import PICTURE_ENDINGS, Source
from imagenet_pipeline.faces.video import Footage, open_camera, open_video
from imagenet_pipeline.faces.video_file import whole_video
from imagenet_pipeline.faces.window import Window
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.image import Rejected
from imagenet_pipeline.training.interruption import Interruption

log = logging.getLogger("imagenet_pipeline")


@dataclass
class Tally:
    """What was done. `faces` counts boxes drawn, `looked_at` pictures or frames that the network saw.

    `trouble` says why it ended before its time, `interrupted` that somebody wanted it to.
    """

    pictures: int = 0
    looked_at: int = 0
    faces: int = 0
    without_faces: int = 0
    seconds: float = 0.0
    trouble: str = ""
    interrupted: bool = False
    unreadable: list[str] = field(default_factory=list)

    @property
    def pictures_per_second(self) -> float:
        """From the first picture read to the last one written."""
        return self.pictures / self.seconds if self.seconds else 0.0

    def add(self, faces: Sequence[Face], looked: bool) -> None:
        """Count a picture or frame."""
        self.pictures += 1
        self.looked_at += looked
        self.faces += len(faces)
        self.without_faces += not faces


def annotate(
    reader: EmotionReader,
    source: Source,
    out: Path | None,
    lines: Path | None,
    window: Window,
    every: int = 1,
    limit: int = 0,
) -> Tally:
    """Draw the faces of a source, write `out` and the JSON `lines`, and show it; None is not written.

    Raises BadInput for a source that cannot be read at all, BadRecipe where nothing would come of it.
    """
    match source.kind:
        case "picture":
            return annotate_picture(reader, source.path, out, lines, window)
        case "folder":
            return annotate_folder(reader, source.path, out, lines)
    with open_camera(source.camera) if source.kind == "camera" else open_video(source.path) as footage:
        if not (out or lines or window.open):
            raise BadRecipe("nothing would come of it", where=footage.name, advice="name --out or --json-lines")
        return annotate_footage(reader, footage, out, lines, window, every, limit)


def annotate_picture(reader: EmotionReader, path: Path, out: Path | None, lines: Path | None, window: Window) -> Tally:
    """Write a picture with its faces boxed to `out`, PNG or JPEG. Raises BadInput where it cannot be read."""
    tally, started = Tally(), time.monotonic()
    remove_left_parts((out, lines))
    with detection_lines(lines) as detections:
        try:
            drawn = _draw_picture(reader, path, path.name, out, detections, tally)
        except Rejected as reason:
            raise BadInput(f"cannot be used ({reason})", where=path) from reason
    tally.seconds = time.monotonic() - started
    window.show(drawn, 0)
    return tally


def annotate_folder(reader: EmotionReader, folder: Path, out: Path | None, lines: Path | None) -> Tally:
    """Write every picture below `folder` to the same place below `out`; one that cannot be read is counted.

    What is neither PNG nor JPEG gets ".png" added. Raises BadInput where there are no pictures, BadRecipe where the
    lines would be written over one.
    """
    tally, started = Tally(), time.monotonic()
    paths = find_pictures([folder], Path())
    copies = _copies(paths, folder, out)
    files.require_separate((lines, *copies), paths)
    remove_left_parts((lines, *copies))
    with detection_lines(lines) as detections, Bar("emotion", "pictures") as bar:
        for done, (path, copy) in enumerate(zip(paths, copies, strict=True), 1):
            try:
                _draw_picture(reader, path, str(path.relative_to(folder)), copy, detections, tally)
            except Rejected as reason:
                tally.unreadable.append(str(path))
                log.info("%s: not read: %s", path, reason)
            bar.show(done, len(paths))
    tally.seconds = time.monotonic() - started
    return tally


def _answer(how: str) -> str:
    return f"stopping: what was annotated is kept; {how} again ends at once and loses it"


def annotate_footage(
    reader: EmotionReader,
    footage: Footage,
    out: Path | None,
    lines: Path | None,
    window: Window,
    every: int = 1,
    limit: int = 0,
) -> Tally:
    """Write a video or what a camera sees, at its own size and rate, to `out`; it looks at every so many frames.

    The frames between keep the boxes of the one before. Ends after `limit` frames (0: never), when the window is
    closed with q, and on Ctrl-C; what was annotated until then, or until the video breaks off, is kept.
    """
    tally, started = Tally(), time.monotonic()
    faces: list[Face] = []
    remove_left_parts((out, lines))
    total = min(limit or footage.total, footage.total or limit)
    with ExitStack() as stack:
        video = stack.enter_context(whole_video(out, footage.rate)) if out else None
        detections = stack.enter_context(detection_lines(lines))
        bar = stack.enter_context(Bar("emotion", "frames", shown=total > 0))
        asked = stack.enter_context(Interruption(_answer))
        for frame in footage.frames():
            looked = frame.number % every == 0
            faces = reader.look(frame.pixels) if looked else faces
            drawn = draw_faces(frame.pixels, faces)
            if video:
                video.add(drawn)
            detections.add(footage.name, frame.number, frame.seconds, faces, looked)
            tally.add(faces, looked)
            bar.show(tally.pictures, total)
            tally.interrupted = asked.asked
            if asked.asked or not window.show(drawn) or tally.pictures == limit:
                break
        else:
            tally.trouble = footage.missing()
    tally.seconds = time.monotonic() - started
    return tally


def _copies(paths: Sequence[Path], folder: Path, out: Path | None) -> list[Path | None]:
    """Where the annotated copy of each picture goes."""
    if out is None:
        return [None] * len(paths)
    names = [str(path.relative_to(folder)) for path in paths]
    taken = set(names)
    return [out / free_name(name, tuple(PICTURE_ENDINGS), taken) for name in names]


def _draw_picture(
    reader: EmotionReader, path: Path, name: str, out: Path | None, detections: DetectionLines, tally: Tally
) -> Pixels:
    pixels = read_naming_damage(path)
    faces = reader.look(pixels)
    drawn = draw_picture(pixels, faces)
    if out:
        files.write_whole(out, _encoded(drawn, PICTURE_ENDINGS[out.suffix.lower()]))
    detections.add(name, tally.pictures, 0.0, faces)
    tally.add(faces, looked=True)
    return drawn


def _encoded(pixels: Pixels, form: str) -> bytes:
    encoded = io.BytesIO()
    try:
        Image.fromarray(pixels).save(encoded, form, quality=95)
    except (OSError, ValueError) as error:
        height, width = pixels.shape[:2]
        raise Rejected(f"with its boxes, {width} x {height} pixels, it cannot be written as {form}") from error
    return encoded.getvalue()
