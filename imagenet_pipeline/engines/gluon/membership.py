"""A process's membership of an MXNet cluster: joined before MXNet starts, left when it ends (`cluster.py` says why)."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from imagenet_pipeline.engines.gluon.cluster import (
    HOST,
    PORT,
    Cluster,
    RollCall,
    end_after_a_while,
    end_process,
    introduction,
    keep_alive,
    messages,
    read_cluster,
    send,
)
from imagenet_pipeline.errors import BadRecipe, WorkerLost, counted

log = logging.getLogger("imagenet_pipeline")

SECONDS_FOR_OWN_ERROR = 1.5
"""Time this process has to end by itself once another is gone."""


@contextmanager
def taking_part() -> Iterator[None]:
    """Join the cluster of the DMLC variables for the work with an engine, and leave it at the end.

    A scheduler or server serves here and never gets further: SystemExit with code 0 when the workers are done.
    Without DMLC variables this is nothing. Raises BadRecipe for wrong variables, WorkerLost where the others are not
    there in time.
    """
    cluster = read_cluster()
    if cluster is not None and cluster.role != "worker":
        _serve(cluster)
    membership = join()
    try:
        yield
    except BaseException as error:
        if membership is not None:
            membership.fail(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        raise
    if membership is not None:
        membership.finish()


def join() -> Membership | None:
    """This worker's membership of the cluster, joined on the first call; None without DMLC variables."""
    global _joined
    if _joined is None:
        cluster = read_cluster()
        _joined = Membership(cluster) if cluster is not None else None
    return _joined


def _serve(cluster: Cluster) -> NoReturn:
    log.info(
        "%s of %s and %s at %s:%d: serves until they are done", cluster.role,
        counted(cluster.workers, "worker"), counted(cluster.servers, "server"), cluster.host, cluster.port,
    )  # fmt: skip
    if cluster.role == "scheduler":
        RollCall(cluster).wait_for_all()
    else:
        Membership(cluster)
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        # Sent to all at once they are the workers' to answer, who save, and end this process by leaving.
        signal.signal(signal_number, signal.SIG_IGN)
    # In these roles the import itself serves, and ends the process.
    import imagenet_pipeline.engines.gluon.runtime  # noqa: F401

    raise SystemExit(0)


class Membership:
    """A server's or worker's side: made when everybody is there. `close` is called to close MXNet's own part."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.close: Callable[[bool], None] = lambda clean: None
        self._left = False
        self._all_done = threading.Event()
        self._until = time.monotonic() + cluster.patience_seconds
        self._connection = self._connect()
        send(self._connection, introduction(cluster))
        self._messages = messages(self._connection)
        self._wait_for_start()
        threading.Thread(target=self._listen, daemon=True).start()

    def say_rank(self, rank: int) -> None:
        """Tell the scheduler which of the workers this is."""
        send(self._connection, {"rank": rank})

    def finish(self) -> None:
        """Wait until all workers have come this far, and close; only once."""
        if self._left:
            return
        send(self._connection, {"done": True})
        self._all_done.wait()
        self._left = True
        end_after_a_while()
        self.close(True)

    def fail(self, why: str) -> None:
        """Say that this worker goes on no further, which ends the others."""
        if self._left:
            return
        self._left = True
        send(self._connection, {"failed": why})
        self.close(False)

    def _connect(self) -> socket.socket:
        address = (self.cluster.host, self.cluster.roll_port)
        tell_at = time.monotonic() + 5
        while True:
            try:
                connection = socket.create_connection(address, timeout=5)
                if connection.getsockname() != connection.getpeername():
                    keep_alive(connection)
                    return connection
                # The system gave it the scheduler's own port to call from, and so it called itself.
                connection.close()
            except OSError as error:
                if time.monotonic() > self._until:
                    raise self._nobody(f"no scheduler answers ({error})") from error
            if time.monotonic() > tell_at:
                log.info("waits for the scheduler at %s:%d", self.cluster.host, self.cluster.port)
                tell_at = float("inf")
            time.sleep(0.2)

    def _wait_for_start(self) -> None:
        # Longer than the scheduler, which knows better who is missing.
        self._connection.settimeout(max(self._until - time.monotonic(), 0) + self.cluster.patience_seconds + 5)
        message = next(self._messages, None) or {}
        if "refused" in message:
            raise BadRecipe(str(message["refused"]))
        if "lost" in message:
            raise WorkerLost(str(message["lost"]))
        if "start" not in message:
            raise self._nobody("the scheduler ended before all processes had joined")
        self._connection.settimeout(None)

    def _nobody(self, what: str) -> WorkerLost:
        where = f"{HOST}:{PORT} = {self.cluster.host}:{self.cluster.port}"
        advice = (
            f"start it there with DMLC_ROLE=scheduler; this port and the next, {self.cluster.roll_port}, must be open"
        )
        return WorkerLost(f"{what} after {self.cluster.patience_seconds:.0f} s", where=where, advice=advice)

    def _listen(self) -> None:
        for message in self._messages:
            if "finish" in message:
                self._all_done.set()
            if "lost" in message:
                self._end(str(message["lost"]))
        if not self._all_done.is_set():
            what, advice = "the scheduler is gone", "start all again; training goes on with --resume latest"
            self._end(str(WorkerLost(f"{what} ({self.cluster.host}:{self.cluster.port})", advice=advice)))

    def _end(self, line: str) -> None:
        # What ended the other process may be ending this process too, whose own error then says more.
        time.sleep(SECONDS_FOR_OWN_ERROR)
        if not self._left:
            end_process(line)


_joined: Membership | None = None
