"""One shard: committed only when its files are there in full; colours counted exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline import files
from imagenet_pipeline.errors import Damaged
from imagenet_pipeline.records import recordio, shard
from imagenet_pipeline.records.shard import ColourSums, ShardTask, is_finished, make_shard
from imagenet_pipeline.records.tasks import noted_images


@pytest.fixture
def task(photos: Path, tmp_path: Path) -> ShardTask:
    (tmp_path / ".building").mkdir()
    return ShardTask(
        key="key",
        name="train",
        split="train",
        folder=tmp_path,
        building=tmp_path / ".building",
        root=photos,
        follow_links=False,
        first_number=100,
        paths=[f"{i % 30}.jpg" for i in range(70)],
        labels=[i % 3 for i in range(70)],
        resize=16,
        quality=90,
        pass_through=False,
    )


def test_a_shard_is_made_noted_and_committed(task: ShardTask) -> None:
    assert not is_finished(task)
    assert noted_images(task) == 0
    assert make_shard(task) == 0
    assert is_finished(task)
    assert noted_images(task) == 64
    lines = (task.folder / "train.idx").read_text().splitlines()
    assert [int(line.split("\t")[0]) for line in lines] == list(range(100, 170))


@pytest.mark.parametrize("name", ["train.rec", "train.idx", ".building/train.json"])
def test_what_is_cut_or_gone_is_not_finished(task: ShardTask, name: str) -> None:
    make_shard(task)
    path = task.folder / name
    path.write_bytes(path.read_bytes()[:-4])
    assert not is_finished(task)
    path.unlink()
    assert not is_finished(task)


def test_rejects_or_another_key_are_not_finished(task: ShardTask) -> None:
    make_shard(task)
    assert not is_finished(replace(task, key="other"))
    spoilt = replace(task, paths=["absent.jpg", *task.paths[1:]])
    assert make_shard(spoilt) == 1
    assert files.read_json(spoilt.marker)["rejects"] == [[100, "absent.jpg", "file is missing"]]
    assert not is_finished(spoilt)


def test_what_does_not_read_back_is_never_committed(task: ShardTask, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Callable[[bytes], bytes] = recordio.frame

    def faulty(data: bytes) -> bytes:
        framed = bytearray(plain(data))
        framed[40] ^= 1
        return bytes(framed)

    monkeypatch.setattr(shard.recordio, "frame", faulty)
    with pytest.raises(Damaged, match="checksum wrong"):
        make_shard(task)
    assert [path.name for path in task.folder.iterdir()] == [".building"]


def test_colour_sums_are_exact() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    colours = ColourSums()
    colours.add(pixels)
    colours.add(pixels)
    wide = pixels.astype(np.int64)
    assert colours.pixels == 2 * 7 * 9
    assert colours.sums == (2 * wide.sum(axis=(0, 1))).tolist()
    assert colours.squares == (2 * (wide**2).sum(axis=(0, 1))).tolist()


def test_colour_sums_of_more_equal_pixels_than_float32_counts_are_exact() -> None:
    colours = ColourSums()
    colours.add(np.full((4097, 4099, 3), (1, 2, 255), np.uint8))
    assert (count := 4097 * 4099) > 2**24
    assert (count % 2, colours.pixels) == (1, count)
    assert colours.sums == [count, 2 * count, 255 * count]
    assert colours.squares == [count, 4 * count, 255**2 * count]
