"""What a word on the command line points at, and where the results go."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.faces.annotate import Source, parse_source, places


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    picture = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    for name in ("a.png", "photo", "5", "1234"):
        Path(name).write_bytes(picture)
    for name in ("film.mp4", "broken.jpg", "film.gif"):
        Path(name).write_bytes(b"something")
    return tmp_path


@pytest.mark.parametrize(
    ("word", "kind", "camera"),
    [
        ("camera", "camera", 0),
        ("camera:0", "camera", 0),
        ("camera:12", "camera", 12),
        ("3", "camera", 3),
        ("5", "camera", 5),  # a number is a camera, whatever file there is
        ("./5", "picture", 0),
        ("1234", "picture", 0),
        ("a.png", "picture", 0),
        ("photo", "picture", 0),  # by its content
        ("broken.jpg", "picture", 0),  # which then says what is wrong with it
        ("film.mp4", "video", 0),
        ("film.gif", "video", 0),
        ("photos", "folder", 0),
    ],
)
def test_words(here: Path, word: str, kind: str, camera: int) -> None:
    source = parse_source(word)
    assert (source.kind, source.camera) == (kind, camera)


@pytest.mark.parametrize("word", ["nowhere.jpg", "camera:x", "camera:1234", "-1", "http://nowhere/film.mp4", "x" * 300])
def test_what_is_not_there(here: Path, word: str) -> None:
    with pytest.raises(BadInput, match="no such picture, folder or video"):
        parse_source(word)


@pytest.mark.parametrize(
    ("word", "out", "lines", "expected"),
    [
        ("a.png", None, None, ("a-emotion.png", "a-emotion.jsonl")),
        ("photo", None, None, ("photo-emotion.png", "photo-emotion.jsonl")),
        ("film.mp4", None, "x.jsonl", ("film-emotion.mp4", "x.jsonl")),
        ("film.gif", None, None, ("film-emotion.mp4", "film-emotion.jsonl")),
        ("film.mp4", "new/b.avi", None, ("new/b.avi", "new/b.jsonl")),
        ("a.png", "photos", None, ("photos/a-emotion.png", "photos/a-emotion.jsonl")),
        ("photos", None, None, ("photos-emotion", "photos-emotion/emotions.jsonl")),
        ("camera", None, None, (None, None)),
        ("camera", None, "x.jsonl", (None, "x.jsonl")),
        ("camera", "me.mp4", None, ("me.mp4", "me.jsonl")),
    ],
)
def test_places(here: Path, word: str, out: str | None, lines: str | None, expected: tuple[str | None, ...]) -> None:
    found = places(parse_source(word), out and Path(out), lines and Path(lines))  # type: ignore[arg-type]
    assert found == tuple(name and Path(name) for name in expected)


@pytest.mark.parametrize(
    ("word", "out", "lines", "says"),
    [
        ("a.png", "a.png", None, "overwrite an input"),
        ("a.png", "photos/../a.png", None, "overwrite an input"),
        ("a.png", "link.png", None, "overwrite an input"),
        ("link.png", "a.png", None, "overwrite an input"),
        ("a.png", "b.png", "b.png", "or another output"),
        ("a.png", "b.png", "photos/../b.png", "or another output"),
        ("film.mp4", "b.mp4", "b.mp4", "or another output"),
        ("camera", "b.mp4", "b.mp4", "or another output"),
        ("photos", "b", "b", "or another output"),
        ("a.png", "b.webp", None, ".png .jpg .jpeg"),
        ("film.mp4", "film.mp4", None, "overwrite an input"),
        ("film.mp4", "film", None, ".mp4"),
        ("photos", "photos", None, "over or into"),
        ("photos", "photos/annotated", None, "over or into"),
        ("photos", "inside", None, "over or into"),
        ("a.png", "b.png", "a.png", "overwrite an input"),
        ("a.png", "b.png", "link.png", "overwrite an input"),
        ("camera", "me.png", None, ".mp4"),
    ],
)
def test_places_that_are_refused(here: Path, word: str, out: str, lines: str | None, says: str) -> None:
    Path("link.png").symlink_to("a.png")
    Path("inside").symlink_to("photos")
    with pytest.raises(BadRecipe, match=says):
        places(parse_source(word), Path(out), lines and Path(lines))  # type: ignore[arg-type]


def test_a_camera_has_a_name_for_files() -> None:
    assert parse_source("7") == Source("camera", Path("camera"), 7)
