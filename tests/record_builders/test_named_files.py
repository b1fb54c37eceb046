"""Classes, subjects and splits are read off the names of files."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from imagenet_pipeline import api
from imagenet_pipeline.errors import BadInput, BadRecipe, PipelineError
from imagenet_pipeline.record_builders import folder, named_files
from imagenet_pipeline.records.image import encode_jpeg
from imagenet_pipeline.records.plan import Plan

PETS = [f"{kind}.{number}.jpg" for kind in ("cat", "dog") for number in range(20)]
EMOTIONS = ("AN", "DI", "FE", "HA", "NE", "SA", "SU")
SUBJECTS = ("KA", "KL", "KM", "KR", "MK", "NA", "NM", "TM", "UY", "YM")
JAFFE = [
    f"{subject}.{emotion}{shot}.{n}.tiff"
    for subject in SUBJECTS
    for n, emotion in enumerate(EMOTIONS, 1)
    for shot in (1, 2, 3)
]
LABEL, SUBJECT = r"^[A-Z]{2}\.([A-Z]{2})\d", "^([A-Z]{2})"


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Iterable[str]], Path]:
    """`written(names)`: a folder of empty files, as a plan reads no image."""

    def write(names: Iterable[str]) -> Path:
        for name in names:
            path = tmp_path / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "photos"

    return write


def classes_of(plan: Plan, split: str) -> dict[str, str]:
    images = plan.splits[split]
    return {path: plan.classes.ids[label] for path, label in zip(images.paths, images.labels, strict=True)}


@pytest.mark.parametrize("below", ["", "train/", "a/b/"])
def test_a_flat_folder_has_classes_in_its_names(below: str, written: Callable[..., Path]) -> None:
    root = written([below + name for name in PETS])
    plan = folder.plan(root, label_from=r"^(cat|dog)\.", val_fraction=0.1, test_fraction=0.2)
    assert plan.classes.ids == ("cat", "dog")
    assert plan.counts == {"train": 28, "val": 4, "test": 8}
    for split in plan.counts:
        assert all(path.removeprefix(below).startswith(name) for path, name in classes_of(plan, split).items())


def test_it_is_the_data_set_of_class_folders(written: Callable[..., Path], tmp_path: Path) -> None:
    named = folder.plan(written(PETS), label_from=r"^(cat|dog)\.")
    for name in PETS:
        path = tmp_path / "sorted" / name[:3] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    by_folder = folder.plan(tmp_path / "sorted")
    assert {split: [Path(path).name for path in images.paths] for split, images in by_folder.splits.items()} == {
        split: images.paths for split, images in named.splits.items()
    }


def test_other_names_are_left_out_and_named(written: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    plan = folder.plan(written([*PETS, "1.jpg", "catalogue.jpg", "readme.txt"]), label_from=r"^(cat|dog)\.")
    assert sum(plan.counts.values()) == 40
    assert "names that are not so: 1.jpg, catalogue.jpg (2 in all); other files: readme.txt" in caplog.text


def test_splits_are_folders_or_a_group(written: Callable[..., Path]) -> None:
    root = written([f"{split}/{name}" for split in ("Training", "test") for name in PETS])
    plan = folder.plan(root, label_from=r"^(cat|dog)\.", val_fraction=0.25)
    assert plan.counts == {"train": 30, "val": 10, "test": 40}
    by_group = folder.plan(root, label_from=r"^(?P<split>\w+)/(?P<label>cat|dog)\.", val_fraction=0.25)
    assert by_group.digest == plan.digest
    with pytest.raises(BadInput, match="the test folder exists: no test split is cut out of train"):
        folder.plan(root, label_from=r"^(cat|dog)\.", test_fraction=0.25)


def test_numbers_are_in_order_and_names_are_those_of_a_file(written: Callable[..., Path], tmp_path: Path) -> None:
    root = written([f"{age}_{n}.jpg" for age in (2, 10, 100) for n in range(12)])
    assert folder.plan(root, label_from=r"^(\d+)_").classes.ids == ("2", "10", "100")
    (tmp_path / "names.txt").write_text("2\ttoddler\n10\tchild\n100\taged\n")
    names = folder.plan(root, label_from=r"^(\d+)_", classes=tmp_path / "names.txt").classes.names
    assert names == ("toddler", "child", "aged")


def test_nobody_is_in_two_splits(written: Callable[..., Path]) -> None:
    plan = folder.plan(written(JAFFE), label_from=LABEL, subject_from=SUBJECT, val_fraction=0.2, test_fraction=0.1)
    assert plan.classes.ids == EMOTIONS
    assert plan.counts == {"train": 147, "val": 42, "test": 21}
    people = {split: {path[:2] for path in images.paths} for split, images in plan.splits.items()}
    assert sum(map(len, people.values())) == len(set().union(*people.values())) == 10
    assert folder.plan(written(JAFFE), label_from=LABEL, subject_from=SUBJECT).counts["test"] == 21


def test_class_folders_are_cut_by_subject_too(written: Callable[..., Path]) -> None:
    root = written([f"{emotion}/S{n:03d}_{emotion}{k}.png" for emotion in "ab" for n in range(30) for k in range(4)])
    plan = folder.plan(root, subject_from=r"^(S\d+)_", val_fraction=0.1, test_fraction=0.1)
    people = {split: {path[2:6] for path in images.paths} for split, images in plan.splits.items()}
    assert sum(map(len, people.values())) == len(set().union(*people.values())) == 30


@pytest.mark.parametrize("builder", ["folder", "ckplus"])
def test_nobody_is_in_train_val_and_elsewhere(builder: str, written: Callable[..., Path], tmp_path: Path) -> None:
    names = [f"{emotion}/S{n:03d}_001_0000000{k}.png" for emotion in "ab" for n in range(40) for k in range(4)]
    options = {"root": written(names), "train_val_fraction": 0.1}
    options |= {"subject_from": r"^(S\d+)_"} if builder == "folder" else {}
    plan = api.plan_of(builder, tmp_path / "out", options)
    people = {split: {path[2:6] for path in images.paths} for split, images in plan.splits.items()}
    assert people.keys() == {"train", "train_val", "val", "test"}
    assert sum(map(len, people.values())) == len(set().union(*people.values())) == 40


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer here")
def test_an_expression_that_takes_for_ever_is_told(
    written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named_files, "LONGEST_SECONDS", 0.1)
    root = written([*PETS, "cat " + "a" * 100 + ".png"])
    with pytest.raises(BadRecipe, match=r"--label-from: the expression takes too long; .*found cat aaa"):
        folder.plan(root, label_from=r"^(\w+)(\s?\w+)*\.jpg$")
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert folder.plan(root, label_from="^(cat|dog)").classes.ids == ("cat", "dog")


def test_somebody_in_two_folders_of_splits_is_told(written: Callable[..., Path]) -> None:
    root = written([f"{split}/{kind}/{split[0]}{n}.png" for split in ("train", "val") for kind in "ab" for n in "12"])
    assert folder.plan(root, subject_from=r"^([tv])").counts == {"train": 4, "val": 4}
    with pytest.raises(BadInput, match=r"the same subject is in train and in val; .* found 1, 2"):
        folder.plan(root, subject_from=r"(\d)")


@pytest.mark.parametrize(
    ("names", "options", "kind", "line"),
    [
        (PETS, {"label_from": "(cat"}, BadRecipe, "--label-from: not a regular expression"),
        (PETS, {"label_from": "cat|dog"}, BadRecipe, "--label-from: the expression has no group; expected a group in"),
        (PETS, {"label_from": "^(cow)"}, BadInput, "no image is named so; expected names that '^(cow)' matches; found"),
        (PETS, {"label_from": "^(cat)"}, BadInput, "all images are named as one class; expected names that"),
        ([], {"label_from": "^(cat)"}, BadInput, "no such folder"),
        (PETS, {"label_from": "^(cat|dog)", "subject_from": "(x)"}, BadInput, "no subject in the name; expected names"),
        (PETS, {"label_from": "^(cat|dog)", "leave_out": ["x"]}, BadInput, "the folder to leave out does not exist"),
        (PETS, {"label_from": "^(?P<split>.)(?P<label>..)"}, BadInput, "no split in the name; expected train, val"),
        (
            [f"{split}-{name}" for split in ("val", "test") for name in PETS],
            {"label_from": "^(?P<split>.*)-(?P<label>...)"},
            BadInput,
            "no image is named as train; found test, val",
        ),
        (
            ["train/cat.jpg", "train/dog.jpg", "val/cow.jpg"],
            {"label_from": "^(...)"},
            BadInput,
            "the class cow is in val, but not in train; found val/cow.jpg",
        ),
        (
            ["train/cat.jpg", "train/dog.jpg", "more/cow.jpg"],
            {"label_from": "^(...)"},
            BadInput,
            "the folder has other folders beside its splits",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    names: list[str],
    options: dict[str, object],
    kind: type[PipelineError],
    line: str,
    written: Callable[..., Path],
) -> None:
    with pytest.raises(kind) as raised:
        folder.plan(written(names), **options)  # type: ignore[arg-type]
    assert line in str(raised.value)


def test_the_command_line_builds_it_out_of_a_tar_too(
    written: Callable[..., Path], tmp_path: Path, tar_of: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    from imagenet_pipeline.cli import main

    photo = encode_jpeg(np.zeros((8, 8, 3), np.uint8), 90)
    (tmp_path / "train.tar").write_bytes(tar_of({f"train/{name}": photo for name in PETS}))
    words = ["--root", tmp_path / "train.tar", "--out", tmp_path / "out", "--label-from", r"^(cat|dog)\."]
    words += ["--workers", 1]
    with pytest.raises(SystemExit) as ended:
        main(["build", "folder", *map(str, words)])
    assert ended.value.code == 0
    assert "32 train, 4 val, 4 test in 2 classes" in capsys.readouterr().out
    options = {"root": written([f"train/{name}" for name in PETS]) / "train", "label_from": r"^(cat|dog)\."}
    plan = api.plan_of("folder", tmp_path / "other", options)
    assert plan.digest == json.loads((tmp_path / "out" / "manifest.json").read_text())["plan"]
