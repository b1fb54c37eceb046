"""Early stopping, and the validation split that it and the plateau schedule need."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.api import TrainingResult
from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Totals
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.training import loop, saving
from imagenet_pipeline.training.checkpoint import epoch_of, find_checkpoint
from imagenet_pipeline.training.data import require_validation
from imagenet_pipeline.training.journal import Journal, branches
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run
from imagenet_pipeline.training.run import gives_up


def records_of(*splits: str, classes: int = 2) -> Any:
    """Stands for a data set with these splits and so many classes."""
    ids = tuple(str(number) for number in range(classes))
    return SimpleNamespace(name="here", counts=dict.fromkeys(splits, 3), classes=ClassTable("folder", ids, ids))


def patient(epochs: int, **keys: Any) -> Recipe:
    return Recipe.model_validate({"network": "x", "records": "y", "stopping": {"patience_epochs": epochs, **keys}})


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 9))
def test_it_gives_up_where_so_many_last_epochs_were_no_better(scores: list[int], patience: int) -> None:
    rows = [{"epoch": epoch, "validation_rank1": float(score)} for epoch, score in enumerate(scores, 1)]
    before, last = scores[:-patience], scores[-patience:]
    assert gives_up(patient(patience), rows) == (bool(before) and max(last) <= max(before))


def test_it_never_gives_up_unasked() -> None:
    assert not gives_up(patient(0), [{"validation_rank1": 1.0}] * 50)
    assert not gives_up(patient(0), [{}] * 50)
    assert not gives_up(patient(1), [])


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 5), st.sampled_from([0.0, 0.5, 1.0, 2.5]))
def test_it_stops_where_keras_does(losses: list[int], patience: int, min_delta: float) -> None:
    """Keras 3's EarlyStopping, mode "min", as it is published: better is less than the best by more than min_delta."""
    best, wait, stopped = np.inf, 0, []
    for loss in losses:
        wait += 1
        if loss < best - min_delta:
            best, wait = loss, 0
        stopped.append(wait >= patience)
    recipe = patient(patience, figure="validation_loss", min_delta=min_delta)
    rows = [{"epoch": epoch, "validation_loss": float(loss)} for epoch, loss in enumerate(losses, 1)]
    assert [gives_up(recipe, rows[:epoch]) for epoch in range(1, len(rows) + 1)] == stopped


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("schedule.kind", {"schedule": {"kind": "plateau"}}),
        ("stopping.patience_epochs", {"stopping": {"patience_epochs": 3}}),
        ("stopping.restore_best", {"stopping": {"restore_best": True}}),
        ("stopping.figure", {"stopping": {"figure": "validation_loss"}}),
    ],
)
def test_what_goes_by_validation_needs_its_split(key: str, values: dict[str, object]) -> None:
    recipe = Recipe.model_validate({"network": "x", "records": "y", **values})
    data = records_of("train", "test")
    with pytest.raises(
        BadRecipe, match=f"^here: recipe key '{key}' .* split val, which these records lack; found train"
    ):
        require_validation(recipe, data)
    data.counts["val"] = 1
    require_validation(recipe, data)
    require_validation(patient(0), records_of())


@pytest.mark.parametrize("key", ["stopping.figure", "schedule.figure"])
def test_rank_5_among_five_classes_says_nothing(key: str) -> None:
    section = key.partition(".")[0]
    values = {"stopping": {"figure": "validation_rank5"}, "schedule": {"kind": "plateau", "figure": "validation_rank5"}}
    recipe = Recipe.model_validate({"network": "x", "records": "y", section: values[section]})
    with pytest.raises(BadRecipe, match=rf"'{key}': rank-5 among 5 classes is always 100 %.*; {key}=validation_rank1$"):
        require_validation(recipe, records_of("train", "val", classes=5))
    require_validation(recipe, records_of("train", "val", classes=6))


def test_what_goes_by_training_needs_no_split() -> None:
    stopping = {"patience_epochs": 3, "figure": "train_loss", "restore_best": True}
    recipe = Recipe.model_validate({"network": "x", "records": "y", "stopping": stopping})
    require_validation(recipe, records_of("train"))


STILL = {"network": "shallownet", "batch_size": 598, "schedule.kind": "constant", "optimizer.learning_rate": 1e-12}
"""So slow that no validation score moves."""


def rates(run: Path) -> list[float]:
    return [row["learning_rate"] for row in branches(Journal(run).events())[-1]]


def test_a_plateau_lowers_the_rate_and_a_restart_knows_of_it(recipe: Path, tmp_path: Path) -> None:
    plateau = {**STILL, "schedule.kind": "plateau", "schedule.patience_epochs": 1, "schedule.factor": 0.5}
    train(open_run(recipe, plateau, tmp_path))
    assert rates(tmp_path) == [1e-12, 1e-12, 0.5e-12, 0.25e-12]
    train(open_run(recipe, {}, tmp_path, "3"))
    assert rates(tmp_path) == [1e-12, 1e-12, 0.5e-12, 0.25e-12]
    train(open_run(recipe, {"optimizer.learning_rate": 8e-12, "epochs": 5}, tmp_path, "3"))
    assert rates(tmp_path)[3:] == pytest.approx([8e-12, 4e-12])


def test_a_run_that_gave_up_goes_on_with_more_patience_alone(recipe: Path, tmp_path: Path) -> None:
    outcome = train(open_run(recipe, {**STILL, "stopping.patience_epochs": 2}, tmp_path))
    assert (outcome.epoch, outcome.finished) == (3, True)
    assert train(open_run(recipe, {}, tmp_path, "latest")).epoch == 3
    assert train(open_run(recipe, {"stopping.patience_epochs": 3}, tmp_path, "latest")).epoch == 4


def best_epochs(run: Path) -> tuple[int, int]:
    """The epochs of `best` and of `latest`."""
    return epoch_of(find_checkpoint(run, "best")), epoch_of(find_checkpoint(run, "latest"))


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation loss is least after the first epoch, rank-1 is highest after the second."""
    validated = iter([(1.0, 100), (2.0, 300), (3.0, 200), (4.0, 100), (5.0, 50), (6.0, 40), (7.0, 30)])

    def validate(*_: object) -> Totals:
        loss, hits = next(validated)
        return Totals(300, hits, 300, np.array([300 * loss]))

    monkeypatch.setattr(loop, "validate", validate)


def test_the_best_follows_the_figure(recipe: Path, tmp_path: Path, engine: object, scores: None) -> None:
    outcome = train(open_run(recipe, {"stopping.figure": "validation_loss", "stopping.patience_epochs": 2}, tmp_path))
    assert outcome.epoch == 3
    assert best_epochs(tmp_path) == (1, 3)
    assert (tmp_path / "checkpoints" / "best").resolve().name == "epoch-0001"
    assert TrainingResult.of(tmp_path).best["epoch"] == 1
    text = (tmp_path / "recipe.toml").read_text()
    (tmp_path / "recipe.toml").write_text(text.replace("validation_loss", "auto"))
    assert best_epochs(tmp_path) == (2, 3)
    (tmp_path / "recipe.toml").write_text("not TOML")
    assert best_epochs(tmp_path) == (2, 3)


def test_an_ended_run_goes_back_to_its_best_epoch_and_on_from_it(
    recipe: Path, tmp_path: Path, engine: object, scores: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "imagenet_pipeline")
    keys = {"stopping.restore_best": True, "stopping.patience_epochs": 2, "epochs": 9}
    outcome = train(open_run(recipe, keys, tmp_path))
    assert (outcome.epoch, outcome.finished) == (4, True)
    assert best_epochs(tmp_path) == (2, 2)
    branch = tmp_path / "checkpoints" / "branch-01"
    assert sorted(path.name for path in branch.iterdir()) == ["epoch-0003", "epoch-0004"]
    assert "validation rank-1 got no better in 2 epochs: done after epoch 4" in caplog.text
    assert f"the run is back at its best epoch, 2; later ones are kept in {branch}" in caplog.text
    ended = Journal(tmp_path).events()
    assert (ended[-1]["event"], ended[-1]["epoch"], ended[-1]["restored"]) == ("end", 4, 2)
    assert len(rates(tmp_path)) == 4
    # Nothing is left to do, and nothing is done.
    assert train(open_run(recipe, {}, tmp_path, "latest")).finished
    assert Journal(tmp_path).events() == ended
    # With more patience it goes on from its best: the third epoch comes anew.
    outcome = train(open_run(recipe, {"stopping.patience_epochs": 0, "epochs": 5}, tmp_path, "latest"))
    assert (outcome.epoch, best_epochs(tmp_path)) == (5, (2, 2))


def test_a_kill_before_it_is_back_leaves_that_to_a_restart(
    recipe: Path, tmp_path: Path, engine: object, scores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(recipe, {"stopping.restore_best": True, "epochs": 3}, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(saving, "set_aside_later", lambda *_: _killed())
        with pytest.raises(KeyboardInterrupt):
            train(run)
    assert best_epochs(tmp_path) == (2, 3)
    assert train(open_run(recipe, {}, tmp_path, "latest")).finished
    assert best_epochs(tmp_path) == (2, 2)
    assert train(open_run(recipe, {}, tmp_path, "latest")).epoch == 2
    assert [event["event"] for event in Journal(tmp_path).events()] == [
        "start", "epoch", "epoch", "epoch", "end", "end",
    ]  # fmt: skip


def test_a_kill_before_the_end_is_journalled_leaves_that_to_a_restart(
    recipe: Path, tmp_path: Path, engine: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(recipe, {"epochs": 1}, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "note_end", lambda *_: _killed())
        with pytest.raises(KeyboardInterrupt):
            train(run)
    for _ in range(2):
        assert train(open_run(recipe, {}, tmp_path, "latest")).finished
        assert [event["event"] for event in Journal(tmp_path).events()] == ["start", "epoch", "end"]


def _killed() -> None:
    raise KeyboardInterrupt
