"""A training whose batch the system's memory does not hold, by a limit of its address space. Long: real processes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from imagenet_pipeline.record_builders import digits
from imagenet_pipeline.records.build import BuildOptions, build

pytestmark = pytest.mark.skipif(
    os.environ.get("IMAGENET_PIPELINE_LONG") != "1", reason="long: IMAGENET_PIPELINE_LONG=1 runs it"
)
RECIPE = """
network = "resnet18"
records = "{records}"
epochs = 1
batch_size = 512
precision = "float32"
input.size = 160
loader.threads = 0
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-18 at 160 pixels, whose batch of 512 wants some ten gigabytes."""
    folder = tmp_path_factory.mktemp("digits")
    build(digits.plan(folder), folder, BuildOptions(resize=0, workers=1))
    path = folder / "large.toml"
    path.write_text(RECIPE.format(records=folder))
    return path


def limited(gigabytes: float, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in so much memory, each process of it."""
    limit = int(gigabytes * 10**9)
    return subprocess.run(
        [sys.executable, "-m", "imagenet_pipeline", *map(str, words)],
        check=False, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "devices", "where"),
    [
        ("gluon", "cpu", "cpu(0): out of memory; found 512 images of 160x160 pixels on the device"),
        ("pytorch", "cpu", "cpu: out of memory; found 512 images of 160x160 pixels on the device"),
        ("pytorch", "cpu:0,1", "cpu: out of memory; found 256 images of 160x160 pixels on the device"),
    ],
)
def test_a_batch_too_large_is_one_line_and_exit_code_5(
    engine: str, devices: str, where: str, recipe: Path, tmp_path: Path
) -> None:
    ended = limited(2.0, "train", recipe, "--run", tmp_path / "run", f"engine={engine}", f"devices={devices}")
    assert ended.returncode == 5, ended.stderr
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert where in error
    assert "lower batch_size or input.size" in error
    assert "accumulation=2" in error


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_auto_finds_a_batch_that_then_trains_in_the_same_memory(engine: str, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("train", recipe, "--run", run, f"engine={engine}", "devices=cpu", "input.size=96", "batch_size=auto")
    ended = limited(2.5, *words)
    assert ended.returncode == 0, ended.stderr
    start = json.loads((run / "journal.jsonl").read_text().splitlines()[0])
    found = start["batch_size_found"]
    print(engine, found)
    assert found["limit"] == "memory"
    assert start["recipe"]["batch_size"] == found["images"] < 1197
