"""A small real data set, built as a user builds it, and a recipe that trains on it in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagenet_pipeline.records.build import BuildOptions, build
from record_builders import digits

RECIPE = """
network = "lenet"
records = "{records}"
epochs = 4
batch_size = 120
devices = "cpu"

[input]
size = 28

[augmentation]
crop = "random"
pad = 2
flip = 0
brightness = 0.2

[optimizer]
learning_rate = 0.05

[schedule]
kind = "cosine"

[loader]
threads = 0
"""


@pytest.fixture(scope="session")
def digits_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as records: 1,197 train, 300 val, 300 test."""
    folder = tmp_path_factory.mktemp("digits")
    build(digits.plan(folder), folder, BuildOptions(resize=0, workers=1))
    return folder


@pytest.fixture(scope="session")
def recipe(digits_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet at 28 pixels, 4 epochs of 9 steps."""
    path = tmp_path_factory.mktemp("recipe") / "digits.toml"
    path.write_text(RECIPE.format(records=digits_records))
    return path
