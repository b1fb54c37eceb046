"""An MXNet cluster: its DMLC variables, read and checked, and the roll call that notices a process that is gone.

A scheduler knows everyone, servers add the gradients up, workers train. MXNet itself reads the same variables, and
waits for ever where they are wrong (ps-lite, `src/postoffice.cc`); so they are checked here, before it sees them.

The roll call is one TCP connection from each process to the scheduler's, which carries a JSON object a line.
ps-lite, under MXNet's distributed KVStore, waits for ever for a worker that died: only its scheduler hears heartbeats,
and `MXKVStoreGetNumDeadNode` on a worker goes on saying 0. The kernel closes the connections of a process the moment
it dies, however it does, and keep-alive finds a machine that lost its power or network. The scheduler lets everybody
begin when all are connected; when a process goes before the end it tells the others, and each writes one line and
ends with WorkerLost's exit code, because a call that MXNet blocks in never returns.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from imagenet_pipeline import __version__
from imagenet_pipeline.errors import BadRecipe, WorkerLost, counted

ROLES = ("scheduler", "server", "worker")
HOST, PORT, SERVERS, WORKERS = "DMLC_PS_ROOT_URI", "DMLC_PS_ROOT_PORT", "DMLC_NUM_SERVER", "DMLC_NUM_WORKER"
PATIENCE = "IMAGENET_PIPELINE_JOIN_SECONDS"
"""Seconds to wait for the others at the start; 300 where it is not set."""


@dataclass(frozen=True)
class Cluster:
    """A process's role in an MXNet cluster. The scheduler is at `host`:`port`, its roll call at the port after that."""

    role: str
    host: str
    port: int
    servers: int
    workers: int
    patience_seconds: float

    @property
    def roll_port(self) -> int:
        """Port the roll call listens at."""
        return self.port + 1


def read_cluster(variables: Mapping[str, str] | None = None) -> Cluster | None:
    """Read the DMLC variables; None where none is set. Raises BadRecipe for a missing or impossible value."""
    found = os.environ if variables is None else variables
    needed = ("DMLC_ROLE", HOST, PORT, SERVERS, WORKERS)
    if not any(name in found for name in needed):
        return None
    missing = [name for name in needed if not found.get(name)]
    if missing:
        advice = "set all of them, or none to train alone"
        raise BadRecipe(f"{', '.join(missing)} not set", where="environment", expected=", ".join(needed), advice=advice)
    role = found["DMLC_ROLE"]
    if role not in ROLES:
        raise BadRecipe("unknown role", where="DMLC_ROLE", expected=f"one of {', '.join(ROLES)}", found=repr(role))
    port = _whole(found, PORT, 1, 65534)
    servers, workers = _whole(found, SERVERS, 1, 10_000), _whole(found, WORKERS, 1, 10_000)
    patience = _whole(found, PATIENCE, 1, 10**6) if PATIENCE in found else 300
    return Cluster(role, found[HOST], port, servers, workers, patience)


def require_no_cluster(engine: str) -> None:
    """Raise BadRecipe where DMLC variables are set, which this engine knows nothing of."""
    if read_cluster() is not None:
        advice = "unset them and start it with torchrun, or take engine=gluon"
        raise BadRecipe("this engine does not read DMLC variables", where=f"engine = {engine!r}", advice=advice)


def _whole(variables: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = variables[name]
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if not least <= number <= most:
        raise BadRecipe(
            "invalid number", where=name, expected=f"a whole number from {least} to {most}", found=repr(text)
        )
    return number


SECONDS_TO_FINISH = 20.0
"""Time MXNet may take, after all workers are done, to close what nobody needs any more."""
SILENCE_SECONDS = 15
"""Silence of a machine after which its connection counts as broken."""
_LONGEST_MESSAGE = 8192

Message = dict[str, Any]


def introduction(cluster: Cluster) -> Message:
    """First message of a process: everything the scheduler compares."""
    return {
        "role": cluster.role,
        "servers": cluster.servers,
        "workers": cluster.workers,
        "version": __version__,
        "process": os.getpid(),
    }


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel ask whether the other machine is still there, SILENCE_SECONDS at most without an answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_SECONDS // 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE_SECONDS // 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_SECONDS * 1000)


def send(connection: socket.socket, message: Message) -> None:
    """Say something; nothing where nobody is there any more, which whoever reads from the connection finds out."""
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return


def messages(connection: socket.socket) -> Iterator[Message]:
    """Messages of the other side, until it is gone or makes no sense."""
    waiting = b""
    while True:
        line, end, rest = waiting.partition(b"\n")
        if not end:
            try:
                more = connection.recv(4096)
            except OSError:
                return
            if not more or len(waiting) > _LONGEST_MESSAGE:
                return
            waiting += more
            continue
        waiting = rest
        try:
            message = json.loads(line)
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        yield message


def end_after_a_while() -> None:
    """End this process with code 0 in SECONDS_TO_FINISH, if it is still there by then."""
    timer = threading.Timer(SECONDS_TO_FINISH, end_at_once, args=(0,))
    timer.daemon = True
    timer.start()


def end_process(line: str) -> NoReturn:
    """End this process, whatever its threads do, with one line on stderr and WorkerLost's exit code."""
    with contextlib.suppress(OSError):  # who read it may be gone as well, which must not keep this process
        sys.stderr.write(f"error: {line}\n")
    end_at_once(WorkerLost.exit_code)


def end_at_once(code: int) -> NoReturn:
    """End this process, whatever its threads do."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


@dataclass
class _Member:
    role: str
    address: str
    connection: socket.socket
    rank: int | None = None
    done: bool = False

    def __str__(self) -> str:
        return f"{self.role}{'' if self.rank is None else f' {self.rank}'} ({self.address})"

    def tell(self, message: Message) -> None:
        send(self.connection, message)


class RollCall:
    """The scheduler's side. A thread a connection: they are as few as processes, and say next to nothing."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._members: list[_Member] = []
        self._lock = threading.RLock()
        self._complete = threading.Event()
        self._finished = False
        _require_free(cluster.port)
        self._listener = _require_free(cluster.roll_port, keep=True)
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_for_all(self) -> None:
        """Returns when all servers and workers are there. Raises WorkerLost when they do not come in time."""
        if not self._complete.wait(self._cluster.patience_seconds):
            with self._lock:
                there = {role: sum(member.role == role for member in self._members) for role in ("worker", "server")}
                error = WorkerLost(
                    f"not all processes joined within {self._cluster.patience_seconds:.0f} s",
                    where=f"scheduler at {self._cluster.host}:{self._cluster.port}",
                    expected=f"{counted(self._cluster.workers, 'worker')}, {counted(self._cluster.servers, 'server')}",
                    found=f"{there['worker']} and {there['server']}",
                    advice=f"start the others in that time, or set {PATIENCE}",
                )
                self._tell_all({"lost": str(error)})
            raise error

    def _accept(self) -> None:
        while True:
            connection, address = self._listener.accept()
            threading.Thread(target=self._attend, args=(connection, address[0]), daemon=True).start()

    def _attend(self, connection: socket.socket, host: str) -> None:
        keep_alive(connection)
        with connection:
            said = messages(connection)
            member = self._admit(next(said, None), connection, host)
            if member is None:
                return
            for message in said:
                self._note(member, message)
            self._gone(member)

    def _admit(self, hello: Message | None, connection: socket.socket, host: str) -> _Member | None:
        if hello is None:  # somebody else's connection
            return None
        with self._lock:
            fault = self._fault(hello)
            if fault:
                send(connection, {"refused": fault})
                return None
            member = _Member(str(hello["role"]), f"{host}, process {hello.get('process')}", connection)
            self._members.append(member)
            if len(self._members) == self._cluster.servers + self._cluster.workers:
                self._complete.set()
                self._tell_all({"start": True})
            return member

    def _fault(self, hello: Message) -> str | None:
        mine = introduction(self._cluster)
        for key, name in (("servers", SERVERS), ("workers", WORKERS), ("version", "the version of imagenet_pipeline")):
            if hello.get(key) != mine[key]:
                return str(
                    BadRecipe("differs from the scheduler's", where=name, expected=mine[key], found=hello.get(key))
                )
        role = hello.get("role")
        if role not in ("server", "worker"):
            return str(BadRecipe("a scheduler is running already", where=HOST, found=role))
        most = self._cluster.workers if role == "worker" else self._cluster.servers
        if sum(member.role == role for member in self._members) >= most:
            return str(
                BadRecipe(f"all {most} {role}s have joined already", where=WORKERS if role == "worker" else SERVERS)
            )
        return None

    def _note(self, member: _Member, message: Message) -> None:
        with self._lock:
            if isinstance(message.get("rank"), int):
                member.rank = message["rank"]
            if message.get("done"):
                member.done = True
                if all(worker.done for worker in self._members if worker.role == "worker"):
                    self._finished = True
                    self._tell_all({"finish": True})
                    end_after_a_while()
            if "failed" in message and not self._finished:
                self._end(f"{member} ended with an error ({str(message['failed'])[:300]})")

    def _gone(self, member: _Member) -> None:
        with self._lock:
            if not self._complete.is_set():
                self._members.remove(member)
            elif not self._finished:
                self._end(f"{member} is gone")

    def _end(self, what: str) -> NoReturn:
        line = str(WorkerLost(what, advice="start all again; training goes on with --resume latest"))
        self._tell_all({"lost": line})
        end_process(line)

    def _tell_all(self, message: Message) -> None:
        for member in self._members:
            member.tell(message)


def _require_free(port: int, keep: bool = False) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port))
    except OSError as error:
        listener.close()
        advice = f"choose another {PORT}; it and the next are needed"
        raise BadRecipe(f"port {port} cannot be opened ({error.strerror})", where=PORT, advice=advice) from error
    if not keep:
        listener.close()
    return listener
