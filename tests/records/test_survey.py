"""A look at photos before anything is built: what is counted is what was put there."""

from __future__ import annotations

import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.builders import plan_of
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.plan import Plan
from imagenet_pipeline.records.survey import _even, sample_of, survey

Draw = Callable[..., Path]


def draw(path: Path, seed: int, size: tuple[int, int] = (40, 30), grey: bool = False) -> Path:
    """A photo of coarse noise, width and height in pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 1 if grey else 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.resize(np.broadcast_to(noise, (4, 5, 3)), size))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes in three splits: 9 and 6 photos to train on, a grey PNG, a cut JPEG, a photo in two splits."""
    root = tmp_path / "photos"
    for split, cats, dogs in (("train", 9, 6), ("val", 3, 3), ("test", 3, 3)):
        for name, count in (("cat", cats), ("dog", dogs)):
            for number in range(count):
                draw(root / split / name / f"{number}.jpg", zlib.crc32(f"{split} {name} {number}".encode()))
    draw(root / "train" / "cat" / "8.jpg", 1).unlink()
    draw(root / "train" / "cat" / "8.png", 1, (64, 48), grey=True)
    damaged = root / "train" / "dog" / "0.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-60])
    shutil.copy(root / "train" / "dog" / "1.jpg", root / "test" / "dog" / "copy.jpg")
    return root


def planned(root: Path, tmp_path: Path) -> Plan:
    return plan_of("folder", tmp_path / "data", {"root": root})


def nothing(*_: object) -> None:
    pass


def test_it_counts_what_is_there(photos: Path, tmp_path: Path) -> None:
    found = survey(planned(photos, tmp_path), nothing)
    assert found.images == {"train": 15, "val": 6, "test": 7}
    assert found.class_counts == {"cat": 9, "dog": 6}
    assert found.imbalance == 1.5
    assert (found.looked_at, found.usable) == (28, 27)
    assert found.formats == {"JPEG": 26, "PNG": 1}
    assert found.edges == (30, 30, 48)
    assert found.size == (40, 30)
    assert found.grey == 1
    assert [path for path, _ in found.unusable] == ["train/dog/0.jpg"]
    assert found.repeated == (("train/dog/1.jpg", "test/dog/copy.jpg"),)


@pytest.mark.parametrize("near", [True, False])
def test_a_photo_saved_anew_is_known_by_its_hash_alone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, near: bool
) -> None:
    pytest.importorskip("imagehash")
    if not near:
        monkeypatch.setitem(sys.modules, "imagehash", None)
    whole = cv2.imread(str(photos / "train" / "cat" / "3.jpg"))
    cv2.imwrite(str(photos / "val" / "cat" / "again.png"), whole)
    found = survey(planned(photos, tmp_path), nothing).repeated
    pairs = [("train/cat/3.jpg", "val/cat/again.png")] if near else []
    assert sorted(found) == [*pairs, ("train/dog/1.jpg", "test/dog/copy.jpg")]


def test_a_zip_looks_like_the_folder_in_it(photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as packed:
        for path in sorted(photos.rglob("*.*")):
            packed.write(path, path.relative_to(tmp_path))
    assert survey(planned(tmp_path / "photos.zip", tmp_path), nothing) == survey(planned(photos, tmp_path), nothing)


def test_of_many_photos_it_looks_at_a_sample_of_each_split(photos: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = survey(planned(photos, tmp_path), lambda *done: told.append(done), most=10)
    assert found.images == {"train": 15, "val": 6, "test": 7}
    assert found.looked_at == told[-1][0] == told[-1][1]
    assert 10 <= found.looked_at <= 12


def test_photos_none_of_which_can_be_used_are_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(4):
            path = tmp_path / "photos" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\xff\xd8 no more of it")
    with pytest.raises(BadInput, match=r"no photo can be used; found (cat|dog)/"):
        survey(planned(tmp_path / "photos", tmp_path), nothing)


def test_a_sample_is_of_photos_that_can_be_used(photos: Path, tmp_path: Path) -> None:
    sample = sample_of(planned(photos, tmp_path), 4, ["train/dog/0.jpg"])
    assert sample.counts == {"train": 4, "val": 4}
    assert "train/dog/0.jpg" not in sample.splits["train"].paths


@given(st.integers(0, 1000), st.integers(1, 100))
def test_evenly_spaced_numbers(count: int, most: int) -> None:
    chosen = _even(count, most)
    assert len(chosen) == len(set(chosen.tolist())) == min(count, most)
    gaps = np.diff(chosen)
    assert not len(gaps) or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    assert min(count, most) < 2 or (chosen[0], chosen[-1]) == (0, count - 1)
