"""The files in deploy/: what they name is there, and their commands are those of this package and of torchrun.

Slurm's and Kubernetes' own parts are stood in for; no cluster and no Docker daemon is at hand.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from imagenet_pipeline.cli import app
from imagenet_pipeline.config import load_recipe, parse_overrides
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.processes import RankedProcess

REPOSITORY = Path(__file__).resolve().parent.parent
DEPLOY = REPOSITORY / "deploy"
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "0",
    "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "16",
}  # fmt: skip
STAND_INS = {
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'case "$1" in show) printf "127.0.0.1\\nnode1\\n" ;; *) echo "$@" >> "$PLACE/scontrol" ;; esac',
    "scancel": 'echo "$@" >> "$PLACE/scancel"; kill -TERM "$(cat "$PLACE/torchrun.pid")"',
    "torchrun": (
        'printf "%s\\n" "$@" > "$PLACE/torchrun"; echo $OMP_NUM_THREADS > "$PLACE/threads"; '
        'echo $IMAGENET_PIPELINE_CACHE > "$PLACE/cache"; exit "${CODE:-0}"'
    ),
}
WAITING = (
    'trap "exit 1" TERM; echo $$ > "$PLACE/pid"; mv "$PLACE/pid" "$PLACE/torchrun.pid"; while :; do sleep 0.05; done'
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables of a job, and a folder of stand-ins first on the PATH; they write into the folder `place`."""
    (tmp_path / "bin").mkdir()
    for name, script in STAND_INS.items():
        write_command(tmp_path, name, script)
    set_here = ("OMP_NUM_THREADS", "IMAGENET_PIPELINE_CACHE")
    inherited = {name: value for name, value in os.environ.items() if name not in set_here}
    return {
        **inherited,
        **SLURM,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PLACE": str(tmp_path),
        "TMPDIR": "/local",
    }


def write_command(place: Path, name: str, script: str) -> None:
    path = place / "bin" / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def require_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Check torchrun's words, and those of ours behind them, the devices of its ranks included; torchrun's answer."""
    marker = words.index("--")
    assert words[marker + 1 : marker + 3] == ["imagenet_pipeline", "train"]
    train: Any = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    ours = train.make_context("train", words[marker + 3 :]).params
    devices = load_recipe(ours["recipe"], parse_overrides(ours["overrides"])).devices
    torchrun = pytest.importorskip("torch.distributed.run")
    given = torchrun.get_args_parser().parse_args(words)
    assert devices_of_ranks(devices, int(given.nproc_per_node), monkeypatch) == list(range(int(given.nproc_per_node)))
    return given


def devices_of_ranks(devices: str, ranks: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The GPUs that the ranks of a machine would take, where it has one for each. Raises BadRecipe as they would."""
    runtime = pytest.importorskip("imagenet_pipeline.engines.pytorch.runtime")
    monkeypatch.setattr(runtime, "gpu_count", lambda: ranks)
    here = [RankedProcess(rank, ranks, rank, ranks, launched=True) for rank in range(ranks)]
    return [runtime.parse_device(devices, process).index for process in here]


def run_slurm(environment: dict[str, str], place: Path, code: int = 0, keys: Sequence[str] = ()) -> list[str]:
    words = ["imagenet/resnet50", str(place / "run"), "records=s3://bucket/digits", *keys]
    command = ["bash", str(DEPLOY / "slurm.sh"), *words]
    result = subprocess.run(command, env={**environment, "CODE": str(code)}, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (code, "")
    return (place / "torchrun").read_text().splitlines()


def test_the_slurm_job_starts_torchrun_and_goes_on(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = run_slurm(environment, tmp_path)
    given = require_command(words, monkeypatch)
    assert (given.nnodes, given.nproc_per_node, given.node_rank) == ("2", "8", 0)
    assert (given.master_addr, given.master_port) == ("127.0.0.1", 29500)
    assert "--resume" not in words
    assert (tmp_path / "threads").read_text() == "2\n"
    assert (tmp_path / "cache").read_text() == f"/local/imagenet-pipeline-{os.getuid()}\n"
    (tmp_path / "run" / "checkpoints" / "epoch-0001").mkdir(parents=True)
    words = run_slurm(environment, tmp_path, code=1)
    assert words[-2:] == ["--resume", "latest"]
    require_command(words, monkeypatch)
    assert not (tmp_path / "scontrol").exists()


def test_the_words_of_the_job_say_the_devices_last(environment: dict[str, str], tmp_path: Path) -> None:
    words = run_slurm(environment, tmp_path, keys=["devices=cpu"])
    assert words.index("devices=auto") < words.index("devices=cpu")


@pytest.mark.pytorch
def test_a_list_of_devices_that_is_not_the_ranks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_of_ranks("gpu:0,1,2,3", 4, monkeypatch) == [0, 1, 2, 3]
    with pytest.raises(BadRecipe, match="number of processes"):
        devices_of_ranks(load_recipe("imagenet/resnet50").devices, 8, monkeypatch)


def test_documented_torchruns_give_each_rank_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "docs" / "scaling.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    torchrun ")]
    assert commands
    for command in commands:
        require_command(command[1:], monkeypatch)


def test_the_slurm_job_is_queued_again_before_its_time_is_over(environment: dict[str, str], tmp_path: Path) -> None:
    write_command(tmp_path, "torchrun", WAITING)
    command = ["bash", str(DEPLOY / "slurm.sh"), "demo", str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment) as job:
        end = time.monotonic() + 60
        while not (tmp_path / "torchrun.pid").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 1
    assert (tmp_path / "scancel").read_text() == "--signal=TERM 7.0\n"
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"


def test_the_slurm_job_says_how_it_is_used(environment: dict[str, str]) -> None:
    result = subprocess.run(["bash", str(DEPLOY / "slurm.sh")], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


@pytest.mark.pytorch
@pytest.mark.skipif(not os.environ.get("IMAGENET_PIPELINE_LONG"), reason="trains: IMAGENET_PIPELINE_LONG=1")
def test_the_slurm_job_trains(environment: dict[str, str], data_set: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "torchrun").unlink()
    environment = {
        **environment, "TMPDIR": str(tmp_path), "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2",
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    keys = [f"records={data_set}", "devices=cpu", "batch_size=6", "precision=float32", "augmentation.crop=centre"]
    for epochs in (1, 2):
        command = ["bash", str(DEPLOY / "slurm.sh"), "demo", str(tmp_path / "run"), *keys, f"epochs={epochs}"]
        assert subprocess.run(command, env=environment).returncode == 0
        assert (tmp_path / "run" / "checkpoints" / f"epoch-000{epochs}").is_dir()


def test_the_parts_of_the_kubernetes_job_fit(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    spec, template = job["spec"], job["spec"]["template"]
    pod, (container,) = template["spec"], template["spec"]["containers"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert spec["completions"] == spec["parallelism"] == int(variables["NODES"])
    limits, gpus = container["resources"]["limits"], int(variables["GPUS"])
    assert limits["nvidia.com/gpu"] == gpus
    assert int(variables["OMP_NUM_THREADS"]) * gpus == int(limits["cpu"])
    variables["RUN"] = str(tmp_path / "run")
    for start in ("new", "again"):
        command = [*container["command"], *container["args"]]
        subprocess.run(command, env={**environment, **variables, "JOB_COMPLETION_INDEX": "1"}, check=True)
        words = (tmp_path / "torchrun").read_text().splitlines()
        given = require_command(words, monkeypatch)
        assert ("--resume" in words) is (start == "again")
        assert (given.nnodes, given.nproc_per_node, given.node_rank) == ("2", "8", 1)
        cache = next(word for word in words if word.startswith("loader.cache=")).partition("=")[2]
        assert any(cache.startswith(f"{mount['mountPath']}/") for mount in container["volumeMounts"])
        assert given.master_addr == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
        (tmp_path / "run" / "checkpoints" / "epoch-0001").mkdir(parents=True, exist_ok=True)


def test_the_dockerfile_names_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line and not line.startswith("#")]
    steps = [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]
    assert {kind for kind, _ in steps} <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"}
    for kind, rest in steps:
        if kind == "COPY" and not rest.startswith("--from"):
            assert [name for name in rest.split()[:-1] if not (REPOSITORY / name).exists()] == []
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    extras = next(rest for kind, rest in steps if rest.startswith("EXTRAS=")).partition("=")[2].split(",")
    assert set(extras) <= set(setup["options.extras_require"])
    assert dict(steps)["USER"] not in ("root", "0")
    assert dict(steps)["ENTRYPOINT"] == '["imagenet-pipeline"]'
    commands = [line for line in text.splitlines() if line.startswith("#   docker run")]
    verbs = [shlex.split(line.partition("imagenet-pipeline:")[2])[1] for line in commands]
    assert len(verbs) == 3
    assert [line for line in commands if " train " in line and "devices=gpu:all" not in line] == []
    assert set(verbs) <= set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_what_could_not_be_run_is_said() -> None:
    for name in ("Dockerfile", "slurm.sh", "kubernetes.yaml"):
        head = (DEPLOY / name).read_text().partition("\n\n")[0]
        assert re.search(r"[Nn]ot built here|never on a real|never applied", head), name
