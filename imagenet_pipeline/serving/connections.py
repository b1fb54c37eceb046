"""The server of the page: uvicorn, its connections bounded in number and in time, its end an orderly one.

uvicorn has no setting for how long a request may take to arrive: its `timeout_keep_alive` ends at a request's first
byte. Hypercorn's runs until the headers are whole, but bounds neither bodies nor the number of connections; Granian's
is that of Rust's hyper, for headers alone, and it opens its sockets itself. Hence a class for uvicorn's setting `http`.
"""

from __future__ import annotations

import asyncio
import json
import socket

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from imagenet_pipeline.serving import uploads
from imagenet_pipeline.serving.service import Service

CONNECTIONS_AT_ONCE = 256
_TOO_MANY = JSONResponse(
    {"error": "Too many connections at once; try again in a moment."}, 503, {"Retry-After": "1", "Connection": "close"}
)
"""The answer to whatever is asked by one connection more: uvicorn's limit refuses those that were there before, too."""


class PageServer(uvicorn.Server):
    """A server that answers until Ctrl-C or SIGTERM, or until its service fails; then what it took, and no more.

    Meanwhile new requests hear that it ends (503), until nothing is left to do; only then its socket is closed.
    """

    def __init__(self, app: Starlette, service: Service) -> None:
        config = uvicorn.Config(
            app,
            http=TimedConnection,
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=3,
        )
        super().__init__(config)
        self._service = service
        service.stop = self.stop

    def stop(self) -> None:
        """End, as after SIGTERM."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain the service, then close."""
        await self._service.drain(lambda: self.force_exit)
        await super().shutdown(sockets)


def serve(app: Starlette, service: Service, listening: socket.socket) -> None:
    """Answer on a socket until the end. Raises what the service failed of."""
    PageServer(app, service).run(sockets=[listening])
    if service.failure:
        raise service.failure


class TimedConnection(H11Protocol):
    """A connection that is closed when its time is over, with status 408 where half a request is there.

    The clock runs until the headers have arrived, and again from the answer on: a body has its own (see `Uploads`).
    """

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, to refuse it where there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_AT_ONCE:
            self.app = _TOO_MANY
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Stop the clock with the last byte of a request's headers."""
        super().data_received(data)
        self._stop_where_asked()

    def on_response_complete(self) -> None:
        """Wait for the answer to be taken and the next request to come, unless that is there."""
        self._wait()
        super().on_response_complete()
        self._stop_where_asked()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop()
        self._end = self.loop.call_later(uploads.REQUEST_SECONDS, self._give_up)

    def _stop(self) -> None:
        if self._end is not None:
            self._end.cancel()

    def _stop_where_asked(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()

    def _give_up(self) -> None:
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            # Closing waits for the reader to take what is left.
            self.transport.abort()
            return
        if self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            self._say_too_late()
        self.transport.close()

    def _say_too_late(self) -> None:
        body = json.dumps({"error": "The request took too long."}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        head = h11.Response(status_code=408, headers=headers, reason=b"Request Timeout")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
