"""What a run's journal says of where its numbers come from."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe, load_recipe
from imagenet_pipeline.processes import hardware
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.training.journal import Journal
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run


@pytest.mark.gluon
def test_every_start_names_recipe_data_versions_and_hardware(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(open_run(recipe, {"epochs": 1, "optimizer.reference_batch_size": 240}, folder))
    train(open_run(recipe, {"epochs": 2}, folder, "latest"))
    starts = [event for event in Journal(folder).events() if event["event"] in ("start", "resume")]
    assert [Recipe.model_validate_json(json.dumps(event["recipe"])).epochs for event in starts] == [1, 2]
    assert Recipe.model_validate_json(json.dumps(starts[1]["recipe"])) == load_recipe(folder / "recipe.toml")
    assert starts[1]["recipe_digest"] == files.sha256_of(folder / "recipe.toml") != starts[0]["recipe_digest"]
    for event in starts:
        assert event["learning_rate"] == 0.025
        assert event["versions"].keys() == {"imagenet_pipeline", "python", "mxnet", "numpy"}
        assert event["versions"]["python"] == platform.python_version()
        assert (event["engine"], event["devices"], event["ranks"]) == ("gluon", ["cpu(0)"], 1)
        assert event["hardware"] == hardware()
        assert event["threads"] == int(os.environ["OMP_NUM_THREADS"])
        assert event["data_digest"] == read_data_set(Path(event["recipe"]["records"])).digest


def test_the_hardware_is_this_machine() -> None:
    found = hardware()
    assert found["processor"]
    assert found["system"]
    assert found["processors"] >= 1
    meminfo = Path("/proc/meminfo").read_text().split()
    # A container may have less.
    assert 2**20 < found["memory_bytes"] <= 1024 * (int(meminfo[meminfo.index("MemTotal:") + 1]) + 2**20)
