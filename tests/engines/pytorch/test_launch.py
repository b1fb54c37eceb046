"""The command line in a process a device: one voice, one error, signals passed on, and a rank that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagenet_pipeline.engines import launch_ranks
from imagenet_pipeline.engines.pytorch.launch import launch
from imagenet_pipeline.errors import BadRecipe, Negative
from imagenet_pipeline.record_builders import digits
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.training.journal import Journal

LONG = pytest.mark.skipif(
    not os.environ.get("IMAGENET_PIPELINE_LONG"), reason="many processes: IMAGENET_PIPELINE_LONG=1 runs it"
)
RECIPE = """
network = "lenet"
records = "{records}"
engine = "pytorch"
epochs = 2
batch_size = 120
precision = "float64"
[input]
size = 28
[augmentation]
crop = "random"
pad = 2
[optimizer]
learning_rate = 0.02
[checkpoint]
every_steps = 5
[loader]
threads = 0
"""


@dataclass
class Ended:
    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet in float64 on scikit-learn's digits, 9 steps an epoch."""
    folder = tmp_path_factory.mktemp("digits")
    build(digits.plan(folder), folder, BuildOptions(resize=0, workers=1))
    path = folder / "digits.toml"
    path.write_text(RECIPE.format(records=folder))
    return path


def start(*words: object, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
    given = {"OMP_NUM_THREADS": "1", **{name: word for name, word in os.environ.items() if name != "COLUMNS"}}
    # torchrun takes --run for the beginning of an option of its own.
    separator = ["--"] if launcher else []
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", *separator, "imagenet_pipeline", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given | environment,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=300)
    return Ended(process.returncode, out, err)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes it started, first rank first."""
    return sorted(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def wait_for(sign: Callable[[], object], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while not sign():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def checkpoints(run: Path) -> set[str]:
    return {folder.name for folder in run.glob("checkpoints/*") if not folder.name.startswith(".")}


def test_only_several_devices_of_the_pytorch_engine_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launch_ranks("gluon", "cpu:0,1", ["train"])
    assert not launch_ranks("pytorch", "cpu", ["train"])
    for word in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(word, "0")
    for word in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR"):
        monkeypatch.setenv(word, "1")
    assert not launch_ranks("pytorch", "cpu:0,1", ["train"])


def test_a_device_that_is_not_there_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    for devices in ("gpu:0,1000", "cpu:0,64"):
        with pytest.raises(BadRecipe, match=r"no device number|there is no GPU that PyTorch can use"):
            launch_ranks("pytorch", devices, ["train"])


def test_rank_0_alone_speaks(capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    launch("cpu:0,1,2", ["networks", "lenet", "--json"])
    out, err = capfd.readouterr()
    assert json.loads(out)["name"] == "lenet"
    assert err == ""
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_error_of_the_ranks_is_told_once_with_its_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadRecipe, match=r"^network: no network is called 'lenot'; did you mean lenet") as raised:
        launch("cpu:0,1,2", ["networks", "lenot"])
    assert raised.value.exit_code == 2
    assert capfd.readouterr() == ("", "")


def test_a_thread_may_launch_too(capfd: pytest.CaptureFixture[str]) -> None:
    """Python lets the main thread alone say what a signal does."""
    thread = threading.Thread(target=launch, args=("cpu:0,1", ["networks", "lenet", "--json"]))
    thread.start()
    thread.join()
    assert json.loads(capfd.readouterr().out)["name"] == "lenet"


@pytest.mark.parametrize(
    "seconds", [0, *(pytest.param(later, marks=LONG) for later in (0.2, 0.5, 1, 1.5, 2, 2.5, 3, 4))]
)
def test_ctrl_c_before_the_ranks_could_answer_is_one_line(recipe: Path, tmp_path: Path, seconds: float) -> None:
    process = start("train", recipe, "--run", tmp_path / "run", "devices=cpu:0,1", "epochs=1000")
    wait_for(lambda: ranks_of(process), process)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    ended = end(process)
    if seconds and ended.code == 0:  # they were quick enough to begin, and so to save
        assert "as asked, and saved" in ended.err
    else:
        said, _, error = ended.err.replace("\n\n", "\n").partition("\n")
        assert said.startswith(f"{recipe}: lenet on ")
        assert (ended.code, ended.out, error) == (130, "", "error: interrupted\n")


def test_an_answer_of_no_is_passed_on_without_a_word(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty.rec").touch()
    with pytest.raises(Negative):
        launch("cpu:0,1", ["verify", str(tmp_path / "empty.rec"), "--json"])
    assert "error" not in capfd.readouterr().err


def test_a_killed_rank_ends_the_run_and_another_start_goes_on(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ("train", recipe, "--run", run, "--json", "devices=cpu:0,1")
    process = start(*train, "epochs=1000")
    wait_for(lambda: len(checkpoints(run)) > 1, process)
    _, second = ranks_of(process)
    os.kill(second, signal.SIGKILL)
    killed = time.monotonic()
    ended = end(process)
    assert time.monotonic() - killed < 10
    assert (ended.code, ended.out) == (6, "")
    errors = [line for line in ended.err.splitlines() if "error" in line or "Traceback" in line]
    advice = "train --resume latest goes on from the last checkpoint"
    assert errors == [f"error: rank 1 of 2 (cpu:1, process {second}) was killed by SIGKILL; {advice}"]

    before = checkpoints(run)
    process = start(*train, "--resume", "latest")
    wait_for(lambda: checkpoints(run) - before, process)
    process.send_signal(signal.SIGTERM)
    ended = end(process)
    assert ended.code == 0, ended.err
    outcome = json.loads(ended.out)  # exactly one object
    assert not outcome["finished"]
    assert outcome["step"] >= 5
    assert f"stopped at step {outcome['step']} as asked, and saved" in ended.err
    assert "Warning" not in ended.err


@LONG
@pytest.mark.parametrize("devices", ["cpu:0,1", "cpu:0,1,2,3"])
def test_several_processes_train_and_score_as_one_does(recipe: Path, tmp_path: Path, devices: str) -> None:
    rows, scores = [], []
    for one in ("cpu", devices):
        run = tmp_path / one
        assert end(start("train", recipe, "--run", run, f"devices={one}")).code == 0
        events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
        rows.append([event for event in events if event["event"] == "epoch"])
        answer = end(start("evaluate", tmp_path / "cpu", "--split", "test", "--json", f"devices={one}"))
        scores.append(json.loads(answer.out))
    keys = ("train_loss", "train_rank1", "train_rank5", "validation_loss", "validation_rank1", "validation_rank5")
    assert len(rows[0]) == 2
    for alone, together in zip(*rows, strict=True):
        assert [together[key] for key in keys] == pytest.approx([alone[key] for key in keys], rel=1e-13)
    keys = ("images", "rank1_hits", "rank5_hits")
    assert [scores[0][key] for key in keys] == [scores[1][key] for key in keys]
    assert scores[0]["images"] == 300


@LONG
def test_torchrun_trains_and_evaluates(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ended = end(start("train", recipe, "--run", run, "--json", launcher=launcher))
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["step"] == 18
    alone = tmp_path / "alone"
    assert end(start("train", recipe, "--run", alone, "devices=cpu")).code == 0
    losses = [
        [event[key] for event in Journal(folder).events() if event["event"] == "epoch"]
        for folder in (run, alone)
        for key in ("train_loss", "validation_loss")
    ]
    assert losses[:2] == [pytest.approx(values, rel=1e-13) for values in losses[2:]]
    searched = end(start("find-rate", recipe, "--steps", "20", "--json", launcher=launcher))
    assert searched.code == 0, searched.err
    assert len(json.loads(searched.out)["losses"]) > 5
    measured = end(start("benchmark", "step", recipe, "--steps", "2", "--json", launcher=launcher))
    assert json.loads(measured.out)["processes"] == 2
    answer = end(start("evaluate", run, "--split", "test", "--json", launcher=launcher))
    assert json.loads(answer.out)["images"] == 300
    assert json.loads(answer.out)["processes"] == 2
    refused = end(start("evaluate", run, "devices=cpu:0,1,2", launcher=launcher))
    assert refused.code == 1
    assert "the number of devices differs from the number of processes on this machine; expected 2" in refused.err


@LONG
def test_two_machines_start_through_torchrun(recipe: Path, tmp_path: Path) -> None:
    """Both on this one, over loopback; each has a run folder of its own, as without a shared disk."""
    launchers = [
        ("-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1",
         "--master-addr", "127.0.0.1", "--master-port", "29541")
        for node in range(2)
    ]  # fmt: skip
    processes = [
        start("train", recipe, "--run", tmp_path / str(node), "--json", "devices=cpu", launcher=launcher)
        for node, launcher in enumerate(launchers)
    ]
    first, second = [end(process) for process in processes]
    assert (first.code, second.code, second.out) == (0, 0, ""), (first.err, second.err)
    assert json.loads(first.out)["finished"]
    assert (tmp_path / "0" / "checkpoints" / "epoch-0002").is_dir()
