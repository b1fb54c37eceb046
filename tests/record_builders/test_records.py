"""Record files of other programs into plans: labels, lists, names, and what is refused."""

from __future__ import annotations

import logging
import re
import resource
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.record_builders import records
from imagenet_pipeline.records.image import encode_jpeg
from imagenet_pipeline.records.recordio import MAGIC_BYTES

Stock = Callable[..., bytes]
Pack = Callable[..., Path]
PHOTO = encode_jpeg(np.full((8, 8, 3), 90, np.uint8), 90)


@pytest.fixture
def pack(stock_record: Stock, tmp_path: Path) -> Pack:
    """`pack("a.rec", [3, 7, 9])`: a file of records with these labels, numbered 1, 2, 3."""

    def write(name: str, labels: Sequence[Any], numbers: Sequence[int] | None = None, image: bytes = PHOTO) -> Path:
        numbers = range(1, len(labels) + 1) if numbers is None else numbers
        frames = [stock_record(label, number, image) for label, number in zip(labels, numbers, strict=True)]
        (tmp_path / name).write_bytes(b"".join(frames))
        return tmp_path / name

    return write


def test_labels_with_gaps_are_classes_in_their_order(pack: Pack, tmp_path: Path) -> None:
    plan = records.plan(tmp_path / "out", pack("a.rec", [9, 3, 7, 3]), val=pack("b.rec", [7]), test=pack("c.rec", [-1]))
    assert plan.classes.ids == ("-1", "3", "7", "9")
    assert plan.original_labels == (-1, 3, 7, 9)
    assert {split: images.labels.tolist() for split, images in plan.splits.items()} == {
        "train": [3, 1, 2, 1], "val": [2], "test": [0],
    }  # fmt: skip
    assert plan.splits["train"].paths == [f"train.rec/{row}" for row in range(4)]


def test_several_files_follow_each_other(pack: Pack, tmp_path: Path) -> None:
    plan = records.plan(tmp_path / "out", [pack("a.rec", [1, 0]), pack("b.rec", [1])])
    assert plan.names == {"train": ["train-00000-of-00002.rec", "train-00001-of-00002.rec"]}
    assert plan.splits["train"].labels.tolist() == [1, 0, 1]
    with pytest.raises(BadInput, match=r"a\.rec: the same record file is given twice"):
        records.plan(tmp_path / "out", tmp_path / "a.rec", val=tmp_path / "a.rec")


def test_the_class_among_several_labels_is_chosen(pack: Pack, tmp_path: Path) -> None:
    detection = [4, 5, 780, 438, 2, 0.1, 0.2, 0.3, 0.4]
    path = pack("a.rec", [detection, [*detection, 1, 0.1, 0.1, 0.2, 0.2]])
    with pytest.raises(
        BadInput, match=r"9 numbers, 4 5 780 438 2 0.1 .*--label-column K .* 4 is the class of the first"
    ):
        records.plan(tmp_path, path)
    assert records.plan(tmp_path, path, label_column=4).classes.ids == ("2",)
    with pytest.raises(BadInput, match=r"a\.rec, record 0, offset 0: .*found 0.1.*--label-column K"):
        records.plan(tmp_path, path, label_column=5)
    with pytest.raises(BadInput, match="the record has no label 9; found 9 numbers"):
        records.plan(tmp_path, path, label_column=9)
    with pytest.raises(BadRecipe, match="label_column"):
        records.plan(tmp_path, path, label_column=-1)
    assert records.plan(tmp_path, pack("b.rec", [[5], 6])).classes.ids == ("5", "6")


@pytest.mark.parametrize("label", [0.5, float("nan"), float("inf"), 2.0**25])
def test_a_label_that_is_no_class_is_named_with_its_record(pack: Pack, tmp_path: Path, label: float) -> None:
    with pytest.raises(
        BadInput, match=rf"a\.rec, record 1, offset \d+: the label is not a class.*found {re.escape(f'{label:g}')}"
    ):
        records.plan(tmp_path, pack("a.rec", [1, label]))


def test_headers_of_a_face_set_are_no_samples(
    stock_record: Stock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    # insightface: record 0 says where the headers of identities lie; these, after the images, which images are theirs.
    faces = [
        stock_record((5, 7), 0, b""),
        *(stock_record(identity, n, PHOTO) for n, identity in enumerate([0, 0, 1], 1)),
    ]
    headers = [stock_record((1, 3), 5, b""), stock_record((3, 4), 6, b"")]
    (tmp_path / "a.rec").write_bytes(b"".join(faces + headers))
    plan = records.plan(tmp_path / "out", tmp_path / "a.rec")
    assert plan.splits["train"].labels.tolist() == [0, 0, 1]
    assert plan.splits["train"].paths == ["train.rec/1", "train.rec/2", "train.rec/3"]
    assert plan.record_files["train"][0].without_image == 3
    assert "records without an image: 3, left out" in caplog.text
    (tmp_path / "a.rec").write_bytes(faces[0])
    with pytest.raises(BadInput, match="holds no record with an image; found 1 without an image, 0 damaged"):
        records.plan(tmp_path / "out", tmp_path / "a.rec")


def test_neither_an_index_nor_its_order_counts(pack: Pack, tmp_path: Path) -> None:
    path = pack("a.rec", [5, 6, 5], numbers=[30, 10, 30], image=PHOTO + MAGIC_BYTES * 3)
    without = records.plan(tmp_path / "out", path)
    (tmp_path / "a.idx").write_text("10\t9999\nx\t0\n")
    assert records.plan(tmp_path / "out", path).digest == without.digest
    assert without.record_files["train"][0].numbers.tolist() == [30, 10, 30]


def test_a_list_names_the_photos(pack: Pack, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path, other = pack("a.rec", [5, 6], numbers=[70, 40]), pack("b.rec", [5, 5], numbers=[1, 1])
    (tmp_path / "a.lst").write_bytes(b"40\t6.000000\tcat/2.jpg\r\n70\t5.000000\tcat/1.jpg\r\n")
    (tmp_path / "z.lst").write_text("1\t5\tdog/1.jpg\n")
    plan = records.plan(tmp_path / "out", path, val=other, lists=tmp_path / "a.lst")
    assert plan.record_files["train"][0].names == ["cat/1.jpg", "cat/2.jpg"]
    assert plan.record_files["val"][0].names == ()
    assert "b.rec: records with the number of an earlier one: 1, kept" in caplog.text
    plan = records.plan(tmp_path / "out", path, val=other, lists=[tmp_path / "a.lst", tmp_path / "z.lst"])
    assert plan.record_files["val"][0].names == ["dog/1.jpg"] * 2
    assert plan.source["photos_named"] == ["train.rec", "val.rec"]
    assert plan.remarks == {"called": {"train.rec": "a.rec", "val.rec": "b.rec"}}
    with pytest.raises(BadInput, match="no saying which list belongs to which records"):
        records.plan(tmp_path / "out", path, val=other, lists=tmp_path / "z.lst")
    with pytest.raises(BadInput, match=r"z\.lst: the list is of other records; expected number 70 with the label 5"):
        records.plan(tmp_path / "out", path, lists=tmp_path / "z.lst")
    (tmp_path / "y.lst").write_text("70\t8\tcat/0.jpg\n")
    with pytest.raises(BadInput, match=r"number 70 with the label 5, as record 0 of a\.rec; found the label 8;"):
        records.plan(tmp_path / "out", path, lists=tmp_path / "y.lst")


@pytest.mark.parametrize(
    ("text", "ids", "labels"),
    [
        ("cat\ndog\nemu\n", ("cat", "dog", "emu"), (3, 7, 9)),
        ("3\tcat\n7\tdog\n9\temu\n12\towl\n", ("cat", "dog", "emu", "owl"), (3, 7, 9, 12)),
        ('{"9": ["n3", "emu"], "3": ["n1", "cat"], "7": ["n2", "dog"]}', ("n1", "n2", "n3"), (3, 7, 9)),
        ("".join(f"n{n:08d} name {n}\n" for n in range(10)), tuple(f"n{n:08d}" for n in range(10)), tuple(range(10))),
    ],
)
def test_classes_may_be_named(pack: Pack, tmp_path: Path, text: str, ids: tuple[str, ...], labels: tuple[int]) -> None:
    (tmp_path / "names").write_text(text)
    plan = records.plan(tmp_path / "out", pack("a.rec", [9, 3, 7]), classes=tmp_path / "names")
    assert (plan.classes.ids, plan.original_labels) == (ids, labels)
    assert [labels[label] for label in plan.splits["train"].labels] == [9, 3, 7]


@pytest.mark.parametrize(("text", "missing"), [("cat\ndog\n", "3"), ("3\tcat\n7\tdog\n8\temu\n", "9")])
def test_a_label_without_a_name_is_refused(pack: Pack, tmp_path: Path, text: str, missing: str) -> None:
    (tmp_path / "names").write_text(text)
    with pytest.raises(BadInput, match=f"names: no name for the label {missing}"):
        records.plan(tmp_path / "out", pack("a.rec", [9, 3, 7]), classes=tmp_path / "names")


def test_files_to_be_adopted_lie_in_the_folder_under_a_plain_name(pack: Pack, tmp_path: Path) -> None:
    path = pack("a.rec", [1])
    assert records.plan(tmp_path, path, adopt=True).names == {"train": ["a.rec"]}
    with pytest.raises(BadInput, match="not in the folder to be adopted"):
        records.plan(tmp_path / "out", path, adopt=True)
    with pytest.raises(BadInput, match="name cannot be kept"):
        records.plan(tmp_path, pack("a b.rec", [1]), adopt=True)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.rec", b"", "holds no record"),
        ("a.rec", b"PK\3\4zip", "not a record file; expected a file that starts with bytes 0a23d7ce; found 504b0304"),
        ("a.rec", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.lst", b"0\t0\ta.jpg\n", "a list, not a record file"),
        ("a.idx", b"0\t0\n", "an index, not a record file"),
        ("a.rec", MAGIC_BYTES + b"\xff", "holds no record with an image; found 0 without an image, 1 damaged"),
    ],
)
def test_what_is_no_record_file_is_said(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=words):
        records.plan(tmp_path / "out", tmp_path / name)


def test_neither_folders_nor_arrays_nor_nothing(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a folder, not a record file"):
        records.plan(tmp_path / "out", tmp_path)
    with pytest.raises(BadInput, match="no such record file"):
        records.plan(tmp_path / "out", tmp_path / "no.rec")
    with pytest.raises(BadRecipe, match="no record file is given"):
        records.plan(tmp_path / "out")
    with pytest.raises(BadInput, match="the records hold NumPy arrays, not images"):
        records.plan(tmp_path / "out", pack("a.rec", [1], image=b"\x93NUMPY\1\0"))


def test_a_file_of_gigabytes_of_nothing_takes_no_memory(pack: Pack, tmp_path: Path) -> None:
    path = pack("a.rec", [4])
    with path.open("r+b") as stream:
        stream.seek(0, 2)
        stream.write(MAGIC_BYTES + struct.pack("<I", 2**29 - 1))
        stream.truncate(2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = records.plan(tmp_path / "out", path)
    assert plan.splits["train"].labels.tolist() == [0]
    assert [found.position for found in plan.record_files["train"][0].damage] == [1, 2]
    assert "536,870,920 bytes, more than" in plan.record_files["train"][0].damage[0].reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
