"""`verify` calls what is whole whole, and names what is not."""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput, WorkerLost
from imagenet_pipeline.records import recordio
from imagenet_pipeline.records.image import Rejected, encode_jpeg, read_header, shrink
from imagenet_pipeline.records.lists import read_list
from imagenet_pipeline.records.manifest import Manifest
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import frame, pack
from imagenet_pipeline.records.verify import verify
from imagenet_pipeline.records.verify_file import FileInOrder

REPOSITORY = Path(__file__).resolve().parent.parent.parent


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


def damaged(folder: Path) -> Path:
    """A data set with something wrong in each of its files, two things in one."""
    for name, byte in (("train-00000-of-00002.rec", 60), ("val.idx", 1), ("test.rec", 90), ("train.lst", 3)):
        flip(folder / name, byte)
    last = folder / "train-00001-of-00002.rec"
    flip(last, 60)
    flip(last, last.stat().st_size - 40)
    return folder


def test_workers_find_what_one_process_finds_in_the_same_order(folder: Path) -> None:
    report = verify(damaged(folder), workers=1)
    assert len(report.problems) >= 6
    seen: list[tuple[int, int]] = []
    assert verify(folder, lambda *counts: seen.append(counts), workers=3) == report
    assert (seen == sorted(seen), seen[-1]) == (True, (30, 30))


def test_an_interruption_ends_the_workers(folder: Path) -> None:
    before = set(multiprocessing.active_children())

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(folder, interrupt, workers=2)
    assert set(multiprocessing.active_children()) == before


def test_a_worker_that_dies_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise BrokenProcessPool

    monkeypatch.setattr(
        "imagenet_pipeline.records.verify.local_pool", lambda _: nullcontext(SimpleNamespace(map=broken))
    )
    with pytest.raises(WorkerLost, match="a worker process died; run the same command again, with fewer workers"):
        verify(folder, workers=2)


@pytest.fixture
def many_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], Path]:
    """A data set of so many tiny photos, 1,024 a shard."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    full_scale = importlib.import_module("full_scale")
    monkeypatch.setattr(full_scale, "SHARD", 1024)

    def make(images: int) -> Path:
        full_scale.write_data_set(tmp_path / str(images), images)
        return tmp_path / str(images)

    return make


def test_memory_does_not_follow_the_number_of_shards(
    many_records: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past a shard, some 20 bytes a record are for its number and label; not hundreds."""
    monkeypatch.setattr(recordio, "PIECE_BYTES", 2**14)
    few, many = many_records(1024), many_records(9 * 1024)
    peaks = []
    for path in (few, few, many):  # first of all what is kept for good
        tracemalloc.start()
        try:
            assert verify(path, workers=1).whole
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] - peaks[1] < 60 * 8 * 1024


@contextmanager
def bytes_read() -> Any:
    """Yield a list that is given, at the end, the bytes that this process has read meanwhile."""

    def count() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    found: list[int] = []
    before = count()
    yield found
    found.append(count() - before)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count what is read")
def test_a_record_file_is_read_once(many_records: Callable[[int], Path]) -> None:
    path = many_records(4000)
    verify(path, workers=1)
    with bytes_read() as found:
        assert verify(path, workers=1).whole
    records, others = (
        sum(file.stat().st_size for file in path.iterdir() if (file.suffix == ".rec") == is_records)
        for is_records in (True, False)
    )
    assert records < found[0] < records + 4 * others
    assert 4 * others < records


@given(st.data(), st.binary(max_size=300))
def test_a_file_is_read_in_order_and_digested(
    tmp_path_factory: pytest.TempPathFactory, data: Any, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "in-order"
    path.write_bytes(content)
    edges = sorted(data.draw(st.lists(st.integers(0, 330), max_size=12)))
    with FileInOrder(path, block_bytes=data.draw(st.integers(1, 90))) as file:
        for start, end in zip(edges[::2], edges[1::2], strict=False):
            assert file.read(0, end - start, start) == content[start:end]
        assert file.sha256() == hashlib.sha256(content).hexdigest()


def test_other_records_are_read_where_the_disk_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that cannot be read ends reading ahead, not the search for what is whole."""
    advance, calls = FileInOrder._advance, iter([True])

    def fail_once(file: FileInOrder, offset: int, size_bytes: int) -> bool:
        if next(calls, False):
            raise OSError(5, "Input/output error")
        return advance(file, offset, size_bytes)

    monkeypatch.setattr(FileInOrder, "_advance", fail_once)
    assert verify(folder, workers=1).whole


def test_a_list_that_contradicts_the_records_is_told_by_line(folder: Path) -> None:
    """Even where its digest is that of the manifest."""
    path = folder / "val.lst"
    lines = path.read_text().splitlines()
    number, label, name = lines[2].split("\t")
    path.write_text("\n".join([*lines[:2], f"{number}\t{int(label) + 1}\t{name}", *lines[3:-1]]) + "\n")
    manifest = Manifest.read(folder)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.model_copy(update={"files": {**manifest.files, "val.lst": digest}}).write(folder)
    said = [problem.what for problem in verify(folder).problems]
    row, record = (int(number), (float(label) + 1,)), (int(number), (float(label),))
    assert said == ["expected 6 rows as there are records, found 5", f"row 3 says {row}, the record {record}"]
