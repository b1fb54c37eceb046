"""Pictures, folders and lists of a user's, as the pictures in their order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.evaluation.predict import find_pictures


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b/2.JPG", "b/1.png", "a.jpeg", "b/deep/3.webp", "notes.md", ".hidden/4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(found: list[Path], below: Path) -> list[str]:
    return [path.relative_to(below).as_posix() for path in found]


def test_a_folder_gives_its_pictures_sorted_with_those_of_its_folders(photos: Path) -> None:
    assert names(find_pictures([photos], Path()), photos) == ["a.jpeg", "b/1.png", "b/2.JPG", "b/deep/3.webp"]


def test_sources_keep_their_order_and_a_picture_may_have_any_name(photos: Path) -> None:
    (photos / "picture").touch()
    found = find_pictures([photos / "picture", photos / "b" / "deep", photos / "a.jpeg"], Path())
    assert names(found, photos) == ["picture", "b/deep/3.webp", "a.jpeg"]


def test_lists_start_from_the_root(photos: Path, tmp_path: Path) -> None:
    (photos / "some.txt").write_bytes(b"b/2.JPG\r\n\n/elsewhere/x y.png\nsch\xc3\xb6n.jpg\n\xff.jpg")
    (photos / "some.lst").write_text("0\t3\tb/1.png\n1\t0.5\t1\ta.jpeg\n")
    found = find_pictures([photos / "some.txt", photos / "some.lst"], Path("root"))
    assert found[:3] == [Path("root/b/2.JPG"), Path("/elsewhere/x y.png"), Path("root/schön.jpg")]
    assert os.fsencode(found[3]) == b"root/\xff.jpg"
    assert found[4:] == [Path("root/b/1.png"), Path("root/a.jpeg")]


def test_names_may_begin_and_end_with_spaces_and_the_list_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_bytes(b"\xef\xbb\xbf a.jpg\r\nb \n\xef\xbb\xbfc.jpg\n")
    assert find_pictures([tmp_path / "some.txt"], Path()) == [Path(" a.jpg"), Path("b "), Path("\ufeffc.jpg")]


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"", "x.txt", "the list is empty"),
        (b"\n \n", "x.txt", "the list is empty"),
        (b"", "x.lst", "the list is empty"),
        (b"a.jpg\n", "x.lst", "x.lst:1: the line is malformed"),
        (b"a\0b", "x.txt", "x.txt:1: the line is not a path"),
        (b"fine\n" + b"x" * 5000, "x.txt", "x.txt:2: the line is not a path"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, content: bytes, name: str, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=says.replace(".", r"\.")):
        find_pictures([tmp_path / name], Path())


def test_what_does_not_exist_is_refused_before_anything_is_read(photos: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.jpg: no such picture, folder or list"):
        find_pictures([photos, photos / "gone.jpg"], Path())
    with pytest.raises(
        BadInput, match=r"^s3://bucket/a.jpg: pictures are read from this machine alone; copy them here"
    ):
        find_pictures([photos, Path("s3://bucket/a.jpg")], Path())
    with pytest.raises(BadInput, match="no such picture, folder or list"):
        find_pictures([photos / ("x" * 300)], Path())


def test_a_folder_without_pictures_is_refused(photos: Path) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(BadInput, match="empty: no pictures in this folder"):
        find_pictures([photos / "empty"], Path())


def test_links_in_folders_are_followed_and_what_is_no_picture_is_named(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "5.jpg").touch()
    (photos / "b" / "linked").symlink_to(elsewhere)
    (photos / "gone.jpg").symlink_to(photos / "nowhere")
    assert "b/linked/5.jpg" in names(find_pictures([photos], Path()), photos)
    assert "left out: links to nothing: gone.jpg (1 in all); other files: notes.md (1 in all)" in caplog.text


def test_a_list_with_the_paths_of_windows_is_told(photos: Path) -> None:
    (photos / "some.txt").write_text("b\\2.JPG\n")
    with pytest.raises(BadInput, match=r"some\.txt: the path has backslashes; .*write / for every"):
        find_pictures([photos / "some.txt"], photos)
