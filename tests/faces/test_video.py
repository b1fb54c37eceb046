"""Frames of videos and cameras: all of them, in time, and one line where there are none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.faces.video import USUAL_RATE, Footage, open_camera, open_video

RATE = 12.5


def write_video(path: Path, frames: list[Any], codec: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), RATE, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames, 3.2 s, of reds that grow brighter."""
    frames = [np.full((48, 64, 3), (50 + 5 * number, 0, 0), np.uint8) for number in range(40)]
    return write_video(tmp_path_factory.mktemp("film") / "film.avi", frames)


class FakeCapture:
    """As many frames as given; None and empty arrays are what a dying camera gives."""

    def __init__(self, frames: list[Any], rate: float = 25.0, total: float = 0.0, step: float = 0.04) -> None:
        self.left, self.read_until_now, self.step = list(frames), 0, step
        self.facts = {cv2.CAP_PROP_FPS: rate, cv2.CAP_PROP_FRAME_COUNT: total}

    def read(self) -> tuple[bool, Any]:
        if not self.left:
            return False, None
        self.read_until_now += 1
        return True, self.left.pop(0)

    def get(self, fact: int) -> float:
        return (self.read_until_now - 1) * self.step * 1000 if fact == cv2.CAP_PROP_POS_MSEC else self.facts[fact]

    def release(self) -> None:
        pass


FRAME = np.zeros((4, 4, 3), np.uint8)


def test_a_video_gives_every_frame_in_rgb_with_its_time(film: Path) -> None:
    with open_video(film) as footage:
        frames = list(footage.frames())
        assert footage.missing() == ""
    assert (footage.rate, footage.total, footage.live) == (RATE, 40, False)
    assert [frame.number for frame in frames] == list(range(40))
    assert [frame.seconds for frame in frames] == pytest.approx([number / RATE for number in range(40)], abs=1e-3)
    for frame in frames:
        np.testing.assert_allclose(frame.pixels.mean(axis=(0, 1)), (50 + 5 * frame.number, 0, 0), atol=6)


def test_a_video_cut_short_gives_what_it_has_and_says_how_much(film: Path, tmp_path: Path) -> None:
    content = film.read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    with open_video(tmp_path / "cut.avi") as footage:
        read = len(list(footage.frames()))
        assert 0 < read < 40
        assert footage.missing() == f"it ends early: {read} of the 40 frames it states can be read"


@pytest.mark.parametrize(
    ("frames", "total", "step", "says"),
    [
        (100, 100, 0.04, ""),
        (99, 100, 0.04, ""),  # many states are one off
        (80, 100, 0.04, "80 of the 100"),
        (50, 100, 0.08, ""),  # fewer frames than its mean rate promised, to the same end
        (100, 0, 0.04, ""),  # it states nothing
        (100, 100, 0.0, ""),  # no times at all
        (60, 100, 0.0, "60 of the 100"),
    ],
)
def test_what_counts_as_cut_short(frames: int, total: int, step: float, says: str) -> None:
    footage = Footage(FakeCapture([FRAME] * frames, 25.0, total, step), "film", live=False)
    assert len(list(footage.frames())) == frames
    assert says in footage.missing()
    assert bool(says) == bool(footage.missing())


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 90_000.0])
def test_a_nonsensical_rate_is_the_usual_one(rate: float) -> None:
    assert Footage(FakeCapture([FRAME], rate), "film", live=False).rate == USUAL_RATE


@pytest.mark.parametrize("dead", [None, np.zeros((0, 0, 3), np.uint8)])
def test_a_camera_that_gives_empty_frames_has_ended(dead: Any) -> None:
    footage = Footage(FakeCapture([FRAME, FRAME, dead, FRAME]), "camera 0", live=True)
    assert len(list(footage.frames())) == 2
    assert "no more pictures" in footage.missing()
    with pytest.raises(BadInput, match="camera 0: the camera gives no picture"):
        list(Footage(FakeCapture([dead]), "camera 0", live=True).frames())


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty file"), (b"no video", "neither"), (b"RIFF" + bytes(2000), "neither"), (os.urandom(5000), "neither")],
)
def test_what_is_no_video_is_one_line(
    tmp_path: Path, content: bytes, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "film.mp4").write_bytes(content)
    with pytest.raises(BadInput, match=says):
        open_video(tmp_path / "film.mp4")
    assert capfd.readouterr().err == ""


def test_half_an_mp4_whose_index_came_last_is_one_line(
    tmp_path: Path, two_faces: Callable[[int], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    whole = write_video(tmp_path / "whole.mp4", [two_faces(n) for n in range(8)], "mp4v").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="neither a readable picture nor a readable video"):
        open_video(tmp_path / "half.mp4")
    assert capfd.readouterr().err == ""


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(BadInput, match="regular file"):
        open_video(tmp_path / "pipe.mp4")


def test_a_camera_that_does_not_exist_is_one_line_and_no_noise(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="camera 97: the camera does not exist"):
        open_camera(97)
    assert capfd.readouterr().err == ""
