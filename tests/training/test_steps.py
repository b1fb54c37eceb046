"""A run whose length is given in steps: where it ends, what it keeps there, and how it goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint
from imagenet_pipeline.training.journal import Journal, branches
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run, run_settings
from imagenet_pipeline.training.saving import Outcome

CLOCK = ("event", "images_per_second", "wait_percent", "seconds")


def go(recipe: Path, folder: Path, resume: str | None = None, **overrides: Any) -> Outcome:
    return train(open_run(recipe, {k.replace("__", "."): v for k, v in overrides.items()}, folder, resume))


def there(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("epoch-*"))


def contents(run: Path, which: str = "latest") -> list[bytes]:
    folder = find_checkpoint(run, which)
    return [(folder / name).read_bytes() for name in ("weights.safetensors", "optimizer.safetensors")]


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in branches(Journal(run).events())[-1]]


def test_it_ends_inside_an_epoch_which_is_validated_and_kept_like_any_other(
    recipe: Path, tmp_path: Path, engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nine steps an epoch."""
    caplog.set_level(logging.INFO, "imagenet_pipeline")
    outcome = go(recipe, tmp_path, steps=12)
    assert (outcome.epoch, outcome.step, outcome.finished) == (2, 12, True)
    assert [(row["epoch"], row["step"]) for row in rows(tmp_path)] == [(1, 9), (2, 12)]
    assert all("validation_rank1" in row for row in rows(tmp_path))
    assert there(tmp_path) == ["epoch-0001", "epoch-0002"]
    assert load_checkpoint(find_checkpoint(tmp_path, "2")).state.metrics["step"] == 12
    assert [line.split(",")[:2] for line in (tmp_path / "history.csv").read_text().splitlines()[1:]] == [
        ["1", "9"],
        ["2", "12"],
    ]
    assert Journal(tmp_path).events()[-1]["event"] == "end"
    assert "early_stop" not in Journal(tmp_path).events()[-1]
    assert "epoch 2/2" in caplog.text
    again = go(recipe, tmp_path, "latest")
    assert (again.step, again.finished) == (12, True)
    assert "all 12 steps are done; steps=13 would go on" in caplog.text


def test_whole_epochs_in_steps_are_those_epochs(recipe: Path, tmp_path: Path, engine: Any) -> None:
    go(recipe, tmp_path / "epochs", epochs=1)
    go(recipe, tmp_path / "steps", steps=9)
    assert contents(tmp_path / "steps") == contents(tmp_path / "epochs")
    assert rows(tmp_path / "steps") == rows(tmp_path / "epochs")


def test_fewer_than_an_epoch_has_make_a_short_one(recipe: Path, tmp_path: Path, engine: Any) -> None:
    outcome = go(recipe, tmp_path, steps=4)
    assert (outcome.epoch, outcome.step) == (1, 4)
    assert outcome.metrics["validation_rank1"] > 0


def test_killed_at_any_step_it_ends_in_the_same_bytes(
    recipe: Path, tmp_path: Path, engine: Any, killed_at: Any
) -> None:
    keys = {"checkpoint__every_steps": 2, "average_decay": 0.9, "steps": 12}
    go(recipe, tmp_path / "whole", **keys)
    for resume, last in [(None, 3), ("latest", 9), ("latest", 10), ("latest", 11)]:
        with killed_at(last):
            go(recipe, tmp_path / "killed", resume, **keys)
    assert go(recipe, tmp_path / "killed", "latest").step == 12
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_with_more_steps_it_goes_on_as_if_it_had_never_ended(
    recipe: Path, tmp_path: Path, engine: Any, killed_at: Any
) -> None:
    """Killed on the way too: what the run knows of its epoch cut short is then that of an epoch begun."""
    keys = {"schedule__kind": "constant", "average_decay": 0.9, "checkpoint__every_steps": 7}
    go(recipe, tmp_path / "whole", steps=21, **keys)
    run = tmp_path / "longer"
    go(recipe, run, steps=12, **keys)
    with killed_at(15):
        go(recipe, run, "latest", steps=21)
    assert there(run) == ["epoch-0001", "epoch-0001-step-00000014"]
    assert [path.name for path in (run / "checkpoints" / "branch-01").iterdir()] == ["epoch-0002"]
    assert go(recipe, run, "latest").step == 21
    assert contents(run) == contents(tmp_path / "whole")
    assert rows(run) == rows(tmp_path / "whole")
    cut = branches(Journal(run).events())[0]
    assert [(row["epoch"], row["step"]) for row in cut] == [(1, 9), (2, 12)]


def test_fewer_steps_than_are_done_end_it_where_it_stands(
    recipe: Path, tmp_path: Path, engine: Any, killed_at: Any
) -> None:
    with killed_at(15):
        go(recipe, tmp_path, epochs=3, checkpoint__every_steps=7)
    outcome = go(recipe, tmp_path, "latest", steps=12)
    assert (outcome.epoch, outcome.step, outcome.finished) == (2, 14, True)
    assert go(recipe, tmp_path, "latest", epochs=2).step == 18
    assert there(tmp_path) == ["epoch-0001", "epoch-0002"]


def test_a_length_given_to_a_restart_takes_the_place_of_the_one_before(
    recipe: Path, tmp_path: Path, engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "imagenet_pipeline")
    go(recipe, tmp_path, steps=4)
    assert run_settings(recipe, {}, tmp_path, "latest").recipe.steps == 4
    settings = run_settings(recipe, {"epochs": 1}, tmp_path, "latest")
    assert (settings.recipe.steps, settings.recipe.epochs, settings.carried) == (0, 1, {})
    assert go(recipe, tmp_path, "latest", epochs=1).step == 9
    assert run_settings(tmp_path, {}, None, "latest").recipe.steps == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"schedule__kind": "steps", "schedule__drops": (2, 3)},
            r"steps = 20, 9 steps an epoch: recipe key 'schedule.drops': must be below epochs, 2.22222, .*drops=\[2\]",
        ),
        (
            {"schedule__kind": "restarts", "schedule__period_epochs": 3.0},
            r"^steps = 20, .*'schedule.period_epochs': must be below the 2.22222 epochs of the run",
        ),
    ],
)
def test_a_schedule_longer_than_the_run_is_refused(
    keys: dict[str, Any], message: str, recipe: Path, tmp_path: Path, engine: Any
) -> None:
    with pytest.raises(BadRecipe, match=message) as caught:
        go(recipe, tmp_path / "run", steps=20, **keys)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_books_decay_is_settled_as_the_run_begins_and_stays(recipe: Path, tmp_path: Path, engine: Any) -> None:
    """Learning rate over epochs: 0.05 / 2, of 18 steps; a rate asked for later leaves the form as it is."""
    go(recipe, tmp_path, steps=18, schedule__kind="inverse_time")
    assert rows(tmp_path)[0]["learning_rate"] == pytest.approx(0.05 / (1 + 0.025 * 8))
    assert run_settings(tmp_path, {}, None, "latest").recipe.schedule.decay == pytest.approx(0.025)
    longer = open_run(recipe, {"epochs": 3}, tmp_path, "latest")
    assert longer.recipe.schedule.decay == pytest.approx(0.025)
    longer.resources.close()
    go(recipe, tmp_path, "1", optimizer__learning_rate=0.01)
    assert rows(tmp_path)[1]["learning_rate"] == pytest.approx(0.01 * (1 + 0.025 * 9) / (1 + 0.025 * 17))
