"""The measurement of what a second thread gives, benchmarks/loader_scaling.py: the lock's share, and the table."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.records import image
from imagenet_pipeline.records.recordio import frame, pack

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("loader_scaling")


def test_the_lock_is_held_for_a_small_part_of_the_time_and_everything_is_put_back(scaling: Any, tmp_path: Path) -> None:
    photo = image.encode_jpeg(np.random.default_rng(0).integers(0, 256, (256, 300, 3), np.uint8), 95)
    path = tmp_path / "photos.rec"
    path.write_bytes(b"".join(frame(pack([1.0], number, photo)) for number in range(2 * scaling.BATCH_SIZE)))
    before = [getattr(module, name) for module, name in scaling.LETTING_GO], image.jpeg_crop
    for whole in (False, True):
        assert 1e-6 < scaling.lock_seconds(path, whole) < 1e-3
    assert before == ([getattr(module, name) for module, name in scaling.LETTING_GO], image.jpeg_crop)


def test_the_table_tells_ratios_and_what_limits_many_threads(scaling: Any) -> None:
    names = [name for pair in scaling.PAIRS.items() for name in pair]
    result = {
        "processor": "P", "processors": 2, "records": 1000, "rounds": 8,
        "images_per_second": {name: {1: 1000.0, 2: 1900.0} for name in names},
        "processor_seconds_an_image": {name: {1: 1e-3, 2: 1.1e-3} for name in names},
        "processes": {2: 1950.0},
        "lock_seconds_an_image": dict.fromkeys(scaling.PAIRS, 25e-6),
    }  # fmt: skip
    text = scaling.table(result)
    assert "| ours | 1,000 | 1000 | 1,900 | 1100 | 1.90 |" in text
    assert "ours to the thirty lines, [1, 2] threads: 1.00, 1.00" in text
    assert "held 25 us an image, 2.5%: 16 threads give at most 40,000 images/s, 16.0 times a thread" in text
