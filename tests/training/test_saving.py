"""Checkpoints inside an epoch, moving averages, layers that thaw and sizes that grow: what is kept goes on exactly."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from imagenet_pipeline import files
from imagenet_pipeline.cli import main
from imagenet_pipeline.engines import NO_TOTALS, Totals
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged
from imagenet_pipeline.evaluation.evaluate import evaluate
from imagenet_pipeline.training import loop, saving
from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint
from imagenet_pipeline.training.journal import Journal, branches
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run
from imagenet_pipeline.training.run import Pass
from imagenet_pipeline.training.saving import Outcome

STEPS = 9
CLOCK = ("images_per_second", "wait_percent", "seconds")
EVERYTHING = {
    "average_decay": 0.9,
    "network": "resnet18",
    "input.size": 28,
    "input.start_size": 21,
    "input.grow_epochs": (0, 2),
    "input.evaluation_size": 35,
    "transfer.frozen": {"stage1": 1, "stage2": 2},
}


def go(recipe: Path, folder: Path, resume: str | None = None, **overrides: Any) -> Outcome:
    return train(open_run(recipe, {k.replace("__", "."): v for k, v in overrides.items()}, folder, resume))


def there(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("epoch-*"))


def contents(run: Path, name: str = "epoch-0003") -> list[bytes]:
    return [
        (run / "checkpoints" / name / file).read_bytes() for file in ("weights.safetensors", "optimizer.safetensors")
    ]


def rows(run: Path) -> list[dict[str, Any]]:
    """The current branch of the history, without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in branches(Journal(run).events())[-1]]


def test_checkpoints_inside_an_epoch_come_every_so_many_steps_and_the_latest_is_kept(
    recipe: Path, tmp_path: Path, engine: Any, killed_at: Any
) -> None:
    for last, expected in [
        (3, []),
        (4, ["epoch-0000-step-00000004"]),
        (8, ["epoch-0000-step-00000008"]),
        (9, ["epoch-0001"]),
        (10, ["epoch-0001"]),
        (17, ["epoch-0001", "epoch-0001-step-00000016"]),
        (18, ["epoch-0001", "epoch-0002"]),
    ]:
        with killed_at(last):
            go(recipe, tmp_path / str(last), checkpoint__every_steps=4)
        assert there(tmp_path / str(last)) == expected, last


def test_checkpoints_come_so_long_after_the_last_one(
    recipe: Path, tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock runs half a minute a step."""
    steps = [0]
    rate = loop.learning_rate

    def counted(recipe: Any, step: int, *words: Any) -> float:
        steps[0] = step + 1
        return rate(recipe, step, *words)

    class Time:
        monotonic = staticmethod(lambda: 30.0 * steps[0])

    saved = []
    monkeypatch.setattr(loop, "learning_rate", counted)
    for module in (loop, saving):
        monkeypatch.setattr(module, "time", Time)
    part = loop.save_part
    monkeypatch.setattr(
        loop, "save_part", lambda run, number, passed: (saved.append(passed.step), part(run, number, passed))
    )
    run = open_run(recipe, {"epochs": 2, "checkpoint.every_minutes": 2.0}, tmp_path)
    run.saved_at = 0.0
    assert train(run).finished
    # After 9 the epoch itself was saved, and the next is due two minutes later.
    assert saved == [4, 8, 13, 17]
    saved.clear()
    assert go(recipe, tmp_path / "off", epochs=1, checkpoint__every_minutes=0.0).finished
    assert saved == []


@pytest.mark.parametrize("last", [5, 9, 14, 17, 22])
def test_a_kill_after_a_checkpoint_inside_an_epoch_costs_no_bit(
    last: int, recipe: Path, tmp_path: Path, engine: Any, killed_at: Any
) -> None:
    """Averages, sizes, frozen layers and the sums of the part included."""
    keys = {**EVERYTHING, "epochs": 3, "checkpoint.every_steps": 2}
    whole = tmp_path.parent / "whole_of_everything"
    if not whole.exists():
        assert go(recipe, whole, **{**keys, "checkpoint.every_steps": 0}).finished
    with killed_at(last):
        go(recipe, tmp_path, **keys)
    assert find_checkpoint(tmp_path, "latest").name.endswith(f"{last - last % 2:08d}") or last == 9
    assert go(recipe, tmp_path, "latest").finished
    assert contents(tmp_path) == contents(whole)
    assert rows(tmp_path) == rows(whole)
    assert there(tmp_path) == ["epoch-0001", "epoch-0002", "epoch-0003"]


@given(losses=st.lists(st.floats(0, 1e3), min_size=1, max_size=40), place=st.floats(0, 1))
def test_losses_add_up_to_the_same_bits_however_often_they_are_read(losses: list[float], place: float) -> None:
    whole, parts = Pass(0, NO_TOTALS), Pass(0, NO_TOTALS)
    cut = round(place * len(losses))
    whole.add(Totals(1, 0, 0, np.array(losses)))
    for part in (losses[:cut], losses[cut:]):
        parts.add(Totals(1, 0, 0, np.array(part)))
        parts = Pass(0, Totals(1, 0, 0, np.array([json.loads(json.dumps(parts.partial()))["loss_sum"]])))
    assert parts.partial()["loss_sum"] == whole.partial()["loss_sum"] == functools.reduce(float.__add__, losses, 0.0)


@pytest.mark.parametrize(("batches", "answered"), [(1, True), (2, True), (3, False)])
def test_a_signal_in_a_validation_ends_it_and_a_restart_validates_anew(
    batches: int,
    answered: bool,
    recipe: Path,
    tmp_path: Path,
    engine: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Averages, sizes, layers that thaw, and the epoch's own line in the history; the last, shorter batch ends it."""
    whole = tmp_path.parent / "whole_of_everything"
    if not whole.exists():
        assert go(recipe, whole, **EVERYTHING, epochs=3).finished
    score, left = engine.score_batch, [3 + batches]

    def counted(*words: Any, **named: Any) -> None:
        score(*words, **named)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(engine, "score_batch", counted)
    outcome = go(recipe, tmp_path, **EVERYTHING, epochs=3)
    assert left == [0]
    assert (outcome.finished, outcome.epoch, outcome.step) == (False, 1 if answered else 2, 2 * STEPS)
    assert there(tmp_path) == ["epoch-0001", "epoch-0001-step-00000018" if answered else "epoch-0002"]
    assert [row["epoch"] for row in rows(tmp_path)] == [1] if answered else [1, 2]
    # A thread writes it, on a busy machine after the run was saved already.
    told = r"Ctrl-C again ends at once and loses what came after epoch-0001(-step-00000018)?\n"
    assert re.search(told, capfd.readouterr().err)
    assert go(recipe, tmp_path, "latest").finished
    assert contents(tmp_path) == contents(whole)
    assert rows(tmp_path) == rows(whole)
    assert there(tmp_path) == ["epoch-0001", "epoch-0002", "epoch-0003"]
    # Its speed is that of the steps, though the restart took none.
    assert all(row["images_per_second"] > 0 for row in branches(Journal(tmp_path).events())[-1])


def test_what_is_scored_and_kept_are_the_averages(recipe: Path, tmp_path: Path, engine: Any) -> None:
    go(recipe, tmp_path / "plain", epochs=3)
    averaged = go(recipe, tmp_path / "averaged", epochs=3, average_decay=0.9)
    plain, kept = (load_checkpoint(tmp_path / one / "checkpoints" / "epoch-0003") for one in ("plain", "averaged"))
    # Training is the same with and without them.
    assert (kept.trained["regression"] == plain.weights["regression"]).all()
    assert (plain.trained["regression"] == plain.weights["regression"]).all()
    assert (kept.weights["regression"] != plain.weights["regression"]).any()
    assert (kept.weights["regression"] == kept.optimizer_state["average/regression"]).all()
    assert set(kept.optimizer_state) == {"speed", "average/regression", "average_steps"}
    assert rows(tmp_path / "plain")[-1]["validation_loss"] != averaged.metrics["validation_loss"]


def test_averages_are_kept_on_or_off(recipe: Path, tmp_path: Path, engine: Any) -> None:
    go(recipe, tmp_path, epochs=1, average_decay=0.9)
    with pytest.raises(BadRecipe, match=r"'average_decay' cannot change within a run; expected 0\.9; found 0\.0"):
        go(recipe, tmp_path, "latest", average_decay=0.0)
    assert go(recipe, tmp_path, "latest", average_decay=0.5, epochs=2).finished


def test_trained_values_that_are_not_finite_are_refused(recipe: Path, tmp_path: Path, engine: Any) -> None:
    go(recipe, tmp_path, epochs=1, average_decay=0.9)
    folder = tmp_path / "checkpoints" / "epoch-0001"
    arrays = load_file(folder / "optimizer.safetensors")
    arrays["trained/regression"][0, 0] = np.nan
    save_file(arrays, folder / "optimizer.safetensors")
    names = ("weights.safetensors", "optimizer.safetensors", "state.json")
    (folder / "SHA256SUMS").write_text("".join(f"{files.sha256_of(folder / name)}  {name}\n" for name in names))
    with pytest.raises(Damaged, match="regression holds infinities or NaN"):
        go(recipe, tmp_path, "latest", epochs=2)


def test_an_engine_is_built_where_the_frozen_layers_change(recipe: Path, tmp_path: Path, engine: Any) -> None:
    go(recipe, tmp_path, **EVERYTHING)
    assert [blueprint.frozen for blueprint in engine.built] == [("stage1", "stage2"), ("stage2",), ()]
    recipes = [blueprint.recipe for blueprint in engine.built]
    assert {(one.input.size, one.average_decay, one.accumulation) for one in recipes} == {(28, 0.9, 1)}
    engine.built.clear()
    go(recipe, tmp_path, "2", accumulation=2, transfer__rates={"stem": 0.1}, **EVERYTHING)
    (blueprint,) = engine.built
    assert (blueprint.frozen, blueprint.recipe.accumulation) == ((), 2)
    assert blueprint.recipe.transfer.rates == {"stem": 0.1}


@pytest.mark.parametrize("parts", [True, False])
def test_a_full_disk_leaves_the_checkpoint_before_and_one_line(
    parts: bool,
    recipe: Path,
    tmp_path: Path,
    engine: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    every, name, following = 0, "epoch-0001", "epoch-0002"
    if parts:
        every, name, following = 4, "epoch-0000-step-00000004", "epoch-0000-step-00000008"
    save, left = saving.save_checkpoint, [1]

    def second_finds_no_room(*words: Any) -> Path:
        if left.pop():
            left.append(0)
            return save(*words)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            return save(*words)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving, "save_checkpoint", second_finds_no_room)
    words = ["train", str(recipe), "--run", str(tmp_path), f"checkpoint.every_steps={every}", "epochs=2"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 5
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == (
        f"error: {tmp_path / 'checkpoints' / following}: cannot be written (No space left on device); free some room "
        "and run the same command again; nothing that was finished is lost"
    )
    assert there(tmp_path) == [name]
    assert (tmp_path / "checkpoints" / "latest").resolve().name == name
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if files.PART_MARK in path.name]
    monkeypatch.setattr(saving, "save_checkpoint", save)
    with pytest.raises(SystemExit) as ended:
        main([*words, "--resume", "latest"])
    assert ended.value.code == 0
    assert go(recipe, tmp_path / "whole", epochs=2).finished
    assert contents(tmp_path, "epoch-0002") == contents(tmp_path / "whole", "epoch-0002")


def test_a_loss_that_explodes_names_the_step_and_the_last_good_checkpoint(
    recipe: Path, tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(recipe, tmp_path, epochs=1)
    totals = engine.totals

    def exploded(one: Any) -> Any:
        read = totals(one)
        read.step_losses[3:] = np.nan
        return read

    monkeypatch.setattr(engine, "totals", exploded)
    with pytest.raises(BadRecipe) as caught:
        go(recipe, tmp_path, "latest", epochs=2)
    assert str(caught.value) == (
        f"the loss is no longer finite (nan) at step 12, counted from 0; {tmp_path / 'checkpoints' / 'epoch-0001'} is "
        "the last good checkpoint: lower optimizer.learning_rate, --resume latest optimizer.learning_rate=..."
    )
    assert there(tmp_path) == ["epoch-0001"]
    with pytest.raises(BadRecipe, match=r"at step 3, counted from 0; nothing was saved yet: lower optimizer\.learning"):
        go(recipe, tmp_path / "new", epochs=2)


def test_checkpoints_of_another_network_or_other_records_are_refused(recipe: Path, tmp_path: Path, engine: Any) -> None:
    go(recipe, tmp_path, epochs=1)
    other = tmp_path / "other"
    go(recipe, other, epochs=2, network="shallownet")
    shutil.copytree(other / "checkpoints" / "epoch-0002", tmp_path / "checkpoints" / "epoch-0002")
    with pytest.raises(
        BadInput, match=r"epoch-000\d: the checkpoint is of another network; expected lenet; found shallow"
    ):
        go(recipe, tmp_path, "latest", epochs=2)
    shutil.rmtree(tmp_path / "checkpoints" / "epoch-0002")
    state_file = tmp_path / "checkpoints" / "epoch-0001" / "state.json"
    state = json.loads(state_file.read_text())
    files.write_json(state_file, {**state, "data_digest": "0" * 64})
    folder = state_file.parent
    names = ("weights.safetensors", "optimizer.safetensors", "state.json")
    (folder / "SHA256SUMS").write_text("".join(f"{files.sha256_of(folder / name)}  {name}\n" for name in names))
    with pytest.raises(BadInput, match="the records are not those this run began with; start a new run"):
        go(recipe, tmp_path, "latest", epochs=2)


def test_a_branch_from_before_a_checkpoint_inside_an_epoch(
    recipe: Path, tmp_path: Path, engine: Any, killed_at: Any
) -> None:
    """Both branches stay: the old one's checkpoints in a folder, its epochs in the journal."""
    with killed_at(23):
        go(recipe, tmp_path, epochs=3, checkpoint__every_steps=4)
    assert there(tmp_path) == ["epoch-0001", "epoch-0002", "epoch-0002-step-00000020"]
    go(recipe, tmp_path, "1", optimizer__learning_rate=0.01)
    branch = tmp_path / "checkpoints" / "branch-01"
    assert sorted(os.listdir(branch)) == ["epoch-0002", "epoch-0002-step-00000020"]
    old, new = branches(Journal(tmp_path).events())
    assert ([row["epoch"] for row in old], [row["epoch"] for row in new]) == ([1, 2], [1, 2, 3])
    assert old[0] == new[0]
    assert old[1]["train_loss"] != new[1]["train_loss"]
    load_checkpoint(branch / "epoch-0002-step-00000020")


def test_a_run_that_gives_up_is_done(
    recipe: Path, tmp_path: Path, engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "imagenet_pipeline")
    keys = {"transfer__frozen": {"conv1": 9}, "stopping__patience_epochs": 1}
    outcome = go(recipe, tmp_path, epochs=4, **keys)
    assert (outcome.epoch, outcome.finished) == (2, True)
    last = Journal(tmp_path).events()[-1]
    assert (last["event"], last["epoch"], last["early_stop"]) == ("end", 2, True)
    assert "trains on" not in caplog.text
    again = go(recipe, tmp_path, "latest")
    assert "done after epoch 2; a larger stopping.patience_epochs trains on" in caplog.text
    assert (again.epoch, again.finished) == (2, True)
    assert Journal(tmp_path).events()[-1] == last
    assert go(recipe, tmp_path, "latest", stopping__patience_epochs=2).epoch == 3


def test_another_size_of_evaluation_is_scored_by_evaluate_too(recipe: Path, tmp_path: Path) -> None:
    keys = {"network": "squeezenet1_1", "input__size": 32, "input__evaluation_size": 48, "engine": "pytorch"}
    outcome = go(
        recipe, tmp_path, epochs=1, precision="float64", input__start_size=28, input__grow_epochs=(1, 2), **keys
    )
    figure = evaluate(tmp_path, "latest", "val")
    assert figure.input_size == 48
    assert figure.rank1 == outcome.metrics["validation_rank1"]
    assert figure.loss == pytest.approx(outcome.metrics["validation_loss"], rel=1e-12)
