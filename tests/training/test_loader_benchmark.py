from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.processes import processor_name
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import frame, pack
from imagenet_pipeline.training.benchmark import measure


def write_records(path: Path, count: int) -> Path:
    image = cv2.imencode(".jpg", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    path.write_bytes(b"".join(frame(pack([0.0], number, image)) for number in range(count)))
    return path


def test_measures_whole_batches(tmp_path: Path) -> None:
    with RecordSet.open(write_records(tmp_path / "a.rec", 25)) as records:
        speed = measure(records, size=8, threads=1, batch_size=10, epochs=2)
    assert (speed.images, speed.epochs, speed.threads, speed.batch_size, speed.size) == (20, 2, 1, 10, 8)
    assert speed.images_per_second == pytest.approx(20 / speed.seconds)


def test_fewer_records_than_a_batch_will_do(tmp_path: Path) -> None:
    with RecordSet.open(write_records(tmp_path / "a.rec", 3)) as records:
        assert measure(records, size=8, threads=0, epochs=1).images == 3


def test_no_record_is_refused(tmp_path: Path) -> None:
    with RecordSet.open(write_records(tmp_path / "a.rec", 0)) as records, pytest.raises(BadInput, match="no records"):
        measure(records)


def test_the_processor_has_a_name() -> None:
    assert processor_name()
