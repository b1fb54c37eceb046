"""Tasks of a build on a Dask cluster: `--executor dask://HOST:PORT`, the scheduler's address.

The cluster says how many tasks run at a time: one a thread of its workers, also of those that join later. Each task
carries what its worker must agree with: the versions of the libraries that make bytes, the file it reads first, and
the ticket of the build, a file in `OUT/.building`. When the build ends, by Ctrl-C too, the ticket goes, and a worker
that still works for it stops within some images and writes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import distributed
from distributed.comm import CommClosedError, connect
from distributed.core import send_recv
from distributed.scheduler import KilledWorker

from imagenet_pipeline import __version__, files
from imagenet_pipeline.errors import BadInput, BadRecipe, OutOfRoom, PipelineError, WorkerLost, counted
from imagenet_pipeline.records import image
from imagenet_pipeline.records.tasks import Cluster, Task, require_wanted

PROTOCOLS = {"dask": "tcp", "dask+tls": "tls"}
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
WAIT_SECONDS = 60.0
"""Time without any worker after which a build ends."""
SIGHT_SECONDS = 60.0
"""Time that a network file system may take to show here what a worker has written."""
TICKET = "ticket-"
_COMPARED_BYTES = 2**16
_OTHER_INSTALLATION = ("ModuleNotFoundError", "ImportError", "AttributeError", "deserialization of the task graph")
"""Words in the errors that Dask makes of those that it cannot send."""
_GOES_ON = "the same build goes on"

log = logging.getLogger("imagenet_pipeline")


@dataclass(frozen=True)
class Expected:
    """Versions, and a file's size and first bytes (or none), that a worker must have like the machine that builds."""

    versions: dict[str, str]
    file: Path
    content: tuple[int, str] | None

    @classmethod
    def of(cls, task: Task) -> Expected:
        """Look up on this machine what the worker of a task must have like it."""
        return cls(versions(), task.first_file, content_of(task.first_file))


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that make bytes."""
    return {"imagenet_pipeline": __version__, **image.library_versions()}


def content_of(file: Path) -> tuple[int, str] | None:
    """Size of a file, and the SHA-256 of its first 64 KiB; None where it cannot be read."""
    try:
        with files.open_regular(file) as stream:
            return os.fstat(stream.fileno()).st_size, hashlib.sha256(stream.read(_COMPARED_BYTES)).hexdigest()
    except (OSError, ValueError):
        return None


def require_alike(expected: Expected, task: Task, dask_worker: Any) -> None:
    """Raise, in a worker, BadRecipe for other versions than expected, BadInput where it does not see the same files."""
    worker = f"worker {dask_worker.address}"
    own = versions()
    other = [f"{name} {own[name]}" for name in own if own[name] != expected.versions.get(name)]
    if other:
        wanted = ", ".join(
            f"{name} {expected.versions.get(name)}" for name in own if own[name] != expected.versions.get(name)
        )
        advice = f"install the same on every machine, start its worker again, and {_GOES_ON}"
        raise BadRecipe("would make other bytes", where=worker, expected=wanted, found=", ".join(other), advice=advice)
    try:
        require_wanted(task)
    except BadInput as error:
        raise BadInput(f"{error.where}: {error.what}", where=worker, found=error.found, advice=error.advice) from error
    found = content_of(expected.file)
    if found != expected.content:
        raise BadInput(
            f"{expected.file} is another file there than here",
            where=worker,
            expected=_described(expected.content),
            found=_described(found),
            advice="every worker must see the photos under the same path",
        )


def _described(content: tuple[int, str] | None) -> str:
    return "no such file" if content is None else f"{content[0]:,} bytes, SHA-256 of the first 64 KiB {content[1][:8]}"


def make_alike(expected: Expected, make: Callable[[Any], int], task: Task) -> int:
    """Do a task in a worker of the cluster, which may have joined after the others were checked."""
    require_alike(expected, task, distributed.get_worker())
    try:
        return make(task)
    except PipelineError:
        raise
    except Exception as error:
        log.exception("%s", task.name)
        # A client of Dask 2026.8 waits for ever for an error whose traceback cannot be pickled.
        raise error.with_traceback(None) from None


def scheduler_address(address: str) -> str:
    """Dask's own name for an address of ours: tcp://10.0.0.1:8786. Raises BadRecipe for what is none."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in PROTOCOLS or not host or not port or parts.path.strip("/") or parts.query or "@" in address:
        expected = " or ".join(f"{scheme}://HOST:PORT" for scheme in PROTOCOLS)
        found = "one with a user or a query" if "@" in address or "?" in address else address  # they may be secret
        raise BadRecipe("not the address of a scheduler", where="--executor", expected=expected, found=found)
    return f"{PROTOCOLS[parts.scheme]}://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def connected(address: str) -> Iterator[DaskCluster]:
    """Yield the cluster of the scheduler at `address`, dask://HOST:PORT.

    Raises BadRecipe where it is no address, or of something else than a scheduler, WorkerLost where nobody answers.
    """
    url = scheduler_address(address)
    with quiet():
        client = _client(address, url)
        try:
            yield DaskCluster(client, address)
        finally:
            with contextlib.suppress(Exception):  # a scheduler that is gone cannot be taken leave of
                client.close(timeout=2)


def _client(address: str, url: str) -> Any:
    """Connect to a scheduler, once it has said that it is one: a Client waits long for other servers."""
    security = distributed.Security().get_connection_args("client")  # from Dask's own configuration
    if url.startswith("tls:") and security["ssl_context"] is None:
        advice = "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ...__CLIENT__KEY and ...__CLIENT__CERT name them"
        raise BadRecipe("Dask's configuration names no TLS files", where=address, advice=advice)
    try:
        with ThreadPoolExecutor(1) as thread:  # which has no event loop, as a notebook has
            # Longer than Dask tries, whose error says more.
            asked = asyncio.wait_for(_kind(url, security), CONNECT_SECONDS + 2)
            kind = thread.submit(asyncio.run, asked).result()
        if kind == "Scheduler":
            return distributed.Client(url, timeout=CONNECT_SECONDS, set_as_default=False)
        found = f"a {kind}"
    except OSError as error:
        raise WorkerLost(
            f"no scheduler of Dask answers within {CONNECT_SECONDS:.0f} s",
            where=address,
            found=_cause(error) or _at_port(url),
            advice="start it: dask scheduler; and see that its port is open to this machine",
        ) from error
    except Exception as error:
        found = _cause(error) or type(error).__name__
    advice = "give the scheduler's address, as `dask scheduler` prints it, and install the same dask everywhere"
    raise BadRecipe("what answers is no scheduler of Dask", where=address, found=found, advice=advice)


async def _kind(url: str, security: dict[str, Any]) -> str:
    """Ask a server of Dask for its kind: "Scheduler", "Worker", "Nanny"."""
    comm = await connect(url, timeout=CONNECT_SECONDS, **security)
    try:
        return str((await send_recv(comm, op="identity"))["type"])
    finally:
        comm.abort()


def _cause(error: BaseException) -> str | None:
    """The words of the first of a chain of errors; None where it has none."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or None


def _at_port(url: str) -> str:
    """Name what a plain connection to an address meets: an open port, or why there is none.

    Dask waits ever shorter between its attempts, up to its last moment: the last may end before the refusal is heard.
    """
    host, _, port = url.rpartition("//")[2].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return "an open port that does not speak Dask's protocol"
    except OSError as error:
        return str(error)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Dask's own log lines and warnings off stderr: what they tell becomes a line of ours."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("distributed", "tornado")]
    before = {name: logging.getLogger(name).level for name in (*names, "asyncio")}
    for name in before:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"distributed\b")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


class DaskCluster(Cluster):
    """The workers of a Dask scheduler, through a client that is connected to it."""

    def __init__(self, client: Any, address: str) -> None:
        self.address = address
        self._client = client
        self._ticket = ""
        self._at_work: dict[Future[int], Any] = {}
        """Dask's own future of each of ours, which ends when that does; what it has to say is asked of it."""

    def submit(self, make: Callable[..., int], /, *args: Any, **kwargs: Any) -> Future[int]:  # type: ignore[override]
        """Have a worker do a task. Raises WorkerLost."""
        task = replace(args[0], ticket=self._ticket)
        future: Future[int] = Future()
        with self._losing("the scheduler takes no work"):
            made = self._client.submit(make_alike, Expected.of(task), make, task, pure=False)
            made.add_done_callback(lambda _: future.set_result(0))
        self._at_work[future] = made
        return future

    @contextlib.contextmanager
    def working_on(self, tasks: Sequence[Task]) -> Iterator[Callable[[], int]]:
        """As `Cluster` says."""
        building = tasks[0].building
        for left in building.glob(f"{TICKET}*"):
            left.unlink()
        # A name that was never there: a network file system may remember for a while that a name is not there.
        self._ticket = f"{TICKET}{secrets.token_hex(8)}"
        files.write_whole(building / self._ticket, "")
        try:
            threads = self._threads()
            self._require_alike(replace(tasks[0], ticket=self._ticket))
            log.info("%s: %s on %s", self.address, counted(len(tasks), "task"), counted(threads, "thread"))
            yield self._threads
        finally:
            (building / self._ticket).unlink(missing_ok=True)
            with contextlib.suppress(Exception):
                self._client.cancel(list(self._at_work.values()))
            self._at_work.clear()

    def _require_alike(self, task: Task) -> None:
        """Ask the workers that are there now. Raises as `require_alike`."""
        with self._losing("the cluster does not answer"):
            workers = self._client.run(require_alike, Expected.of(task), task, on_error="return")
        for worker, answer in workers.items():
            if isinstance(answer, BaseException):
                raise self._explained(answer, f"worker {worker}")

    def result_of(self, future: Future[int], task: Task) -> int:
        """As `Cluster` says; read from the marker, since a worker may be gone with the result that it had."""
        made = self._at_work.pop(future)
        if made.status == "finished":
            self._await_sight(task.marker)
            return task.rejected
        if made.status == "error":
            error = made.exception()
            raise self._explained(error, task.name) from error
        raise self._lost("the scheduler is gone, or has dropped the work")

    def _await_sight(self, marker: Path) -> None:
        """Wait until this machine sees what a worker has written. Raises BadInput where it does not."""
        until = time.monotonic() + SIGHT_SECONDS
        while not marker.exists():
            if time.monotonic() > until:
                what = f"this machine does not see what a worker has written {SIGHT_SECONDS:.0f} s ago"
                raise BadInput(what, where=marker)
            time.sleep(0.2)
            os.listdir(marker.parent)  # has a network file system look again

    def _threads(self) -> int:
        """Threads of all workers; waits while there is none. Raises WorkerLost."""
        until, told = time.monotonic() + WAIT_SECONDS, False
        while True:
            with self._losing(f"the scheduler does not answer within {ANSWER_SECONDS:.0f} s"):
                threads = sum(
                    self._client.sync(self._client.scheduler.ncores, callback_timeout=ANSWER_SECONDS).values()
                )
            if threads:
                return int(threads)
            if time.monotonic() > until:
                raise WorkerLost(
                    f"no worker for {WAIT_SECONDS:.0f} s",
                    where=self.address,
                    advice=f"start workers: dask worker {scheduler_address(self.address)}; {_GOES_ON}",
                )
            if not told:
                log.info("%s: waits for workers, %.0f s at most", self.address, WAIT_SECONDS)
                told = True
            time.sleep(0.5)

    @contextlib.contextmanager
    def _losing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self._lost(what, _cause(error)) from error

    def _lost(self, what: str, found: str | None = None) -> WorkerLost:
        return WorkerLost(what, where=self.address, found=found, advice=f"start it again, and {_GOES_ON}")

    def _explained(self, error: BaseException, where: str) -> BaseException:
        """The line for what became of a task, or of a worker; other errors of the task itself stay as they are."""
        match error:
            case PipelineError():
                return error
            case KilledWorker():
                return WorkerLost(
                    f"workers died over this task, the last {error.last_worker.address}",
                    where=where,
                    advice=f"their logs say why; with too little memory, start fewer of them a machine; {_GOES_ON}",
                )
            case TimeoutError() | CommClosedError():
                return self._lost(f"the connection was lost over {where}", _cause(error))
            case MemoryError():
                return OutOfRoom("out of memory", where=where, advice="start fewer workers a machine")
        if isinstance(error, ImportError | AttributeError) or any(word in str(error) for word in _OTHER_INSTALLATION):
            advice = f"install the same imagenet-pipeline for the scheduler and every worker, and {_GOES_ON}"
            return BadRecipe("cannot do the work", where=where, found=str(error).partition(". ")[0], advice=advice)
        return error
