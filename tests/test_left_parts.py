"""What a killed process left goes; what another one writes stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagenet_pipeline import files
from imagenet_pipeline.faces.annotate import detection_lines
from imagenet_pipeline.faces.video import whole_video
from imagenet_pipeline.files import remove_left_parts


@pytest.fixture(scope="module")
def ended() -> int:
    """The number of a process that is gone."""
    words = [sys.executable, "-c", "import os; print(os.getpid())"]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def test_parts_of_a_process_that_is_gone_are_removed_and_no_others(tmp_path: Path, ended: int) -> None:
    video, lines = tmp_path / "[a] film.mp4", tmp_path / "film.jsonl"
    left = (
        f".{video.name}{files.PART_MARK}{ended}-0",
        f".{video.name}{files.PART_MARK}{os.getpid()}-0",  # in containers a killed process had our number
    )
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "film.mp4").write_text("half")
    (tmp_path / f".{lines.name}{files.PART_MARK}{ended}-0").write_text("half")
    stay = {
        f".{video.name}{files.PART_MARK}{os.getppid()}-0",
        f".{video.name}{files.PART_MARK}1-0",
        f".other.mp4{files.PART_MARK}{ended}-0",
        f".{video.name}{files.PART_MARK}x",
        f"{lines.name}{files.PART_MARK}{ended}-0",
    }
    for name in stay:
        (tmp_path / name).write_text("another's")
    remove_left_parts((video, None, lines, tmp_path / "nowhere" / "a.png"))
    assert {path.name for path in tmp_path.iterdir()} == stay


def test_a_killed_writer_leaves_parts_that_are_known(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
import numpy as np
from imagenet_pipeline.faces.annotate import detection_lines
from imagenet_pipeline.faces.video import whole_video
place = Path({str(tmp_path)!r})
with whole_video(place / "film.mp4", 25.0) as video, detection_lines(place / "film.jsonl") as lines:
    video.add(np.zeros((48, 64, 3), np.uint8))
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    targets = tmp_path / "film.mp4", tmp_path / "film.jsonl"
    remove_left_parts(targets)
    assert list(tmp_path.iterdir()) == []
    with whole_video(targets[0], 25.0), detection_lines(targets[1]):
        assert len(list(tmp_path.iterdir())) == 2
