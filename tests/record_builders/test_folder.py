"""Folders of classes into plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagenet_pipeline.errors import BadInput
from record_builders import folder


def fill(root: Path, classes: str, count: int) -> None:
    for name in classes:
        (root / name / "deeper").mkdir(parents=True)
        for i in range(count - 1):
            (root / name / f"{i}.JPG").touch()
        (root / name / "deeper" / "x.png").touch()
        (root / name / "notes.txt").touch()
        (root / name / ".hidden.jpg").touch()
        (root / name / "link.jpg").symlink_to(root / name / "0.JPG")


def test_classes_are_called_what_a_file_calls_them(tmp_path: Path) -> None:
    for name in ("n02", "n01"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "photos" / name / f"{number}.jpg").write_bytes(b"x")
    names = tmp_path / "names.txt"
    names.write_text("n01 tench, a fish\nn02 church\nn03 more\n")
    table = folder.plan(tmp_path / "photos", 0.0, 0.0, classes=names).classes
    assert (table.ids, table.names) == (("n01", "n02"), ("tench, a fish", "church"))
    names.write_text("n01 tench\n")
    with pytest.raises(BadInput, match="no name for a class; expected lines such as 'n02' NAME"):
        folder.plan(tmp_path / "photos", 0.0, 0.0, classes=names)


def test_a_flat_folder_is_cut_in_proportion(tmp_path: Path) -> None:
    fill(tmp_path, "ba", 20)
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    plan = folder.plan(tmp_path)
    assert plan.classes.ids == ("a", "b")
    assert plan.counts == {"train": 32, "val": 4, "test": 4}
    paths = [path for images in plan.splits.values() for path in images.paths]
    assert len(set(paths)) == 40
    assert all(not path.endswith(("notes.txt", "hidden.jpg", "link.jpg")) for path in paths)
    assert plan.splits["val"].labels.sum() == 2
    assert folder.plan(tmp_path, 0, 0).counts == {"train": 40}


@pytest.mark.parametrize("seed", range(3))
def test_of_a_few_photos_one_a_class_is_cut_out(tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, "ab", 7)
    with caplog.at_level("INFO", "imagenet_pipeline"):
        plan = folder.plan(tmp_path, seed=seed)
    assert plan.counts == {"train": 10, "val": 2, "test": 2}
    assert [sorted(plan.splits[split].labels.tolist()) for split in ("val", "test")] == [[0, 1]] * 2
    assert plan.source["fractions"] == {"val": "one a class", "test": "one a class"}
    assert "fewer than ten images a class: one of each is cut out for val and test" in caplog.text
    assert folder.plan(tmp_path, seed=seed).digest == plan.digest != folder.plan(tmp_path, seed=seed + 1).digest
    assert folder.plan(tmp_path, val_fraction=0.0).counts == {"train": 12, "test": 2}
    assert folder.plan(tmp_path, val_fraction=0.2).counts == {"train": 9, "val": 3, "test": 2}
    with pytest.raises(BadInput, match="cannot cut 1 of 14 images of 2 classes out"):
        folder.plan(tmp_path, val_fraction=0.1)


def test_three_images_a_class_are_one_for_each_split_and_two_are_too_few(tmp_path: Path) -> None:
    fill(tmp_path / "x", "ab", 3)
    assert folder.plan(tmp_path / "x").counts == {"train": 2, "val": 2, "test": 2}
    (tmp_path / "x" / "b" / "0.JPG").unlink()
    says = r"label 1 has none to spare \(b/.*\); expected an image of each class .*--val-fraction 0 --test-fraction 0"
    with pytest.raises(BadInput, match=says):
        folder.plan(tmp_path / "x")


def test_given_splits_are_used(tmp_path: Path) -> None:
    fill(tmp_path / "train", "ab", 10)
    fill(tmp_path / "val", "b", 5)
    plan = folder.plan(tmp_path)
    assert plan.counts == {"train": 20, "val": 5}
    assert set(plan.splits["val"].labels.tolist()) == {1}
    assert folder.plan(tmp_path, test_fraction=0.2).counts == {"train": 16, "val": 5, "test": 4}
    with pytest.raises(BadInput, match="there is a val folder"):
        folder.plan(tmp_path, val_fraction=0.2)


def test_the_seed_decides_the_order_of_train(tmp_path: Path) -> None:
    fill(tmp_path, "ab", 20)
    plans = [folder.plan(tmp_path, seed=seed) for seed in (1, 1, 2)]
    assert plans[0].digest == plans[1].digest
    assert plans[0].splits["train"].paths != plans[2].splits["train"].paths
    assert plans[0].splits["train"].labels.tolist() != sorted(plans[0].splits["train"].labels.tolist())


def test_what_makes_no_data_set_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        folder.plan(tmp_path / "absent")
    with pytest.raises(BadInput, match="no class folders"):
        folder.plan(tmp_path)
    fill(tmp_path / "x", "ab", 10)
    (tmp_path / "x" / "c").mkdir()
    with pytest.raises(BadInput, match="class folder c holds no images"):
        folder.plan(tmp_path / "x")
    (tmp_path / "x" / "c").rmdir()
    for fractions in ((0.5, 0.5), (-0.1, 0.0), (0.05, 0.0)):
        with pytest.raises(BadInput, match=r"fractions|cannot cut"):
            folder.plan(tmp_path / "x", *fractions)
    fill(tmp_path / "y" / "train", "ab", 3)
    fill(tmp_path / "y" / "val", "c", 3)
    with pytest.raises(BadInput, match="val/c: class is not in train"):
        folder.plan(tmp_path / "y")


def test_files_left_out_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, "ab", 20)
    (tmp_path / "a" / "table.csv").touch()
    with caplog.at_level("INFO", "imagenet_pipeline"):
        folder.plan(tmp_path)
    assert f"{tmp_path}: 5 other files were left out" in caplog.text


def test_an_empty_class_is_told_what_can_be_read(tmp_path: Path) -> None:
    fill(tmp_path, "ab", 20)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.txt").touch()
    with pytest.raises(BadInput, match="class folder c holds no images") as caught:
        folder.plan(tmp_path)
    assert "found 1 other files" in str(caught.value)
    assert ".jpg" in str(caught.value)
    assert not any(ending in str(caught.value) for ending in (".gif", ".svg", ".heic", ".avif", ".jp2"))
