"""A damaged data set: the same build command finds what is damaged and makes it again, to the same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput, Damaged
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.plan import Plan
from imagenet_pipeline.records.reader import RecordSet

OPTIONS = BuildOptions(resize=32, shards=2, workers=1)
EVERY_FILE = (
    *("train-00000-of-00002.rec", "train-00001-of-00002.idx", "val.rec", "test.idx"),
    *("train.lst", "val.lst", "test.lst", "classes.json", "mean.json", "rejects.csv", "manifest.json"),
)  # fmt: skip

Harm = Callable[[Path], object]
flip: Harm = lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])  # noqa: E731
cut: Harm = lambda path: path.write_bytes(path.read_bytes()[:-4])  # noqa: E731


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def copy(data_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_set, tmp_path / "set"))


@pytest.fixture
def own_photos(photos: Path, small_plan: Plan, tmp_path: Path) -> Plan:
    """`small_plan` over photos that a test may change."""
    return replace(small_plan, root=Path(shutil.copytree(photos, tmp_path / "photos")))


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink], ids=["flipped", "cut", "gone"])
@pytest.mark.parametrize("name", EVERY_FILE)
def test_whatever_file_is_damaged_comes_back_byte_for_byte(
    copy: Path, data_set: Path, small_plan: Plan, inline: Executor, made: list[str], name: str, harm: Harm
) -> None:
    harm(copy / name)
    summary = build(small_plan, copy, OPTIONS, executor=inline)
    assert contents(copy) == contents(data_set)
    assert made == ([Path(name).stem] if name.endswith((".rec", ".idx")) else [])
    if name != "manifest.json":
        assert summary.remade == [name]
    assert build(small_plan, copy, OPTIONS, executor=inline).remade == []


def test_without_kept_markers_a_damaged_mean_takes_all_shards(
    copy: Path, data_set: Path, small_plan: Plan, inline: Executor, made: list[str]
) -> None:
    (copy / "markers.txt").unlink()
    flip(copy / "val.rec")
    build(small_plan, copy, OPTIONS, executor=inline)
    assert made == ["val"]
    flip(copy / "mean.json")
    build(small_plan, copy, OPTIONS, executor=inline)
    assert len(made) == 1 + 4
    assert contents(copy) == contents(data_set)
    flip(copy / "markers.txt")
    assert build(small_plan, copy, OPTIONS, executor=inline).remade == ["markers.txt"]
    assert contents(copy) == contents(data_set)


def test_rejects_are_the_same_again(own_photos: Plan, tmp_path: Path, inline: Executor) -> None:
    (Path(own_photos.root) / "2.jpg").write_bytes(b"no image")
    options = replace(OPTIONS, max_rejects=1)
    build(own_photos, tmp_path / "set", options, executor=inline)
    before = contents(tmp_path / "set")
    for name in ("train-00000-of-00002.rec", "rejects.csv", "train.lst"):
        flip(tmp_path / "set" / name)
    assert len(build(own_photos, tmp_path / "set", options, executor=inline).remade) == 3
    assert contents(tmp_path / "set") == before


def test_changed_photos_are_named_and_never_mixed_in(own_photos: Plan, tmp_path: Path, inline: Executor) -> None:
    out, photo = tmp_path / "set", Path(own_photos.root) / "3.jpg"
    assert build(own_photos, out, OPTIONS, executor=inline).changed == []
    before = contents(out)
    cv2.imwrite(str(photo), np.zeros((40, 50, 3), np.uint8))
    assert build(own_photos, out, OPTIONS, executor=inline).changed == ["3.jpg"]
    flip(out / "val.rec")
    assert build(own_photos, out, OPTIONS, executor=inline).remade == ["val.rec"]
    assert contents(out) == before
    cut(out / "train-00000-of-00002.rec")
    damaged = contents(out)
    with pytest.raises(BadInput, match=r"train-00000-of-00002\.rec: .*changed photos: 3\.jpg"):
        build(own_photos, out, OPTIONS, executor=inline)
    assert contents(out) == damaged


def test_a_finished_shard_of_an_unfinished_build_is_remade_where_its_photos_have_changed(
    own_photos: Plan, tmp_path: Path, inline: Executor, made: list[str], build_killed: Callable[..., None]
) -> None:
    build_killed(own_photos, tmp_path / "set", OPTIONS)
    made.clear()
    os.utime(Path(own_photos.root) / "20.jpg", ns=(1, 1))
    build(own_photos, tmp_path / "set", OPTIONS, executor=inline)
    assert made == ["val"]


def test_who_meets_damage_is_told_how_it_is_mended(copy: Path) -> None:
    record_file = copy / "val.rec"
    content = bytearray(record_file.read_bytes())
    content[60] ^= 1
    record_file.write_bytes(content)
    with RecordSet.open(copy, "val") as records, pytest.raises(Damaged, match="give the build command"):
        records.read(0)
    flip(copy / "mean.json")
    with pytest.raises(Damaged, match="give the build command"):
        read_data_set(copy)


def test_a_photo_that_cannot_be_used_any_more_is_named_and_nothing_else_is_touched(
    own_photos: Plan, tmp_path: Path, inline: Executor
) -> None:
    out, photo = tmp_path / "set", Path(own_photos.root) / "3.jpg"
    build(own_photos, out, OPTIONS, executor=inline)
    (out / "markers.txt").unlink()
    photo.write_bytes(b"no image")
    flip(out / "train-00000-of-00002.rec")
    before = contents(out)
    with pytest.raises(BadInput, match=r"photos that cannot be used now: 3\.jpg \(not an image"):
        build(own_photos, out, replace(OPTIONS, max_rejects=5), executor=inline)
    assert contents(out) == before
