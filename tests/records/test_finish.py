"""The files beside the records: statistics from exact sums, rejects with their reasons."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from imagenet_pipeline.records.finish import statistics_of, write_rejects
from imagenet_pipeline.records.shard import ColourSums


def teststatistics_of_join_shards_exactly() -> None:
    parts = [np.random.default_rng(i).integers(0, 256, (9 + i, 7, 3)).astype(np.uint8) for i in range(3)]
    markers = []
    for part in parts:
        colours = ColourSums()
        colours.add(part)
        markers.append({"colours": vars(colours)})
    found = statistics_of(markers)
    pixels = np.concatenate([part.reshape(-1, 3) for part in parts]).astype(np.float64)
    assert list(found["mean"].values()) == pytest.approx(pixels.mean(axis=0), rel=1e-12)
    assert list(found["std"].values()) == pytest.approx(pixels.std(axis=0), rel=1e-12)
    assert list(found["mean"]) == ["R", "G", "B"]


def test_rejects_are_a_table_whatever_their_names(tmp_path: Path) -> None:
    (tmp_path / "marker").write_text(json.dumps({"rejects": [[3, 'a, "b".jpg', "empty file"]]}))
    tasks = [SimpleNamespace(marker=tmp_path / name, split="train") for name in ("absent", "marker")]
    path = write_rejects(tmp_path, tasks)  # type: ignore[arg-type]
    rows = list(csv.reader(path.read_text().splitlines()))
    assert rows == [["split", "path", "reason"], ["train", 'a, "b".jpg', "empty file"]]
