"""Records written back as folders, tar files, WebDataset shards and plain RecordIO, each read by another reader."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, OutOfRoom
from imagenet_pipeline.files import PART_MARK
from imagenet_pipeline.record_builders import folder as folder_builder
from imagenet_pipeline.record_builders import listing
from imagenet_pipeline.records import export
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.class_names import names_of, read_classes
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.export import FORMS, class_entries, export_records
from imagenet_pipeline.records.lists import read_list
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import frame, pack

KEPT = BuildOptions(resize=0, pass_through=True, workers=1)
JPEG = b"\xff\xd8\xff\xd9"


def rows(path: Path, split: str) -> list[tuple[int, tuple[float, ...], bytes]]:
    with RecordSet.open(path, split) as records:
        found = [records.read(position) for position in range(len(records))]
    return [(record.number, record.labels, record.image) for record in found]


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            assert stream is not None
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            yield member.name, stream.read()


@pytest.fixture
def lone(tmp_path: Path) -> Callable[..., Path]:
    """`lone((labels, number, image), ...)`: a record file of another program."""

    def write(*records: tuple[tuple[float, ...], int, bytes], name: str = "old.rec") -> Path:
        framed = [frame(pack(labels, number, image, checked=False)) for labels, number, image in records]
        (tmp_path / name).write_bytes(b"".join(framed))
        return tmp_path / name

    return write


def test_a_folder_built_again_has_the_same_bytes_and_labels(data_set: Path, tmp_path: Path, inline: Executor) -> None:
    told: list[tuple[int, int]] = []
    exported = export_records(data_set, "folder", tmp_path / "out", progress=lambda *counts: told.append(counts))
    assert exported.records == {"train": 18, "val": 6, "test": 6}
    assert exported.files == ["classes.txt", "test.lst", "train.lst", "val.lst"]
    assert told == [(done, 30) for done in range(1, 31)]
    plan = folder_builder.plan(tmp_path / "out", classes=tmp_path / "out" / "classes.txt")
    again = tmp_path / "again"
    build(plan, again, KEPT, executor=inline)
    assert read_data_set(again).classes == read_data_set(data_set).classes
    for split in exported.records:
        assert sorted(row[1:] for row in rows(again, split)) == sorted(row[1:] for row in rows(data_set, split))


def test_its_list_built_again_keeps_every_number_of_a_class(data_set: Path, tmp_path: Path, inline: Executor) -> None:
    out = tmp_path / "out"
    export_records(data_set, "folder", out)
    listed = read_list(out / "val.lst")
    assert [(row.index, row.labels) for row in listed] == [row[:2] for row in rows(data_set, "val")]
    assert [(out / row.path).read_bytes() for row in listed] == [row[2] for row in rows(data_set, "val")]
    plan = listing.plan(out / "train.lst", out, val_list=out / "val.lst", classes=out / "classes.txt")
    build(plan, tmp_path / "again", KEPT, executor=inline)
    assert read_data_set(tmp_path / "again").classes.ids == ("cat", "dog", "emu")
    assert sorted(rows(tmp_path / "again", "val")) == sorted(rows(data_set, "val"))


def test_a_tar_is_the_folder_sorted_and_the_same_bytes_each_time(data_set: Path, tmp_path: Path) -> None:
    for name, form in (("tar", "tar"), ("other", "tar"), ("folder", "folder")):
        export_records(data_set, form, tmp_path / name, split="train")
    found = dict(members(tmp_path / "tar" / "train.tar"))
    assert list(found) == sorted(found)
    both = contents(tmp_path / "folder")
    assert found == {name: content for name, content in both.items() if "/" in name}
    assert contents(tmp_path / "tar") == contents(tmp_path / "other")
    assert sorted(os.listdir(tmp_path / "tar")) == ["classes.txt", "train.lst", "train.tar"]


@pytest.mark.parametrize("limit_bytes", [1, 30_000, 10**9])
def test_shards_hold_whole_samples_side_by_side(data_set: Path, tmp_path: Path, limit_bytes: int) -> None:
    exported = export_records(data_set, "webdataset", tmp_path / "out", "train", limit_bytes)
    shards = [name for name in exported.files if name.endswith(".tar")]
    assert shards == [f"train-{shard:06d}.tar" for shard in range(len(shards))]
    assert len(shards) in ([18] if limit_bytes == 1 else [1] if limit_bytes == 10**9 else range(2, 18))
    samples = []
    for shard in shards:
        found = list(members(tmp_path / "out" / shard))
        # As webdataset does: the key is all before the first dot of the name.
        groups = {key: dict(group) for key, group in groupby(found, lambda member: member[0].split(".")[0])}
        assert sum(map(len, groups.values())) == len(found)
        assert len(groups) == 1 or (tmp_path / "out" / shard).stat().st_size <= limit_bytes
        for key, parts in groups.items():
            about = json.loads(parts[f"{key}.json"])
            assert about["label"] == int(parts[f"{key}.cls"])
            assert about["class_id"] == ("cat", "dog", "emu")[about["label"]]
            assert about["class_name"] == about["class_id"].title()
            samples.append((int(key), (float(about["label"]),), parts[f"{key}.jpg"]))
    assert samples == rows(data_set, "train")


def test_plain_records_are_our_records_without_checksums(data_set: Path, tmp_path: Path) -> None:
    exported = export_records(data_set, "rec", tmp_path / "out")
    for split in exported.records:
        path = tmp_path / "out" / f"{split}.rec"
        assert rows(path, split) == rows(data_set, split)
        assert path.read_bytes()[24:32] == bytes(8)
        with RecordSet.open(path) as records:
            offsets = [records.location(position)[2] for position in range(len(records))]
        assert path.with_suffix(".idx").read_text() == "".join(
            f"{row.index}\t{offset}\n" for row, offset in zip(read_list(path.with_suffix(".lst")), offsets, strict=True)
        )


@pytest.mark.gluon
def test_mxnet_reads_plain_records(data_set: Path, tmp_path: Path, mx: Any) -> None:
    export_records(data_set, "rec", tmp_path / "out", split="train")
    index, records = (str(tmp_path / "out" / f"train.{ending}") for ending in ("idx", "rec"))
    stock = mx.recordio.MXIndexedRecordIO(index, records, "r")
    for number, (label,), image in rows(data_set, "train"):
        header, content = mx.recordio.unpack(stock.read_idx(number))
        assert (header.flag, header.label, header.id, header.id2, content) == (0, label, number, 0, image)
    stock.close()
    iterator = mx.io.ImageRecordIter(
        path_imgrec=records, path_imgidx=index, path_imglist=str(tmp_path / "out" / "train.lst"),
        data_shape=(3, 16, 16), batch_size=6, resize=16, verbose=False,
    )  # fmt: skip
    labels = np.concatenate([batch.label[0].asnumpy() for batch in iterator])
    assert labels.tolist() == [row[1][0] for row in rows(data_set, "train")]


def test_records_of_others_are_exported_by_their_numbers(lone: Callable[..., Path], tmp_path: Path) -> None:
    path = lone(((7,), 5, JPEG), ((2,), 5, b"other"), ((7,), 2**64 - 1, JPEG + b"."), name="val.rec")
    exported = export_records(path, "folder", tmp_path / "out")
    assert exported.records == {"val": 3}
    names = set(contents(tmp_path / "out"))
    images = {"val/7/00000005.jpg", "val/2/00000000.bin", "val/7/18446744073709551615.jpg"}
    assert names == {*images, "val.lst", "classes.txt"}
    assert (tmp_path / "out" / "classes.txt").read_text() == "2\t2\n7\t7\n"


def test_real_records_of_others_go_out_and_in(unpacked: Callable[[str], Path], tmp_path: Path) -> None:
    path = next(unpacked("mxnet_files_shared.tar.xz").rglob("zhang*/val.rec"))
    exported = export_records(path, "rec", tmp_path / "out")
    assert rows(tmp_path / "out" / "val.rec", "val") == rows(path, "val")
    assert exported.records == {"val": len(rows(path, "val"))}


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (((1, 2), 0, JPEG), "the record has several labels"),
        (((1.5,), 0, JPEG), "the label is not the number of a class; .* found 1.5"),
        (((-1,), 0, JPEG), "the label is not the number of a class"),
        (((math.nan,), 0, JPEG), "the label is not the number of a class"),
        (((1e30,), 0, JPEG), "the label is not the number of a class"),
        (((1,), 0, b""), "the record has no image"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_sample_is_refused_and_nothing_is_left(
    lone: Callable[..., Path], tmp_path: Path, record: Any, what: str, form: str
) -> None:
    path = lone(((1,), 0, JPEG), record)
    with pytest.raises(BadInput, match=what):
        export_records(path, form, tmp_path / "out")
    assert os.listdir(tmp_path) == ["old.rec"]


def test_damage_and_a_full_disk_leave_nothing(data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export, "_add", fail)
    with pytest.raises(OutOfRoom, match=f"{tmp_path / 'out'}: cannot be written"):
        export_records(data_set, "tar", tmp_path / "out")
    monkeypatch.undo()
    damaged = tmp_path / "damaged.rec"
    content = bytearray((data_set / "val.rec").read_bytes())
    content[300] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(Damaged, match="checksum wrong"):
        export_records(damaged, "webdataset", tmp_path / "out")
    assert os.listdir(tmp_path) == ["damaged.rec"]


def test_what_a_killed_export_left_goes_with_the_next(data_set: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    (tmp_path / f".out{PART_MARK}{ended.pid}-0123abcd" / "train").mkdir(parents=True)
    export_records(data_set, "rec", tmp_path / "out", "val")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("form", "split", "what"),
    [
        ("zip", None, r"unknown format; expected folder, tar, webdataset, rec; found zip"),
        ("folders", None, r"did you mean folder\?"),
        ("tar", "trian", r"no split 'trian'; expected one of train, val, test"),
    ],
)
def test_unknown_words_are_refused(data_set: Path, tmp_path: Path, form: str, split: str | None, what: str) -> None:
    with pytest.raises(BadRecipe, match=what):
        export_records(data_set, form, tmp_path / "out", split)
    with pytest.raises(BadRecipe, match="is there already and is kept"):
        export_records(data_set, "tar", tmp_path)


CLASS_IDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["..", ".", "../../etc", "/etc", "a/b", "A", "a", "class-1", "CLASS-1", "c\0", "x" * 300, "con ", ""]
    ),
)


@given(st.lists(CLASS_IDS, unique=True, max_size=12))
def test_folders_of_classes_stay_inside_and_apart(ids: list[str]) -> None:
    entries = class_entries({label: (class_id, class_id) for label, class_id in enumerate(ids)})
    folders = [entry.folder for entry in entries.values()]
    assert [entry.class_id for entry in entries.values()] == ids
    assert len({folder.casefold() for folder in folders}) == len(ids)
    for folder in folders:
        assert os.path.normpath(f"/out/train/{folder}") == f"/out/train/{folder}"
        assert folder == Path(folder).name
        assert not folder.startswith(".")
        assert len(folder.encode()) <= 255


@pytest.mark.parametrize(
    ("ids", "names", "text"),
    [
        (("2", "10", "33"), ("2", "10", "33"), "2\n10\n33\n"),
        (("0", "2", "1"), ("0", "2", "1"), "0\n2\n1\n"),
        (("0", "1", "2"), ("cat", "dog", "emu"), "0\tcat\n1\tdog\n2\temu\n"),
        (("0", "2", "1"), ("cat", "emu", "dog"), "class-0\tcat\nclass-1\temu\nclass-2\tdog\n"),
    ],
)
def test_ids_that_are_numbers_are_not_read_back_as_labels(
    ids: tuple[str, ...], names: tuple[str, ...], text: str, small_plan: Any, tmp_path: Path, inline: Executor
) -> None:
    plan = dataclasses.replace(small_plan, classes=ClassTable("list", ids, names))
    build(plan, tmp_path / "set", BuildOptions(resize=16, workers=1), executor=inline)
    out = tmp_path / "out"
    export_records(tmp_path / "set", "folder", out)
    assert (out / "classes.txt").read_text() == text
    assert read_classes(out / "classes.txt").names == names
    folders = [line.split("\t")[0] for line in text.splitlines()]
    assert names_of(folders, out / "classes.txt") == names
    assert {row.path.split("/")[1]: row.labels[0] for row in read_list(out / "train.lst")} == dict(
        zip(folders, range(3), strict=True)
    )


def test_a_hostile_class_table_stays_inside(small_plan: Any, tmp_path: Path, inline: Executor) -> None:
    table = ClassTable("folder", ("../../out", "Emu", "emu"), ("a\tb", "", "c\nd"))
    plan = dataclasses.replace(small_plan, classes=table)
    build(plan, tmp_path / "set", BuildOptions(resize=16, workers=1), executor=inline)
    export_records(tmp_path / "set", "tar", tmp_path / "deep" / "out")
    assert (tmp_path / "deep" / "out" / "classes.txt").read_text() == "class-0\ta\\tb\nEmu\tEmu\nclass-2\tc\\nd\n"
    tops = {name.rsplit("/", 1)[0] for name, _ in members(tmp_path / "deep" / "out" / "val.tar")}
    assert tops == {"val/class-0", "val/Emu", "val/class-2"}


def test_a_record_shorter_than_its_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_bytes(frame(struct.pack("<If", 0, 1.0)))
    with pytest.raises(BadInput, match="record too short"):
        export_records(tmp_path / "a.rec", "tar", tmp_path / "out")
