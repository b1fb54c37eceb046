"""Photos on their way to the page, bounded in bytes and in time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from imagenet_pipeline.records.image import FILE_LIMIT_BYTES

UPLOADS_LIMIT_BYTES = 8 * FILE_LIMIT_BYTES
"""Of all photos that are being received or wait for their turn, together."""
UPLOAD_SECONDS = 60.0
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
        end = now() + UPLOAD_SECONDS
        kept: list[bytes] = []
        size = counted = 0
        try:
            async with asyncio.timeout(IDLE_SECONDS) as patience:
                async for chunk in request.stream():
                    patience.reschedule(min(now() + IDLE_SECONDS, end))
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
