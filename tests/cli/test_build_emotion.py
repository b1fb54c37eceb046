"""The verbs `build fer2013` and `build ckplus` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.cli import main
from imagenet_pipeline.records.image import encode_png


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.fixture
def faces_csv(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (21, 2304))
    usages = ["Training"] * 14 + ["PublicTest"] * 7
    rows = (f"{n % 7},{' '.join(map(str, face))},{usages[n]}" for n, face in enumerate(pixels))
    path = tmp_path / "fer2013.csv"
    path.write_text("\n".join(["emotion,pixels,Usage", *rows]))
    return path


def test_faces_become_a_data_set_that_verifies(
    faces_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    words = ("build", "fer2013", "--csv", faces_csv, "--out", out, "--workers", 1, "--json")
    assert run(*words) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["records"] == {"train": 14, "val": 7}
    assert summary["actions"] == {"kept": 21}
    assert summary["classes"] == 7
    assert run("verify", out) == 0
    capsys.readouterr()
    assert run(*words) == 0
    assert json.loads(capsys.readouterr().out)["already_built"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--classes", "5"], "error: Invalid value for '--classes': '5' is not one of '6', '7'. (--help"),
        (
            ["--classes", "6", "--ferplus", "votes.csv"],
            "error: --classes: unknown number of classes; expected nothing with --ferplus",
        ),
    ],
)
def test_classes_that_there_are_not(
    words: list[str], line: str, faces_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build", "fer2013", "--csv", faces_csv, "--out", tmp_path / "set", *words) == 2
    assert capsys.readouterr().err.startswith(line)


def test_ckplus_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    face = encode_png(np.zeros((48, 48), np.uint8))
    for subject in range(30):
        for sequence, emotion in enumerate(("anger", "happy"), 1):
            folder = tmp_path / "ck" / emotion
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"S{subject:03d}_{sequence:03d}_00000001.png").write_bytes(face)
    words = ("build", "ckplus", "--root", tmp_path / "ck", "--out", tmp_path / "set", "--workers", 1, "--json")
    assert run(*words) == 0
    assert json.loads(capsys.readouterr().out)["records"] == {"train": 48, "val": 6, "test": 6}
