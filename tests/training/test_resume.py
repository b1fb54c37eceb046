"""Taking a run up again: what is carried, what is said, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.engines import choose_engine
from imagenet_pipeline.errors import BadRecipe, Damaged
from imagenet_pipeline.training.journal import Journal
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run, run_settings
from imagenet_pipeline.training.saving import Outcome
from imagenet_pipeline.training.schedule import learning_rate

STEPS = 9
RATE = "optimizer.learning_rate"


def go(recipe: Path, folder: Path | None, resume: str | None = None, **overrides: Any) -> Outcome:
    return train(open_run(recipe, {k.replace("__", "."): v for k, v in overrides.items()}, folder, resume))


@pytest.fixture
def run(recipe: Path, tmp_path: Path, engine: Any) -> Path:
    """A finished one of 4 epochs."""
    go(recipe, tmp_path / "run")
    return tmp_path / "run"


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in Journal(run).events() if event["event"] == kind]


def rate_at(run: Path, step: int) -> float:
    return learning_rate(load_recipe(run / "recipe.toml"), step, STEPS)


def test_a_rate_asked_for_at_a_step_is_that_of_the_step_after_every_later_restart(recipe: Path, run: Path) -> None:
    go(recipe, run, "3", **{RATE: 0.01})
    assert rate_at(run, 27) == pytest.approx(0.01)
    for epochs, resume in ((8, "4"), (6, "5")):
        go(recipe, run, resume, epochs=epochs)
        assert rate_at(run, 27) == pytest.approx(0.01)
    assert events(run, "resume")[-1]["asked_rate"] == {"learning_rate": 0.01, "step": 27, "epoch": 3}
    assert events(run, "resume")[-1]["overrides"] == {"epochs": 6, RATE: 0.01}
    text = (run / "recipe.toml").read_bytes()
    go(run / "recipe.toml", run, "5")
    assert (run / "recipe.toml").read_bytes() == text
    assert events(run, "resume")[-1]["changes"] == {}


def test_going_back_before_the_step_of_an_asked_rate_leaves_it_behind(recipe: Path, run: Path) -> None:
    own = load_recipe(run / "recipe.toml").optimizer.learning_rate
    go(recipe, run, "2", **{RATE: 0.01})
    first_asked = load_recipe(run / "recipe.toml").optimizer.learning_rate
    go(recipe, run, "4", **{RATE: 0.02})
    go(recipe, run, "3")
    assert load_recipe(run / "recipe.toml").optimizer.learning_rate == pytest.approx(first_asked)
    assert events(run, "resume")[-1]["overrides"][RATE] == 0.01
    for resume in ("1", "3"):
        go(recipe, run, resume)
        assert load_recipe(run / "recipe.toml").optimizer.learning_rate == own
    assert "asked_rate" not in events(run, "resume")[-1]


def test_an_absurd_rate_is_refused_before_anything_is_changed(recipe: Path, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(BadRecipe, match=r"optimizer\.learning_rate = 1: the schedule is so far down at step 27 that"):
        go(recipe, run, "3", **{RATE: 1.0}, schedule__kind="polynomial", schedule__power=4.0)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("through", ["the run's own", "another"])
def test_a_change_in_the_runs_own_recipe_is_treated_as_any_other(
    through: str, recipe: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = run / "recipe.toml"
    own = through == "the run's own"
    text = path.read_text()
    path.write_text(text.replace("seed = 42", "seed = 43"))
    if own:
        with pytest.raises(
            BadRecipe, match=r"recipe key 'seed' cannot change within a run; expected 42; found 43; put"
        ):
            go(path, run, "2")
    path.write_text(text.replace("brightness = 0.2", "brightness = 0.3"))
    with caplog.at_level(logging.INFO, "imagenet_pipeline"):
        go(path if own else recipe, run, "2")
    assert "recipe.toml: has changed since the last start" in caplog.text
    assert ("augmentation.brightness = 0.3, was 0.2" in caplog.text) == own
    assert events(run, "resume")[-1]["changes"] == ({"augmentation.brightness": 0.3} if own else {})
    caplog.clear()
    go(path if own else recipe, run, "3")
    assert "is not as" not in caplog.text


def test_a_journal_without_recipes_goes_by_the_file(recipe: Path, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = [
        {key: value for key, value in event.items() if key not in ("recipe", "recipe_digest", "threads")}
        for event in Journal(run).events()
    ]
    (run / "journal.jsonl").unlink()
    for event in old:
        Journal(run).write(**event)
    go(recipe, run, "latest", epochs=5)
    assert events(run, "resume")[-1]["changes"] == {"epochs": 5}
    assert "is not as" not in caplog.text


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_a_history_with_an_epoch_gone_is_refused(gone: int, recipe: Path, run: Path) -> None:
    """By the chain; in a journal of an older version, which has none, by the numbers."""
    path = run / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:gone], *lines[gone + 1 :]]))
    with pytest.raises(Damaged, match=rf"journal\.jsonl:{gone + 1}: the line does not follow the line before it"):
        go(recipe, run, "latest", epochs=5)
    kept = [json.loads(line) for line in lines if json.loads(line).get("epoch") != gone]
    path.unlink()
    for event in kept:
        Journal(run).write(**{key: value for key, value in event.items() if key not in ("after", "crc32c")})
    with pytest.raises(
        Damaged, match=rf"journal\.jsonl: the journal lacks epoch {gone}, which comes before epoch 4; put"
    ):
        go(recipe, run, "latest", epochs=5)
    assert go(recipe, run, str(gone - 1), epochs=5).epoch == 5 if gone > 1 else True


def test_another_number_of_compute_threads_is_said_once_and_journalled(
    recipe: Path, run: Path, engine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "device_names", ("cpu(0)",))
    go(recipe, run, "2")
    assert caplog.text == ""
    monkeypatch.setattr(engine, "threads", 3)
    go(recipe, run, "2")
    assert caplog.text.count("compute threads: 3, and 1 at the last start: ") == 1
    assert caplog.text.count("OMP_NUM_THREADS=1 would give the same bytes") == 1
    assert [event["threads"] for event in events(run, "resume")] == [1, 3]
    caplog.clear()
    monkeypatch.setattr(engine, "threads", 1)
    monkeypatch.setattr(engine, "device_names", ("gpu(0)",))
    go(recipe, run, "2")
    assert caplog.text == ""


def test_a_run_folder_means_its_own_recipe_and_itself(recipe: Path, run: Path, tmp_path: Path) -> None:
    assert go(run, None, "latest", epochs=5).epoch == 5
    assert run_settings(run, resume="latest").recipe.epochs == 5
    with pytest.raises(BadRecipe, match="the folder holds a run already; go on with --resume latest"):
        go(run, None)
    assert go(run, tmp_path / "another", epochs=1).epoch == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRecipe, match="a folder, not a recipe file"):
        run_settings(tmp_path / "empty", resume="latest")


def test_a_recipe_of_a_program_needs_a_folder_and_goes_on_with_what_was_overridden(
    recipe: Path, tmp_path: Path, engine: Any
) -> None:
    own = load_recipe(recipe, {"epochs": 3, "engine": choose_engine("cpu")})
    with pytest.raises(
        BadRecipe, match="run: a recipe without a file needs a folder for its run; expected a folder for the run"
    ):
        open_run(own)
    assert train(open_run(own, {"epochs": 1}, str(tmp_path / "run"))).epoch == 1
    settings = run_settings(own, folder=tmp_path / "run", resume="latest")
    assert (settings.overrides, settings.recipe) == ({"epochs": 1}, load_recipe(own, {"epochs": 1}))
    assert train(open_run(own, {"epochs": 2}, tmp_path / "run", "latest")).epoch == 2
    with pytest.raises(BadRecipe, match=r"^recipe: recipe key 'epochs'"):
        load_recipe(own.model_copy(update={"epochs": 0}))


def test_a_damaged_older_checkpoint_stops_nothing(recipe: Path, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("state.json", "weights.safetensors"):
        (run / "checkpoints" / "epoch-0001" / name).write_bytes(b"x")
    assert go(recipe, run, "latest", epochs=5).epoch == 5
    assert "epoch-0001/state.json: the file has changed since it was written; it stays as it is" in caplog.text


def test_a_checkpoint_copied_over_another_is_refused_and_a_branch_writes_its_own(recipe: Path, run: Path) -> None:
    checkpoints = run / "checkpoints"
    shutil.rmtree(checkpoints / "epoch-0004")
    shutil.copytree(checkpoints / "epoch-0003", checkpoints / "epoch-0004")
    with pytest.raises(Damaged, match="epoch-0004: the folder has the name of another checkpoint"):
        go(recipe, run, "latest", epochs=5)
    assert go(recipe, run, "3").epoch == 4
    assert json.loads((checkpoints / "epoch-0004" / "state.json").read_text())["epoch"] == 4
    assert (checkpoints / "branch-01" / "epoch-0004").is_dir()
