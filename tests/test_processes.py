"""What a launcher says through the environment, and what it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading import loader
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.processes import (
    RankedProcess,
    available_memory_bytes,
    available_processors,
    memory_bytes,
    run_apart,
    tell_launcher,
    this_process,
)

TOLD = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1",
}  # fmt: skip


def test_a_process_knows_its_place() -> None:
    assert this_process(TOLD) == RankedProcess(3, 4, 1, 2, launched=True)


@pytest.mark.parametrize("missing", TOLD)
def test_without_all_of_the_words_there_is_one_process(missing: str) -> None:
    """Clusters and shells have a RANK or WORLD_SIZE of their own."""
    words = {word: value for word, value in TOLD.items() if word != missing}
    assert (
        this_process(words)
        == this_process(words | {missing: ""})
        == this_process({})
        == RankedProcess(0, 1, 0, 1, launched=False)
    )


def test_words_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(
        BadRecipe, match=r"RANK, WORLD_SIZE, .*: the launcher's variables must be numbers; found -1 4 1 2"
    ):
        this_process(TOLD | {"RANK": "-1"})


def test_a_line_is_left_to_a_launcher_of_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    assert not tell_launcher("no launcher")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    assert not tell_launcher("one process speaks for itself")
    for word, value in TOLD.items():
        monkeypatch.setenv(word, value)
    assert tell_launcher("gone \u00e9")
    assert json.loads(file.read_text())["message"] == "gone \u00e9"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file / "error.json"))
    assert not tell_launcher("nowhere to write")


def test_processes_on_one_machine_share_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "available_processors", lambda: 8)
    assert Loader([], size=1, batch_size=1).threads == 8  # type: ignore[arg-type]
    for word, value in TOLD.items():
        monkeypatch.setenv(word, value)
    assert Loader([], size=1, batch_size=1).threads == 4  # type: ignore[arg-type]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert Loader([], size=1, batch_size=1).threads == 1  # type: ignore[arg-type]


GROUP = "system.slice/docker-4f"
V1 = "12:memory:/docker/4f\n5:cpu,cpuacct:/docker/4f\n0::/\n"


def system(root: Path, groups: str, **texts: str) -> Path:
    """A root whose process is in these control groups; texts of files by their path."""
    written = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": text for name, text in texts.items()}
    for name, text in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "texts", "wanted"),
    [
        (f"0::/{GROUP}\n", {f"{GROUP}/cpu.max": "150000 100000\n"}, 2),
        (f"0::/{GROUP}\n", {f"{GROUP}/cpu.max": "max 100000\n", "system.slice/cpu.max": "300000 100000\n"}, 3),
        (f"0::/{GROUP}\n", {f"{GROUP}/cpu.max": "200000 100000\n", "system.slice/cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        # A container with the host's names, and its own group as the root.
        (f"0::/{GROUP}\n", {"cpu.max": "400000 100000\n"}, 4),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 3),
        (V1, {"cpu/docker/4f/cpu.cfs_quota_us": "50000\n", "cpu/docker/4f/cpu.cfs_period_us": "25000\n"}, 2),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        (V1, {"unified/cpu.max": "500000 100000\n"}, 5),
        (f"0::/{GROUP}\n", {f"{GROUP}/cpu.max": "\u00e9\n"}, 64),
        ("what is this", {"cpu.max": "100000 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "100000 0\n"}, 64),
        ("0::/\n", {}, 64),
    ],
)
def test_processors_are_bounded_by_the_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, texts: dict[str, str], wanted: int
) -> None:
    """By its own group's and by those around it, in either version of Linux's control groups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert available_processors(system(tmp_path, groups, **texts)) == wanted
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7}, raising=False)
    assert available_processors(tmp_path) == 1


def test_memory_is_bounded_by_the_containers_limit(tmp_path: Path) -> None:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory_bytes(system(tmp_path / "2", "0::/\n", **{"memory.max": "1048576\n"})) == 2**20
    assert memory_bytes(system(tmp_path / "max", "0::/\n", **{"memory.max": "max\n"})) == machine
    assert memory_bytes(system(tmp_path / "1", V1, **{"memory/docker/4f/memory.limit_in_bytes": "4096\n"})) == 4096
    unlimited = {"memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert memory_bytes(system(tmp_path / "none", V1, **unlimited)) == machine


def test_available_memory_is_what_the_machine_and_the_container_have_left(tmp_path: Path) -> None:
    """Cached files count as free: the system gives them up."""
    machine = "MemTotal: 9 kB\nMemAvailable: 4096 kB\n"
    used = {"memory.max": "3145728\n", "memory.current": "2097152\n", "memory.stat": "anon 1\ninactive_file 524288\n"}
    unlimited = {**used, "memory.max": "max\n"}
    v1 = {"limit_in_bytes": "2000", "usage_in_bytes": "1500", "stat": "inactive_file 0\ntotal_inactive_file 100\n"}
    found = [
        system(tmp_path / "2", "0::/\n", **used),
        system(tmp_path / "max", "0::/\n", **unlimited),
        system(tmp_path / "1", V1, **{f"memory/docker/4f/memory.{name}": text for name, text in v1.items()}),
    ]
    for root in found:
        (root / "proc/meminfo").write_text(machine)
    assert [available_memory_bytes(root) for root in found] == [3 << 19, 4 << 20, 600]
    assert available_memory_bytes(system(tmp_path / "unknown", "")) is None


def test_what_runs_apart_answers_or_raises_its_own_error() -> None:
    assert json.loads(run_apart(["networks", "lenet", "--json"], os.environ))["name"] == "lenet"
    with pytest.raises(BadRecipe, match=r"^network: no network is called 'lenot'; did you mean lenet") as raised:
        run_apart(["networks", "lenot"], os.environ)
    assert raised.value.exit_code == 2


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_is_asked_to_leave_when_its_launcher_is_killed(tmp_path: Path) -> None:
    """Else it would train on, unseen, in a folder that a restart wants."""
    program = (
        "import pathlib, signal, sys, time\nfrom imagenet_pipeline.processes import end_with_launcher\n"
        "def left(*_):\n    pathlib.Path(sys.argv[1]).write_text('asked')\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, left)\nend_with_launcher()\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    launcher = (
        "import os, subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], start_new_session=True).wait()\n"
    )
    file = tmp_path / "asked"
    command = [sys.executable, "-c", launcher, program, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **TOLD}) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        assert process.stdout.read() == ""  # until the last who holds it has ended
    assert file.read_text() == "asked"
