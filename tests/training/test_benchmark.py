"""The step benchmark: what it feeds, what it counts, and that a slow loader shows."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.cli import main
from imagenet_pipeline.config import load_recipe, parse_overrides
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading.loader import read_sample
from imagenet_pipeline.processes import RankedProcess
from imagenet_pipeline.training import benchmark
from imagenet_pipeline.training.benchmark import SETTLING_STEPS, measure_scaling, measure_steps


def unseen(done: int, total: int) -> None:
    pass


def test_rounds_take_turns_and_each_fed_one_uses_up_what_was_prepared(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, engine_class: Any
) -> None:
    seen: list[bytes] = []
    monkeypatch.setattr(engine_class, "train_batch", lambda engine, images, *_: seen.append(np.array(images).tobytes()))
    plan = load_recipe(recipe, {"batch_size": 20, "loader.prefetch": 3})
    measure_steps(plan, steps=4, rounds=2, synthetic=True, show=unseen)
    still, fed = 4 + SETTLING_STEPS, 4 + SETTLING_STEPS + 3
    assert len(seen) == 2 * (still + fed)
    assert len(set(seen[:still])) == 1
    assert seen[still] == seen[0]
    assert len(set(seen[still : still + fed])) == fed
    assert set(seen[still + fed : 2 * still + fed]) == set(seen[:still])


def test_a_slow_loader_shows(recipe: Path, monkeypatch: pytest.MonkeyPatch, engine_class: Any) -> None:
    monkeypatch.setattr(engine_class, "train_batch", lambda *_: time.sleep(0.01))
    monkeypatch.setattr("imagenet_pipeline.loading.loader.read_sample", _slowly)
    speed = measure_steps(load_recipe(recipe, {"batch_size": 20}), steps=5, rounds=2, synthetic=True, show=unseen)
    assert speed is not None
    assert speed.synthetic_seconds is not None
    assert speed.ratio is not None
    assert speed.synthetic_seconds >= speed.best_synthetic_seconds >= 0.01  # type: ignore[operator]
    assert speed.seconds >= speed.best_seconds >= 0.03
    assert speed.ratio > 1.5
    assert speed.wait_share > 0.3
    assert speed.images_per_second == pytest.approx(20 / speed.seconds)


def _slowly(*words: Any) -> Any:
    time.sleep(0.001)
    return read_sample(*words)


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_the_verb_answers_on_both_engines(engine: str, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["benchmark", "step", str(recipe), f"engine={engine}", "batch_size=8", "--steps", "2", "--rounds", "1"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--json"])
    assert end.value.code == 0
    speed = json.loads(capsys.readouterr().out)
    assert (speed["engine"], speed["batch_size"], speed["steps"], speed["ratio"]) == (engine, 8, 2, None)
    with pytest.raises(SystemExit) as end:
        main([*words, "--synthetic"])
    assert end.value.code == 0
    assert "fed / synthetic: " in capsys.readouterr().out


def test_devices_are_added_with_as_many_images_on_each(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs with as many threads on each, too; the first counts as wholly efficient."""
    asked: list[tuple[dict[str, Any], str]] = []

    def answer(words: list[str], environment: dict[str, str]) -> str:
        keys = parse_overrides([word for word in words[3:] if "=" in word])
        asked.append((keys, environment["OMP_NUM_THREADS"]))
        assert words[-3:] == ["--steps", "2", "--json"]
        return json.dumps({"images_per_second": 100 * len(asked)})

    monkeypatch.setattr(benchmark, "run_apart", answer)
    monkeypatch.setattr(benchmark, "available_processors", lambda: 17)
    monkeypatch.delenv("OMP_NUM_THREADS")
    changes = {"devices": "cpu:0,1,2,3,4,5", "batch_size": 48, "engine": "pytorch", "loader.threads": "auto"}
    speeds = measure_scaling(recipe, changes, load_recipe(recipe, changes), ["--steps", "2"], unseen)
    assert [keys["devices"] for keys, _ in asked] == ["cpu:0", "cpu:0,1", "cpu:0,1,2,3", "cpu:0,1,2,3,4,5"]
    assert [keys["batch_size"] for keys, _ in asked] == [8, 16, 32, 48]
    assert {(keys["loader.threads"], threads) for keys, threads in asked} == {(2, "2")}
    assert [(scaled.devices, scaled.efficiency) for scaled in speeds] == [
        (1, 1.0), (2, 1.0), (4, 0.75), (6, pytest.approx(4 / 6))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": "cpu"}, "devices = 'cpu': there is a single device; give devices=gpu:all, or a list"),
        ({"devices": "cpu:0,1,2"}, "batch_size: does not divide by the 3 devices; expected a multiple of 3; found 16"),
    ],
)
def test_scaling_that_cannot_be_measured_is_refused(recipe: Path, changes: dict[str, Any], message: str) -> None:
    changes |= {"engine": "pytorch", "batch_size": 16}
    with pytest.raises(BadRecipe, match=message):
        measure_scaling(recipe, changes, load_recipe(recipe, changes), [], unseen)


def test_a_launched_process_measures_no_scaling(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "this_process", lambda: RankedProcess(0, 2, 0, 2, launched=True))
    with pytest.raises(BadRecipe, match=r"--scaling: a launcher has settled how many processes there are; launch"):
        measure_scaling(recipe, {}, load_recipe(recipe), [], unseen)


@pytest.mark.skipif(
    not os.environ.get("IMAGENET_PIPELINE_LONG"), reason="many processes: IMAGENET_PIPELINE_LONG=1 runs it"
)
@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_the_verb_measures_scaling_on_both_engines(
    engine: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["benchmark", "step", str(recipe), f"engine={engine}", "devices=cpu:0,1", "batch_size=8", "--scaling"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--steps", "2", "--rounds", "1", "--json"])
    assert end.value.code == 0
    one, two = json.loads(capsys.readouterr().out)["scaling"]
    assert (one["devices"], one["efficiency"], two["devices"]) == (1, 1.0, 2)
    assert two["speed"]["processes"] * len(two["speed"]["devices"]) == 2
    assert two["efficiency"] == pytest.approx(two["speed"]["images_per_second"] / one["speed"]["images_per_second"] / 2)


def test_nothing_to_measure_is_refused(recipe: Path) -> None:
    with pytest.raises(BadRecipe, match="--steps and --rounds: too few; expected at least 1; found 0, 1"):
        measure_steps(load_recipe(recipe), 0, 1, False, unseen)
    with pytest.raises(BadRecipe, match="batch_size exceeds the training records; expected at most 1197; found 1198"):
        measure_steps(load_recipe(recipe, {"batch_size": 1198}), 1, 1, False, unseen)
