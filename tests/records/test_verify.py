"""`verify` calls what is whole whole, and names what is not."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.image import Rejected, encode_jpeg, read_header, shrink
from imagenet_pipeline.records.lists import read_list
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
    paths = list(unpacked("mxnet_files_shared.tar.xz").rglob("*.rec"))
    for decode in (True, False):
        reports = [verify(path, decode=decode) for path in paths]
        assert sorted((report.records, report.unchecked) for report in reports) == [(12, 12), (392, 392), (1380, 1380)]
        assert [report.decoded for report in reports] == [report.records if decode else 0 for report in reports]
        assert sorted(report.compared for report in reports) == [0, 0, 12]
        assert all(report.whole for report in reports)


@pytest.mark.parametrize("position", [0, 3, 8])
def test_a_changed_byte_names_its_record_and_the_rest_is_still_read(folder: Path, position: int) -> None:
    path = folder / "train-00001-of-00002.rec"
    with RecordSet.open(path) as records:
        _, _, offset = records.location(position)
    flip(path, offset + 50)
    (problem,) = verify(folder).problems
    assert (problem.file, problem.record, problem.offset) == (str(path), position, offset)
    assert problem.what == "checksum wrong"
    assert verify(folder).records == 30
    assert [(p.record, p.offset) for p in verify(path).problems] == [(position, offset)]


def test_a_damaged_frame_without_an_index_is_passed_over(folder: Path) -> None:
    path = folder / "val.rec"
    with RecordSet.open(path) as records:
        offset = records.location(2)[2]
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
        offset = records.location(2)[2]
    flip(folder / "val.rec", offset + 50)
    assert [problem.what for problem in verify(folder / "val.rec").problems] == ["checksum wrong"]


def test_an_unreadable_record_of_others_is_the_only_problem(tmp_path: Path) -> None:
    content = unchecked(photo()) + frame(b"short") + unchecked(photo())
    (tmp_path / "a.rec").write_bytes(content)
    report = verify(tmp_path / "a.rec")
    assert [(problem.record, problem.what[:16]) for problem in report.problems] == [(1, "record too short")]
    (tmp_path / "a.rec").write_bytes(frame(pack((1.0,), 0, b"ours")) + content)
    assert "some records carry a checksum" in verify(tmp_path / "a.rec").problems[-1].what


def unchecked(image: bytes, number: int = 0) -> bytes:
    return frame(struct.pack("<IfQQ", 0, 1.0, number, 0) + image)


def photo() -> bytes:
    noise = np.random.default_rng(3).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return encode_jpeg(shrink(np.kron(noise, np.ones((20, 20, 1), np.uint8)), 90), 95)


def write_records(path: Path, records: list[bytes], keys: list[object]) -> Path:
    offsets = np.cumsum([0, *map(len, records)])
    path.write_bytes(b"".join(records))
    path.with_suffix(".idx").write_text("".join(f"{key}\t{at}\n" for key, at in zip(keys, offsets, strict=False)))
    return path


def test_images_of_records_without_a_checksum_are_decoded(tmp_path: Path) -> None:
    image = photo()
    images = [image, image[:-200] + b"\xff\xd9", b"no image", b"", image]
    path = write_records(tmp_path / "a.rec", [unchecked(one, n) for n, one in enumerate(images)], [*range(5)])
    report = verify(path)
    found = {problem.record: problem.what for problem in report.problems}
    assert set(found) == {1, 2}
    assert "premature end" in found[1]
    assert "not an image" in found[2]
    assert (report.records, report.unchecked, report.decoded, report.without_image) == (5, 5, 4, 1)
    frames_alone = verify(path, decode=False)
    assert (frames_alone.whole, frames_alone.decoded) == (True, 0)


def test_header_records_of_face_sets_are_not_damaged(tmp_path: Path) -> None:
    header = frame(struct.pack("<IfQQ2f", 2, 0.0, 0, 0, 3.0, 5.0))
    path = write_records(tmp_path / "faces.rec", [header, unchecked(photo(), 1), unchecked(photo(), 2)], [0, 1, 2])
    report = verify(path)
    assert (report.whole, report.decoded, report.without_image, report.compared) == (True, 2, 1, 3)


@pytest.mark.parametrize(
    ("numbers", "keys", "wrong"),
    [
        ([7, 5, 9], [7, 5, 9], []),
        ([7, 5, 9], [5, 7, 9], [0, 1]),
        ([7, 5, 9], [0, 1, 2], []),
        ([0, 1, 2], [2, 1, 0], [0, 2]),
        ([0, 0, 0], [4, 5, 6], []),
        ([7, 5, 9], ["a", "b", "c"], []),
    ],
    ids=["equal", "swapped", "counted", "turned", "unnumbered", "words"],
)
@pytest.mark.parametrize("ours", [False, True])
def test_keys_are_held_against_the_numbers_in_the_records(
    tmp_path: Path, numbers: list[int], keys: list[object], wrong: list[int], ours: bool
) -> None:
    if ours and "a" in keys:
        pytest.skip("no words in ours")
    records = [frame(pack((1.0,), n, photo())) if ours else unchecked(photo(), n) for n in numbers]
    problems = verify(write_records(tmp_path / "a.rec", records, keys)).problems
    assert [problem.record for problem in problems] == wrong
    assert all("its number is" in problem.what for problem in problems)


def test_a_file_without_a_record_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "a.rec").touch()
    assert [problem.what for problem in verify(tmp_path / "a.rec").problems] == ["holds no record"]
    (tmp_path / "a.rec").write_bytes(photo())
    with pytest.raises(BadInput, match="not a record file"):
        verify(tmp_path / "a.rec")
    (tmp_path / "a.rec").write_bytes(unchecked(photo())[:400])
    problems = [problem.what for problem in verify(tmp_path / "a.rec").problems]
    assert problems[-1] == "holds no record that can be read"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def test_a_git_lfs_pointer_is_called_one(tmp_path: Path, folder: Path) -> None:
    path = write_records(tmp_path / "a.rec", [unchecked(photo())], [0])
    path.with_suffix(".idx").write_bytes(POINTER)
    assert "Git LFS pointer" in verify(path).problems[0].what
    path.write_bytes(POINTER)
    for read in (verify, RecordSet.open, lambda it: read_list(it)):
        with pytest.raises(BadInput, match=r"a\.rec: a Git LFS pointer, .* `git lfs pull`"):
            read(path)
    with pytest.raises(Rejected, match="Git LFS pointer"):
        read_header(POINTER)
    for name in ("val.rec", "test.idx", "train.lst"):
        (folder / name).write_bytes(POINTER)
    found = {Path(problem.file).name: problem.what for problem in verify(folder).problems}
    assert set(found) == {"val.rec", "test.idx", "train.lst"}
    assert all("Git LFS pointer" in what for what in found.values())
    with pytest.raises(BadInput, match="Git LFS pointer"):
        RecordSet.open(folder, "val")
