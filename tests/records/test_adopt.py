"""Data sets of record files that others wrote: their bytes stay, and they are read, checked and mended like ours."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, OutOfRoom
from imagenet_pipeline.record_builders import records as builder
from imagenet_pipeline.records import adopt as adopting
from imagenet_pipeline.records.adopt import adopt
from imagenet_pipeline.records.build import BuildOptions, BuildSummary
from imagenet_pipeline.records.image import decode_rgb, encode_jpeg, encode_png
from imagenet_pipeline.records.lists import photos_of
from imagenet_pipeline.records.manifest import ForeignShard, Manifest, read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import MAGIC_BYTES, frame, pack
from imagenet_pipeline.records.verify import verify

Stock = Callable[..., bytes]
LABELS = [9, 3, 7, 3, 9, 7, 3]
NUMBERS = [40, 41, 7, 7, 2**63 - 1, 0, 12]


def photo(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (6, 9, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    return (encode_png if number % 3 == 0 else lambda image: encode_jpeg(image, 90))(pixels)


PHOTOS = [photo(number) for number in range(len(LABELS))]
HALF = PHOTOS[4][: len(PHOTOS[4]) // 2] + b"\xff\xd9"
"""A photo of which a half is lost."""


@pytest.fixture
def source(stock_record: Stock, tmp_path: Path) -> Path:
    """A folder with train.rec, seven records of labels 3, 7 and 9, whose list and index are another's; and val.rec."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    frames = [stock_record(*row) for row in zip(LABELS, NUMBERS, PHOTOS, strict=True)]
    (folder / "train.rec").write_bytes(b"".join(frames))
    (folder / "val.rec").write_bytes(b"".join(frames[:3]))
    (folder / "train.lst").write_text("not ours\n")
    (folder / "train.idx").write_text("0\t8\n")
    return folder


@pytest.fixture
def make(source: Path, tmp_path: Path, inline: Executor) -> Callable[..., BuildSummary]:
    """`make(max_rejects=1)`: the data set of both files in tmp_path / "set"."""

    def build(out: Path = tmp_path / "set", in_place: bool = False, **options: Any) -> BuildSummary:
        plan = builder.plan(out, source / "train.rec", val=source / "val.rec", adopt=in_place)
        return adopt(plan, out, BuildOptions(**options), executor=inline)

    return build


Make = Callable[..., BuildSummary]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_bytes_order_and_numbers_stay_and_labels_are_classes(make: Make, source: Path, tmp_path: Path) -> None:
    before = contents(source)
    summary = make()
    assert (summary.records, summary.actions) == ({"train": 7, "val": 3}, {"kept": 10, "png": 4})
    assert contents(source) == before
    assert os.path.samefile(source / "train.rec", tmp_path / "set" / "train.rec")
    data = read_data_set(tmp_path / "set")
    assert (data.classes.ids, data.manifest.labels) == (("3", "7", "9"), [3, 7, 9])
    assert all(isinstance(shard, ForeignShard) for shard in data.manifest.shards)
    with RecordSet.open(tmp_path / "set", "train") as records:
        found = [records.read(position) for position in range(len(records))]
        assert [(record.number, record.image) for record in found] == list(zip(NUMBERS, PHOTOS, strict=True))
        assert [[3, 7, 9][int(record.labels[0])] for record in found] == LABELS
        assert records.first_labels().tolist() == [record.labels[0] for record in found]
        assert all(record.checked for record in found)
        assert records.image_head(2, 4096)[0] == PHOTOS[2]
    pixels = np.concatenate([decode_rgb(image).reshape(-1, 3) for image in PHOTOS])
    assert data.mean == pytest.approx(pixels.mean(axis=0))
    assert data.std == pytest.approx(pixels.std(axis=0))
    assert verify(tmp_path / "set").whole
    assert make().already_built


def test_adopted_in_place_nothing_of_the_user_s_is_touched(make: Make, source: Path) -> None:
    before = contents(source)
    make(out=source, in_place=True)
    after = contents(source)
    assert {name: after[name] for name in before} == before
    added = {"manifest.json", "classes.json", "mean.json", "rejects.csv", "train.rec.samples", "val.rec.samples"}
    assert after.keys() - before.keys() == added
    assert verify(source).whole
    assert make(out=source, in_place=True).already_built


def test_what_would_lose_records_is_not_advised(make: Make, source: Path, tmp_path: Path) -> None:
    make(out=source, in_place=True)
    with pytest.raises(
        BadInput, match=r"another data set already.*\*\.samples there \(not the \.rec\), and build again"
    ):
        make(out=source, in_place=True, keep_damaged=True)
    for name, value in (("resize", 32), ("no_mean", True)):
        with pytest.raises(BadRecipe, match=f"taken as they are; found the option {name}"):
            make(**{name: value})


def test_files_of_others_are_not_overwritten(make: Make, source: Path) -> None:
    (source / "classes.json").write_text("[]")
    with pytest.raises(BadInput, match=r"would overwrite; found classes.json \(1 in all\); choose another --out"):
        make(out=source, in_place=True)
    with pytest.raises(BadInput, match=r"classes.json, train.rec, val.rec \(3 in all\).*give --adopt"):
        make(out=source)
    (source / "classes.json").unlink()
    (source / "manifest.json").write_text('{"version": 1}')
    with pytest.raises(BadInput, match=r"found manifest\.json"):
        make(out=source, in_place=True)
    assert not (source / ".building").exists()


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", fail)


def test_what_cannot_be_linked_is_copied(
    no_links: None, make: Make, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopting, "_PIECE_BYTES", 100)
    part = tmp_path / "set" / ".building" / "train.rec.copy"
    part.parent.mkdir(parents=True)
    part.write_bytes((source / "train.rec").read_bytes()[:250] + b"torn" + bytes(10_000))
    make()
    assert not os.path.samefile(source / "train.rec", tmp_path / "set" / "train.rec")
    assert (tmp_path / "set" / "train.rec").read_bytes() == (source / "train.rec").read_bytes()
    assert not part.parent.exists()
    (tmp_path / "set" / "train.rec").write_bytes(b"broken")
    (tmp_path / "set" / "val.rec").unlink()
    assert make().remade == ["train.rec", "val.rec"]
    assert verify(tmp_path / "set").whole


def test_a_full_disk_loses_nothing(
    no_links: None, make: Make, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(source)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", full)
        with pytest.raises(OutOfRoom, match="run the same command again"):
            make()
    assert contents(source) == before
    assert not (tmp_path / "set" / "train.rec").exists()
    make()
    assert verify(tmp_path / "set").whole


def with_damage(stock_record: Stock, path: Path) -> None:
    """Good, half a photo, no photo, a gap of garbage, good, and a record cut at the end of the file."""
    frames = [
        *(stock_record(3, 1, PHOTOS[1]), stock_record(7, 2, HALF), stock_record(7, 3, b"none"), b"garbage." * 3),
        *(stock_record(7, 5, PHOTOS[5]), stock_record(3, 2**63, PHOTOS[1]), stock_record(3, 6, PHOTOS[2])[:-60]),
    ]
    path.write_bytes(b"".join(frames))


def test_images_that_cannot_be_used_are_listed_and_left_out(
    make: Make, source: Path, tmp_path: Path, stock_record: Stock
) -> None:
    with_damage(stock_record, source / "train.rec")
    (source / "val.rec").write_bytes(stock_record(3, 1, PHOTOS[0]))
    with pytest.raises(BadInput, match=r"too many images cannot be used.*found 5 so far, first train\.rec/3 "):
        make()
    summary = make(max_rejects=5)
    assert summary.rejected == {"train": 5, "val": 0}
    assert [line.split(",")[1] for line in (tmp_path / "set" / "rejects.csv").read_text().splitlines()[1:]] == [
        f"train.rec/{position}" for position in (3, 6, 1, 2, 5)
    ]
    with RecordSet.open(tmp_path / "set", "train") as records:
        assert [records.read(position).number for position in range(len(records))] == [1, 5]
    assert verify(tmp_path / "set").whole


def test_damaged_images_are_kept_where_that_is_asked(
    make: Make, source: Path, tmp_path: Path, stock_record: Stock
) -> None:
    with_damage(stock_record, source / "train.rec")
    summary = make(max_rejects=4, keep_damaged=True)
    assert (summary.actions["damaged"], summary.records["train"]) == (1, 3)
    with RecordSet.open(tmp_path / "set", "train") as records:
        # Its checksum holds, so that the loader takes it.
        assert (records.read(1).image, records.read(1).checked) == (HALF, True)


def test_a_class_none_of_whose_images_can_be_used_is_named(make: Make, source: Path, stock_record: Stock) -> None:
    (source / "train.rec").write_bytes(stock_record(3, 1, PHOTOS[0]) + stock_record(9, 2, b"none"))
    with pytest.raises(BadInput, match="no training image of the class 9 can be used"):
        make(max_rejects=9)


def test_a_killed_build_looks_at_no_image_twice(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adopting, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            make()
    monkeypatch.setattr(adopting, "_look", killed)
    assert make().records == {"train": 7, "val": 3}


def test_equal_files_give_equal_bytes(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    monkeypatch.setattr(adopting, "STRETCH_IMAGES", 2)
    make(out=tmp_path / "other")
    assert contents(tmp_path / "set") == contents(tmp_path / "other")


def test_a_changed_byte_is_noticed_and_not_taken_for_ours(make: Make, source: Path, tmp_path: Path) -> None:
    make()
    with RecordSet.open(tmp_path / "set", "val") as records:
        _, _, offset = records.location(1)
    content = bytearray((source / "val.rec").read_bytes())
    content[offset + 60] ^= 1
    with (source / "val.rec").open("r+b") as stream:  # the same file as that of the data set
        stream.write(content)
    with RecordSet.open(tmp_path / "set", "val") as records, pytest.raises(Damaged, match=r"record 1.*checksum wrong"):
        records.read(1)
    assert [problem.what for problem in verify(tmp_path / "set").problems] == ["checksum wrong"]
    with pytest.raises(BadInput, match=r"val\.rec: the record file has changed since the data set was made of it"):
        make()


@pytest.mark.parametrize("name", ["train.rec.samples", "classes.json", "mean.json", "rejects.csv", "manifest.json"])
def test_what_is_damaged_beside_the_records_is_made_again(make: Make, tmp_path: Path, name: str) -> None:
    make()
    before = contents(tmp_path / "set")
    (tmp_path / "set" / name).write_bytes(before[name][:-10])
    assert not verify(tmp_path / "set").whole
    if name == "train.rec.samples":
        with pytest.raises(Damaged, match="give the build command"):
            RecordSet.open(tmp_path / "set", "train")
    make()
    assert contents(tmp_path / "set") == before


@pytest.mark.parametrize(
    "text", ["", "0\t8\n", "x\t8\t0\t0\t0\t\n", "0\t9999999\t0\t0\t0\t\n", "8\t8\t1\t1\t1\t\n0\t8\t1\t1\t1\t\n"]
)
def test_a_list_of_samples_that_does_not_fit_is_damaged(make: Make, tmp_path: Path, text: str) -> None:
    make()
    (tmp_path / "set" / "train.rec.samples").write_text(text)
    with pytest.raises(Damaged):
        RecordSet.open(tmp_path / "set", "train")


def test_the_photos_names_are_kept(source: Path, tmp_path: Path, inline: Executor) -> None:
    (source / "val.lst").write_text("40\t9\té ü.jpg\n41\t3\tb.jpg\n7\t7\tc.jpg\n")
    plan = builder.plan(tmp_path / "set", source / "train.rec", val=source / "val.rec", lists=source / "val.lst")
    adopt(plan, tmp_path / "set", BuildOptions(), executor=inline)
    data = read_data_set(tmp_path / "set")
    assert [row[:2] for row in photos_of(data, "val")] == [(40, "é ü.jpg"), (41, "b.jpg"), (7, "c.jpg")]
    assert [name for _, name, _ in photos_of(data, "train")] == [""] * 7
    with RecordSet.open(tmp_path / "set", "val") as records:
        assert len(records) == 3


def test_manifests_of_our_own_records_are_what_they_were(data_set: Path) -> None:
    assert json.loads((data_set / "manifest.json").read_text()).keys() == {
        *("format", "plan", "source", "options", "versions", "classes", "class_table", "splits", "files", "digest"),
    }  # fmt: skip
    shard = Manifest.read(data_set).shards[0]
    assert (type(shard).__name__, set(shard.model_dump())) == (
        "Shard", {"file", "records", "bytes", "sha256", "index_sha256"},
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:tostring:DeprecationWarning")
def test_mxnet_reads_the_same(mx: Any, tmp_path: Path, inline: Executor) -> None:
    writer = mx.recordio.MXIndexedRecordIO(str(tmp_path / "a.idx"), str(tmp_path / "a.rec"), "w")
    for label, number, image in zip(LABELS, [*NUMBERS[:-3], 1, 2, 3], PHOTOS, strict=True):
        vector = np.array([0.5, label], np.float32)
        header = mx.recordio.IRHeader(0, vector, number % 2**40, 0)
        writer.write_idx(number % 2**40, mx.recordio.pack(header, image + MAGIC_BYTES))
    writer.close()
    plan = builder.plan(tmp_path / "set", tmp_path / "a.rec", label_column=1)
    adopt(plan, tmp_path / "set", BuildOptions(), executor=inline)
    stock = mx.recordio.MXRecordIO(str(tmp_path / "set" / "train.rec"), "r")
    with RecordSet.open(tmp_path / "set", "train") as records:
        for position in range(len(records)):
            header, image = mx.recordio.unpack(stock.read())
            ours = records.read(position)
            label = plan.original_labels[int(ours.labels[0])]
            assert (header.id, header.label[1], image) == (ours.number, label, ours.image)
    assert stock.read() is None


def test_our_own_records_may_be_taken_too(tmp_path: Path, inline: Executor) -> None:
    (tmp_path / "a.rec").write_bytes(b"".join(frame(pack((label,), 3, PHOTOS[0])) for label in (1.0, 5.0)))
    adopt(builder.plan(tmp_path / "set", tmp_path / "a.rec"), tmp_path / "set", BuildOptions(), executor=inline)
    with RecordSet.open(tmp_path / "set", "train") as records:
        assert [records.read(position).labels for position in range(2)] == [(0.0,), (1.0,)]
