"""Annotate pictures, a video or a camera with boxes and emotions, and write the detections as JSON lines.

A JSON line is an object a frame, also for a frame without a face. Sources and default outputs are settled here too.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import Image

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.predict import find_pictures, read_naming_damage
from imagenet_pipeline.evaluation.predict_pictures import free_name
from imagenet_pipeline.faces.drawing import draw_faces, draw_picture
from imagenet_pipeline.faces.emotions import EmotionReader, Face
from imagenet_pipeline.faces.video import VIDEO_ENDINGS, Footage, Window, open_camera, open_video, whole_video
from imagenet_pipeline.files import remove_left_parts
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.processes import Interruption
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.image import Rejected, read_header
from imagenet_pipeline.records.image_files import READ_ENDINGS
from imagenet_pipeline.records.shard import read_image_file

log = logging.getLogger("imagenet_pipeline")


@dataclass
class Tally:
    """Counts of a finished annotation: `faces` are boxes drawn, `looked_at` pictures or frames that the network saw.

    `trouble` says why it ended early; `interrupted` is true where somebody stopped it.
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
        """Pictures or frames a second, from the first read to the last written."""
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

    Raises BadInput for a source that cannot be read at all, BadRecipe where it would be neither written nor shown.
    """
    match source.kind:
        case "picture":
            return annotate_picture(reader, source.path, out, lines, window)
        case "folder":
            return annotate_folder(reader, source.path, out, lines)
    with open_camera(source.camera) if source.kind == "camera" else open_video(source.path) as footage:
        if not (out or lines or window.open):
            raise BadRecipe(
                "the camera's pictures would be neither written nor shown",
                where=footage.name,
                advice="name --out or --json-lines",
            )
        return annotate_footage(reader, footage, out, lines, window, every, limit)


def annotate_picture(reader: EmotionReader, path: Path, out: Path | None, lines: Path | None, window: Window) -> Tally:
    """Write a picture with its faces boxed to `out`, PNG or JPEG. Raises BadInput where it cannot be read."""
    tally, started = Tally(), time.monotonic()
    remove_left_parts((out, lines))
    with detection_lines(lines) as detections:
        try:
            drawn = _draw_picture(reader, path, path.name, out, detections, tally)
        except Rejected as reason:
            raise BadInput(f"the picture cannot be used ({reason})", where=path) from reason
    tally.seconds = time.monotonic() - started
    window.show(drawn, 0)
    return tally


def annotate_folder(reader: EmotionReader, folder: Path, out: Path | None, lines: Path | None) -> Tally:
    """Write every picture below `folder` to the same path below `out`; unreadable pictures are counted.

    A picture that is neither PNG nor JPEG gets ".png" added. Raises BadInput where there are no pictures, BadRecipe
    where the lines would be written over a picture.
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

    The frames between keep the boxes of the frame before. Ends after `limit` frames (0: never), when the window is
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
    """The file of each picture's annotated copy."""
    if out is None:
        return [None] * len(paths)
    names = [str(path.relative_to(folder)) for path in paths]
    taken = set(names)
    return [out / free_name(name, tuple(PICTURE_ENDINGS), taken) for name in names]


def _draw_picture(
    reader: EmotionReader, path: Path, name: str, out: Path | None, detections: DetectionLines, tally: Tally
) -> Pixels:
    pixels = read_naming_damage(path).whole()
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


Kind = Literal["picture", "folder", "video", "camera"]
PICTURE_ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""Formats of annotated pictures, by the ending of the name."""
_CAMERA = re.compile(r"(?:camera:?)?(\d{0,3})")


@dataclass(frozen=True)
class Source:
    """A picture, a folder of pictures, a video, or the camera of this number; a camera's path is only a name."""

    kind: Kind
    path: Path
    camera: int = 0


def parse_source(word: str) -> Source:
    """Understand "camera", "camera:1" or "1" as a camera, anything else as a path; a file is what its content is.

    Raises BadInput where there is nothing under the path.
    """
    number = _CAMERA.fullmatch(word)
    if number and word:
        return Source("camera", Path("camera"), int(number[1] or 0))
    path = Path(word)
    if not os.path.exists(path):
        expected = "a picture, a folder, a video, camera or camera:NUMBER"
        raise BadInput("no such picture, folder or video", where=word, expected=expected)
    if os.path.isdir(path):
        return Source("folder", path)
    return Source("picture" if _is_picture(path) else "video", path)


def output_paths(source: Source, out: Path | None, lines: Path | None) -> tuple[Path | None, Path | None]:
    """Choose the paths of the annotated copy (by default NAME-emotion in this folder) and, beside it, the JSON lines.

    A camera's pictures are kept only where `out` is given. Raises BadRecipe for a name that says another kind of file,
    and where the source, or either of both files, would be written over.
    """
    ending = _ending(source)
    if out is None and source.kind != "camera":
        out = Path(f"{source.path.resolve().stem}-emotion{ending}")
    elif out is not None and os.path.isdir(out) and source.kind != "folder":
        out = out / f"{source.path.stem}-emotion{ending}"
    if out is not None:
        _check(source, out)
        lines = lines or (out / "emotions.jsonl" if source.kind == "folder" else out.with_suffix(".jsonl"))
    files.require_separate((out, lines), () if source.kind == "camera" else (source.path,))
    return out, lines


def _check(source: Source, out: Path) -> None:
    endings = {"picture": tuple(PICTURE_ENDINGS), "folder": ()}.get(source.kind, VIDEO_ENDINGS)
    if endings and out.suffix.lower() not in endings:
        raise BadRecipe(f"the name does not suit a {source.kind}", where=out, expected=" ".join(endings))
    if source.kind == "folder" and out.resolve().is_relative_to(source.path.resolve()):
        raise BadRecipe(
            "the annotated copy would be written over or into its source", where=out, advice="name another --out"
        )


def _ending(source: Source) -> str:
    """The ending of the source's name if it can be written."""
    ending = source.path.suffix
    known = {"picture": (tuple(PICTURE_ENDINGS), ".png"), "folder": ((), "")}
    writable, otherwise = known.get(source.kind, (VIDEO_ENDINGS, ".mp4"))
    return ending if ending.lower() in writable else otherwise


def _is_picture(path: Path) -> bool:
    if path.suffix.lower() in READ_ENDINGS:
        return True
    try:
        read_header(read_image_file(Path(), str(path), follow_links=True))
    except Rejected:
        return False
    return True
