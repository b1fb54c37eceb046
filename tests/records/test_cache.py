"""Records in object storage: the same records as from a folder, within the bound, whatever fails on the way."""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline import files, storage
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, OutOfRoom
from imagenet_pipeline.loading.loader import Batches, Loader
from imagenet_pipeline.record_builders import digits
from imagenet_pipeline.records import cache
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.inspect import inspect
from imagenet_pipeline.records.manifest import DataSet, read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.verify import verify
from imagenet_pipeline.storage import Storage

pytest.importorskip("fsspec")
SHARDS = 8


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits, train in 8 shards."""
    folder = tmp_path_factory.mktemp("sharded")
    build(digits.plan(folder), folder, BuildOptions(resize=0, workers=1, shards=SHARDS))
    return folder


@pytest.fixture
def store(sharded: Path, tmp_path: Path) -> Path:
    """A folder that stands for a bucket; its address is file://."""
    return Path(shutil.copytree(sharded, tmp_path / "store"))


@pytest.fixture
def opened(store: Path, tmp_path: Path) -> Callable[..., DataSet]:
    """`opened(3)`: the data set in the store, through a cache of 3 shards; 0 for all."""

    def open_it(shards: float = 0) -> DataSet:
        largest = max(shard.bytes for shard in read_data_set(store).manifest.splits["train"].shards)
        return read_data_set(f"file://{store}", str(tmp_path / "cache"), shards * largest / 1e9)

    return open_it


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are fetched from now on."""
    names: list[str] = []
    fetch = Storage.download

    def noted(self: Storage, name: str, *words: Any) -> None:
        names.append(name)
        fetch(self, name, *words)

    monkeypatch.setattr(Storage, "download", noted)
    return names


def numbers(batches: Batches) -> list[int]:
    with batches:
        return [int(number) for batch in batches for number in batch.records]


def shards_there(folder: Path) -> int:
    return len({path.name.removesuffix(".part") for path in folder.glob("train*.rec*")})


def loader(records: RecordSet, threads: int = 2, window_shards: int = 0) -> Loader:
    return Loader(records, 8, 10, threads, prefetch=3, window_shards=window_shards)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("window_shards", [1, 3])
def test_records_come_in_the_order_of_a_folder_within_the_bound(
    threads: int, window_shards: int, opened: Callable[..., DataSet], store: Path, downloads: list[str]
) -> None:
    data, most = opened(3), 0
    assert data.cache is not None
    with RecordSet.of(data, "train") as records, RecordSet.open(store, "train") as local:
        for epoch in range(2):
            expected = numbers(loader(local, threads, window_shards).training(5, epoch))
            found = []
            with loader(records, threads, window_shards).training(5, epoch) as batches:
                for batch in batches:
                    found += batch.records.tolist()
                    most = max(most, shards_there(data.folder))
            assert found == expected
            assert SHARDS - 3 <= len(downloads) <= SHARDS  # each once an epoch, and no more than are missing
            downloads.clear()
        assert numbers(loader(records, threads).evaluation()) == numbers(loader(local, threads).evaluation())
    assert most <= 3


def test_a_cache_for_all_is_filled_once_and_by_one_process(
    opened: Callable[..., DataSet], downloads: list[str]
) -> None:
    found: list[list[int]] = []

    def read() -> None:
        with RecordSet.of(opened(), "train") as records:  # a cache of its own, as another process has it
            found.append(numbers(loader(records).training(5, 0)))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2]
    read()
    assert sorted(downloads) == sorted(set(downloads))


def test_several_processes_share_a_small_cache(opened: Callable[..., DataSet]) -> None:
    found: dict[int, list[int]] = {}

    def read(seed: int) -> None:
        with RecordSet.of(opened(3), "train") as records:
            found[seed] = numbers(loader(records, window_shards=1).training(seed, 0))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found[0]) == len(found[1]) == len(set(found[0])) == len(set(found[1]))
    assert shards_there(opened(3).folder) <= 3


def test_a_restart_needs_the_shards_that_are_left(opened: Callable[..., DataSet], downloads: list[str]) -> None:
    with RecordSet.of(opened(3), "train") as records:
        one = loader(records, window_shards=1)
        whole = numbers(one.training(5, 0))
        downloads.clear()
        assert numbers(one.training(5, 0, start_step=one.steps() - 2)) == whole[-20:]
    assert len(downloads) <= 1


def test_an_error_of_fetching_comes_where_its_batch_would(opened: Callable[..., DataSet], store: Path) -> None:
    data = opened()
    last = data.manifest.splits["train"].shards[-1].file
    content = bytearray((store / last).read_bytes())
    content[100] ^= 1
    (store / last).write_bytes(content)
    with RecordSet.of(data, "train") as records, loader(records).evaluation() as batches:
        for _ in range((len(records) - records.sizes[-1]) // 10):
            next(batches)
        with pytest.raises(
            Damaged, match=rf"store/{last}: other bytes than were put here.*; remove that object"
        ) as caught:
            next(batches)
    assert "\n" not in str(caught.value)
    assert not (data.folder / last).exists()


def test_a_shard_that_was_cut_or_half_fetched_is_made_whole(opened: Callable[..., DataSet], store: Path) -> None:
    data = opened()
    first, second = (shard.file for shard in data.manifest.splits["train"].shards[:2])
    (data.folder / first).write_bytes((store / first).read_bytes()[:-1])
    (data.folder / f"{second}.part").write_bytes((store / second).read_bytes()[:1000])
    with RecordSet.of(data, "train") as records:
        numbers(loader(records).evaluation())
    for name in (first, second):
        assert (data.folder / name).read_bytes() == (store / name).read_bytes()


def test_what_a_killed_process_left_half_counts_and_goes_first(opened: Callable[..., DataSet], store: Path) -> None:
    data = opened(3)
    for shard in data.manifest.splits["train"].shards[5:]:
        (data.folder / f"{shard.file}.part").write_bytes((store / shard.file).read_bytes()[:1000])
    with RecordSet.of(data, "train") as records:
        records.read(0)
        assert shards_there(data.folder) == 3
        assert numbers(loader(records).evaluation()) == records.numbers()


def test_a_record_damaged_in_the_cache_is_said_to_be_fetched_again(opened: Callable[..., DataSet]) -> None:
    data = opened()
    with RecordSet.of(data, "train") as records:
        path, _, offset = records.location(3)
        records.read(0)
        content = bytearray(path.read_bytes())
        content[offset + 60] ^= 1
        path.write_bytes(content)
        with pytest.raises(Damaged, match=r"record 3, offset .*remove the file, and it is fetched again"):
            records.read(3)


def test_the_end_of_a_pass_does_not_wait_for_the_network(
    opened: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers, fetch = threading.Event(), Storage.download
    monkeypatch.setattr(Storage, "download", lambda *words: answers.wait(10) and fetch(*words))
    monkeypatch.setattr(cache, "SECONDS_BEFORE_SAYING", 0.05)
    caplog.set_level(logging.INFO)
    with RecordSet.of(opened(), "train") as records:
        batches = loader(records).training(5, 0)
        reader = threading.Thread(target=lambda: next(batches, None), daemon=True)
        reader.start()
        while "data wait: train" not in caplog.text:
            time.sleep(0.01)
        answers.set()
        reader.join()
        began = time.monotonic()
        batches.close()
        assert time.monotonic() - began < 3
    assert re.search(
        r"data wait: train-\S+ of file://\S+ is waited for, 0\.000 MB of 0\.\d\d\d MB are here after 0 s", caplog.text
    )


def test_a_part_that_becomes_a_shard_meanwhile_is_not_taken_for_gone(
    opened: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(1)
    first, second = data.manifest.splits["train"].shards[:2]
    assert data.cache is not None
    held, claim = [], files.claim

    def finished_before(path: Path, where: Path, work: str) -> Any:
        if path.name == first.file and not held:
            data.cache.storage.download(first.file, data.folder / first.file, first.bytes, first.sha256)  # type: ignore[union-attr]
            held.append(data.cache._opened(first))  # type: ignore[union-attr]
        return claim(path, where, work)

    (data.folder / f"{first.file}.part").touch()
    monkeypatch.setattr(files, "claim", finished_before)
    assert not data.cache._frees(0, second)
    os.close(held[0])
    assert data.cache._frees(0, second)
    assert not (data.folder / first.file).exists()


def test_a_read_without_room_for_long_goes_beyond_the_bound(
    opened: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a rank holds what it will read, and waits for a rank that needs another shard first."""
    monkeypatch.setattr(cache, "SECONDS_WITHOUT_ROOM", 0.2)
    data = opened(3)
    with RecordSet.of(data, "train") as records, records.ahead(np.arange(len(records))) as held:
        held.read(5 * len(records) // 16)  # in the third shard; it and the two before it are kept for this pass
        assert records.read(len(records) - 1).image
        assert "all shards of the cache are being read; train-00007" in caplog.text
        # What is only fetched ahead waits on.
        assert len(list(data.folder.glob("train*.rec*"))) == 4
        assert caplog.text.count("beyond its bound") == 1
    with RecordSet.of(data, "train") as records:
        assert records.read(len(records) // 2).image
    assert len(list(data.folder.glob("train*.rec*"))) == 3


def test_two_passes_that_wait_for_each_other_both_end(
    opened: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SECONDS_WITHOUT_ROOM", 0.2)
    with RecordSet.of(opened(3), "train") as records:
        order, each = np.arange(len(records)), len(records) // 8
        with records.ahead(order[each:]) as early, records.ahead(order) as late:
            early.read(each * 3 + each // 2)  # the second to the fourth shard are this one's
            assert late.read(0).number == records.read(0).number


def test_what_is_wrong_with_a_cache_is_one_line(
    opened: Callable[..., DataSet], store: Path, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(kind: type[Exception], folder: Path, gb: float = 0) -> str:
        with pytest.raises(kind) as caught:
            RecordSet.of(read_data_set(f"file://{store}", str(folder), gb), "train")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    opened()
    (tmp_path / "file").touch()
    assert "not a cache of records; expected an empty folder" in line(BadInput, sharded)
    assert re.search(r"cannot be written \(.*loader\.cache=FOLDER", line(BadInput, tmp_path / "file" / "cache"))
    assert re.search(r"cannot be written \(.*loader\.cache=FOLDER", line(BadInput, Path("/proc/cache")))
    assert "the cache is too small for the largest shard; expected at least" in line(BadRecipe, tmp_path / "new", 1e-5)
    other = tmp_path / "other"
    build(digits.plan(other), other, BuildOptions(resize=0, workers=1, shards=2, quality=50))
    with pytest.raises(BadInput, match=r"cache: the cache of another data set; found file://\S+store; choose"):
        read_data_set(f"file://{other}", str(tmp_path / "cache"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    data = opened()
    assert data.cache is not None
    with pytest.raises(OutOfRoom, match=r"not enough free disk space; .* loader\.cache_gb bounds the cache"):
        data.cache.window_shards(data.manifest.splits["train"].shards, "auto")


def test_a_full_disk_is_one_line_and_is_gone_on_with(opened: Callable[..., DataSet]) -> None:
    resource = pytest.importorskip("resource")
    data = opened()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RecordSet.of(data, "train") as records:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            with pytest.raises(OutOfRoom, match=r"cache/train-0000\d-of-00008\.rec\.part: cannot be written"):
                numbers(loader(records).evaluation())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert numbers(loader(records).evaluation()) == records.numbers()


def test_a_manifest_that_differs_from_its_shards_is_told_at_once(opened: Callable[..., DataSet], store: Path) -> None:
    with open(store / "train-00002-of-00008.rec", "ab") as stream:
        stream.write(b"more")
    with pytest.raises(Damaged, match=r"train-00002-of-00008\.rec: the record file is missing or of another size"):
        opened()
    (store / "manifest.json").write_text("{}")
    with pytest.raises(Damaged, match=r"store/manifest\.json: the manifest has changed"):
        opened()
    (store / "manifest.json").unlink()
    with pytest.raises(BadInput, match=r"val\.rec: a lone record file is read from this machine alone"):
        read_data_set(f"file://{store}/val.rec")
    with pytest.raises(BadInput, match="store: no data set here"):
        opened()


def test_windows_follow_the_cache(opened: Callable[..., DataSet]) -> None:
    shards = opened().manifest.splits["train"].shards

    def window(cached: float, wanted: Any = "auto") -> int:
        data = opened(cached)
        assert data.cache is not None
        return data.cache.window_shards(shards, wanted)

    assert [window(cached) for cached in (0, 8, 6, 3, 1)] == [0, 0, 3, 1, 1]
    assert [window(3, wanted) for wanted in (1, 2, 3)] == [1, 2, 3]
    with pytest.raises(BadRecipe, match=r"loader\.cache_gb: the cache is too small for the 4 shards that are shuffled"):
        window(3, 4)
    with pytest.raises(BadRecipe, match="the 8 shards"):
        window(3, 0)


@given(st.integers(1, 10**15))
def test_the_room_that_a_cache_is_said_to_need_is_enough(size_bytes: int) -> None:
    said = float(f"{cache.gb_above(size_bytes):g}")
    assert size_bytes <= round(said * 1e9) <= 1.01 * size_bytes + 1


def test_the_bound_that_an_error_asks_for_is_taken(opened: Callable[..., DataSet]) -> None:
    data = opened(0.5)
    shards, found = data.manifest.splits["train"].shards, ""
    assert data.cache is not None
    for wanted in ("auto", 1):
        with pytest.raises(BadRecipe, match="too small for the largest shard; expected at least") as caught:
            data.cache.window_shards(shards, wanted)  # type: ignore[arg-type]
        found = re.findall(r"at least (\S+) GB", str(caught.value))[0]
    enough = read_data_set(str(data.cache.storage), str(data.cache.folder), float(found))
    assert enough.cache is not None
    assert enough.cache.window_shards(shards, 1) == 1


def test_a_stored_set_is_looked_into_and_verified(
    opened: Callable[..., DataSet], store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, downloads: list[str]
) -> None:
    monkeypatch.setenv("IMAGENET_PIPELINE_CACHE", str(tmp_path / "own"))
    stored, local = inspect(Path(f"file://{store}"), split="train"), inspect(store, split="train")
    assert (stored.class_counts, stored.count, stored.records) == (local.class_counts, local.count, local.records)
    assert len(downloads) == 1
    report = verify(Path(f"file://{store}"))
    assert report.problems == []
    assert report.records == verify(store).records
    assert len(list((tmp_path / "own").glob("records/*/*.rec"))) == 1  # what was fetched to be verified is gone
    last = max(store.glob("train*.rec"))
    last.write_bytes(last.read_bytes()[:-1] + b"?")
    (problem,) = verify(Path(f"file://{store}")).problems
    assert problem.file == f"file://{last}"
    assert re.fullmatch(r"other bytes than were put here; expected SHA.*; remove that object .*", problem.what)


def test_a_real_store_that_fails_now_and_then(
    object_store: Any, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSES_SECONDS", (0.01,) * 9)
    bucket = Storage(f"{object_store.url}/set")
    for path in sharded.iterdir():
        if path.is_file():
            bucket.upload(path, path.name)
    data = read_data_set(f"{object_store.url}/set", "", 2 * 130e3 / 1e9)
    with RecordSet.of(data, "train") as records, RecordSet.open(sharded, "train") as local:
        expected = numbers(loader(local, window_shards=1).training(1, 0))
        for fault in ("500", "cut", "wrong", "slow"):
            object_store.fail(fault, 2, "GET", ".rec")
        assert numbers(loader(records, window_shards=1).training(1, 0)) == expected
        object_store.fail("503", 99, "GET", ".rec")
        with pytest.raises(BadInput, match=r"s3://\S+\.rec: the store fails, 10 times .* goes on from here"):
            numbers(loader(records, window_shards=1).training(1, 1))
