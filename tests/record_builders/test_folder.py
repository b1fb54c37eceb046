"""Folders of classes into plans."""

from __future__ import annotations

from pathlib import Path

import pytest
from imagenet_pipeline.record_builders.split_folders import split_called

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.record_builders import folder


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
    with pytest.raises(BadInput, match="no name for the class 'n02'; expected a line 'n02' TAB NAME"):
        folder.plan(tmp_path / "photos", 0.0, 0.0, classes=names)


def test_a_flat_folder_is_cut_in_proportion(tmp_path: Path) -> None:
    fill(tmp_path, "ba", 20)
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
    with pytest.raises(BadInput, match="the val folder exists: no val split is cut out of train"):
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
    with pytest.raises(BadInput, match="val/c: the class is not in train"):
        folder.plan(tmp_path / "y")


def test_files_left_out_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, "ab", 20)
    (tmp_path / "a" / "table.csv").touch()
    with caplog.at_level("INFO", "imagenet_pipeline"):
        folder.plan(tmp_path)
    assert f"{tmp_path}: left out: links to what is read already: a/link.jpg, b/link.jpg (2 in all)" in caplog.text
    assert "; other files: a/notes.txt, a/table.csv, b/notes.txt (3 in all)" in caplog.text


def test_an_empty_class_is_told_what_can_be_read(tmp_path: Path) -> None:
    fill(tmp_path, "ab", 20)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.txt").touch()
    with pytest.raises(BadInput, match="class folder c holds no images") as caught:
        folder.plan(tmp_path)
    assert "found other files: c/x.txt (1 in all)" in str(caught.value)
    assert ".jpg" in str(caught.value)
    assert not any(ending in str(caught.value) for ending in (".gif", ".svg", ".heic", ".avif", ".jp2"))


def test_classes_whose_names_have_blanks_are_named_too(tmp_path: Path) -> None:
    fill_plainly(tmp_path / "photos", "great white", "great grey")
    names = tmp_path / "names.txt"
    for content, expected in {
        "great grey\ngreat white\n": ("great grey", "great white"),
        "great white\tWhite shark\ngreat grey\tGrey shark\n": ("Grey shark", "White shark"),
        '{"0": ["n01", "great grey"], "1": ["n02", "great white"]}': ("great grey", "great white"),
        "A\nB\n": ("A", "B"),
    }.items():
        names.write_text(content)
        table = folder.plan(tmp_path / "photos", 0.0, 0.0, classes=names).classes
        assert (table.ids, table.names) == (("great grey", "great white"), expected)


def fill_plainly(root: Path, *folders: str) -> Path:
    """Three images in each folder."""
    for name in folders:
        (root / name).mkdir(parents=True)
        for number in range(3):
            (root / name / f"{number}.jpg").touch()
    return root


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "valid", "test"), ("Train", "Val", "Testing"), ("TRAINING", "validation", "evaluation"),
        ("trn", "dev", "tst"), ("training_set", "validation-set", "Test Set"),
        ("train_images", "val_images", "testset"),
    ],
)  # fmt: skip
def test_splits_are_known_by_their_usual_names(
    train: str, val: str, test: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill_plainly(tmp_path, *(f"{split}/{name}" for split in (train, val, test) for name in "ab"))
    with caplog.at_level("INFO", "imagenet_pipeline"):
        plan = folder.plan(tmp_path)
    assert plan.counts == {"train": 6, "val": 6, "test": 6}
    assert plan.splits["val"].paths[0] == f"{val}/a/0.jpg"
    assert f"{tmp_path}: '{train}' is train, '{val}' is val, '{test}' is test" in caplog.text


@pytest.mark.parametrize("name", ["cat", "trained", "device", "values", "tests", "vale", "stest", "bullet_train"])
def test_other_names_are_classes(name: str) -> None:
    assert split_called(name) is None


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (["train/a", "train/b", "val/a", "valid/a"], "two folders name the split val; found val and valid"),
        (
            ["Train/a", "Train/b", "cat", "dog"],
            r"beside the splits \(Train\); found cat, dog .2 in all.; move them away",
        ),
        (["cat", "dog", "test"], r"found cat, dog \(2 in all\); put the class folders into a folder train"),
        (
            ["val/a", "val/b", "test/a"],
            "the folder train is missing .*found val, test; to evaluate alone: --root .*/val ",
        ),
        (
            ["seg_train/a", "seg_test/a", "seg_pred"],
            "the folders look like splits, not like classes; .*found seg_test, seg_train",
        ),
        (["cat/train", "cat/test", "dog/train"], "cat: the class folder holds splits; .*found test, train"),
        (
            ["archive/cat", "archive/dog"],
            "the folder has a single class; .*archive: cat, dog .2 in all.; say --root .*/archive$",
        ),
        (
            ["x/y/train/cat", "x/y/val/cat"],
            "the folder has a single class; .*found x, and in .*x/y: train, val .*; say --root .*x/y$",
        ),
        (
            ["train/z/a", "train/z/b", "val/a"],
            "train: the folder has a single class; .*move what is in .*train/z to .*/train$",
        ),
        (
            ["cat"],
            "a single class; .*found cat; put the images of every other class into a folder beside 'cat'",
        ),
        (
            ["train/a", "train/b", "test"],
            "test: the folder has no class folders; .*0.jpg.*; --leave-out 'test' does without it",
        ),
        (
            ["."],
            "no class folders; .*found images in no class folder: 0.jpg, 1.jpg, 2.jpg .*--label-from .*`build csv`",
        ),
    ],
)
def test_what_may_not_be_classes_is_no_data_set(tmp_path: Path, folders: list[str], says: str) -> None:
    fill_plainly(tmp_path / "photos", *folders)
    with pytest.raises(BadInput, match=says):
        folder.plan(tmp_path / "photos")


def test_classes_called_like_splits_may_be_within_train(tmp_path: Path) -> None:
    fill_plainly(tmp_path, "train/train", "train/test_track", "train/bus")
    assert folder.plan(tmp_path).classes.ids == ("bus", "test_track", "train")


def test_folders_are_left_out_when_asked_for_or_empty_of_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill_plainly(tmp_path, "train/a", "train/b", "test", "unsorted", ".ipynb_checkpoints", "__MACOSX/train")
    (tmp_path / "papers").mkdir()
    (tmp_path / "stray.jpg").touch()
    assert folder.plan(tmp_path, leave_out=("unsorted", "test")).counts == {"train": 6}
    assert "folders, as asked for: test, unsorted (2 in all)" in caplog.text
    assert "folders without images: papers (1 in all)" in caplog.text
    assert "images in no class folder: stray.jpg (1 in all)" in caplog.text
    with pytest.raises(BadInput, match="unsortd: the folder to leave out does not exist"):
        folder.plan(tmp_path, leave_out=("unsortd",))


def test_links_are_followed_out_of_the_root_unless_forbidden(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fill_plainly(tmp_path / "photos", "cat", "dog")
    fill_plainly(tmp_path, "owls")
    (root / "owl").symlink_to(tmp_path / "owls")
    (root / "cat" / "9.jpg").symlink_to(tmp_path / "owls" / "gone.jpg")
    plan = folder.plan(root, 0.0, 0.0)
    assert (plan.classes.ids, plan.follow_links, len(plan.splits["train"])) == (("cat", "dog", "owl"), True, 9)
    assert "links to nothing: cat/9.jpg (1 in all)" in caplog.text
    plan = folder.plan(root, 0.0, 0.0, follow=False)
    assert (plan.classes.ids, plan.follow_links) == (("cat", "dog"), False)
    assert "links out of the folder: owl (1 in all)" in caplog.text


def test_an_image_is_in_one_class_and_one_split(tmp_path: Path) -> None:
    root = fill_plainly(tmp_path / "one", "cat", "dog")
    (root / "dog" / "up").symlink_to(root)
    (root / "dog" / "same.jpg").symlink_to(root / "dog" / "0.jpg")
    assert len(folder.plan(root).splits["train"]) == 2
    (root / "kitten").symlink_to(root / "cat")
    with pytest.raises(BadInput, match=r"in two classes; found .*/cat/0\.jpg and .*/kitten/0\.jpg, links to one file"):
        folder.plan(root)
    pool = fill_plainly(tmp_path, "pool") / "pool"
    root = fill_plainly(tmp_path / "two", "train/cat", "train/dog", "val/cat")
    for split in ("train", "val"):
        (root / split / "cat" / "p.jpg").symlink_to(pool / "0.jpg")
    with pytest.raises(BadInput, match=r"in two splits; found .*train/cat/p\.jpg and .*val/cat/p\.jpg"):
        folder.plan(root)
