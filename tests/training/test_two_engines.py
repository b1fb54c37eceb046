"""One run on two engines: resumed on the same one, to equal bytes; on the other, to equal numbers."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.evaluation.evaluate import evaluate
from imagenet_pipeline.training.checkpoint import load_checkpoint
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run
from imagenet_pipeline.training.saving import Outcome

ENGINES = ("gluon", "pytorch")
ROUNDING = 1e-11
"""Worst difference of a weight after 4 epochs in float64, relative to its array's largest; measured 2e-14."""
RULES = {
    "sgd": {},
    "adam": {
        "optimizer.name": "adam",
        "optimizer.learning_rate": 0.002,
        "augmentation.mixup": 0.2,
        "augmentation.mix_epochs": 3,
        "loader.repeats": 2,
    },
    "lars": {"optimizer.name": "lars", "optimizer.learning_rate": 2.0},
}
HALVES = [("gluon", "pytorch"), ("pytorch", "gluon")]


def go(recipe: Path, folder: Path, resume: str | None = None, **overrides: Any) -> Outcome:
    return train(open_run(recipe, {key.replace("__", "."): value for key, value in overrides.items()}, folder, resume))


def weights(folder: Path, name: str = "epoch-0004") -> bytes:
    return (folder / "checkpoints" / name / "weights.safetensors").read_bytes()


def worst_difference(one: Path, other: Path) -> float:
    first, second = (load_file(run / "checkpoints" / "epoch-0004" / "weights.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    return max(float(np.abs(first[name] - second[name]).max() / np.abs(first[name]).max()) for name in first)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_two_epochs_and_two_more_end_in_equal_bytes_on_pytorch(recipe: Path, tmp_path: Path, precision: str) -> None:
    go(recipe, tmp_path, engine="pytorch", precision=precision)
    whole, half = weights(tmp_path), weights(tmp_path, "epoch-0002")
    go(recipe, tmp_path, "2")
    assert weights(tmp_path) == whole != half


@pytest.mark.parametrize(("rule", "first", "second"), [("sgd", *HALVES[0]), ("adam", *HALVES[0]), ("lars", *HALVES[1])])
def test_a_run_goes_on_on_the_other_engine(recipe: Path, tmp_path: Path, rule: str, first: str, second: str) -> None:
    go(recipe, tmp_path / "whole", engine=first, precision="float64", **RULES[rule])
    shutil.copytree(tmp_path / "whole", tmp_path / "changed", symlinks=True)
    assert go(recipe, tmp_path / "changed", "2", engine=second).finished
    state = load_checkpoint(tmp_path / "changed" / "checkpoints" / "epoch-0004").state
    assert state.engine == second
    assert 0 < worst_difference(tmp_path / "whole", tmp_path / "changed") < ROUNDING
    assert go(recipe, tmp_path / "changed", "3", engine=first).finished
    assert worst_difference(tmp_path / "whole", tmp_path / "changed") < ROUNDING


@pytest.mark.parametrize(("first", "second"), HALVES)
def test_a_run_stopped_inside_an_epoch_goes_on_on_the_other_engine(
    recipe: Path, tmp_path: Path, first: str, second: str, monkeypatch: pytest.MonkeyPatch, class_of: Any
) -> None:
    go(recipe, tmp_path / "whole", engine=first, precision="float64")
    kind = class_of(first)
    step, left = kind.train_batch, [13]

    def counted(*words: Any, **named: Any) -> None:
        step(*words, **named)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(kind, "train_batch", counted)
    assert go(recipe, tmp_path / "changed", engine=first, precision="float64").step == 13
    assert go(recipe, tmp_path / "changed", "latest", engine=second).finished
    assert worst_difference(tmp_path / "whole", tmp_path / "changed") < ROUNDING


@pytest.mark.gluon
def test_the_engine_of_an_earlier_restart_stays_in_force(recipe: Path, tmp_path: Path) -> None:
    go(recipe, tmp_path, epochs=2)
    go(recipe, tmp_path, "latest", engine="pytorch", epochs=3)
    go(recipe, tmp_path, "latest", epochs=4)
    assert load_recipe(tmp_path / "recipe.toml").engine == "pytorch"
    assert load_checkpoint(tmp_path / "checkpoints" / "epoch-0004").state.engine == "pytorch"


@pytest.mark.parametrize(("first", "second"), HALVES)
def test_either_engine_scores_a_run_the_same(recipe: Path, tmp_path: Path, first: str, second: str) -> None:
    go(recipe, tmp_path, epochs=1, engine=first, precision="float64")
    own, other = (evaluate(tmp_path, "latest", "val", overrides={"engine": name}) for name in (first, second))
    assert (own.engine, other.engine, own.precision, other.precision) == (first, second, "float64", "float64")
    assert (own.images, own.rank1_hits, own.rank5_hits) == (other.images, other.rank1_hits, other.rank5_hits)
    assert other.loss == pytest.approx(own.loss, rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_was_compiled_is_scored_without_a_compiler(
    recipe: Path, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(recipe, tmp_path, epochs=1, engine="pytorch")
    text = (tmp_path / "recipe.toml").read_text()
    (tmp_path / "recipe.toml").write_text(text.replace("compile = false", "compile = true"))
    assert load_recipe(tmp_path / "recipe.toml").compile
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert evaluate(tmp_path, "latest", "val", overrides={"engine": engine}).engine == engine


@pytest.mark.parametrize(("engine", "devices"), [("gluon", "cpu:0,1"), ("pytorch", "cpu")])
def test_a_part_with_averages_frozen_layers_and_parts_of_a_batch_goes_on_in_equal_bytes(
    recipe: Path, tmp_path: Path, engine: str, devices: str, monkeypatch: pytest.MonkeyPatch, class_of: Any
) -> None:
    """On several devices, each with running statistics of its own, too; and with dropout."""
    keys = {
        "engine": engine,
        "devices": devices,
        "network": "minivggnet",
        "input.size": 16,
        "epochs": 2,
        "average_decay": 0.9,
        "accumulation": 2,
        "transfer.frozen": {"block1": 1},
        "optimizer.clip_norm": 1.0,
        "optimizer.decay_all": False,
        "checkpoint.every_steps": 4,
    }
    require_equal_after_two_kills(recipe, tmp_path, keys, class_of(engine), monkeypatch)
    kept = load_checkpoint(tmp_path / "whole" / "checkpoints" / "epoch-0002")
    first = load_checkpoint(tmp_path / "whole" / "checkpoints" / "epoch-0001")
    assert (kept.weights["dense.weight"] != kept.trained["dense.weight"]).any()
    assert (kept.trained["block1.conv1.weight"] != first.trained["block1.conv1.weight"]).any()
    assert (first.trained["block1.conv1.weight"] == first.weights["block1.conv1.weight"]).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_residuals_left_out_at_random_go_on_in_equal_bytes(
    recipe: Path, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch, class_of: Any
) -> None:
    """With all of the options that make a network of today."""
    unit = {"layer": "Residual", "body": [{"layer": "Conv", "channels": 8, "kernel": 3, "pad": 1}, "relu"]}
    layers = [{"layer": "Conv", "channels": 8, "kernel": 3}, unit, unit,
              {"layer": "Pool", "kind": "max", "size": 2, "stride": 2}, "Flatten", {"layer": "Dense"}]  # fmt: skip
    keys = {
        "engine": engine,
        "network": {"layers": layers, "input_size": 12},
        "input.size": 12,
        "epochs": 2,
        "network_options.squeeze_excitation": 2,
        "network_options.activation": "mish",
        "network_options.blur_pool": "max",
        "network_options.stochastic_depth": 0.5,
        "checkpoint.every_steps": 4,
    }
    require_equal_after_two_kills(recipe, tmp_path, keys, class_of(engine), monkeypatch)


def require_equal_after_two_kills(
    recipe: Path, folder: Path, keys: dict[str, Any], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train `whole` at once, and `parts` with an end inside either epoch."""
    go(recipe, folder / "whole", **keys)
    step, left = kind.train_batch, [0]

    def dying(*words: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        step(*words)

    monkeypatch.setattr(kind, "train_batch", dying)
    for number, resume in [(6, None), (12, "latest")]:
        left[0] = number
        with pytest.raises(KeyboardInterrupt):
            go(recipe, folder / "parts", resume, **keys)
    assert (folder / "parts" / "checkpoints" / "latest").resolve().name == "epoch-0001-step-00000012"
    assert go(recipe, folder / "parts", "latest").finished
    for file in ("weights.safetensors", "optimizer.safetensors"):
        whole, parts = (folder / run / "checkpoints" / "epoch-0002" / file for run in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes(), file
