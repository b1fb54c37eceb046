"""The extras' commands speak as the verbs do: what a user can cause is a line and an exit code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from imagenet_pipeline import extras


@pytest.mark.parametrize(
    ("name", "words", "code"),
    [
        ("detection", ["nowhere", "out"], 3),
        ("detection", ["nowhere", "out", "--epochs", "none"], 2),
        ("gan", ["nowhere", "out"], 3),
        ("gan", ["nowhere", "out", "--size", "28"], 2),
        ("style", ["nowhere", "photo.jpg", "painting.jpg", "--out", "out.png"], 2),
        ("style", ["nowhere", "photo.jpg", "painting.jpg", "--out", "out.jpg"], 2),
        ("scenes", ["file.rec"], 3),
    ],
)
def test_an_error_is_a_line(
    name: str,
    words: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.rec").touch()
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as ended:
        extras.execute(importlib.import_module(f"imagenet_pipeline.extras.{name}").main)
    assert ended.value.code == code
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert [*tmp_path.iterdir()] == [tmp_path / "file.rec"]


def test_help_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from imagenet_pipeline.extras import gan

    monkeypatch.setattr(sys, "argv", ["gan", "--help"])
    with pytest.raises(SystemExit) as ended:
        extras.execute(gan.main)
    assert not ended.value.code
    assert "--batch-size" in capsys.readouterr().out
