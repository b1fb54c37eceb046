"""Writing a video that appears whole under its name, or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, OutOfRoom
from imagenet_pipeline.loading.transforms import Pixels

VIDEO_ENDINGS = (".mp4", ".mov", ".mkv", ".avi")
_CODEC = "mp4v"  # MPEG-4 part 2: of those in OpenCV's wheel the one that is quick and fits all four


class VideoFile:
    """A video of `rate` frames a second (0.1 to 1,000) being written; the first frame sets its size.

    Of an odd width or height a pixel is lost on the right or below: the codec halves colour.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, _writable(rate)
        self._writer: cv2.VideoWriter | None = None
        self.frames = 0

    def add(self, pixels: Pixels) -> None:
        """Append a frame, RGB [H, W, 3]. Raises BadInput if no video of its size can be begun."""
        height, width = pixels.shape[:2]
        if self._writer is None:
            code = cv2.VideoWriter.fourcc(*_CODEC)
            self._writer = cv2.VideoWriter(str(self._path), cv2.CAP_FFMPEG, code, self._rate, (width, height))
            if not self._writer.isOpened():
                found = f"{width} x {height} pixels, {self._rate:g} frames a second"
                raise BadInput("no video can be begun", where=self._path.name, found=found)
        self._writer.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def close(self) -> None:
        """Let go of the file."""
        if self._writer is not None:
            self._writer.release()

    def finish(self) -> None:
        """Close it and count what arrived, since the writer keeps silent about a full disk. Raises OutOfRoom."""
        self.close()
        capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        written = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        if written < self.frames:
            what = f"only {written:,} of {self.frames:,} frames of the video arrived on the disk"
            raise OutOfRoom(what, where=self._path, advice="free some room")


@contextlib.contextmanager
def whole_video(path: Path, rate: float) -> Iterator[VideoFile]:
    """Open a video to write; it takes its place when the block ends well and a frame was added.

    Raises BadRecipe for a name without one of VIDEO_ENDINGS, OutOfRoom where the disk is full.
    """
    if path.suffix.lower() not in VIDEO_ENDINGS:
        raise BadRecipe("no video is written under this name", where=path, expected=" ".join(VIDEO_ENDINGS))
    with files.part_folder(path) as part:
        video = VideoFile(part / path.name, rate)
        try:
            yield video
        finally:
            video.close()
        if video.frames:
            video.finish()
            files.adopt(part / path.name, path)


def _writable(rate: float) -> float:
    """The rate as near as it can be written: OpenCV makes a fraction of up to three decimals of it.

    MPEG-4 has 16 bits for that fraction's numerator (ISO/IEC 14496-2, vop_time_increment_resolution).
    """
    decimals = next((places for places in (3, 2) if rate * 10**places < 2**16 - 1), 1)
    return round(rate, decimals)
