"""The page and the question it asks, over Starlette and uvicorn.

Not Gradio: 6.31 refuses the Pillow (13) that reads every image header here, brings 340 MB in 50 packages, and keeps
uploads on the disk. This page of three files asks nothing of any other machine, which its Content-Security-Policy makes
sure of, and a photo is never written anywhere.

Uploads are bounded in bytes and in time. uvicorn has no setting for how long a request may take to arrive: its
`timeout_keep_alive` ends at a request's first byte. Hypercorn's runs until the headers are whole, but bounds neither
bodies nor the number of connections; Granian's is that of Rust's hyper, for headers alone, and it opens its sockets
itself. Hence a class for uvicorn's setting `http`.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import ipaddress
import json
import os
import socket
import string
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from uvicorn.protocols.http.h11_impl import H11Protocol

from imagenet_pipeline.config import shown_size
from imagenet_pipeline.errors import BadRecipe, OutOfRoom, PipelineError
from imagenet_pipeline.records.image import FILE_LIMIT_BYTES, Rejected
from imagenet_pipeline.serving.answers import Answers

CONNECTIONS_AT_ONCE = 256
LOOPBACK_NAMES = ("127.0.0.1", "[::1]", "localhost")
_HERE = Path(__file__).parent
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    # Not "no-referrer", with which some browsers hide the page's own origin from `_from_elsewhere`.
    "Referrer-Policy": "same-origin",
}


def page_app(answers: Answers, names: Sequence[str] = LOOPBACK_NAMES) -> Starlette:
    """The application: GET / is the page; POST /look, a photo as its body, is the answer or the `error` in JSON.

    It answers to these names of its host alone (see `own_names`), to any where there are none. No photo is taken from
    another site's page.
    """
    page = _page(answers)
    uploads = Uploads()
    thread = ThreadPoolExecutor(1, "look")  # an engine looks at a single picture at a time, always from the same thread

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers=_SECURITY)

    async def look(request: Request) -> Response:
        if _from_elsewhere(request):
            return JSONResponse({"error": "Another site's page may not ask here."}, 403)
        try:
            async with uploads.photo(request) as data:
                answer = await asyncio.get_running_loop().run_in_executor(thread, answers.answer, data)
        except ClientDisconnect:
            return Response(status_code=400)
        except (TooLarge, TooMany, Rejected, PipelineError, MemoryError, TimeoutError) as error:
            return _refusal(error)
        return JSONResponse(answer)

    files = Mount("/files", StaticFiles(directory=_HERE / "files"))
    guard = [Middleware(TrustedHostMiddleware, allowed_hosts=list(names))] if names else []
    return Starlette(routes=[Route("/", show), Route("/look", look, methods=["POST"]), files], middleware=guard)


def listen(host: str, port: int) -> socket.socket:
    """A socket on this address, port 0 for any that is free. Raises BadRecipe where there is none to be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:  # a name such as "a..b" cannot be encoded for DNS
        reason = "no name of a host" if isinstance(error, UnicodeError) else _system_reason(error)
        advice = "take another --port (0: any that is free) or --host"
        raise BadRecipe(f"no page can be served here ({reason})", where=_place(host, port), advice=advice) from error


def address(host: str, listening: socket.socket) -> str:
    """The address of the page on this socket, to be opened in a browser."""
    return f"http://{_place(host, listening.getsockname()[1])}/"


def own_names(host: str, listening: socket.socket) -> tuple[str, ...]:
    """The names this machine has for itself, where no other reaches the socket (loopback); none where others do."""
    bound = listening.getsockname()[0]
    if not ipaddress.ip_address(bound).is_loopback:
        return ()
    return (*LOOPBACK_NAMES, _bracketed(bound), _bracketed(host))


def page_server(app: Starlette) -> uvicorn.Server:
    """A server that answers until Ctrl-C or SIGTERM; what was asked by then is answered within three seconds."""
    config = uvicorn.Config(
        app,
        http=TimedConnection,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_AT_ONCE,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer on a socket until the end (see `page_server`)."""
    page_server(app).run(sockets=[listening])


def _from_elsewhere(request: Request) -> bool:
    """True where another site's page asks: browsers say so themselves, and from where."""
    headers = request.headers
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower():
        return True
    return headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _place(host: str, port: int) -> str:
    return f"{_bracketed(host)}:{port}"


def _system_reason(error: OSError) -> str | None:
    """The reason of an error without the address, which Python adds to some; faults of names have numbers below 0."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _refusal(error: Exception) -> JSONResponse:
    match error:
        case TooLarge():
            said, status = f"This file is too large: more than {FILE_LIMIT_BYTES >> 20} MB.", 413
        case TooMany():
            said, status = "Too many photos at once; try again in a moment.", 503
        case Rejected():
            said, status = str(error), 415
        case TimeoutError():
            said, status = "The upload took too long.", 408
        case MemoryError() | OutOfRoom():
            said, status = "There is too little memory for this photo.", 503
        case _:
            said, status = str(error), 500
    return JSONResponse({"error": said}, status)


def _page(answers: Answers) -> str:
    classifier, classes = answers.classifier, answers.classifier.classes
    state = classifier.checkpoint.state
    facts = {
        "run": classifier.run.resolve().name,
        "network": f"{state.network_name}, epoch {state.epoch}, {shown_size(state.input_size)} pixels",
        "count": f"{len(classes):,}",
        "classes": ", ".join(classes.names),
        "asks": "emotions" if answers.reader else f"the {min(answers.top, len(classes))} most probable classes",
        "limit": str(FILE_LIMIT_BYTES),
    }
    template = string.Template((_HERE / "page.html").read_text(encoding="utf-8"))
    return template.substitute({name: html.escape(value) for name, value in facts.items()})


UPLOADS_LIMIT_BYTES = 8 * FILE_LIMIT_BYTES
"""Limit of all photos together that are being received or wait for their turn."""
REQUEST_SECONDS = 20.0
"""Limit of a whole request, headers and body, from the connection or the last answer on; and for that to be taken."""
IDLE_SECONDS = 5.0
"""An upload of which nothing comes for so long is given up."""


class TooLarge(Exception):
    """One photo has more than FILE_LIMIT_BYTES."""


class TooMany(Exception):
    """Raised where all photos together have more than UPLOADS_LIMIT_BYTES."""


class Uploads:
    """Counts the bytes of all photos, not the senders: who sends nothing holds up nobody."""

    def __init__(self) -> None:
        self._bytes = 0

    @contextlib.asynccontextmanager
    async def photo(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, counted until the block ends. Raises TooLarge, TooMany and TimeoutError.

        One that is too large is read to its end, so that the sender hears why, and neither kept nor counted.
        """
        now = asyncio.get_running_loop().time
        kept: list[bytes] = []
        size = counted = 0
        try:
            async with asyncio.timeout(IDLE_SECONDS) as patience:
                async for chunk in request.stream():
                    patience.reschedule(now() + IDLE_SECONDS)
                    size += len(chunk)
                    if size > FILE_LIMIT_BYTES:
                        kept.clear()
                        self._bytes -= counted
                        counted = 0
                        continue
                    kept.append(chunk)
                    counted += len(chunk)
                    self._bytes += len(chunk)
                    if self._bytes > UPLOADS_LIMIT_BYTES:
                        raise TooMany
            if size > FILE_LIMIT_BYTES:
                raise TooLarge
            data = b"".join(kept)
            kept.clear()
            yield data
        finally:
            self._bytes -= counted


class TimedConnection(H11Protocol):
    """A connection that is closed when its time is over, with status 408 where half a request is there.

    The clock stands while a request that has arrived waits for its answer.
    """

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Stop the clock with a request's last byte."""
        super().data_received(data)
        self._stop_where_arrived()

    def on_response_complete(self) -> None:
        """Wait for the answer to be taken and the next request to come, unless that is there."""
        self._wait()
        super().on_response_complete()
        self._stop_where_arrived()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop()
        self._end = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def _stop(self) -> None:
        if self._end is not None:
            self._end.cancel()

    def _stop_where_arrived(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            self._stop()

    def _give_up(self) -> None:
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            # Closing waits for the reader to take what is left.
            self.transport.abort()
            return
        half_there = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        if half_there and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._say_too_late()
        self.transport.close()

    def _say_too_late(self) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True
        body = json.dumps({"error": "The upload took too long."}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        head = h11.Response(status_code=408, headers=headers, reason=b"Request Timeout")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
