"""A line where a run does not learn: when it comes, when it does not, and that it comes once."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run
from imagenet_pipeline.training.run import guessing_loss, not_learning


def recipe_of(**keys: Any) -> Recipe:
    return Recipe.model_validate({"network": "x", "records": "y", "epochs": 10, **keys})


def row(epoch: int, steps_per_epoch: int, train_loss: float, validation_loss: float = 1.0) -> dict[str, Any]:
    step = epoch * steps_per_epoch
    return {"epoch": epoch, "step": step, "train_loss": train_loss, "validation_loss": validation_loss}


def test_guessing_costs_the_log_of_the_classes_and_of_hinge_a_margin_to_every_other() -> None:
    assert guessing_loss(recipe_of(loss={"label_smoothing": 0.1}), 5) == pytest.approx(math.log(5))
    assert guessing_loss(recipe_of(loss={"kind": "hinge"}), 5) == 4


def test_the_run_of_240_photos_that_diverged_is_told_of() -> None:
    recipe = recipe_of(schedule={"kind": "cosine", "warmup_epochs": 2})
    losses = [2.257, 4.768, 5.173, 2.532, 1.763, 1.835, 1.571]
    said = [not_learning(recipe, 5, 7, row(epoch, 7, loss)) for epoch, loss in enumerate(losses, 1)]
    assert [bool(line) for line in said] == [False, False, False, True, True, True, False]
    assert "loss of epoch 4, 2.532, is above that of guessing among 5 classes, 1.609" in said[3]
    assert "find-rate" in said[3]
    assert "take the recipe `photos`" in said[3]


def test_a_validation_loss_far_above_guessing_is_told_of() -> None:
    said = not_learning(recipe_of(), 5, 20, row(3, 20, 1.2, 2163.0))
    assert "the validation loss of epoch 3, 2,163, is far above" in said
    assert "running statistics" in said


@pytest.mark.parametrize(
    ("classes", "steps_per_epoch", "found"),
    [
        (5, 7, row(1, 7, 2.3)),
        (1000, 5000, row(1, 5000, 6.2)),
        (10, 47, row(2, 47, 0.9, 5.0)),
        (1, 47, row(2, 47, 0.0, 0.0)),
    ],
    ids=["too early", "ImageNet", "unsure but not lost", "one class"],
)
def test_a_run_that_learns_or_has_hardly_begun_is_left_in_peace(
    classes: int, steps_per_epoch: int, found: dict[str, Any]
) -> None:
    assert not_learning(recipe_of(), classes, steps_per_epoch, found) == ""


def test_a_long_warm_up_does_not_hide_it_for_ever() -> None:
    recipe = recipe_of(epochs=90, schedule={"warmup_epochs": 5})
    assert not_learning(recipe, 1000, 5000, row(1, 5000, 7.2))


def test_the_line_comes_once_also_after_a_restart(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # He's values and a rate with which nothing moves: above guessing without diverging.
    keys = {"optimizer.learning_rate": 1e-9, "initial.kind": "he", "epochs": 3}
    with caplog.at_level(logging.INFO, "imagenet_pipeline"):
        train(open_run(recipe, keys, tmp_path / "run"))
        train(open_run(recipe, {"epochs": 4}, tmp_path / "run", "latest"))
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("warning: the training loss of epoch 2, ")
    assert "is above that of guessing among 10 classes, 2.303: lower optimizer.learning_rate" in line


def test_a_warm_up_that_is_cut_is_told_of(recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(recipe, {"schedule.warmup_epochs": 5, "epochs": 3}, tmp_path / "run").resources:
        assert "a warm-up of 5 epochs in a run of 3 epochs is cut to half of it, 13 steps" in caplog.text
