"""Whole runs on real records: stopped, killed, resumed and damaged, they end where an unbroken run ends."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline import files
from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, OutOfRoom
from imagenet_pipeline.evaluation.evaluate import evaluate
from imagenet_pipeline.records.manifest import Manifest
from imagenet_pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from imagenet_pipeline.training.journal import Journal
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.restart import require_unchanged
from imagenet_pipeline.training.resume import open_run, run_name
from imagenet_pipeline.training.saving import Outcome
from imagenet_pipeline.training.schedule import learning_rate

STEPS = 9


def go(recipe: Path, folder: Path, resume: str | None = None, **overrides: Any) -> Outcome:
    return train(open_run(recipe, {k.replace("__", "."): v for k, v in overrides.items()}, folder, resume))


def weights(run: Path, name: str = "epoch-0004") -> bytes:
    return (run / "checkpoints" / name / "weights.safetensors").read_bytes()


def history(run: Path) -> list[dict[str, str]]:
    """The history without what depends on the clock."""
    clock = ("images_per_second", "wait_percent", "seconds")
    with open(run / "history.csv", newline="") as stream:
        return [{key: value for key, value in row.items() if key not in clock} for row in csv.DictReader(stream)]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "imagenet_pipeline", *map(str, words)]


def started(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="session")
def whole_run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four epochs in one go; every checkpoint kept. Look, do not touch."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    outcome = go(recipe, folder, checkpoint__keep=9)
    assert (outcome.epoch, outcome.step, outcome.finished) == (4, 4 * STEPS, True)
    return folder


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the whole run, to do with as one likes."""
    return shutil.copytree(whole_run, tmp_path / "run", symlinks=True)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch, engine_class: Any) -> Callable[[int, Callable[[], None]], None]:
    """`at_step(n, action)`: act once, after n more steps of training."""

    def arrange(number: int, action: Callable[[], None]) -> None:
        step, left = engine_class.train_batch, [number]

        def counted(*words: Any, **named: Any) -> None:
            step(*words, **named)
            left[0] -= 1
            if left[0] == 0:
                action()

        monkeypatch.setattr(engine_class, "train_batch", counted)

    return arrange


def test_a_run_folder_holds_what_is_promised(whole_run: Path) -> None:
    assert sorted(os.listdir(whole_run)) == [
        ".lock",
        "checkpoints",
        "curves.png",
        "history.csv",
        "journal.jsonl",
        "recipe.toml",
    ]
    events = [event["event"] for event in Journal(whole_run).events()]
    assert events == ["start", "epoch", "epoch", "epoch", "epoch", "end"]
    rows = history(whole_run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["validation_rank1"]) > 80
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])


def test_two_epochs_and_two_more_end_in_equal_bytes(whole_run: Path, run: Path, recipe: Path) -> None:
    go(recipe, run, "2")
    assert weights(run) == weights(whole_run)
    assert history(run) == history(whole_run)
    assert sorted(os.listdir(run / "checkpoints" / "branch-01")) == ["epoch-0003", "epoch-0004"]
    assert weights(run, "branch-01/epoch-0004") == weights(whole_run)


def test_a_run_can_be_made_longer(recipe: Path, tmp_path: Path) -> None:
    constant = {"schedule__kind": "constant"}
    go(recipe, tmp_path / "whole", epochs=2, **constant)
    go(recipe, tmp_path / "parts", epochs=1, **constant)
    go(recipe, tmp_path / "parts", "latest", epochs=2)
    assert weights(tmp_path / "parts", "epoch-0002") == weights(tmp_path / "whole", "epoch-0002")


def test_a_learning_rate_given_with_resume_is_used_from_the_next_step(
    whole_run: Path, run: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, engine_class: Any
) -> None:
    rates: list[float] = []
    step = engine_class.train_batch

    def noted(engine: Any, images: Any, labels: Any, rate: float, seed: int, teacher: Any = None) -> None:
        rates.append(rate)
        step(engine, images, labels, rate, seed)

    monkeypatch.setattr(engine_class, "train_batch", noted)
    go(recipe, run, "2", optimizer__learning_rate=0.002)
    assert rates[0] == pytest.approx(0.002)
    assert rates == sorted(rates, reverse=True)
    assert len(rates) == 2 * STEPS
    rows = history(run)
    assert rows[:2] == history(whole_run)[:2]
    assert float(rows[2]["learning_rate"]) == pytest.approx(rates[STEPS - 1])
    assert weights(run) != weights(whole_run)
    # It stays in force when the run is taken up again.
    rates.clear()
    resolved = load_recipe(run / "recipe.toml")
    go(recipe, run, "3")
    assert rates == pytest.approx([learning_rate(resolved, step, STEPS) for step in range(27, 36)])
    assert rates[0] < 0.002


def test_the_number_of_loader_threads_changes_no_byte(recipe: Path, tmp_path: Path, whole_run: Path) -> None:
    go(recipe, tmp_path / "run", epochs=4, loader__threads=2, loader__prefetch=3)
    assert weights(tmp_path / "run") == weights(whole_run)


@pytest.mark.parametrize("steps", [1, STEPS - 1, STEPS, STEPS + 4])
def test_a_signal_inside_an_epoch_costs_nothing(
    whole_run: Path, recipe: Path, tmp_path: Path, steps: int, at_step: Callable[..., None]
) -> None:
    folder = tmp_path / "run"
    at_step(steps, lambda: os.kill(os.getpid(), signal.SIGTERM))
    outcome = go(recipe, folder)
    # After an epoch's last step comes its validation, which is cut short too.
    epoch = (steps - 1) // STEPS
    assert (outcome.finished, outcome.step, outcome.epoch) == (False, steps, epoch)
    name = f"epoch-{epoch:04d}-step-{steps:08d}"
    assert (folder / "checkpoints" / "latest").resolve().name == name
    assert go(recipe, folder, "latest").finished
    assert weights(folder) == weights(whole_run)
    assert history(folder) == history(whole_run)


def test_a_part_of_an_epoch_without_its_counts_is_damage(
    recipe: Path, tmp_path: Path, at_step: Callable[..., None]
) -> None:
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    go(recipe, tmp_path)
    folder = tmp_path / "checkpoints" / "epoch-0000-step-00000002"
    state = json.loads((folder / "state.json").read_text())
    del state["partial"]["loss_sum"]
    (folder / "state.json").write_text(json.dumps(state))
    names = ("weights.safetensors", "optimizer.safetensors", "state.json")
    (folder / "SHA256SUMS").write_text("".join(f"{files.sha256_of(folder / name)}  {name}\n" for name in names))
    with pytest.raises(Damaged, match=r"step-00000002: the part of an epoch lacks 'loss_sum'; take another"):
        go(recipe, tmp_path, "latest")


def test_sigterm_to_the_program_saves_and_exits_0(whole_run: Path, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started("train", recipe, "--run", folder)
    deadline = time.monotonic() + 60
    while not (folder / "history.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "--resume latest" in errors
    resumed = subprocess.run(
        command("train", recipe, "--run", folder, "--resume", "latest"), check=False, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    assert weights(folder) == weights(whole_run)


def test_a_kill_before_the_first_checkpoint(
    whole_run: Path, recipe: Path, tmp_path: Path, at_step: Callable[..., None]
) -> None:
    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    at_step(3, die)
    with pytest.raises(Killed):
        go(recipe, tmp_path / "run", seed=7)
    go(recipe, tmp_path / "run", "latest", seed=42)
    assert weights(tmp_path / "run") == weights(whole_run)


@pytest.mark.parametrize("epoch", [3, 4])
def test_a_kill_between_checkpoint_and_journal(
    whole_run: Path, recipe: Path, run: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """Even in a branch whose earlier one had that very epoch, the history is complete."""
    write = Journal.write

    def torn(journal: Journal, event: str, **fields: Any) -> None:
        if event == "epoch" and fields["epoch"] == epoch:
            with open(run / "journal.jsonl", "a") as stream:
                stream.write('{"event": "epo')
            raise KeyboardInterrupt
        write(journal, event, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", torn)
        with pytest.raises(KeyboardInterrupt):
            go(recipe, run, "2")
    go(recipe, run, "latest")
    assert weights(run) == weights(whole_run)
    assert history(run) == history(whole_run)
    assert (run / "checkpoints" / "latest").resolve().name == "epoch-0004"


def test_a_full_disk_while_saving_leaves_the_run_resumable(
    whole_run: Path, recipe: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = open_run(recipe, {}, run, "3")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutOfRoom, match="epoch-0004"):
            train(opened)
    assert not (run / "checkpoints" / "epoch-0004").exists()
    go(recipe, run, "latest")
    assert weights(run) == weights(whole_run)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_not_resumed(run: Path, recipe: Path, name: str) -> None:
    path = run / "checkpoints" / "epoch-0004" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = sorted(run.rglob("*"))
    with pytest.raises(Damaged, match=rf"epoch-0004/{name}: .*take another checkpoint") as caught:
        go(recipe, run, "latest")
    assert "\n" not in str(caught.value)
    assert sorted(run.rglob("*")) == before
    go(recipe, run, "3")


def test_a_loss_that_is_not_finite_stops_at_its_step(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"no longer finite \((nan|inf)\) at step \d+, counted from 0") as caught:
        go(recipe, tmp_path / "run", optimizer__learning_rate=1e6)
    assert 1 <= int(str(caught.value).partition("at step ")[2].partition(",")[0]) < STEPS


def other_classes(records: Path, folder: Path) -> Path:
    """A whole data set whose classes 0 and 1 have changed places."""
    shutil.copytree(records, folder)
    table = json.loads((folder / "classes.json").read_text())
    table["ids"][:2] = reversed(table["ids"][:2])
    files.write_json(folder / "classes.json", table)
    manifest = Manifest.read(folder)
    digests = {**manifest.files, "classes.json": files.sha256_of(folder / "classes.json")}
    manifest.model_copy(update={"files": digests}).write(folder)
    return folder


def test_records_of_other_classes_are_refused(run: Path, recipe: Path, digits_records: Path, tmp_path: Path) -> None:
    other = other_classes(digits_records, tmp_path / "other")
    with pytest.raises(BadInput, match="class tables differ; expected label 0 = n00000000") as caught:
        go(recipe, run, "2", records=str(other))
    assert caught.value.exit_code == 3
    with pytest.raises(BadInput, match="class tables differ"):
        evaluate(run, records=other)
    result = subprocess.run(command("evaluate", run, "--records", other), check=False, capture_output=True, text=True)
    assert result.returncode == 3
    assert "class tables differ" in result.stderr
    said, error = result.stderr.splitlines()
    assert said == f"{run}: scoring the best checkpoint"
    assert error.startswith("error: ")


def test_a_fresh_process_evaluates_to_the_figures_of_the_history(whole_run: Path) -> None:
    result = subprocess.run(
        command("evaluate", whole_run, "--checkpoint", "latest", "--split", "val", "--json", "--report",
                whole_run.parent / "report.html"),
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figures, row = json.loads(result.stdout), history(whole_run)[-1]
    assert figures["images"] == 300
    for name in ("rank1", "rank5"):
        assert figures[name] == float(row[f"validation_{name}"])
    # Training adds its losses up in float32, on the device.
    assert figures["loss"] == pytest.approx(float(row["validation_loss"]), rel=1e-5)
    assert figures["weights_digest"] == files.sha256_of(
        whole_run / "checkpoints" / "epoch-0004" / "weights.safetensors"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"network": "resnet18"}, "recipe key 'network' cannot change within a run"),
        ({"seed": 1}, "recipe key 'seed' cannot change"),
        ({"batch_size": 60}, "recipe key 'batch_size' cannot change"),
        ({"loader.repeats": 2}, "recipe key 'loader.repeats' cannot change within a run; expected 1; found 2"),
        ({"input.size": 24}, "recipe key 'input.size' cannot change"),
        ({"initial.kind": "he"}, "recipe key 'initial.kind' acts only at the start of a run; expected 'msra'"),
        ({"initial.weights": "x"}, "recipe key 'initial.weights' acts only at the start of a run; expected ''"),
        ({"initial.zero_last_scale": True}, "recipe key 'initial.zero_last_scale' acts only at the start of a run"),
        ({"average_decay": 0.9}, "recipe key 'average_decay' cannot change within a run; expected 0.0; found 0.9"),
    ],
)
def test_what_cannot_change_within_a_run(run: Path, recipe: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecipe, match=message):
        open_run(recipe, overrides, run, "2")


def test_a_run_is_not_written_over(run: Path, recipe: Path, whole_run: Path) -> None:
    with pytest.raises(BadRecipe, match="the folder holds a run already; go on with --resume latest"):
        open_run(recipe, {}, run)
    assert weights(run) == weights(whole_run)


def test_a_run_that_is_not_there_is_not_resumed(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="there is no run to resume"):
        open_run(recipe, {}, tmp_path / "none", "latest")


def test_a_batch_larger_than_the_data_is_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="batch_size exceeds the training records; expected at most 1197"):
        open_run(recipe, {"batch_size": 5000}, tmp_path / "run")
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_a_finished_run_taken_up_again_has_nothing_to_do(run: Path, recipe: Path, whole_run: Path) -> None:
    outcome = go(recipe, run, "latest", optimizer__learning_rate=0.01)
    assert (outcome.epoch, outcome.finished) == (4, True)
    assert weights(run) == weights(whole_run)
    assert history(run) == history(whole_run)
    # The cosine ends at 0: as the rate of a step that is not there, 0.01 would have meant a peak of billions.
    again = open_run(recipe, {"epochs": 8}, run, "latest")
    with again.resources:
        assert again.recipe.optimizer.learning_rate == 0.05


def test_two_processes_cannot_train_in_one_folder(recipe: Path, tmp_path: Path) -> None:
    run = open_run(recipe, {"epochs": 1}, tmp_path / "run")
    with pytest.raises(BadInput, match="another process is training here"):
        open_run(recipe, {"epochs": 1}, tmp_path / "run", "latest")
    train(run)
    assert train(open_run(recipe, {"epochs": 1}, tmp_path / "run", "latest")).finished


def test_a_rate_given_inside_the_warmup_is_the_rate_it_rises_to(recipe: Path, tmp_path: Path) -> None:
    go(recipe, tmp_path / "run", epochs=3, schedule__warmup_epochs=3.0, optimizer__learning_rate=0.1)
    go(recipe, tmp_path / "run", "1", epochs=4, optimizer__learning_rate=0.01)
    rates = [float(row["learning_rate"]) for row in history(tmp_path / "run")]
    # Of four epochs the warm-up takes two.
    assert rates[1] == pytest.approx(0.01)


@pytest.mark.gluon
def test_validation_is_of_the_weights_that_are_saved_on_several_devices(recipe: Path, tmp_path: Path) -> None:
    run = open_run(
        recipe, {"network": "resnet18", "input.size": 32, "devices": "cpu:0,1", "epochs": 1}, tmp_path / "run"
    )
    outcome = train(run)
    figure = evaluate(tmp_path / "run", "latest", "val")
    assert figure.rank1 == outcome.metrics["validation_rank1"]
    assert figure.loss == pytest.approx(outcome.metrics["validation_loss"], rel=1e-6)


def test_weights_blown_up_by_the_last_step_are_not_saved(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"finite.* at step 0, counted from 0"):
        go(recipe, tmp_path / "run", batch_size=1197, epochs=1, optimizer__learning_rate=1e30)
    assert not list((tmp_path / "run").glob("checkpoints/epoch-*"))


def test_links_history_and_curves_lost_to_a_kill_are_made_good(recipe: Path, run: Path) -> None:
    """The state after a kill that came just after the last epoch's journal line."""
    (run / "curves.png").unlink()
    (run / "history.csv").write_text("epoch\n")
    (run / "checkpoints" / "latest").unlink()
    go(recipe, run, "latest")
    assert [row["epoch"] for row in history(run)] == ["1", "2", "3", "4"]
    assert (run / "curves.png").is_file()
    assert os.readlink(run / "checkpoints" / "latest") == "epoch-0004"


def test_a_branch_folder_removed_by_hand_does_no_harm(recipe: Path, run: Path) -> None:
    (run / "checkpoints" / "branch-02").mkdir()
    go(recipe, run, "3")
    assert (run / "checkpoints" / "branch-03" / "epoch-0004").is_dir()


def test_a_run_starts_from_a_file_of_weights_and_needs_it_no_more(
    recipe: Path, whole_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "start.safetensors"
    shutil.copy(whole_run / "checkpoints" / "epoch-0004" / "weights.safetensors", file)
    begun = {"initial__weights": str(file), "optimizer__learning_rate": 1e-12, "schedule__kind": "constant"}
    outcome = go(recipe, tmp_path / "run", epochs=1, **begun)
    last = float(history(whole_run)[-1]["validation_rank1"])
    assert outcome.metrics["validation_rank1"] == last
    start = Journal(tmp_path / "run").events()[0]
    assert start["initial_weights"] == {"file": str(file), "sha256": files.sha256_of(file), "new_layers": []}
    file.unlink()
    assert go(recipe, tmp_path / "run", "latest", epochs=2).metrics["validation_rank1"] == last


def test_weights_that_do_not_fit_or_are_not_there_start_no_run(recipe: Path, whole_run: Path, tmp_path: Path) -> None:
    file = whole_run / "checkpoints" / "epoch-0004" / "weights.safetensors"
    with pytest.raises(BadInput, match=r"weights of .*safetensors do not fit the network: .*dense1\.weight has shape"):
        go(recipe, tmp_path / "run", initial__weights=str(file), input__size=32)
    with pytest.raises(BadInput, match="nowhere: cannot be read"):
        go(recipe, tmp_path / "run", initial__weights="nowhere")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("config/imagenette/resnet18.toml", "imagenette-resnet18"),
        ("config/demo.toml", "demo"),
        ("/home/me/mine.toml", "mine"),
    ],
)
def test_recipes_of_one_name_have_runs_of_their_own(path: str, name: str) -> None:
    assert run_name(Path(path)) == name


def test_a_runs_own_recipe_means_that_run(run: Path, whole_run: Path) -> None:
    with pytest.raises(BadRecipe, match=r"the folder holds a run already.*--resume latest"):
        open_run(run / "recipe.toml", {})
    with open_run(run / "recipe.toml", {}, resume="latest").resources:
        assert weights(run) == weights(whole_run)


def test_keys_of_several_processes_are_said_to_do_nothing_in_one(
    recipe: Path, engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for number, keys in enumerate(({"gradient_compression": "bfloat16", "sync_batch_norm": True}, {})):
        open_run(recipe, {"engine": "pytorch", **keys}, tmp_path / str(number)).resources.close()
    said = [line for line in caplog.messages if "no effect" in line]
    assert said == [f"{key} has no effect in one process" for key in ("gradient_compression", "sync_batch_norm")]


def test_fewer_epochs_than_are_done(run: Path, recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert go(recipe, run, "latest", epochs=2).finished
    assert "all 4 epochs are done; epochs=5 would go on" in caplog.text


def test_a_run_that_has_not_begun_may_change_its_batch_size(recipe: Path, tmp_path: Path) -> None:
    begun = load_recipe(recipe)
    changed = begun.model_copy(update={"batch_size": 60})
    require_unchanged(begun, changed, 0, tmp_path)
    with pytest.raises(BadRecipe, match=r"'batch_size' cannot change within a run.*expected 120.*found 60"):
        require_unchanged(begun, changed, 1, tmp_path)


def test_weights_from_a_run_keep_the_normalisation_they_were_trained_with(
    whole_run: Path, recipe: Path, tmp_path: Path
) -> None:
    """The same network, but for the division by std, which its first layer does; a restart and evaluation follow."""
    trained = load_checkpoint(whole_run / "checkpoints" / "epoch-0004")
    std = np.array(trained.state.std, np.float32).reshape(1, 3, 1, 1)
    undivided = {**trained.weights, "conv1.weight": trained.weights["conv1.weight"] / std}
    save_checkpoint(tmp_path / "first", replace(trained.state, std=(1.0, 1.0, 1.0)), undivided, {})
    rank1 = float(history(whole_run)[-1]["validation_rank1"])
    tiny = {"initial.weights": str(tmp_path / "first"), "optimizer.learning_rate": 1e-12}
    run = tmp_path / "second"
    assert go(recipe, run, epochs=1, **tiny).metrics["validation_rank1"] == pytest.approx(rank1, abs=0.7)
    assert go(recipe, run, "latest", epochs=2).metrics["validation_rank1"] == pytest.approx(rank1, abs=0.7)
    assert evaluate(run, "2", "val").rank1 == pytest.approx(rank1, abs=0.7)
    assert load_checkpoint(run / "checkpoints" / "epoch-0002").state.std == (1.0, 1.0, 1.0)
    assert Journal(run).events()[0]["normalisation"]["std"] == [1.0, 1.0, 1.0]
    tiny["initial.std"], tiny["initial.mean"] = list(trained.state.std), list(trained.state.mean)
    assert go(recipe, tmp_path / "third", epochs=1, **tiny).metrics["validation_rank1"] < rank1 - 20
