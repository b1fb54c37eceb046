"""What is on its way to the page, bounded in bytes and in time.

uvicorn has no setting for how long a request may take to arrive: its `timeout_keep_alive` ends at a request's first
byte. Hypercorn's runs until the headers are whole, but bounds neither bodies nor the number of connections; Granian's
is that of Rust's hyper, for headers alone, and it opens its sockets itself. Hence a class for uvicorn's setting `http`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import h11
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from imagenet_pipeline.records.image import FILE_LIMIT_BYTES

UPLOADS_LIMIT_BYTES = 8 * FILE_LIMIT_BYTES
"""Of all photos that are being received or wait for their turn, together."""
REQUEST_SECONDS = 20.0
"""For a whole request, headers and body, from the connection or the last answer on; and for that to be taken."""
IDLE_SECONDS = 5.0
"""An upload of which nothing comes for so long is given up."""


class TooLarge(Exception):
    """One photo has more than FILE_LIMIT_BYTES."""


class TooMany(Exception):
    """All photos together have more than UPLOADS_LIMIT_BYTES."""


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
