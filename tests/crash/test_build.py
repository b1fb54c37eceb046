"""A build may be killed, or the disk filled, at any moment: a second run ends in the same bytes.

IMAGENET_PIPELINE_LONG=1 does many more random kills.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

HARNESS = Path(__file__).with_name("build_harness.py")
REPOSITORY = HARNESS.parent.parent.parent
KILLS = 200 if os.environ.get("IMAGENET_PIPELINE_LONG") else 4


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 256, (20, 24, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i:02d}.jpg"), noise)
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(HARNESS), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["kill", "full"])
def test_every_disk_operation_may_be_the_last(kind: str, photos: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        command("every", kind, photos, tmp_path / "scratch"), env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 60


def test_killed_at_random_moments_with_workers(photos: Path, tmp_path: Path) -> None:
    subprocess.run(command("once", 1, photos, tmp_path / "unbroken"), env=environment(), check=True)
    expected = files_in(tmp_path / "unbroken")
    chance = random.Random(5)
    for number in range(KILLS):
        out = tmp_path / f"out{number}"
        process = subprocess.Popen(command("once", 1 + number % 4, photos, out), env=environment())
        time.sleep(chance.uniform(0.3, 2.5))
        process.kill()
        process.wait()
        subprocess.run(command("once", 2, photos, out), env=environment(), check=True)
        assert files_in(out) == expected


def test_workers_die_with_their_parent(photos: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command("once", 2, photos, tmp_path / "out"), env=environment())
    workers = wait_for(lambda: children_of(process.pid), seconds=20)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(is_running(worker) for worker in workers), seconds=5)


def children_of(parent: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except OSError:
        return []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float):  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return found
