"""Lists of others into plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.record_builders import listing
from imagenet_pipeline.records.classes import ClassTable


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
    with pytest.raises(BadInput, match="index 3: the path leads outside"):
        listing.plan(tmp_path / "a.lst", tmp_path / "root")


@pytest.mark.parametrize("labels", ["1.5", "-1", "nan", "inf", "1\t2", "99999999"])
def test_other_than_one_whole_label_is_refused(tmp_path: Path, labels: str) -> None:
    (tmp_path / "a.lst").write_text(f"3\t{labels}\tx.jpg\n")
    with pytest.raises(BadInput, match="a single whole-number label"):
        listing.plan(tmp_path / "a.lst", tmp_path)


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.lst").write_text("\n")
    with pytest.raises(BadInput, match="list is empty"):
        listing.plan(tmp_path / "a.lst", tmp_path)


def test_an_image_in_two_lists_is_refused(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "val.lst").write_text("0\t2\tv.jpg\n1\t0\tphotos/./a b 3.jpg\n")
    with pytest.raises(BadInput, match=r"train and in val.*photos/a b 3\.jpg"):
        listing.plan(rows, tmp_path, val_list=tmp_path / "val.lst")


def write_list(path: Path, *rows: tuple[int, str]) -> Path:
    path.write_text("".join(f"{number}\t{label}\t{name}\n" for number, (label, name) in enumerate(rows)))
    return path


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ((1, 2, 3), "no training image has label 0; expected labels 0..2, .*begin at 1. subtract one from each"),
        ((0, 2, 3), r"no training image has label 1; .*found 0..3 \(the highest in .*a.lst:3\); number the classes"),
        ((0, 9_999_999), r"no training image has label 1; .*found 0..9,999,999 \(the highest in .*a.lst:2\)"),
    ],
)
def test_a_class_without_a_training_image_is_an_error_that_guesses_why(
    tmp_path: Path, labels: tuple[int, ...], says: str
) -> None:
    path = write_list(tmp_path / "a.lst", *((label, f"{label}.jpg") for label in labels))
    with pytest.raises(BadInput, match=says):
        listing.plan(path, tmp_path)


def test_a_class_that_has_a_name_need_have_no_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_list(tmp_path / "a.lst", (1, "a.jpg"), (3, "b.jpg"))
    (tmp_path / "names.txt").write_text("ground\ncat\ngreat white\ndog\n")
    plan = listing.plan(path, tmp_path, classes=tmp_path / "names.txt")
    assert plan.classes.names == ("ground", "cat", "great white", "dog")
    assert "classes without a training image: 0 = ground, 2 = great white (2 in all)" in caplog.text
    (tmp_path / "names.txt").write_text("cat\ndog\nemu\n")
    says = "a.lst:2: the label is out of range; expected 0..2, the labels of 3 classes; found 3; labels begin at 1"
    with pytest.raises(BadInput, match=says):
        listing.plan(path, tmp_path, classes=tmp_path / "names.txt")


def test_a_held_out_label_that_is_not_trained_on_is_an_error(tmp_path: Path) -> None:
    train = write_list(tmp_path / "a.lst", (0, "a.jpg"), (1, "b.jpg"))
    val = write_list(tmp_path / "v.lst", (0, "c.jpg"), (2, "d.jpg"))
    with pytest.raises(
        BadInput, match=r"v.lst:2: the label is out of range; expected 0..1, the labels of 2 classes; found 2"
    ):
        listing.plan(train, tmp_path, val_list=val)


def test_an_image_with_two_labels_is_an_error_naming_both_lines(tmp_path: Path) -> None:
    train = write_list(tmp_path / "a.lst", (0, "a.jpg"), (1, "b.jpg"), (1, "./a.jpg"))
    with pytest.raises(BadInput, match=r"a.lst:3: the image has two labels; found a.jpg as 1, and as 0 in .*:1"):
        listing.plan(train, tmp_path)
    train = write_list(tmp_path / "a.lst", (0, "a.jpg"), (1, "b.jpg"))
    val = write_list(tmp_path / "v.lst", (0, "b.jpg"))
    with pytest.raises(BadInput, match=r"v.lst:1: the image has two labels; found b.jpg as 0, and as 1 in .*a.lst:2"):
        listing.plan(train, tmp_path, val_list=val)


def test_a_repeated_line_is_kept_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = write_list(tmp_path / "a.lst", (0, "a.jpg"), (1, "b.jpg"), (0, "a.jpg"))
    with caplog.at_level("INFO", "imagenet_pipeline"):
        assert listing.plan(train, tmp_path).counts == {"train": 3}
    assert "lines that repeat an image, kept: a.jpg in line 3 (1 in all)" in caplog.text


def test_paths_of_windows_are_told(tmp_path: Path) -> None:
    train = write_list(tmp_path / "a.lst", (0, r"photos\cat\1.jpg"), (1, "b.jpg"))
    with pytest.raises(BadInput, match=r"a.lst: the path has backslashes; .*found photos.cat.1.jpg; write / for every"):
        listing.plan(train, tmp_path)
    (tmp_path / r"photos\cat\1.jpg").touch()
    assert len(listing.plan(train, tmp_path).splits["train"]) == 2
