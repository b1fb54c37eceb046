"""Random access: ours, foreign ones, damaged ones, from many threads."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged
from imagenet_pipeline.records import reader
from imagenet_pipeline.records.image import decode_rgb
from imagenet_pipeline.records.lists import read_list
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import MAGIC_BYTES, frame, pack


def copied(data_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_set, tmp_path / "copy"))


def test_a_split_of_several_shards_is_one_sequence(data_set: Path) -> None:
    with RecordSet.open(data_set, "train") as records:
        assert len(records) == 18
        assert len(records.files) == 2
        listed = read_list(data_set / "train.lst")
        found = [records.read(position) for position in range(18)]
        assert [(r.number, r.labels) for r in found] == [(row.index, row.labels) for row in listed]
        assert all(record.checked for record in found)
        assert records.first_labels().tolist() == [row.labels[0] for row in listed]
        with pytest.raises(IndexError):
            records.read(18)


def test_threads_share_a_record_set(data_set: Path) -> None:
    with RecordSet.open(data_set, "train") as records, ThreadPoolExecutor(8) as threads:
        positions = [i % 18 for i in range(400)]
        numbers = [record.number for record in threads.map(records.read, positions)]
        assert numbers == positions


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_stock_readers_agree(data_set: Path, split: str, mx: Any) -> None:
    with RecordSet.open(data_set, split) as records:
        for shard in records.files:
            with RecordSet.open(shard) as one:
                stock = mx.recordio.MXIndexedRecordIO(str(shard.with_suffix(".idx")), str(shard), "r")
                assert len(stock.keys) == len(one)
                for position, key in enumerate(stock.keys):
                    header, image = mx.recordio.unpack(stock.read_idx(key))
                    ours = one.read(position)
                    assert (header.id, (header.label,), image) == (ours.number, ours.labels, ours.image)


def test_image_record_iter_gives_equal_labels_and_pixels(data_set: Path, mx: Any) -> None:
    with RecordSet.open(data_set / "val.rec") as records:
        found = [records.read(position) for position in range(len(records))]
        pixels = [decode_rgb(record.image) for record in found]
    side = min(min(image.shape[:2]) for image in pixels)
    stock = mx.io.ImageRecordIter(
        path_imgrec=str(data_set / "val.rec"), data_shape=(3, side, side), batch_size=len(found), dtype="uint8"
    )
    batch = stock.next()
    assert batch.label[0].asnumpy().tolist() == [record.labels[0] for record in found]
    for theirs, ours in zip(batch.data[0].asnumpy(), pixels, strict=True):
        top, left = ((length - side) // 2 for length in ours.shape[:2])
        assert np.array_equal(theirs.transpose(1, 2, 0), ours[top : top + side, left : left + side])


def test_records_of_others(unpacked: Callable[[str], Path]) -> None:
    counts = {}
    for path in sorted(unpacked("mxnet_files_shared.tar.xz").rglob("*.rec")):
        with RecordSet.open(path) as records:
            counts[f"{path.parent.name}/{path.name}"] = len(records)
            found = [records.read(position) for position in range(len(records))]
            assert not any(record.checked for record in found)
            assert all(decode_rgb(record.image).ndim == 3 for record in found)
            assert {len(record.labels) for record in found} in ({1}, {9})
            if path.with_suffix(".idx").exists():  # the other lists there belong to other records
                for record, row in zip(found, read_list(path.with_suffix(".lst")), strict=True):
                    assert record.labels == pytest.approx(row.labels, rel=1e-6)
    assert sorted(counts.values()) == [12, 392, 1380]


@pytest.mark.parametrize("keys", [range(5), [7, 3, 100, 0, 9]])
def test_an_index_may_have_any_keys_and_order(tmp_path: Path, keys: list[int]) -> None:
    frames = [frame(pack((float(i),), i, MAGIC_BYTES * i)) for i in range(5)]
    (tmp_path / "a.rec").write_bytes(b"".join(frames))
    offsets = np.cumsum([0, *map(len, frames)]).tolist()
    lines = [f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=False)]
    for text in (None, "".join(lines), "".join(reversed(lines))):
        if text is not None:
            (tmp_path / "a.idx").write_text(text)
        with RecordSet.open(tmp_path / "a.rec") as records:
            assert [records.read(i).image for i in range(5)] == [MAGIC_BYTES * i for i in range(5)]


def test_a_changed_byte_is_named(data_set: Path, tmp_path: Path) -> None:
    folder = copied(data_set, tmp_path)
    with RecordSet.open(folder, "val") as records:
        _, _, offset = records.location(3)
    content = bytearray((folder / "val.rec").read_bytes())
    content[offset + 60] ^= 1
    (folder / "val.rec").write_bytes(content)
    for records in (RecordSet.open(folder, "val"), RecordSet.open(folder / "val.rec")):
        with records:
            assert records.read(2).checked
            with pytest.raises(Damaged, match=rf"val\.rec, record 3, offset {offset}: checksum wrong"):
                records.read(3)


def test_a_cut_file_is_never_read_as_a_short_one(data_set: Path, tmp_path: Path) -> None:
    folder = copied(data_set, tmp_path)
    content = (folder / "val.rec").read_bytes()
    with RecordSet.open(folder, "val") as records:
        edges = [records.location(position)[2] for position in range(len(records))]
    for end in {*edges, *(edge + 7 for edge in edges), len(content) - 1, len(content) - 4}:
        (folder / "val.rec").write_bytes(content[:end])
        with pytest.raises(Damaged):
            RecordSet.open(folder, "val")


@pytest.mark.parametrize("text", ["0\t0\n1\t4\n", "0\t8\n", "0\t0\n1\t0\n", "x\ty\n", "0\n", "0\t0\n1\t99999\n", ""])
def test_an_index_that_does_not_fit_is_damaged(data_set: Path, tmp_path: Path, text: str) -> None:
    folder = copied(data_set, tmp_path)
    (folder / "val.idx").write_text(text)
    with pytest.raises(Damaged), RecordSet.open(folder, "val") as records:
        records.read(0)


def test_swapped_records_are_noticed(data_set: Path, tmp_path: Path) -> None:
    folder = copied(data_set, tmp_path)
    lines = (folder / "val.idx").read_text().splitlines()
    swapped = [lines[1].split()[0] + "\t0", "0\t" + lines[1].split()[1], *lines[2:]]
    (folder / "val.idx").write_text("\n".join(swapped))
    with RecordSet.open(folder, "val") as records, pytest.raises(Damaged, match="the record has another number"):
        records.read(0)


def test_what_is_not_there_is_said(data_set: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such data set"):
        RecordSet.open(tmp_path / "absent")
    with pytest.raises(BadInput, match="no data set here"):
        RecordSet.open(tmp_path, "train")
    with pytest.raises(BadRecipe, match="no split 'valid'; expected one of train, val, test"):
        RecordSet.open(data_set, "valid")
    folder = copied(data_set, tmp_path)
    (folder / "val.rec").unlink()
    with pytest.raises(Damaged, match=r"val\.rec"):
        RecordSet.open(folder, "val")


def test_an_empty_record_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_bytes(b"")
    with RecordSet.open(tmp_path / "a.rec") as records:
        assert len(records) == 0


def foreign(folder: Path, keys: list[str]) -> Path:
    """A record file without checksums, a record a key, with its index."""
    frames = [frame(struct.pack("<IfQQ", 0, float(i), i, 0) + bytes(i)) for i in range(len(keys))]
    offsets = np.cumsum([0, *map(len, frames)]).tolist()
    (folder / "f.rec").write_bytes(b"".join(frames))
    (folder / "f.idx").write_text("".join(f"{key}\t{at}\n" for key, at in zip(keys, offsets, strict=False)))
    return folder / "f.rec"


@pytest.mark.parametrize("keys", [["img_0", "a b", "ü"], ["", "", ""], ["7", "7", str(2**70)]])
def test_a_foreign_index_may_have_any_keys(tmp_path: Path, keys: list[str]) -> None:
    with RecordSet.open(foreign(tmp_path, keys)) as records:
        assert [records.read(i).labels for i in range(3)] == [(0.0,), (1.0,), (2.0,)]


@pytest.mark.parametrize("text", ["0 0\n", "0\t0\n1\t2_4\n", "0\t0\n1\t+24\n", "0\t0\n1\t-24\n", f"0\t{2**70}\n"])
def test_damage_in_files_of_others_is_bad_input(tmp_path: Path, text: str) -> None:
    path = foreign(tmp_path, ["0", "1"])
    path.with_suffix(".idx").write_text(text)
    with pytest.raises(BadInput, match=r"f\.idx"):
        RecordSet.open(path)
    path.with_suffix(".idx").unlink()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BadInput, match=r"f\.rec, record 1, offset 32: file ends"):
        RecordSet.open(path)


@pytest.mark.parametrize("key", ["1", "x", "1_0", "", str(2**70)])
def test_keys_of_our_own_index_are_ours(data_set: Path, tmp_path: Path, key: str) -> None:
    folder = copied(data_set, tmp_path)
    lines = (folder / "val.idx").read_text().splitlines()
    lines[0] = f"{key}\t0"
    (folder / "val.idx").write_text("\n".join(lines))
    with pytest.raises(Damaged, match=r"val\.idx"):
        RecordSet.open(folder / "val.rec")


INDEX_LINES = st.lists(
    st.tuples(st.integers(0, 10**18).map(str), st.integers(0, 10**18).map(str)).map("\t".join)
    | st.text("01\t x\r", max_size=6)
    | st.from_regex(r"\A[0-9]{0,20}\t[0-9]{0,20} ?\Z"),
    max_size=5,
)


@settings(max_examples=60)
@given(INDEX_LINES, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.booleans())
def test_an_index_parsed_at_once_is_what_its_lines_say(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], ending: str, ended: bool, ours: bool
) -> None:
    """The same keys and offsets, or the same error; of a line, two whole numbers have at most 18 digits."""
    path = tmp_path_factory.getbasetemp() / "lines.idx"
    path.write_bytes((ending.join(lines) + ending * ended).encode())

    def outcome() -> object:
        try:
            return [column.tolist() for column in reader._read_index(path, ours)]
        except (BadInput, Damaged) as error:
            return type(error), str(error)

    def refuse(*_: object) -> None:
        raise ValueError

    at_once = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_plain_pairs", refuse)
        assert at_once == outcome()
