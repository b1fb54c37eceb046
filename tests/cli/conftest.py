"""The command line called from a test, and one small training that its verbs share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imagenet_pipeline.cli import main

RECIPE = """
network = "lenet"
records = "{records}"
epochs = 2
batch_size = 128
devices = "cpu"
[input]
size = 28
crop_fraction = 1.0
[augmentation]
crop = "centre"
flip = 0.0
[optimizer]
learning_rate = 0.05
[loader]
threads = 0
"""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`call("evaluate", run, "--json")` is the exit code, and what was said on stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def trained_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits/, recipe.toml and its run; nobody writes into it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.toml").write_text(RECIPE.format(records=folder / "digits"))
    for words in (
        ["build", "digits", "--out", folder / "digits", "--workers", 1],
        ["train", folder / "recipe.toml", "--run", folder / "run"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert not ended.value.code
    return folder


@pytest.fixture(scope="module")
def world(trained_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it for one test file."""
    return Path(shutil.copytree(trained_digits, tmp_path_factory.mktemp("world") / "copy", symlinks=True))
