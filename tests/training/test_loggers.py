"""TensorBoard's files, read back by TensorBoard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from imagenet_pipeline.training.tensorboard import Scalars

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.training.journal import COLUMNS, Journal, branches
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run


def row(epoch: int, loss: float) -> dict[str, Any]:
    return {"event": "epoch", "epoch": epoch, "step": 10 * epoch, "learning_rate": 0.5, "train_loss": loss,
            "validation_rank1": 10.0 * epoch}  # fmt: skip


def shown(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: (step, value) of every tag."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_columns_of_the_history_and_the_readings_between(tmp_path: Path) -> None:
    with Scalars(tmp_path, True) as scalars:
        scalars.add_reading(4, 0.75, 0.5)
        scalars.add_epoch(row(1, 0.5))
        scalars.add_epoch(row(2, 0.25))
        assert shown(tmp_path)["train/loss"] == [(10, 0.5), (20, 0.25)]
    assert shown(tmp_path) == {
        "steps/loss": [(4, 0.75)],
        "steps/learning_rate": [(4, 0.5)],
        "epoch": [(10, 1), (20, 2)],
        "learning_rate": [(10, 0.5), (20, 0.5)],
        "train/loss": [(10, 0.5), (20, 0.25)],
        "validation/rank1": [(10, 10), (20, 20)],
    }


def test_a_branch_left_behind_is_superseded(tmp_path: Path) -> None:
    with Scalars(tmp_path, True) as scalars:
        for epoch in (1, 2, 3):
            scalars.add_reading(10 * epoch - 5, 9.0, 0.5)
            scalars.add_epoch(row(epoch, 1.0))
    with Scalars(tmp_path, True, step=14, rows=[row(1, 1.0)]) as scalars:
        scalars.add_epoch(row(2, 2.0))
    assert shown(tmp_path)["train/loss"] == [(10, 1.0), (20, 2.0)]
    assert shown(tmp_path)["steps/loss"] == [(5, 9.0)]


def test_the_row_of_a_checkpoint_that_a_kill_kept_from_the_file_is_made_good(tmp_path: Path) -> None:
    with Scalars(tmp_path, True) as scalars:
        scalars.add_epoch(row(1, 1.0))
    with Scalars(tmp_path, True, step=20, rows=[row(1, 1.0), row(2, 2.0)]):
        pass
    assert shown(tmp_path)["train/loss"] == [(10, 1.0), (20, 2.0)]


def test_a_run_that_began_without_shows_its_whole_history(tmp_path: Path) -> None:
    with Scalars(tmp_path, True, step=20, rows=[row(1, 1.0), row(2, 2.0)]):
        pass
    assert shown(tmp_path)["train/loss"] == [(10, 1.0), (20, 2.0)]


def test_unasked_nothing_is_written_or_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with Scalars(tmp_path, False, 20, [row(1, 1.0)]) as scalars:
        scalars.add_epoch(row(2, 0.5))
        scalars.add_reading(4, 0.75, 0.5)
    assert not list(tmp_path.iterdir())


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "tensorboard"] + ["tensorboard"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadRecipe, match=r"log.tensorboard = true: tensorboard cannot be imported .*\[tensorboard\]"):
        Scalars(tmp_path, True)
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_back_shows_its_current_branch(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = {"log.tensorboard": True, "batch_size": 300}
    train(open_run(recipe, changes, run))
    train(open_run(recipe, {}, run, "2"))
    *_, left, current = branches(Journal(run).events())
    assert [row["epoch"] for row in left] == [row["epoch"] for row in current] == [1, 2, 3, 4]
    for column in set(COLUMNS) - {"step"}:
        beginning, _, rest = column.partition("_")
        tag = f"{beginning}/{rest}" if beginning in ("train", "validation") else column
        points = [(row["step"], pytest.approx(row[column])) for row in current]
        assert shown(run)[tag] == points, column
    assert [step for step, _ in shown(run)["steps/loss"]][-1] == current[-1]["step"]
