"""Video in and out: frames of a file or a camera (FFmpeg and V4L2 inside OpenCV's wheel), files, a window.

A written video appears whole under its name, or not at all. A window needs a screen and an OpenCV that can open
windows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, OutOfRoom
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import AREA_LIMIT_PIXELS, silence_opencv

USUAL_RATE = 25.0
"""Frames a second where the source does not say, or says nonsense."""
_RATES = (0.1, 1000.0)
SECONDS_MISSING = 0.5
"""A video whose last frame comes this much before the end it states is cut short: many states are a little off."""


@dataclass(frozen=True)
class Frame:
    """One frame, RGB [H, W, 3], its number from 0 and when it is, in seconds from the first."""

    number: int
    seconds: float
    pixels: Pixels


class Footage:
    """An open video or camera. `rate` is frames a second, `total` how many frames it states (0: unknown)."""

    def __init__(self, capture: cv2.VideoCapture, name: str, live: bool) -> None:
        self._capture, self.name, self.live = capture, name, live
        rate = capture.get(cv2.CAP_PROP_FPS)
        self.rate = float(rate) if _RATES[0] <= rate <= _RATES[1] else USUAL_RATE
        total = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.total = int(total) if not live and 0 < total < 1e9 else 0
        self._read, self._last_seconds = 0, 0.0

    def __enter__(self) -> Footage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.release()

    def frames(self) -> Iterator[Frame]:
        """The frames to the end, or as far as they can be read. Raises BadInput if there is none."""
        started = time.monotonic()
        while True:
            got, pixels = self._capture.read()
            if not got or pixels is None or not pixels.size:
                break
            stated = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            self._last_seconds = max(stated, self._read / self.rate)
            seconds = time.monotonic() - started if self.live else stated or self._read / self.rate
            yield Frame(self._read, seconds, np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8))
            self._read += 1
        if not self._read:
            raise BadInput(
                "the camera gives no picture" if self.live else "no frame of the video can be read", where=self.name
            )

    def missing(self) -> str:
        """The fault in where the video ended, once its last frame is read; empty where there is none."""
        if self.live:
            return "the camera gives no more pictures"
        if self._read < self.total and self._last_seconds + SECONDS_MISSING < (self.total - 1) / self.rate:
            return f"it ends early: {self._read:,} of the {self.total:,} frames it states can be read"
        return ""


def open_video(path: Path) -> Footage:
    """Open a video file. Raises BadInput where it is no readable video, or has frames beyond the limit of pictures."""
    with files.regular_file(path) as (_, size_bytes):
        if not size_bytes:
            raise BadInput("empty file", where=path)
    silence_opencv()  # as with FFmpeg
    # By its full path, so that no name is taken for an address or a pattern.
    capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if not capture.isOpened() or not width * height:
        raise BadInput("the file is neither a readable picture nor a readable video", where=path)
    if width * height > AREA_LIMIT_PIXELS:
        found = f"{width:.0f} x {height:.0f}"
        raise BadInput(
            "the video is too large",
            where=path,
            expected=f"frames of at most {AREA_LIMIT_PIXELS:,} pixels",
            found=found,
        )
    return Footage(capture, str(path), live=False)


def open_camera(number: int) -> Footage:
    """Open a camera by its number, 0 the first. Raises BadInput where there is none, or another program has it."""
    silence_opencv()
    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        there = sorted(str(path) for path in Path("/dev").glob("video*"))
        found = ", ".join(there) or "no camera on this machine"
        raise BadInput("the camera does not exist, or another program uses it", where=f"camera {number}", found=found)
    return Footage(capture, f"camera {number}", live=True)


VIDEO_ENDINGS = (".mp4", ".mov", ".mkv", ".avi")
_CODEC = "mp4v"  # MPEG-4 part 2: the codec in OpenCV's wheel that is quick and fits all four endings


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
                raise BadInput("the video cannot be written", where=self._path.name, found=found)
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
    """Open a video to write; it appears under its name when the block ends well and a frame was added.

    Raises BadRecipe for a name without any of VIDEO_ENDINGS, OutOfRoom where the disk is full.
    """
    if path.suffix.lower() not in VIDEO_ENDINGS:
        raise BadRecipe("the name does not suit a video", where=path, expected=" ".join(VIDEO_ENDINGS))
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
    decimals = next((digits for digits in (3, 2) if rate * 10**digits < 2**16 - 1), 1)
    return round(rate, decimals)


log = logging.getLogger("imagenet_pipeline")

_TITLE = "emotions - q ends"
_ENDING_KEYS = (ord("q"), 27)


class Window:
    """Shows frames as they come, or nothing at all where no window can be had."""

    def __init__(self, wanted: bool = True) -> None:
        self.open = wanted and bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
        if not self.open:
            return
        try:
            cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL)
        except cv2.error:
            self.open = False
            log.info("no window: opencv-python-headless has none")

    def show(self, pixels: Pixels, wait_milliseconds: int = 1) -> bool:
        """Show an RGB picture [H, W, 3] for at least so long, 0 until a key; False once q or Escape was pressed."""
        if not self.open:
            return True
        cv2.imshow(_TITLE, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(wait_milliseconds) & 0xFF not in _ENDING_KEYS

    def close(self) -> None:
        """Take it away."""
        if self.open:
            with contextlib.suppress(cv2.error):
                cv2.destroyWindow(_TITLE)
