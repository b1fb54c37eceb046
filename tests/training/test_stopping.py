"""Early stopping, and the validation split that it and the plateau schedule need."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.training.data import require_validation
from imagenet_pipeline.training.journal import Journal, branches
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run
from imagenet_pipeline.training.run import gives_up


def patient(epochs: int) -> Recipe:
    return Recipe.model_validate({"network": "x", "records": "y", "stopping": {"patience_epochs": epochs}})


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 9))
def test_it_gives_up_where_so_many_last_epochs_were_no_better(scores: list[int], patience: int) -> None:
    rows = [{"epoch": epoch, "validation_rank1": float(score)} for epoch, score in enumerate(scores, 1)]
    before, last = scores[:-patience], scores[-patience:]
    assert gives_up(patient(patience), rows) == (bool(before) and max(last) <= max(before))


def test_it_never_gives_up_unasked() -> None:
    assert not gives_up(patient(0), [{"validation_rank1": 1.0}] * 50)
    assert not gives_up(patient(0), [{}] * 50)
    assert not gives_up(patient(1), [])


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("schedule.kind", {"schedule": {"kind": "plateau"}}),
        ("stopping.patience_epochs", {"stopping": {"patience_epochs": 3}}),
    ],
)
def test_what_goes_by_validation_needs_its_split(key: str, values: dict[str, object]) -> None:
    recipe = Recipe.model_validate({"network": "x", "records": "y", **values})
    data = SimpleNamespace(name="here", counts={"train": 9, "test": 3})
    with pytest.raises(
        BadRecipe, match=f"^here: recipe key '{key}' .* split val, which these records lack; found train"
    ):
        require_validation(recipe, data)  # type: ignore[arg-type]
    data.counts["val"] = 1
    require_validation(recipe, data)  # type: ignore[arg-type]
    require_validation(patient(0), SimpleNamespace(name="", counts={}))  # type: ignore[arg-type]


STILL = {"batch_size": 598, "schedule.kind": "constant", "optimizer.learning_rate": 1e-12}
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
