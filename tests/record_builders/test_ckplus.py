"""CK+ is cut by subject."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.record_builders import ckplus
from imagenet_pipeline.records.image import encode_png

EMOTIONS = ("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """40 subjects, each with two emotions, three frames of each."""
    draw = np.random.default_rng(0)
    for subject in range(40):
        for sequence, emotion in enumerate(draw.choice(EMOTIONS, 2, replace=False), 1):
            folder = tmp_path / "ck" / emotion
            folder.mkdir(parents=True, exist_ok=True)
            for frame in (17, 18, 19):
                name = f"S{subject:03d}_{sequence:03d}_{frame:08d}.png"
                (folder / name).write_bytes(encode_png(draw.integers(0, 256, (48, 48), dtype=np.uint8)))
    return tmp_path / "ck"


def subjects(paths: list[str]) -> set[str]:
    return {Path(path).name[:4] for path in paths}


def test_no_subject_is_in_two_splits(faces: Path) -> None:
    plan = ckplus.plan(faces, 0.2, 0.2)
    assert plan.classes.ids == EMOTIONS
    assert sum(plan.counts.values()) == 240
    assert plan.counts["val"] == pytest.approx(48, abs=10)
    assert plan.counts["test"] == pytest.approx(48, abs=10)
    groups = [subjects(images.paths) for images in plan.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 40


@pytest.mark.parametrize(("val", "test"), [(0.4, 0.1), (0.3, 0.3), (0.5, 0.4), (0.45, 0.45)])
def test_shares_are_those_asked_for(val: float, test: float, faces: Path) -> None:
    counts = ckplus.plan(faces, val, test).counts
    assert counts["val"] / 240 == pytest.approx(val, abs=0.06)
    assert counts["test"] / 240 == pytest.approx(test, abs=0.06)


def test_fractions_that_leave_nothing_are_refused(faces: Path) -> None:
    with pytest.raises(BadInput, match="the fractions leave nothing to train on; expected a sum below 1; found 1"):
        ckplus.plan(faces, 0.5, 0.5)


def test_the_cut_depends_on_the_seed_alone(faces: Path) -> None:
    assert ckplus.plan(faces, seed=1).digest == ckplus.plan(faces, seed=1).digest
    assert ckplus.plan(faces, seed=1).digest != ckplus.plan(faces, seed=2).digest


def test_a_fraction_of_none_leaves_the_split_out(faces: Path) -> None:
    assert set(ckplus.plan(faces, 0.25, 0.0).counts) == {"train", "val"}
    assert ckplus.plan(faces, 0.0, 0.0).counts == {"train": 240}


def test_a_face_without_a_subject_is_refused(faces: Path) -> None:
    (faces / "anger" / "me.png").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"anger/me.png: no subject in the name; expected SUBJECT_SEQUENCE_FRAME"):
        ckplus.plan(faces)


def test_too_few_subjects_are_refused(tmp_path: Path) -> None:
    for emotion in ("anger", "fear"):
        name_faces(tmp_path / "ck", emotion, range(1, 2), 1)
    with pytest.raises(BadInput, match="1 subjects cannot be cut so"):
        ckplus.plan(tmp_path / "ck")


def name_faces(root: Path, emotion: str, subjects: range, frames: int) -> None:
    """Empty files: a plan reads no image."""
    (root / emotion).mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        for frame in range(frames):
            (root / emotion / f"S{subject:03d}_001_{frame:08d}.png").touch()


@pytest.mark.parametrize("seed", range(10))
def test_a_class_of_one_subject_stays_in_train(tmp_path: Path, seed: int) -> None:
    name_faces(tmp_path, "anger", range(100), 3)
    name_faces(tmp_path, "fear", range(100, 101), 12)
    plan = ckplus.plan(tmp_path, seed=seed)
    assert set(plan.splits["train"].labels.tolist()) == {0, 1}
    assert plan.counts["val"] == pytest.approx(31, abs=4)
    assert plan.counts["test"] == pytest.approx(31, abs=4)


def test_where_no_cut_leaves_a_class_in_train_it_is_named(tmp_path: Path) -> None:
    name_faces(tmp_path, "anger", range(1), 12)
    name_faces(tmp_path, "fear", range(1, 2), 12)
    with pytest.raises(BadInput, match=r"no cut of 0\.5 leaves images of the class (anger|fear) in train"):
        ckplus.plan(tmp_path, 0.5, 0.0)


def test_a_class_too_small_for_the_cut_is_named(tmp_path: Path) -> None:
    name_faces(tmp_path, "anger", range(50), 3)
    name_faces(tmp_path, "fear", range(50, 51), 3)
    says = r"the smallest class, fear, of 3 images cannot be cut so; expected fractions from 0\.33 to 0\.67"
    with pytest.raises(BadInput, match=says):
        ckplus.plan(tmp_path)


def test_a_fraction_finer_than_the_folds_is_told_the_least(faces: Path) -> None:
    with pytest.raises(BadInput, match=r"40 subjects cannot be cut so; expected fractions from 0\.05 to 0\.95"):
        ckplus.plan(faces, 0.01, 0.0)


def test_folders_that_are_divided_already_are_refused(faces: Path) -> None:
    (faces.parent / "divided").mkdir()
    faces.rename(faces.parent / "divided" / "train")
    with pytest.raises(BadInput, match="the folder has splits already"):
        ckplus.plan(faces.parent / "divided")


@pytest.fixture
def distributed(tmp_path: Path) -> Path:
    """CK+ as it comes: 30 subjects with two sequences of five frames, of which 40 have an emotion."""
    root = tmp_path / "CK+"
    for subject in range(30):
        for sequence in (1, 2):
            place = Path(f"S{subject:03d}/{sequence:03d}")
            images, emotions = root / "cohn-kanade-images" / place, root / "Emotion" / place
            for folder in (images, emotions):
                folder.mkdir(parents=True)
            for frame in range(1, 6):
                (images / f"S{subject:03d}_{sequence:03d}_{frame:08d}.png").touch()
            if subject % 3:
                emotion = emotions / f"S{subject:03d}_{sequence:03d}_00000005_emotion.txt"
                emotion.write_text(f"   {1 + (subject + sequence) % 3:.7e}\n")
    return root


def test_the_peaks_of_sequences_with_an_emotion_are_taken(distributed: Path) -> None:
    plan = ckplus.plan(distributed, 0.2, 0.2)
    assert plan.classes.ids == ("anger", "contempt", "disgust")
    rows = [row for images in plan.splits.values() for row in zip(images.paths, images.labels, strict=True)]
    assert len(rows) == 40 * 3
    for path, label in rows:
        subject, sequence, frame = Path(path).stem.split("_")
        assert (path.startswith("cohn-kanade-images/"), int(frame) >= 3, int(subject[1:]) % 3 > 0) == (True, True, True)
        assert label == (int(subject[1:]) + int(sequence)) % 3
    groups = [subjects(images.paths) for images in plan.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20


@pytest.mark.parametrize("text", ["8.0", "", "2.5", "nan", "anger"])
def test_an_emotion_there_is_not_is_refused(text: str, distributed: Path) -> None:
    next((distributed / "Emotion").rglob("*.txt")).write_text(text)
    with pytest.raises(BadInput, match=r"_emotion\.txt: no emotion of CK\+; expected a number 0\.\.7; found"):
        ckplus.plan(distributed)


def test_emotions_without_images_are_refused(distributed: Path) -> None:
    (distributed / "cohn-kanade-images").rename(distributed.parent / "elsewhere")
    with pytest.raises(BadInput, match="the sequence of this emotion has no images; expected cohn-kanade-images/S001"):
        ckplus.plan(distributed)
