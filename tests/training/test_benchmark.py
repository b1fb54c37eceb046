"""The step benchmark: what it feeds, what it counts, and that a slow loader shows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.cli import main
from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading.loader import read_sample
from imagenet_pipeline.training.benchmark import SETTLING_STEPS, measure_steps


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


def test_nothing_to_measure_is_refused(recipe: Path) -> None:
    with pytest.raises(BadRecipe, match="--steps and --rounds: too few; expected at least 1; found 0, 1"):
        measure_steps(load_recipe(recipe), 0, 1, False, unseen)
    with pytest.raises(BadRecipe, match="batch_size exceeds the training records; expected at most 1197; found 1198"):
        measure_steps(load_recipe(recipe, {"batch_size": 1198}), 1, 1, False, unseen)
