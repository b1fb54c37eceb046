"""Who is there in an MXNet cluster, and who is gone: one TCP connection from each process to the scheduler's.

ps-lite, under MXNet's distributed KVStore, waits for ever for a worker that died: only its scheduler hears heartbeats,
and `MXKVStoreGetNumDeadNode` on a worker goes on saying 0. The kernel closes the connections of a process the moment
it dies, however it does, and keep-alive finds a machine that lost its power or network. So each process holds one
here. The scheduler lets everybody begin when all are there; when one goes before the end it tells the others, and
each writes one line and ends with WorkerLost's exit code, because a call that MXNet blocks in never returns.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from typing import NoReturn

from imagenet_pipeline.engines.gluon.cluster import HOST, PATIENCE, PORT, SERVERS, WORKERS, Cluster
from imagenet_pipeline.engines.roll_line import (
    Message,
    end_after_a_while,
    end_process,
    introduction,
    keep_alive,
    messages,
    send,
)
from imagenet_pipeline.errors import BadRecipe, WorkerLost


@dataclass
class _Member:
    role: str
    place: str
    connection: socket.socket
    rank: int | None = None
    done: bool = False

    def __str__(self) -> str:
        return f"{self.role}{'' if self.rank is None else f' {self.rank}'} ({self.place})"

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
                there = {role: sum(one.role == role for one in self._members) for role in ("worker", "server")}
                error = WorkerLost(
                    f"not all came within {self._cluster.patience_seconds:.0f} s",
                    where=f"scheduler at {self._cluster.host}:{self._cluster.port}",
                    expected=f"{self._cluster.workers} workers, {self._cluster.servers} servers",
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
                return str(BadRecipe("not the scheduler's", where=name, expected=mine[key], found=hello.get(key)))
        role = hello.get("role")
        if role not in ("server", "worker"):
            return str(BadRecipe("there is a scheduler already", where=HOST, found=role))
        most = self._cluster.workers if role == "worker" else self._cluster.servers
        if sum(one.role == role for one in self._members) >= most:
            return str(
                BadRecipe(f"all {most} {role}s are there already", where=WORKERS if role == "worker" else SERVERS)
            )
        return None

    def _note(self, member: _Member, message: Message) -> None:
        with self._lock:
            if isinstance(message.get("rank"), int):
                member.rank = message["rank"]
            if message.get("done"):
                member.done = True
                if all(one.done for one in self._members if one.role == "worker"):
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
        raise BadRecipe(f"port {port} cannot be had ({error.strerror})", where=PORT, advice=advice) from error
    if not keep:
        listener.close()
    return listener
