"""A video is there whole or not at all, with every frame."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput, BadRecipe, OutOfRoom
from imagenet_pipeline.faces.video import VIDEO_ENDINGS, open_video, whole_video

FRAME = np.full((48, 64, 3), (200, 40, 40), np.uint8)


@pytest.mark.parametrize("ending", [*VIDEO_ENDINGS, ".MP4"])
@pytest.mark.parametrize("rate", [5.0, 25.0, 29.97])
def test_size_rate_frames_and_colours_come_back(tmp_path: Path, ending: str, rate: float) -> None:
    path = tmp_path / "new" / f"film{ending}"
    with whole_video(path, rate) as video:
        for _ in range(7):
            video.add(FRAME)
    with open_video(path) as footage:
        frames = list(footage.frames())
    assert footage.rate == pytest.approx(rate, rel=1e-3)
    assert len(frames) == 7
    assert frames[3].pixels.shape == FRAME.shape
    np.testing.assert_allclose(frames[3].pixels.mean(axis=(0, 1)), FRAME[0, 0], atol=6)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@settings(max_examples=25)
@given(st.floats(0.1, 1000.0))
@example(65.5351)
@example(66.123)
@example(99.999)
@example(239.917)
@example(655.351)
@example(999.999)
def test_any_rate_can_be_written(tmp_path_factory: pytest.TempPathFactory, rate: float) -> None:
    folder = tmp_path_factory.getbasetemp()
    for ending in VIDEO_ENDINGS:
        with whole_video(folder / f"rate{ending}", rate) as video:
            video.add(FRAME)
        with open_video(folder / f"rate{ending}") as footage:
            assert footage.rate == pytest.approx(rate, rel=1e-4, abs=2e-3)


def test_a_video_that_cannot_be_begun_is_told_with_its_rate(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot be written; found 64 x 48 pixels, 70000 frames a second"):  # noqa: SIM117
        with whole_video(tmp_path / "film.mp4", 70_000) as video:
            video.add(FRAME)


def test_of_an_odd_size_a_pixel_is_lost(tmp_path: Path) -> None:
    with whole_video(tmp_path / "film.mp4", 25.0) as video:
        video.add(np.zeros((49, 65, 3), np.uint8))
    with open_video(tmp_path / "film.mp4") as footage:
        assert next(footage.frames()).pixels.shape == (48, 64, 3)


def test_a_failure_leaves_the_earlier_video_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"earlier")
    with pytest.raises(RuntimeError, match="on the way"), whole_video(path, 25.0) as video:  # noqa: PT012
        video.add(FRAME)
        raise RuntimeError("on the way")
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_no_frame_is_no_video(tmp_path: Path) -> None:
    with whole_video(tmp_path / "film.mp4", 25.0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_frames_that_did_not_arrive_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with pytest.raises(OutOfRoom, match=r"film\.mp4: only 3 of 4 frames"), whole_video(path, 25.0) as video:  # noqa: PT012
        for _ in range(3):
            video.add(FRAME)
        video.frames += 1  # as when the disk is full: the writer says nothing
    assert list(tmp_path.iterdir()) == []


def test_names_and_places_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"film\.webm.*\.mp4 \.mov"), whole_video(tmp_path / "film.webm", 25.0):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"), whole_video(tmp_path / "file" / "film.mp4", 25.0):
        pass


def test_the_wheel_still_has_the_codec() -> None:
    # avc1 would play in browsers, but there is no encoder for it in OpenCV's wheel.
    assert "FFMPEG:                      YES" in cv2.getBuildInformation()
