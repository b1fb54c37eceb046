"""Pictures, videos and cameras annotated: what is written down is what is drawn."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.faces import annotate as annotating
from imagenet_pipeline.faces.annotate import Source, annotate, annotate_footage
from imagenet_pipeline.faces.drawing import BOX_COLOUR
from imagenet_pipeline.faces.emotions import EmotionReader, open_emotion_reader
from imagenet_pipeline.faces.video import Footage, Frame, Window, open_video, whole_video
from imagenet_pipeline.loading.reduced import upright_image

pytestmark = pytest.mark.faces

UNSEEN = Window(wanted=False)
WITH_FACES, FRAMES = 6, 9


@pytest.fixture(scope="module")
def reader(emotion_run: Path) -> EmotionReader:
    return open_emotion_reader(emotion_run)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory, two_faces: Callable[[int], Any]) -> Path:
    """Six frames of two faces that move, three of none; 12.5 a second."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with whole_video(path, 12.5) as video:
        for number in range(FRAMES):
            video.add(two_faces(6 * number) if number < WITH_FACES else np.full((360, 640, 3), 128, np.uint8))
    return path


def boxes_drawn(pixels: Any) -> list[tuple[int, int, int, int]]:
    """The outlines in a picture, exactly."""
    return outlines((pixels == BOX_COLOUR).all(axis=2))


def boxes_in_frame(pixels: Any) -> list[tuple[int, int, int]]:
    """Left, right and lower edge of the outlines in a frame, whose colours and thin lines compression has changed.

    Above, an outline may run into its label; one that is broken comes in pieces that overlap as rectangles.
    """
    hue, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
    near = (cv2.absdiff(hue, np.full_like(hue, 81)) < 10) & (saturation > 110) & (value > 180)
    closed = cv2.morphologyEx(near.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    for x, y, width, height in outlines(closed):
        closed[y : y + height, x : x + width] = 1
    return [(x, x + width, y + height) for x, y, width, height in outlines(closed)]


def outlines(mask: Any) -> list[tuple[int, int, int, int]]:
    count, _, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return sorted((int(x), int(y), int(w), int(h)) for x, y, w, h, _ in figures[1:count] if min(w, h) > 30)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def frames_of(path: Path) -> list[Frame]:
    with open_video(path) as footage:
        return list(footage.frames())


@pytest.mark.parametrize("every", [1, 4])
def test_the_lines_of_a_video_are_the_boxes_drawn_on_it(
    reader: EmotionReader, film: Path, tmp_path: Path, every: int
) -> None:
    out, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    tally = annotate(reader, Source("video", film), out, lines, UNSEEN, every)
    written, drawn = lines_of(lines), frames_of(out)
    with open_video(out) as footage:
        assert (footage.rate, footage.total) == (12.5, FRAMES)
    assert [line["frame"] for line in written] == list(range(FRAMES))
    assert [line["looked"] for line in written] == [number % every == 0 for number in range(FRAMES)]
    expected = {1: [2] * 6 + [0] * 3, 4: [2] * 8 + [0]}[every]
    assert [len(line["faces"]) for line in written] == expected
    for line, frame in zip(written, drawn, strict=True):
        assert line["seconds"] == pytest.approx(line["frame"] / 12.5, abs=2e-3)
        stated = [(face["x"], face["x"] + face["width"], face["y"] + face["height"]) for face in line["faces"]]
        found = boxes_in_frame(frame.pixels)
        assert len(found) == len(stated)
        np.testing.assert_allclose(np.reshape(found, (-1, 3)), np.reshape(stated, (-1, 3)), atol=3)
        for face in line["faces"]:
            assert face["probability"] == max(face["probabilities"].values())
            assert face["probabilities"][face["emotion"]] == face["probability"]
            assert sum(face["probabilities"].values()) == pytest.approx(1)
    assert (tally.pictures, tally.faces, tally.trouble) == (FRAMES, sum(expected), "")
    assert tally.looked_at == -(-FRAMES // every)
    assert tally.without_faces == expected.count(0)
    assert tally.pictures_per_second > 0


def test_a_limit_ends_it_in_good_order(reader: EmotionReader, film: Path, tmp_path: Path) -> None:
    tally = annotate(reader, Source("video", film), tmp_path / "out.mp4", tmp_path / "o.jsonl", UNSEEN, 2, limit=3)
    assert (tally.pictures, tally.looked_at, tally.trouble, tally.interrupted) == (3, 2, "", False)
    assert len(lines_of(tmp_path / "o.jsonl")) == len(frames_of(tmp_path / "out.mp4")) == 3


def test_of_a_video_cut_short_what_was_annotated_is_kept(
    reader: EmotionReader, two_faces: Callable[[int], Any], tmp_path: Path
) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (640, 360))
    for number in range(10):
        writer.write(cv2.cvtColor(two_faces(number), cv2.COLOR_RGB2BGR))
    writer.release()
    content = (tmp_path / "film.avi").read_bytes()
    (tmp_path / "film.avi").write_bytes(content[: len(content) * 4 // 10])
    tally = annotate(reader, Source("video", tmp_path / "film.avi"), tmp_path / "o.mp4", tmp_path / "o.jsonl", UNSEEN)
    assert "ends early" in tally.trouble
    assert 0 < tally.pictures < 6
    assert len(lines_of(tmp_path / "o.jsonl")) == len(frames_of(tmp_path / "o.mp4")) == tally.pictures


class Camera:
    """A film for ever; the signal comes while a frame of it is read."""

    def __init__(self, pixels: Any, signal_at: int = 0) -> None:
        self.released = False
        self.pixels, self.count, self.signal_at = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), 0, signal_at

    def read(self) -> tuple[bool, Any]:
        self.count += 1
        if self.count == self.signal_at:
            os.kill(os.getpid(), signal.SIGINT)
        return True, self.pixels

    def get(self, _: int) -> float:
        return 30.0

    def release(self) -> None:
        self.released = True


def test_ctrl_c_before_a_camera_keeps_what_there_is(
    reader: EmotionReader, two_faces: Callable[[int], Any], tmp_path: Path
) -> None:
    footage = Footage(Camera(two_faces(0), signal_at=3), "camera 0", live=True)
    tally = annotate_footage(reader, footage, tmp_path / "o.mp4", tmp_path / "o.jsonl", UNSEEN, every=5)
    assert (tally.pictures, tally.interrupted, tally.trouble) == (3, True, "")
    assert len(lines_of(tmp_path / "o.jsonl")) == len(frames_of(tmp_path / "o.mp4")) == 3


def test_closing_the_window_ends_it(reader: EmotionReader, two_faces: Callable[[int], Any], tmp_path: Path) -> None:
    class ClosedAtTheSecond(Window):
        shown = 0

        def show(self, pixels: Any, wait_milliseconds: int = 1) -> bool:
            self.shown += 1
            return self.shown < 2

    footage = Footage(Camera(two_faces(0)), "camera 0", live=True)
    tally = annotate_footage(reader, footage, None, None, ClosedAtTheSecond(), every=5)
    assert (tally.pictures, tally.interrupted) == (2, False)
    assert list(tmp_path.iterdir()) == []


def write_png(path: Path, pixels: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes())
    return path


@pytest.mark.parametrize("faces", [0, 2])
def test_a_picture(reader: EmotionReader, two_faces: Callable[[int], Any], tmp_path: Path, faces: int) -> None:
    scene = two_faces(0) if faces else np.full((300, 400, 3), 128, np.uint8)
    source = Source("picture", write_png(tmp_path / "scene.png", scene))
    tally = annotate(reader, source, tmp_path / "out.png", tmp_path / "out.jsonl", UNSEEN)
    (line,) = lines_of(tmp_path / "out.jsonl")
    stated = [(face["x"], face["y"], face["width"], face["height"]) for face in line["faces"]]
    assert (line["source"], line["frame"], line["looked"], len(stated)) == ("scene.png", 0, True, faces)
    drawn = upright_image((tmp_path / "out.png").read_bytes()).whole()
    assert boxes_drawn(drawn) == stated
    assert (tally.faces, tally.without_faces) == (faces, int(not faces))
    if not faces:
        np.testing.assert_array_equal(drawn, scene)


def test_a_picture_that_cannot_be_read_leaves_nothing(reader: EmotionReader, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    source = Source("picture", tmp_path / "bad.jpg")
    with pytest.raises(BadInput, match=r"bad\.jpg: the picture cannot be used \(not an image"):
        annotate(reader, source, tmp_path / "out.png", tmp_path / "out.jsonl", UNSEEN)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jpg"]


def test_a_folder_keeps_its_order_and_counts_what_cannot_be_read(
    reader: EmotionReader, two_faces: Callable[[int], Any], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    write_png(folder / "b" / "two.png", two_faces(0))
    write_png(folder / "a.bmp", np.full((48, 48, 3), 128, np.uint8))
    (folder / "c.jpg").write_bytes(b"")
    out, lines = tmp_path / "out", tmp_path / "out" / "emotions.jsonl"
    tally = annotate(reader, Source("folder", folder), out, lines, UNSEEN)
    assert (tally.pictures, tally.faces, tally.without_faces) == (2, 2, 1)
    assert tally.unreadable == [str(folder / "c.jpg")]
    assert [(line["source"], len(line["faces"])) for line in lines_of(lines)] == [("a.bmp", 0), ("b/two.png", 2)]
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {"a.bmp.png", "b/two.png", "emotions.jsonl"}


def test_no_two_pictures_of_a_folder_go_to_one_place(reader: EmotionReader, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    shades = {"sub/a.bmp": 40, "sub/a.bmp.png": 120, "sub/a.bmp.png.png": 200}
    for name, shade in shades.items():
        write_png(folder / name, np.full((48, 48, 3), shade, np.uint8))
    tally = annotate(reader, Source("folder", folder), out, None, UNSEEN)
    written = {path.relative_to(out).as_posix(): int(cv2.imread(str(path))[0, 0, 0]) for path in out.rglob("*.png")}
    assert tally.pictures == 3
    assert written == {"sub/a.bmp.png.png.png": 40, "sub/a.bmp.png": 120, "sub/a.bmp.png.png": 200}


@pytest.mark.parametrize("lines", ["out/a.png", "in/a.png", "link.png"])
def test_the_lines_of_a_folder_are_not_written_over_a_picture(
    reader: EmotionReader, tmp_path: Path, lines: str
) -> None:
    write_png(tmp_path / "in" / "a.png", np.full((48, 48, 3), 40, np.uint8))
    (tmp_path / "link.png").symlink_to("in/a.png")
    with pytest.raises(BadRecipe, match="would overwrite an input or another output"):
        annotate(reader, Source("folder", tmp_path / "in"), tmp_path / "out", tmp_path / lines, UNSEEN)
    assert not (tmp_path / "out").exists()


def test_thin_pictures_take_little_and_end_nothing(reader: EmotionReader, tmp_path: Path) -> None:
    sizes = {"1x400.png": (400, 1), "16384x1.png": (1, 16384), "3000x10.jpg": (10, 3000), "48x48.png": (48, 48)}
    for name, size in sizes.items():
        write_png(tmp_path / "in" / name, np.full((*size, 3), 90, np.uint8))
    tally = annotate(reader, Source("folder", tmp_path / "in"), tmp_path / "out", None, UNSEEN)
    assert (tally.pictures, tally.unreadable) == (4, [])
    drawn = {path.name: cv2.imread(str(path)).shape[:2] for path in (tmp_path / "out").iterdir()}
    assert drawn == {**sizes, "1x400.png": (4000, 10), "48x48.png": (240, 240)}


def test_a_picture_that_cannot_be_encoded_is_named_itself(
    reader: EmotionReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, shade in (("a.jpg", 40), ("b.jpg", 90), ("c.jpg", 140)):
        write_png(tmp_path / "in" / name, np.full((48, 48, 3), shade, np.uint8))
    # No JPEG has more than 65,535 columns.
    too_wide = np.zeros((1, 70_000, 3), np.uint8)
    monkeypatch.setattr(annotating, "draw_picture", lambda image, _: too_wide if image[0, 0, 0] == 90 else image)
    lines = tmp_path / "o.jsonl"
    tally = annotate(reader, Source("folder", tmp_path / "in"), tmp_path / "out", lines, UNSEEN)
    assert (tally.pictures, tally.unreadable) == (2, [str(tmp_path / "in" / "b.jpg")])
    assert [line["source"] for line in lines_of(lines)] == ["a.jpg", "c.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "c.jpg"]
    with pytest.raises(BadInput, match=r"b\.jpg: the picture cannot be used \(.*70000 x 1 pixels.*as JPEG"):
        annotate(reader, Source("picture", tmp_path / "in" / "b.jpg"), tmp_path / "x.jpg", None, UNSEEN)


@pytest.mark.parametrize("kind", ["picture", "folder", "video"])
def test_what_a_killed_run_left_is_removed_by_the_next_one(
    reader: EmotionReader, film: Path, tmp_path: Path, kind: Any
) -> None:
    picture = write_png(tmp_path / "in" / "a.png", np.full((48, 48, 3), 40, np.uint8))
    out = tmp_path / {"picture": "o.png", "folder": "o", "video": "o.mp4"}[kind]
    copy = out / "a.png" if kind == "folder" else out
    lines = tmp_path / "o.jsonl"
    for target in (copy, lines):
        target.parent.mkdir(exist_ok=True)
        (target.parent / f".{target.name}{files.PART_MARK}{os.getpid()}-0").write_bytes(b"half")
    annotate(
        reader, Source(kind, {"picture": picture, "folder": picture.parent, "video": film}[kind]), out, lines, UNSEEN
    )
    assert not [path for path in tmp_path.rglob("*") if files.PART_MARK in path.name]
    assert copy.exists()


def test_a_camera_that_does_not_exist_leaves_nothing(reader: EmotionReader, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="camera 97: the camera does not exist"):
        annotate(reader, Source("camera", Path("camera"), 97), tmp_path / "o.mp4", tmp_path / "o.jsonl", UNSEEN)
    assert list(tmp_path.iterdir()) == []


def test_a_camera_of_which_nothing_would_come_is_refused_once_it_is_there(
    reader: EmotionReader, two_faces: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = Camera(two_faces(0))
    monkeypatch.setattr(annotating, "open_camera", lambda number: Footage(camera, f"camera {number}", live=True))
    with pytest.raises(
        BadRecipe, match="camera 2: the camera's pictures would be neither written nor shown; name --out"
    ):
        annotate(reader, Source("camera", Path("camera"), 2), None, None, UNSEEN)
    assert (camera.count, camera.released) == (0, True)


def test_the_progress_bar_goes_to_the_limit(
    reader: EmotionReader, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(annotating.Bar, "show", lambda _, done, total: shown.append((done, total)))
    annotate(reader, Source("video", film), None, tmp_path / "o.jsonl", UNSEEN, every=9, limit=4)
    assert shown == [(1, 4), (2, 4), (3, 4), (4, 4)]
