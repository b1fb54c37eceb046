"""What the user points at, and where what comes of it goes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.faces.video_file import VIDEO_ENDINGS
from imagenet_pipeline.records.image import Rejected, read_header
from imagenet_pipeline.records.image_files import READ_ENDINGS
from imagenet_pipeline.records.shard import read_image_file

Kind = Literal["picture", "folder", "video", "camera"]
PICTURE_ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""What annotated pictures are written as."""
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


def places(source: Source, out: Path | None, lines: Path | None) -> tuple[Path | None, Path | None]:
    """Where the annotated copy and the JSON lines go: by default NAME-emotion in this folder, the lines beside it.

    Of a camera only what is asked for is kept. Raises BadRecipe for a name that says another kind of file, and where
    the source would be written over, or both into one file.
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
        raise BadRecipe(f"a {source.kind} is not written under this name", where=out, expected=" ".join(endings))
    if source.kind == "folder" and out.resolve().is_relative_to(source.path.resolve()):
        raise BadRecipe("would be written over or into the source", where=out, advice="name another --out")


def _ending(source: Source) -> str:
    """That of the source if it is one that can be written."""
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
