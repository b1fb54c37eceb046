"""The verb emotion: exit codes, one-line errors, what is said and written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline.cli import main
from imagenet_pipeline.faces.video import whole_video

pytestmark = pytest.mark.faces


@dataclass
class Answer:
    code: int
    out: str
    err: str


Call = Callable[..., Answer]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """What the process says, its libraries included."""

    def run(*words: object) -> Answer:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capfd.readouterr()
        return Answer(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_faces: Callable[[int], Any]) -> Path:
    """An empty working folder with face.png, grey.png and film.mp4, of 4 frames, in a folder beside it."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    cv2.imwrite(str(inputs / "face.png"), cv2.cvtColor(two_faces(0), cv2.COLOR_RGB2BGR))
    cv2.imwrite(str(inputs / "grey.png"), np.full((90, 120, 3), 128, np.uint8))
    with whole_video(inputs / "film.mp4", 10.0) as video:
        for number in range(4):
            video.add(two_faces(number))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("DISPLAY", raising=False)
    return inputs


def written() -> set[str]:
    return {path.as_posix() for path in Path().rglob("*") if path.is_file()}


def test_a_picture_with_faces_and_one_without(call: Call, emotion_run: Path, place: Path) -> None:
    answer = call("emotion", emotion_run, place / "face.png")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "2 faces in 1 picture\nwrote face-emotion.png\nwrote face-emotion.jsonl\n"
    answer = call("emotion", emotion_run, place / "grey.png", "--out", "x.jpg")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "no face in 1 picture\nwrote x.jpg\nwrote x.jsonl\n"
    assert json.loads(Path("x.jsonl").read_text())["faces"] == []
    assert written() == {"face-emotion.png", "face-emotion.jsonl", "x.jpg", "x.jsonl"}


def test_a_video_says_its_speed_and_in_json_everything(call: Call, emotion_run: Path, place: Path) -> None:
    answer = call("emotion", emotion_run, place / "film.mp4", "--every", 2, "devices=cpu")
    assert (answer.code, answer.err) == (0, "")
    first, speed, *_ = answer.out.splitlines()
    assert first == "8 faces in 4 frames (2 looked at)"
    assert speed.endswith(" frames a second")
    answer = call("emotion", emotion_run, place / "film.mp4", "--json", "--limit-frames", 3)
    summary = json.loads(answer.out)
    assert (summary["pictures"], summary["faces"], summary["kind"]) == (3, 6, "video")
    assert (summary["out"], summary["json_lines"]) == ("film-emotion.mp4", "film-emotion.jsonl")
    assert summary["pictures_per_second"] > 0


def test_a_folder_with_a_broken_picture_does_the_others_and_says_so(call: Call, emotion_run: Path, place: Path) -> None:
    (place / "broken.jpg").write_bytes(b"")
    (place / "film.mp4").unlink()
    answer = call("emotion", emotion_run, place, "--out", "out")
    assert answer.code == 3
    assert answer.out.startswith("2 faces in 2 pictures, none in 1 picture\n")
    assert "1 picture could not be read" in answer.err.splitlines()[-1]
    assert written() == {"out/face.png", "out/grey.png", "out/emotions.jsonl"}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["camera:97", "--out", "x.mp4"], 3, "camera 97: no such camera"),
        (["camera:97"], 3, "camera 97: no such camera"),
        (["nowhere.mp4"], 3, "nowhere.mp4: no such"),
        (["{in}/empty.mp4"], 3, "empty file"),
        (["{in}/text.mp4"], 3, "neither a picture nor a video"),
        (["{in}/half.mp4"], 3, "neither a picture nor a video"),
        (["{in}/text.jpg"], 3, "cannot be used"),
        (["{in}/film.mp4", "--out", "x.webm"], 2, ".mp4"),
        (["{in}/film.mp4", "--out", "{in}/film.mp4"], 2, "overwrite an input"),
        (["{in}/face.png", "--out", "x.png", "--json-lines", "x.png"], 2, "or another output"),
        (["{in}/face.png", "--every", "2"], 2, "--every: has no effect on a picture"),
        (["{in}", "--limit-frames", "2"], 2, "--limit-frames: has no effect on a folder"),
        (["{in}/film.mp4", "--out", "{in}/text.jpg/x.mp4"], 3, "cannot be written"),
        (["{in}/face.png", "--out", "{in}/text.jpg/x.png"], 3, "cannot be written"),
        (["{in}/film.mp4", "--every", "0"], 2, "--every"),
        (["{in}/film.mp4", "epochs=3"], 2, "does not apply"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code_and_leaves_nothing(
    call: Call, emotion_run: Path, place: Path, words: list[str], code: int, says: str
) -> None:
    film = (place / "film.mp4").read_bytes()
    (place / "half.mp4").write_bytes(film[: len(film) // 2])
    (place / "empty.mp4").touch()
    for name in ("text.mp4", "text.jpg"):
        (place / name).write_text("only text")
    answer = call("emotion", emotion_run, *[word.format(**{"in": place}) for word in words])
    assert (answer.code, answer.out) == (code, "")
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert says in answer.err
    assert written() == set()


def test_a_run_of_another_task_is_refused(call: Call, drawn_run: Callable[..., Path], place: Path) -> None:
    answer = call("emotion", drawn_run("cat", "dog"), place / "face.png")
    assert (answer.code, answer.out) == (2, "")
    assert "not of emotions" in answer.err
    assert answer.err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/self").exists(), reason="root may write anywhere but in /proc")
def test_no_permission_to_write_is_one_line(call: Call, emotion_run: Path, place: Path) -> None:
    answer = call("emotion", emotion_run, place / "film.mp4", "--out", "/proc/film.mp4")
    assert answer.code == 3
    assert "/proc/film.mp4: cannot be written" in answer.err
    assert answer.err.count("\n") == 1
