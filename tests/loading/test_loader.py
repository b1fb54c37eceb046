from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.config import Augmentation
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, OutOfRoom, PipelineError
from imagenet_pipeline.loading.loader import Batches, Loader, _piece
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import ImageRecord, frame, pack

COUNT = 37
RICH = Augmentation(rotation_degrees=20, pad=2, contrast=0.3, lighting=0.1)


def jpeg(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), np.uint8)
    image = cv2.resize(coarse, (30 + seed % 20, 25 + seed % 13), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", image)[1].tobytes()


class Memory:
    """Records in memory; `number` of a record is 100 more than its position."""

    name = "memory"

    def __init__(self, count: int = COUNT) -> None:
        self.records = [ImageRecord((float(at % 10),), 100 + at, jpeg(at), True) for at in range(count)]
        self.failing: dict[int, Exception] = {}

    def __len__(self) -> int:
        return len(self.records)

    def read(self, position: int) -> ImageRecord:
        if position in self.failing:
            raise self.failing[position]
        return self.records[position]

    def location(self, position: int) -> tuple[Path, int, int]:
        return Path("memory.rec"), 100 + position, 1000 * position

    def change(self, position: int, **fields: Any) -> None:
        self.records[position] = self.records[position]._replace(**fields)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def content(batches: Batches) -> list[tuple[bytes, list[int], list[int], int]]:
    with batches:
        return [
            (batch.images.tobytes(), batch.labels.tolist(), batch.records.tolist(), batch.first_position)
            for batch in batches
        ]


def test_batches_are_what_they_promise(memory: Memory) -> None:
    loader = Loader(memory, 16, 8, threads=2, prefetch=2, classes=10)
    with loader.training(1, 0, Augmentation()) as batches:
        assert len(batches) == loader.steps() == 4
        for step, batch in enumerate(batches):
            assert batch.images.shape == (8, 16, 16, 3)
            assert batch.images.dtype == np.uint8
            assert batch.images.flags.c_contiguous
            assert batch.labels.dtype == batch.records.dtype == np.int64
            assert (batch.labels == (batch.records - 100) % 10).all()
            assert batch.first_position == 8 * step
            assert batch.wait_seconds > 0
        assert len(batches) == 0


@pytest.mark.parametrize("augmentation", [Augmentation(), RICH], ids=["plain", "rich"])
def test_threads_and_prefetch_change_no_byte(memory: Memory, augmentation: Augmentation) -> None:
    expected = content(Loader(memory, 20, 6, threads=0).training(7, 3, augmentation))
    assert len(expected) == 6
    for threads, prefetch in [(1, 0), (2, 1), (4, 3), (3, 20), (0, 5)]:
        loader = Loader(memory, 20, 6, threads=threads, prefetch=prefetch)
        assert content(loader.training(7, 3, augmentation)) == expected


@pytest.mark.parametrize("batch_size", [1, 4, 9, 37])
def test_starting_at_a_step_is_the_tail_of_the_epoch(memory: Memory, batch_size: int) -> None:
    whole = content(Loader(memory, 12, batch_size, threads=0).training(5, 2, RICH))
    for start in {0, 1, len(whole) // 2, len(whole) - 1, len(whole)}:
        loader = Loader(memory, 12, batch_size, threads=2, prefetch=2)
        assert content(loader.training(5, 2, RICH, start_step=start)) == whole[start:]


def test_an_image_does_not_depend_on_the_batch_size(memory: Memory) -> None:
    def images(batch_size: int) -> bytes:
        return b"".join(item[0] for item in content(Loader(memory, 12, batch_size, 0).training(5, 2, RICH)))[: 36 * 432]

    assert images(4) == images(9) == images(36)


def test_epochs_and_seeds_differ(memory: Memory) -> None:
    loader = Loader(memory, 12, 10, threads=0)
    passes = [content(loader.training(seed, epoch, Augmentation())) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    assert len({str([item[2] for item in one]) for one in passes}) == 3


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 7, COUNT - 1, COUNT, COUNT + 1])
@pytest.mark.parametrize("crops", [1, 2, 10])
def test_evaluation_covers_every_record_once_in_order(
    memory: Memory, threads: int, batch_size: int, crops: Any
) -> None:
    batches = Loader(memory, 8, batch_size, threads).evaluation(0.875, crops)
    assert len(batches) == -(-COUNT // batch_size)
    seen: list[int] = []
    with batches:
        for batch in batches:
            assert batch.first_position == len(seen)
            assert batch.images.shape == (crops * len(batch.labels), 8, 8, 3)
            seen += batch.records.tolist()
    assert seen == list(range(100, 100 + COUNT))


def test_crops_of_a_record_lie_together(memory: Memory) -> None:
    ones = content(Loader(memory, 8, 5, 0).evaluation(0.875, 1))
    twos = content(Loader(memory, 8, 5, 0).evaluation(0.875, 2))
    first = np.frombuffer(twos[0][0], np.uint8).reshape(5, 2, 8, 8, 3)
    assert first[:, 0].tobytes() == ones[0][0]
    assert np.array_equal(first[:, 1], first[:, 0, :, ::-1])


def test_no_records_evaluate_to_no_batches() -> None:
    assert content(Loader(Memory(0), 8, 5, 2).evaluation()) == []


def test_too_few_records_to_train_are_refused(memory: Memory) -> None:
    with pytest.raises(BadInput, match="the records do not fill a batch; expected at least 38; found 37"):
        Loader(memory, 8, COUNT + 1).training(0, 0, Augmentation())


@pytest.mark.parametrize("settings", [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, -1, 1), (1, 1, 1, -1)])
def test_impossible_settings_are_refused(memory: Memory, settings: tuple[int, int, int, int]) -> None:
    with pytest.raises(BadRecipe):
        Loader(memory, *settings)


@pytest.mark.parametrize("start_step", [-1, 5])
def test_a_step_the_epoch_lacks_is_refused(memory: Memory, start_step: int) -> None:
    with pytest.raises(BadRecipe, match=f"expected 0 to 4; found {start_step}"):
        Loader(memory, 8, 8).training(0, 0, Augmentation(), start_step)


@pytest.mark.parametrize(("crop_fraction", "crops"), [(0, 1), (1.01, 1), (0.9, 5)])
def test_an_impossible_evaluation_is_refused(memory: Memory, crop_fraction: float, crops: Any) -> None:
    with pytest.raises(BadRecipe, match="the evaluation's settings are out of range"):
        Loader(memory, 8, 8).evaluation(crop_fraction, crops)


def test_batches_lie_in_the_arrays_they_are_given(memory: Memory) -> None:
    """Once for a pass, however long: an engine's are costly to make."""
    made: list[Any] = []

    def empty(shape: tuple[int, ...], dtype: Any) -> Any:
        made.append(np.empty(shape, dtype))
        return made[-1]

    loader = Loader(memory, 8, 2, threads=2, prefetch=2, classes=10, empty=empty)
    found = []
    with loader.training(0, 0, Augmentation(mixup=0.2)) as batches:
        for batch in batches:
            arrays = (batch.images, batch.labels, batch.targets)
            assert all(any(np.shares_memory(array, room) for room in made) for array in arrays)
            found.append(batch.images.tobytes())
    assert len(made) == 3 * 3
    plain = Loader(memory, 8, 2, threads=0, classes=10).training(0, 0, Augmentation(mixup=0.2))
    assert found == [batch.images.tobytes() for batch in plain]


def test_batches_that_no_memory_can_hold_are_refused(memory: Memory) -> None:
    with pytest.raises(OutOfRoom, match=r"not enough memory.*smaller batch_size"):
        content(Loader(memory, 2**20, 37).evaluation(1.0, 10))


def test_a_number_beyond_63_bits_is_refused(memory: Memory) -> None:
    memory.change(4, number=2**63)
    with pytest.raises(BadInput, match=r"memory\.rec, record 4, .*number is too large"):
        content(Loader(memory, 8, 4, 2).evaluation())


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_readers_error_arrives_where_its_batch_would_have(memory: Memory, threads: int) -> None:
    memory.failing[20] = Damaged("checksum wrong", where="shard 3, record 20")
    batches = Loader(memory, 8, 4, threads, prefetch=3).evaluation()
    assert [next(batches).first_position for _ in range(5)] == [0, 4, 8, 12, 16]
    with pytest.raises(Damaged, match="shard 3, record 20: checksum wrong"):
        next(batches)
    assert list(batches) == []


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_of_several_errors_in_a_batch_the_first_row_s_is_raised(memory: Memory, threads: int) -> None:
    for position in (35, 30, 22, 12):
        memory.failing[position] = Damaged(f"record {position}")
    with pytest.raises(Damaged, match="record 12"):
        content(Loader(memory, 8, COUNT, threads).evaluation())


@pytest.mark.parametrize(("checked", "kind"), [(True, Damaged), (False, BadInput)])
def test_an_image_that_does_not_decode_names_file_and_record(
    memory: Memory, checked: bool, kind: type[PipelineError]
) -> None:
    memory.change(9, content=b"\xff\xd8 no picture", checked=checked)
    with pytest.raises(kind, match=r"memory\.rec, record 9, offset 9000: .*decoded"):
        content(Loader(memory, 8, 4, 2).evaluation())


@pytest.mark.parametrize("labels", [(10.0,), (-1.0,), (0.5,), (), (float("nan"),), (float("inf"),)])
def test_an_unusable_label_names_file_and_record(memory: Memory, labels: tuple[float, ...]) -> None:
    memory.change(9, labels=labels)
    with pytest.raises(BadInput, match=r"memory\.rec, record 9, offset 9000: the label is not a class.*0 to 9; found"):
        content(Loader(memory, 8, 4, 2, classes=10).evaluation())


def test_the_first_of_several_labels_counts(memory: Memory) -> None:
    memory.change(0, labels=(3.0, 0.25, -7.0))
    assert content(Loader(memory, 8, 1, 0).evaluation())[0][1] == [3]


@pytest.mark.parametrize("asked", [0, 1, 3])
def test_closing_early_ends_the_threads(memory: Memory, asked: int) -> None:
    with Loader(memory, 8, 2, threads=4, prefetch=4).training(0, 0, Augmentation()) as batches:
        for _ in range(asked):
            next(batches)
    batches.close()
    assert list(batches) == []


def test_a_consumers_error_ends_the_threads(memory: Memory) -> None:
    def consume() -> None:
        with Loader(memory, 8, 2, 2).training(0, 0, Augmentation()) as batches:
            next(batches)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()


def test_only_so_many_batches_are_prepared_ahead(memory: Memory) -> None:
    asked: list[int] = []
    read = memory.read
    memory.read = lambda position: asked.append(position) or read(position)  # type: ignore[assignment,func-returns-value,return-value]
    with Loader(memory, 8, 4, threads=2, prefetch=2).evaluation() as batches:
        next(batches)
        time.sleep(0.2)
        assert len(asked) == 12
        next(batches)
        time.sleep(0.2)
        assert len(asked) == 16


def test_memory_stays_flat() -> None:
    memory = Memory(64)
    loader = Loader(memory, 64, 8, threads=2, prefetch=2)
    content(loader.training(0, 0, RICH))
    tracemalloc.start()
    peaks = []
    for epoch in range(10):
        tracemalloc.reset_peak()
        with loader.training(0, epoch, RICH) as batches:
            for _ in batches:
                pass
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    batch_bytes = 8 * 64 * 64 * 3
    assert max(peaks) < 3 * batch_bytes + 2_000_000
    assert max(peaks[5:]) - peaks[4] < 300_000  # by then as many blocks of random numbers are there as are kept


def test_reads_the_packages_own_records(tmp_path: Path) -> None:
    memory = Memory()
    path = tmp_path / "some.rec"
    path.write_bytes(b"".join(frame(pack(item.labels, at, item.image)) for at, item in enumerate(memory.records)))
    with RecordSet.open(path) as records:
        from_file = content(Loader(records, 16, 8, 2).training(1, 0, RICH))
    from_memory = content(Loader(memory, 16, 8, 2).training(1, 0, RICH))
    assert [item[:2] for item in from_file] == [item[:2] for item in from_memory]


def test_odd_images_load_or_are_refused_by_name(unpacked: Callable[[str], Path]) -> None:
    refused = []
    files = sorted(path for path in unpacked("odd_images_shared.tar.xz").rglob("*") if path.is_file())
    for file in files:
        memory = Memory(1)
        memory.change(0, content=file.read_bytes(), checked=False)
        try:
            content(Loader(memory, 16, 1, 0).evaluation())
        except PipelineError as error:
            refused.append(str(error))
    assert 0 < len(refused) < len(files) * 2 // 3
    assert all("record 0" in line for line in refused)


def test_a_header_that_claims_billions_of_pixels_is_refused_at_once(memory: Memory) -> None:
    forged = bytearray(memory.records[0].image)
    frame_header = forged.index(b"\xff\xc0")
    forged[frame_header + 5 : frame_header + 9] = b"\xff\xdc\xff\xdc"
    memory.change(0, content=bytes(forged))
    started = time.perf_counter()
    with pytest.raises(Damaged, match=r"record 0, offset 0: .*50,000,000 pixels"):
        content(Loader(memory, 8, 4, 1).evaluation())
    assert time.perf_counter() - started < 1


@given(images=st.integers(1, 2000), threads=st.integers(0, 64))
def test_pieces_hold_whole_pairs_and_leave_no_thread_without_one(images: int, threads: int) -> None:
    piece = _piece(images, threads)
    assert piece % 2 == 0
    assert 8 <= piece <= 32
    if images >= 8 * threads:
        assert -(-images // piece) >= threads
