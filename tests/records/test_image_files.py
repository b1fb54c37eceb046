"""What is taken for an image by its name, and where."""

from __future__ import annotations

from pathlib import Path

from imagenet_pipeline.records.image_files import IMAGE_ENDINGS, READ_ENDINGS, image_files


def test_images_below_a_folder_are_found_sorted_and_the_rest_is_counted(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.JPEG", "a/.hidden.jpg", ".git/d.jpg", "a/notes.txt", "e.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "b.png")
    found, others = image_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/c.JPEG", "b.png", "e.svg"]
    assert others == 2


def test_what_is_read_is_taken_for_an_image() -> None:
    assert set(READ_ENDINGS) < set(IMAGE_ENDINGS)
