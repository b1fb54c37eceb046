"""The roll call, without MXNet: processes come, are compared, go, and learn of each other's end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from imagenet_pipeline.engines.gluon.cluster import Cluster
from imagenet_pipeline.engines.gluon.membership import Membership

PROGRAM = """
import os, signal, sys, time
from imagenet_pipeline.engines.gluon.cluster import read_cluster
from imagenet_pipeline.engines.gluon.membership import Membership, taking_part, join
from imagenet_pipeline.engines.gluon.cluster import RollCall
from imagenet_pipeline.errors import PipelineError

try:
    cluster = read_cluster()
    if cluster.role == "scheduler":
        RollCall(cluster).wait_for_all()
        time.sleep(60)
    if cluster.role == "server":
        Membership(cluster)
        time.sleep(60)
    with taking_part():
        rank, deed = int(sys.argv[1]), sys.argv[2]
        join().say_rank(rank)
        print("there", flush=True)
        time.sleep(0.5)
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "fail":
            raise ValueError("the disk is full")
        if deed == "block":
            time.sleep(60)
except PipelineError as error:
    sys.stderr.write(f"own error: {error}\\n")
    os._exit(error.exit_code)
"""
REPOSITORY = Path(__file__).resolve().parents[3]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def port(free_port: Callable[[], int]) -> int:
    return free_port()


@pytest.fixture
def start(port: int) -> Iterator[Start]:
    """`start(role, *words, workers=2, patience=30)`: one process of a cluster with one server."""
    started: list[subprocess.Popen[str]] = []

    def begin(role: str, *words: object, workers: int = 2, patience: int = 30) -> subprocess.Popen[str]:
        variables = {
            "DMLC_ROLE": role,
            "DMLC_PS_ROOT_URI": "127.0.0.1",
            "DMLC_PS_ROOT_PORT": str(port),
            "DMLC_NUM_SERVER": "1",
            "DMLC_NUM_WORKER": str(workers),
            "IMAGENET_PIPELINE_JOIN_SECONDS": str(patience),
            "PYTHONPATH": str(REPOSITORY),
        }
        command = [sys.executable, "-c", PROGRAM, *map(str, words)]
        started.append(subprocess.Popen(command, env={**os.environ, **variables}, stdout=PIPE, stderr=PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def wait_for(processes: list[subprocess.Popen[str]]) -> None:
    """Until these workers have joined."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    line = process.communicate(timeout=40)[1]
    return process.returncode, line


@pytest.mark.parametrize(
    ("deed", "code", "line"),
    [
        ("die", -9, "is gone; start all again; training goes on with --resume latest"),
        ("fail", 1, "ended with an error (ValueError: the disk is full); start all again; training goes on"),
    ],
)
def test_the_end_of_one_is_the_end_of_all(start: Start, deed: str, code: int, line: str) -> None:
    others = [start("scheduler"), start("server"), start("worker", 0, "block")]
    lost = start("worker", 1, deed)
    assert ended(lost)[0] == code
    began = time.monotonic()
    for other in others:
        found, said = ended(other)
        assert (found, said.count("\n")) == (6, 1)
        assert said.startswith(f"error: worker 1 (127.0.0.1, process {lost.pid}) ")
        assert line in said
    assert time.monotonic() - began < 5


def test_nobody_stays_because_nobody_reads_what_it_says(start: Start) -> None:
    others = [start("scheduler"), start("server"), start("worker", 0, "block")]
    for other in others:
        assert other.stderr is not None
        other.stderr.close()
    start("worker", 1, "die").wait(timeout=40)
    assert [other.wait(timeout=10) for other in others] == [6, 6, 6]


@pytest.mark.parametrize("role", ["scheduler", "server"])
def test_who_serves_is_missed_too(start: Start, role: str) -> None:
    serving = {one: start(one) for one in ("scheduler", "server")}
    workers = [start("worker", rank, "block") for rank in (0, 1)]
    wait_for(workers)
    serving[role].kill()
    for worker in workers:
        code, said = ended(worker)
        assert code == 6
        assert said.startswith("error: the scheduler is gone (127" if role == "scheduler" else "error: server (127")


def test_all_leave_when_all_are_done(start: Start) -> None:
    start("scheduler")
    start("server")
    workers = [start("worker", rank, "finish") for rank in (0, 1)]
    assert [ended(worker) for worker in workers] == [(0, "")] * 2


def test_a_scheduler_that_is_not_there_is_not_waited_for_for_ever(start: Start, port: int) -> None:
    code, said = ended(start("worker", 0, "finish", patience=1))
    assert code == 6
    assert f"DMLC_PS_ROOT_URI:DMLC_PS_ROOT_PORT = 127.0.0.1:{port}: no scheduler answers" in said
    assert f"DMLC_ROLE=scheduler; this port and the next, {port + 1}, must be open" in said


def test_who_does_not_come_is_counted(start: Start) -> None:
    processes = [start("scheduler", patience=8), start("worker", 0, "finish")]
    for code, said in map(ended, processes):
        assert code == 6
        assert (
            "not all processes joined within 8 s; expected 2 workers, 1 server; found 1 and 0; start the others" in said
        )


def test_another_number_of_workers_or_one_too_many_is_refused(start: Start) -> None:
    start("scheduler")
    odd = start("worker", 0, "finish", workers=3)
    assert "DMLC_NUM_WORKER: differs from the scheduler's; expected 2; found 3" in ended(odd)[1]
    start("server")
    wait_for([start("worker", rank, "block") for rank in (0, 1)])
    code, said = ended(start("worker", 2, "block"))
    assert (code, "all 2 workers have joined already" in said) == (2, True)


def test_strangers_on_the_port_change_nothing(start: Start, port: int) -> None:
    start("scheduler")
    workers = [start("worker", rank, "finish") for rank in (0, 1)]
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"\xff\xfe\n", b'{"role": []}\n', b"x" * 20_000):
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port + 1), timeout=5) as connection:
                    connection.sendall(words)
                break
            except OSError:
                time.sleep(0.1)
    start("server")
    assert [ended(worker) for worker in workers] == [(0, "")] * 2


def test_a_port_that_is_taken_is_named(start: Start, port: int) -> None:
    with socket.socket() as other:
        other.bind(("", port + 1))
        other.listen()
        code, said = ended(start("scheduler"))
    assert code == 2
    assert f"DMLC_PS_ROOT_PORT: port {port + 1} cannot be opened (Address already in use); choose another" in said


def test_a_worker_that_reached_itself_calls_again(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """While nobody listens at a port, Linux may let a process call it from that port, and so reach itself."""
    cluster = Cluster("worker", "127.0.0.1", port, servers=0, workers=1, patience_seconds=30)
    with socket.socket() as itself, socket.create_server(("127.0.0.1", 0)) as scheduler:
        itself.bind(("127.0.0.1", port + 1))
        itself.connect(("127.0.0.1", port + 1))
        called = iter([itself, socket.create_connection(scheduler.getsockname())])
        monkeypatch.setattr(socket, "create_connection", lambda *_, **__: next(called))
        answering, _ = scheduler.accept()
        with answering:
            answering.sendall(b'{"start": true}\n')
            membership = Membership(cluster)
            membership.fail("that is all")
            with membership._connection:
                assert b"that is all" in answering.recv(4096)
        assert itself.fileno() == -1
