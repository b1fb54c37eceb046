"""What is taken for an image by its name, and where."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.image_files import IMAGE_ENDINGS, READ_ENDINGS, ImageTree


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root: Path, tree: ImageTree) -> list[str]:
    return [path.relative_to(root).as_posix() for path in tree.images(root)]


def test_images_below_a_folder_are_found_sorted_and_the_rest_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/c.JPEG", "a/.hidden.jpg", ".git/d.jpg", "a/notes.txt", "e.svg", "__MACOSX/a/f.jpg")
    tree = ImageTree(tmp_path)
    assert names(tmp_path, tree) == ["a/c.JPEG", "b.png", "e.svg"]
    assert tree.left_out == {"other files": {"a/notes.txt"}}


def test_what_is_read_is_taken_for_an_image() -> None:
    assert set(READ_ENDINGS) < set(IMAGE_ENDINGS)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with links: to a folder and a file inside it, to both outside, and to nothing."""
    touch(tmp_path, "elsewhere/deep/o.jpg", "root/a/1.jpg", "root/b/2.jpg", "root/pool/p.jpg")
    for link, target in {
        "a/pooled": "root/pool", "a/2.jpg": "root/b/2.jpg", "b/out": "elsewhere", "b/o.jpg": "elsewhere/deep/o.jpg",
        "a/gone.jpg": "nowhere",
    }.items():  # fmt: skip
        (tmp_path / "root" / link).symlink_to(tmp_path / target)
    return tmp_path / "root"


def test_links_are_followed_and_broken_ones_named(linked: Path) -> None:
    tree = ImageTree(linked)
    assert [path.relative_to(linked).as_posix() for path in tree.images(linked / "a")] == [
        "a/1.jpg", "a/2.jpg", "a/pooled/p.jpg",
    ]  # fmt: skip
    assert [path.relative_to(linked).as_posix() for path in tree.images(linked / "b")] == [
        "b/2.jpg", "b/o.jpg", "b/out/deep/o.jpg",
    ]  # fmt: skip
    assert tree.left_out == {"links to nothing": {"a/gone.jpg"}}
    assert tree.real_path(linked / "a" / "pooled" / "p.jpg") == str(linked / "pool" / "p.jpg")


def test_links_out_of_the_folder_are_named_where_they_are_not_to_be_followed(linked: Path) -> None:
    tree = ImageTree(linked, follow=False)
    assert names(linked, tree) == ["a/1.jpg", "a/2.jpg", "b/2.jpg", "pool/p.jpg"]
    assert tree.left_out == {
        "links to nothing": {"a/gone.jpg"},
        "links out of the folder": {"b/out", "b/o.jpg"},
        "links to what is read already": {"a/pooled"},
    }


def test_loops_end_and_a_folder_is_known_by_its_own_path(tmp_path: Path) -> None:
    touch(tmp_path, "root/z/1.jpg", "other/2.jpg")
    for link, target in {"root/a": "root/z", "root/z/up": "root", "other/back": "root", "root/z/out": "other"}.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    tree = ImageTree(tmp_path / "root")
    assert names(tmp_path / "root", tree) == ["z/1.jpg", "z/out/2.jpg"]
    assert tree.left_out == {"links to what is read already": {"a", "z/up", "z/out/back"}}


def test_links_that_double_at_every_step_end(tmp_path: Path) -> None:
    for depth in range(40):
        touch(tmp_path, f"{depth}/x.jpg")
        for side in ("left", "right"):
            (tmp_path / str(depth) / side).symlink_to(tmp_path / str(depth + 1))
    assert len(ImageTree(tmp_path / "0").images(tmp_path / "0")) == 40


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.jpg", "a/closed/2.jpg")
    scandir = os.scandir

    def closed(place: Any) -> Any:
        if Path(place).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(BadInput, match=r"a/closed: cannot be read \(Permission denied\)"):
        ImageTree(tmp_path).images(tmp_path)


def test_a_path_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(25):  # one folder at a time: the whole path could not be made
        os.mkdir("x" * 200, dir_fd=here)
        deeper = os.open("x" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    with pytest.raises(BadInput, match=r"cannot be read \(File name too long\)") as caught:
        ImageTree(tmp_path).images(tmp_path)
    assert len(str(caught.value)) < 500
