"""`verify` calls what is whole whole, and names what is not."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import frame, pack
from imagenet_pipeline.records.verify import verify


@pytest.fixture
def folder(data_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_set, tmp_path / "set"))


def flip(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def test_ours_are_whole(data_set: Path) -> None:
    report = verify(data_set)
    assert (report.whole, report.files, report.records, report.unchecked) == (True, 4, 30, 0)
    lone = verify(data_set / "val.rec")
    assert (lone.whole, lone.records, lone.unchecked) == (True, 6, 0)


def test_records_of_others_are_whole_but_unchecked(unpacked: Callable[[str], Path]) -> None:
    reports = [verify(path) for path in unpacked("mxnet_files_shared.tar.xz").rglob("*.rec")]
    assert sorted((report.records, report.unchecked) for report in reports) == [(12, 12), (392, 392), (1380, 1380)]
    assert all(report.whole for report in reports)


@pytest.mark.parametrize("position", [0, 3, 8])
def test_a_changed_byte_names_its_record_and_the_rest_is_still_read(folder: Path, position: int) -> None:
    path = folder / "train-00001-of-00002.rec"
    with RecordSet.open(path) as records:
        _, _, offset = records.place(position)
    flip(path, offset + 50)
    (problem,) = verify(folder).problems
    assert (problem.file, problem.record, problem.offset) == (str(path), position, offset)
    assert problem.what == "checksum wrong"
    assert verify(folder).records == 30
    assert [(p.record, p.offset) for p in verify(path).problems] == [(position, offset)]


def test_a_damaged_frame_without_an_index_is_passed_over(folder: Path) -> None:
    path = folder / "val.rec"
    with RecordSet.open(path) as records:
        offset = records.place(2)[2]
    path.with_suffix(".idx").unlink()
    for damaged_byte in (0, 5, 6, 7):
        before = path.read_bytes()
        flip(path, offset + damaged_byte, bit=3)
        report = verify(path)
        assert offset in {problem.offset for problem in report.problems}
        assert report.records >= 5
        path.write_bytes(before)


def test_every_flipped_bit_anywhere_is_noticed(folder: Path) -> None:
    generator = np.random.default_rng(11)
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    for _ in range(150):
        path = paths[generator.integers(len(paths))]
        size = path.stat().st_size
        offset, bit = int(generator.integers(size)), int(generator.integers(8))
        flip(path, offset, bit)
        report = verify(folder)
        assert not report.whole, (path, offset, bit)
        assert any(path.name in problem.file for problem in report.problems)
        flip(path, offset, bit)
    assert verify(folder).whole


@pytest.mark.parametrize(
    "name", ["manifest.json", "val.rec", "val.idx", "val.lst", "classes.json", "mean.json", "rejects.csv"]
)
def test_a_cut_or_missing_file_is_noticed(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-8])
    report = verify(folder)
    assert any(name in problem.file for problem in report.problems)
    if name != "manifest.json":
        path.unlink()
        assert any(name in problem.file for problem in verify(folder).problems)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such data set"):
        verify(tmp_path / "absent")
    with pytest.raises(BadInput, match="no data set here"):
        verify(tmp_path)


def test_an_unreadable_record_is_the_only_problem(folder: Path) -> None:
    with RecordSet.open(folder / "val.rec") as records:
        offset = records.place(2)[2]
    flip(folder / "val.rec", offset + 50)
    assert [problem.what for problem in verify(folder / "val.rec").problems] == ["checksum wrong"]


def test_an_unreadable_record_of_others_is_the_only_problem(tmp_path: Path) -> None:
    content = unchecked(b"one") + frame(b"short") + unchecked(b"two")
    (tmp_path / "a.rec").write_bytes(content)
    report = verify(tmp_path / "a.rec")
    assert [(problem.record, problem.what[:16]) for problem in report.problems] == [(1, "record too short")]
    (tmp_path / "a.rec").write_bytes(frame(pack((1.0,), 0, b"ours")) + content)
    assert "some records carry a checksum" in verify(tmp_path / "a.rec").problems[-1].what


def unchecked(image: bytes) -> bytes:
    return frame(struct.pack("<IfQQ", 0, 1.0, 0, 0) + image)
