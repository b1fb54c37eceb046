"""What a connection of the roll call carries: one JSON object a line, and how a process ends on one."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from imagenet_pipeline import __version__
from imagenet_pipeline.engines.gluon.cluster import Cluster
from imagenet_pipeline.errors import WorkerLost

SECONDS_TO_FINISH = 20.0
"""After all workers are done: how long MXNet may take to close what nobody needs any more."""
SILENCE_SECONDS = 15
"""How long a machine may not answer before its connection counts as broken."""
_LONGEST_MESSAGE = 8192

Message = dict[str, Any]


def introduction(cluster: Cluster) -> Message:
    """What a process says first: everything the scheduler compares."""
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
    """What the other side says, until it is gone or makes no sense."""
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
    sys.stderr.write(f"error: {line}\n")
    end_at_once(WorkerLost.exit_code)


def end_at_once(code: int) -> NoReturn:
    """End this process, whatever its threads do."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
