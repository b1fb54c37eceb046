"""Building on a Dask cluster on loopback: the same bytes, and a line for whatever is lost or not alike.

IMAGENET_PIPELINE_LONG=1 kills the scheduler, too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("distributed")

import imagenet_pipeline as ip
from imagenet_pipeline.errors import BadInput, BadRecipe, WorkerLost
from imagenet_pipeline.records import dask_cluster, pieces
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.dask_cluster import DaskCluster, connected, scheduler_address
from imagenet_pipeline.records.plan import Plan
from imagenet_pipeline.records.tasks import Cluster, Task, executor_for, reached, require_wanted, run_tasks

OPTIONS = BuildOptions(resize=32, shards=6)
SECONDS = 60
GATE = """
import os, time
from imagenet_pipeline.records import shard
prepare = getattr(shard.prepare, "real", shard.prepare)  # Dask runs this twice
def waiting(*arguments):
    while os.path.exists({gate!r}):
        time.sleep(0.02)
    return prepare(*arguments)
waiting.real, shard.prepare = prepare, waiting
"""
"""Has a worker wait over a photo while there is a file: so a test finds it in the midst of its work."""
OTHER = """
from imagenet_pipeline.records import image
versions = image.library_versions()
image.library_versions = lambda: {**versions, "opencv": "0.0"}
"""


class Machines:
    """A scheduler and its workers, each a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = folder / "gate"
        self.workers: list[subprocess.Popen[bytes]] = []
        (folder / "gate.py").write_text(GATE.format(gate=str(self.gate)))
        (folder / "other.py").write_text(OTHER)
        self.scheduler = self._start(
            "dask_scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", "at.json"
        )
        wait_for(lambda: (folder / "at.json").is_file() and (folder / "at.json").read_text().endswith("}"))
        self.address = json.loads((folder / "at.json").read_text())["address"].replace("tcp:", "dask:")

    def _start(self, module: str, *words: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", *map(str, words), "--no-dashboard"]
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def start_worker(self, preload: str = "gate.py") -> subprocess.Popen[bytes]:
        address = scheduler_address(self.address)
        worker = self._start("dask_worker", address, "--nthreads", 1, "--no-nanny", "--preload", preload)
        self.workers.append(worker)
        return worker

    def have(self, count: int) -> None:
        """Start workers until so many live."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        for _ in range(count - len(self.workers)):
            self.start_worker()

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def wait_for(true: Callable[[], object]) -> None:
    until = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def threads_of(cluster: DaskCluster) -> int:
    return sum(cluster._client.nthreads().values())


def parts(out: Path) -> list[Path]:
    return [*out.glob(".*.part-*")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    made = Machines(tmp_path_factory.mktemp("cluster"))
    yield made
    made.end()


@pytest.fixture
def cluster(machines: Machines) -> Iterator[DaskCluster]:
    """A scheduler with two workers."""
    machines.have(2)
    with connected(machines.address) as found:
        wait_for(lambda: threads_of(found) == 2)
        yield found
    machines.gate.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def local(small_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a build in processes of this machine."""
    out = tmp_path_factory.mktemp("local")
    with ThreadPoolExecutor(2) as threads:
        build(small_plan, out, OPTIONS, executor=threads)
    return contents(out)


@contextlib.contextmanager
def building(cluster: Executor, plan: Plan, out: Path) -> Iterator[Callable[[], None]]:
    """A build in another thread; call what is yielded to have its end, or its error."""
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(build, plan, out, OPTIONS, None, cluster)
        yield lambda: made.result(SECONDS) and None


@pytest.mark.parametrize("piece_images", [64, 2])
def test_the_bytes_are_those_of_a_local_build(
    piece_images: int,
    cluster: DaskCluster,
    small_plan: Plan,
    local: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pieces, "PIECE_IMAGES", piece_images)
    calls: list[tuple[int, int]] = []
    build(small_plan, tmp_path, OPTIONS, lambda *call: calls.append(call), cluster)
    assert contents(tmp_path) == local
    assert calls[-1] == (30, 30)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_command_line_builds_on_a_cluster(
    cluster: DaskCluster, machines: Machines, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from imagenet_pipeline.cli import main

    (tmp_path / "all.lst").write_text("".join(f"{i}\t{i % 2}\t{i}.jpg\n" for i in range(30)))
    words = ["build", "list", "--list", str(tmp_path / "all.lst"), "--root", str(photos), "--shards", "3"]
    for out, address, code in (("far", machines.address, 0), ("none", "dask://nowhere", 2)):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--out", str(tmp_path / out), "--executor", address])
        assert (ended.value.code or 0) == code
    options = {"list_file": tmp_path / "all.lst", "root": photos, "shards": 3}
    with ThreadPoolExecutor(2) as threads:
        ip.build("list", out=tmp_path / "near", executor=threads, **options)
    assert contents(tmp_path / "far") == contents(tmp_path / "near")
    assert "expected dask://HOST:PORT" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_killed_worker_costs_nothing_and_without_any_the_build_ends_and_goes_on(
    cluster: DaskCluster,
    machines: Machines,
    small_plan: Plan,
    local: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "imagenet_pipeline")
    machines.gate.touch()
    with building(cluster, small_plan, tmp_path / "one") as end:
        wait_for(lambda: len(parts(tmp_path / "one")) == 2)
        machines.workers[0].kill()
        machines.gate.unlink()
        end()
    assert contents(tmp_path / "one") == local
    assert not parts(tmp_path / "one")

    machines.gate.touch()
    monkeypatch.setattr(dask_cluster, "WAIT_SECONDS", 1.0)
    with building(cluster, small_plan, tmp_path / "all") as end:
        wait_for(lambda: parts(tmp_path / "all"))
        machines.workers[1].kill()
        with pytest.raises(WorkerLost, match=r"^dask://.*: no worker for 1 s; start workers: dask worker tcp://"):
            end()
    assert "waits for workers" in caplog.text
    assert not parts(tmp_path / "all")
    machines.gate.unlink()
    monkeypatch.setattr(dask_cluster, "WAIT_SECONDS", SECONDS)
    with building(cluster, small_plan, tmp_path / "all") as end:
        machines.have(1)  # which joins a build that waits for it
        end()
    assert contents(tmp_path / "all") == local


def test_what_runs_is_called_off_with_the_build(
    cluster: DaskCluster, machines: Machines, small_plan: Plan, local: dict[str, bytes], tmp_path: Path
) -> None:
    machines.gate.touch()

    def interrupt(*_: int) -> None:
        if parts(tmp_path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(small_plan, tmp_path, OPTIONS, interrupt, cluster)
    assert not [*tmp_path.rglob("ticket-*")]
    machines.gate.unlink()
    wait_for(lambda: not any(cluster._client.run(lambda dask_worker: dask_worker.state.executing_count).values()))
    assert not [*tmp_path.glob("*.rec")]
    build(small_plan, tmp_path, OPTIONS, executor=cluster)
    assert contents(tmp_path) == local


def test_a_worker_that_would_make_other_bytes_is_named(
    cluster: DaskCluster, machines: Machines, small_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = machines.start_worker("other.py")
    wait_for(lambda: threads_of(cluster) == 3)
    line = r"^worker tcp://127\.0\.0\.1:\d+: would make other bytes; expected opencv .*; found opencv 0\.0;"
    with pytest.raises(BadRecipe, match=line):
        build(small_plan, tmp_path, OPTIONS, executor=cluster)
    monkeypatch.setattr(DaskCluster, "_require_alike", lambda *_: None)  # as if it joined now
    with pytest.raises(BadRecipe, match=line):
        build(small_plan, tmp_path, OPTIONS, executor=cluster)
    other.kill()
    wait_for(lambda: threads_of(cluster) == 2)


def test_an_odd_error_of_a_worker_comes_home(
    cluster: DaskCluster, small_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask's own client waits for ever for this."""

    def fail(*_: object) -> None:
        fail()

    def no_module(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'imagenet_pipeline'")

    for make, kind, line in (
        (fail, Exception, "RecursionError|recursion depth"),
        (no_module, BadRecipe, "train-0000.-of-00006: cannot do the work; found No module .* for the scheduler"),
    ):
        monkeypatch.setattr("imagenet_pipeline.records.build.make", make)
        with pytest.raises(kind, match=line):
            build(small_plan, tmp_path, OPTIONS, executor=cluster)


def test_a_worker_that_sees_other_files_is_named(
    cluster: DaskCluster, small_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_cluster, "content_of", lambda file: (7, "0" * 64))
    with pytest.raises(BadInput, match=r"^worker tcp:.*: .*0\.jpg is another file there than here; expected 7 bytes"):
        build(small_plan, tmp_path, OPTIONS, executor=cluster)
    monkeypatch.undo()
    monkeypatch.setattr(dask_cluster.files, "write_whole", lambda *_: None)
    with pytest.raises(BadInput, match=r"^worker tcp:.*ticket-.*: the folder that the build writes is not seen"):
        build(small_plan, tmp_path, OPTIONS, executor=cluster)


def test_a_task_is_wanted_while_its_ticket_is_there(tmp_path: Path) -> None:
    task = Task("key", "train", "train", tmp_path)
    require_wanted(task)
    (tmp_path / "ticket").touch()
    require_wanted(replace(task, ticket="ticket"))
    (tmp_path / "ticket").unlink()
    with pytest.raises(BadInput, match="the build has ended"):
        require_wanted(replace(task, ticket="ticket"))


@pytest.mark.parametrize(
    "address",
    ["dask", "tcp://h:1", "dask://h", "dask://:1", "dask://h:a", "dask://h:65536", "dask://h:1/x", "dask://[::1:1"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(BadRecipe, match="expected dask://HOST:PORT"), reached(address):
        pass


@pytest.mark.parametrize("address", ["dask://me:hunter2@127.0.0.1:x", "dask://me:hunter2@h:1", "dask://h:1?t=hunter2"])
def test_a_password_in_an_address_is_not_said(address: str) -> None:
    with pytest.raises(BadRecipe, match="expected dask://HOST:PORT") as caught, reached(address):
        pass
    assert "hunter2" not in str(caught.value)


def test_addresses_are_dasks() -> None:
    assert scheduler_address("dask://10.0.0.1:8786") == "tcp://10.0.0.1:8786"
    assert scheduler_address("dask+tls://[::1]:1/") == "tls://[::1]:1"


def test_nobody_and_something_else_at_an_address_are_told_apart(
    cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"dask://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(WorkerLost, match=r"no scheduler of Dask answers.*; found an open port"), connected(address):
            pass
    with monkeypatch.context() as patched:
        # Dask's own last attempt may end before the refusal is heard, as on a busy machine.
        patched.setattr(dask_cluster, "_cause", lambda error: None)
        with pytest.raises(WorkerLost, match=r"no scheduler of Dask answers.*refused"), connected(address):
            pass
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 2.0)
    with pytest.raises(WorkerLost, match=r"no scheduler of Dask answers.*refused"), connected(address):
        pass
    monkeypatch.undo()
    worker = next(iter(cluster._client.nthreads())).replace("tcp:", "dask:")
    with pytest.raises(BadRecipe, match="no scheduler of Dask; found a Worker"), connected(worker):
        pass
    with pytest.raises(BadRecipe, match="names no TLS files"), connected(worker.replace("dask:", "dask+tls:")):
        pass


def test_tasks_in_flight_follow_the_cluster() -> None:
    """Two at first, three once a worker has joined."""
    running, most = 0, []

    class Growing(Cluster):
        @contextlib.contextmanager
        def working_on(self, tasks: object) -> Iterator[Callable[[], int]]:
            yield lambda: 2 if len(most) < 4 else 3

        def submit(self, make: Callable[..., int], /, *tasks: object, **_: object) -> object:  # type: ignore[override]
            nonlocal running
            running += 1
            most.append(running)
            return threads.submit(make, *tasks)

        def result_of(self, future: object, task: Task) -> int:
            nonlocal running
            running -= 1
            return 0

    tasks = [Task(str(i), str(i), "train", Path()) for i in range(12)]
    with ThreadPoolExecutor(4) as threads:
        for workers, bound in ((None, 3), (1, 1)):
            most.clear()
            with executor_for(workers, Growing(), tasks) as pool:
                run_tasks(lambda task: time.sleep(0.01) or 0, tasks, tasks, pool, 0, None)
            assert max(most) == bound
            assert max(most[:3]) == min(bound, 2)
            assert len(most) == 12


@pytest.mark.skipif(os.environ.get("IMAGENET_PIPELINE_LONG") != "1", reason="long: IMAGENET_PIPELINE_LONG=1 runs it")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_scheduler_that_is_gone_ends_the_build(
    number: signal.Signals, small_plan: Plan, local: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "cluster").mkdir()
    machines, out = Machines(tmp_path / "cluster"), tmp_path / "out"
    try:
        machines.have(1)
        machines.gate.touch()
        killer = threading.Thread(
            target=lambda: (wait_for(lambda: parts(out)), machines.scheduler.send_signal(number)), daemon=True
        )
        with connected(machines.address) as cluster:
            killer.start()
            with pytest.raises(WorkerLost, match=r"^dask://.*: the scheduler is gone"):
                build(small_plan, out, OPTIONS, executor=cluster)
        assert not parts(out)
    finally:
        machines.end()
    with ThreadPoolExecutor(2) as threads:
        build(small_plan, out, OPTIONS, executor=threads)
    assert contents(out) == local
