"""Lists of others into plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.classes import ClassTable
from record_builders import listing


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [f"{7 * i}\t{i % 3:f}\tphotos/a b {i}.jpg\n" for i in range(30)]
    (tmp_path / "all.lst").write_text("".join(lines))
    return tmp_path / "all.lst"


def test_a_byte_order_mark_is_no_part_of_the_first_class(tmp_path: Path) -> None:
    (tmp_path / "a.lst").write_text("0\t0\ta.jpg\n")
    (tmp_path / "names.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    assert listing.plan(tmp_path / "a.lst", tmp_path, classes=tmp_path / "names.txt").classes.ids == ("cat", "dog")


def test_a_list_is_shuffled_and_its_classes_numbered(rows: Path, tmp_path: Path) -> None:
    plan = listing.plan(rows, tmp_path)
    train = plan.splits["train"]
    assert plan.classes.ids == ("0", "1", "2")
    assert sorted(train.paths) == sorted(f"photos/a b {i}.jpg" for i in range(30))
    assert train.paths != sorted(train.paths)
    numbers = [int(path.split()[-1][:-4]) for path in train.paths]
    assert [number % 3 for number in numbers] == train.labels.tolist()


def test_val_and_test_come_from_lists_or_fractions(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "val.lst").write_text("0\t2\tv.jpg\n1\t0\tw.jpg\n")
    plan = listing.plan(rows, tmp_path, val_list=tmp_path / "val.lst", test_fraction=0.2)
    assert plan.counts == {"train": 24, "val": 2, "test": 6}
    assert plan.splits["val"].paths == ["v.jpg", "w.jpg"]


def test_class_names_may_be_given(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n\nemu\n")
    assert listing.plan(rows, tmp_path, classes=tmp_path / "names.txt").classes.ids == ("cat", "dog", "emu")
    table = ClassTable("wnid", ("n1", "n2", "n3"), ("a", "b", "c"))
    table.write(tmp_path / "classes.json")
    assert listing.plan(rows, tmp_path, classes=tmp_path / "classes.json").classes == table
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(BadInput, match="out of range"):
        listing.plan(rows, tmp_path, classes=tmp_path / "names.txt")


def test_absolute_paths_inside_the_root_are_taken(tmp_path: Path) -> None:
    (tmp_path / "a.lst").write_text(f"0\t0\t{tmp_path}/x/../y.jpg\n")
    assert listing.plan(tmp_path / "a.lst", tmp_path).splits["train"].paths == ["y.jpg"]


@pytest.mark.parametrize("path", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "."])
def test_paths_outside_the_root_are_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "a.lst").write_text(f"3\t0\t{path}\n")
    with pytest.raises(BadInput, match="index 3: path leads outside"):
        listing.plan(tmp_path / "a.lst", tmp_path / "root")


@pytest.mark.parametrize("labels", ["1.5", "-1", "nan", "inf", "1\t2", "99999999"])
def test_other_than_one_whole_label_is_refused(tmp_path: Path, labels: str) -> None:
    (tmp_path / "a.lst").write_text(f"3\t{labels}\tx.jpg\n")
    with pytest.raises(BadInput, match="one whole-number label"):
        listing.plan(tmp_path / "a.lst", tmp_path)


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.lst").write_text("\n")
    with pytest.raises(BadInput, match="list is empty"):
        listing.plan(tmp_path / "a.lst", tmp_path)


def test_an_image_in_two_lists_is_refused(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "val.lst").write_text("0\t2\tv.jpg\n1\t0\tphotos/./a b 3.jpg\n")
    with pytest.raises(BadInput, match=r"train and in val.*photos/a b 3\.jpg"):
        listing.plan(rows, tmp_path, val_list=tmp_path / "val.lst")
