"""The comparison of loaders, benchmarks/loader.py: every peer at hand does its rounds, and the rest is named."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.records.image import encode_jpeg

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(3):
            image = np.random.default_rng(number).integers(100, 141, (60 + number, 90, 3), np.uint8)
            jpeg = encode_jpeg(image, 95)
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(jpeg)
            tar.addfile(member, io.BytesIO(jpeg))
    return path


def test_loaders_do_the_same_work_in_turn(photos: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks/loader.py", "--photos", photos, "--records", "130", "--rounds", "1",
         "--pixels", "0", "--threads", "2", "--peers", "ours", "plain", "plain-crop", "ffcv", "--json"],
        env={**os.environ, "IMAGENET_PIPELINE_CACHE": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert "ffcv is left out" in ended.stderr
    (table,) = json.loads(ended.stdout)["tables"]
    rows = {row["peer"]: row for row in table["rows"]}
    assert list(rows) == ["ours", "plain", "plain-crop"]
    for row in rows.values():
        assert (row["batch"]["shape"], row["batch"]["type"]) == ([64, 224, 224, 3], "uint8")
        assert row["batch"]["mean"] == pytest.approx(120, abs=3)
        assert len(row["images_per_second"]) == len(row["image_seconds"]) == 1
        assert min(row["images_per_second"]) > 0 <= min(row["image_seconds"])


def test_the_table_says_how_many_times_as_fast_ours_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    loader = importlib.import_module("loader")
    batch = {"type": "uint8", "mean": 110.4}
    ours = loader.Measured("ours", 2, [600.0, 900.0, 800.0], [5e-4, 7e-4, 6e-4], batch=batch)
    other = loader.Measured("ffcv", 2, [400.0, 300.0, 450.0], [9e-4, 6e-4, 10e-4], batch=batch)
    run = {"processor": "P", "processors": 2, "load_before": 0.1, "date": "today", "records": 9, "rounds": 3}
    assert loader.table(run, 256, [ours, other]).splitlines()[2:] == [
        "| loader | 2 threads | ours is times as fast | processor time an image, us | to ours | batch, its mean |",
        "|---|---|---|---|---|---|",
        "| ours | 900 (800) |  | 600 |  | uint8, 110 |",
        "| FFCV, the same JPEG bytes | 450 (400) | 2.00 (1.78) | 900 | 1.50 | uint8, 110 |",
    ]


def test_environments_name_the_packages_that_the_system_lacks(tmp_path: Path) -> None:
    without = tmp_path / "bin" / "pkg-config"
    without.parent.mkdir()
    without.write_text("#!/bin/sh\nexit 1\n")
    without.chmod(0o755)
    paths = f"{without.parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks/environments.py", "ffcv"],
        env={**os.environ, "PATH": paths, "IMAGENET_PIPELINE_CACHE": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert ended.stderr.startswith("ffcv is left out: apt-get install ")
    assert ended.stderr.endswith(" libopencv-dev libturbojpeg0-dev\n")
    assert ended.stdout == ""
