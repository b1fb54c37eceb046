"""Bodies of requests, bounded in bytes and in time, and the photos in them.

While the bodies being received and waiting are as many bytes as may be kept, the sockets of the others are not read:
their senders wait, and nothing is lost. The oldest unfinished body has room of its own, so that one always gets on.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser

from starlette.requests import Request

from imagenet_pipeline.records.image import FILE_LIMIT_BYTES

UPLOADS_LIMIT_BYTES = 2 * FILE_LIMIT_BYTES
"""Limit of all bodies together that are being received or wait to be decoded; the oldest may exceed it by one file."""
REQUEST_SECONDS = 20.0
"""Time for a request's headers to arrive, for its body, and for its answer to be taken."""
IDLE_SECONDS = 5.0
"""An upload of which nothing comes for so long is given up."""
PHOTOS_A_REQUEST = 32
PARTS_A_FORM = 100
"""Parts with and without a file; each costs work before it is known what it is."""
_PART_HEAD_BYTES = 4096
"""Headers of a part; the time to read them grows with their square."""


class Refused(Exception):
    """A request that is not answered as asked: its status, and the reason in a line."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


@dataclass(frozen=True)
class Photo:
    """A photo as sent; `name` is its file's, of a form."""

    name: str
    data: bytes


class Uploads:
    """Counts the bytes of all bodies, not the senders: who sends nothing holds up nobody."""

    def __init__(self) -> None:
        self._bytes = 0
        self._unfinished: dict[object, None] = {}  # in the order of their beginning
        self._change = asyncio.Event()

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, counted until the block ends. Raises Refused for what is too large or too slow.

        One that is too large is read to its end, so that the sender hears why, and neither kept nor counted. The time
        in which there is no room is not the sender's.
        """
        upload, kept, counted = object(), list[bytes](), 0
        self._unfinished[upload] = None
        try:
            size = 0
            async for chunk in _patient(request):
                size += len(chunk)
                if size > FILE_LIMIT_BYTES:
                    kept.clear()
                    counted = self._release(counted)
                    continue
                await self._take(upload, len(chunk))
                counted += len(chunk)
                kept.append(chunk)
            if size > FILE_LIMIT_BYTES:
                raise Refused(413, f"This file is too large: more than {FILE_LIMIT_BYTES >> 20} MB.")
            self._finish(upload)
            data = b"".join(kept)
            kept.clear()
            yield data
        finally:
            self._finish(upload)
            self._release(counted)

    async def _take(self, upload: object, size: int) -> None:
        while self._bytes and self._bytes + size > self._limit_of(upload):
            await self._change.wait()
        self._bytes += size

    def _limit_of(self, upload: object) -> int:
        return UPLOADS_LIMIT_BYTES + (FILE_LIMIT_BYTES if next(iter(self._unfinished)) is upload else 0)

    def _finish(self, upload: object) -> None:
        self._unfinished.pop(upload, None)
        self._wake()

    def _release(self, size: int) -> int:
        self._bytes -= size
        self._wake()
        return 0

    def _wake(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


async def _patient(request: Request) -> AsyncIterator[bytes]:
    """The chunks of a body, waited for no longer than the limits allow. Raises Refused."""
    now = asyncio.get_running_loop().time
    left, chunks = REQUEST_SECONDS, aiter(request.stream())
    while True:
        began = now()
        try:
            async with asyncio.timeout(min(left, IDLE_SECONDS)):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise Refused(408, "The upload took too long.") from error
        if chunk is None:
            return
        left -= now() - began
        yield chunk


FORM, JSON, BYTES = "multipart/form-data", "application/json", "application/octet-stream"


def media_type(header: str | None) -> tuple[str, str]:
    """The kind of a body by its Content-Type, FORM, JSON or BYTES, and the boundary of a form.

    Raises Refused for any other: an image is known by its bytes.
    """
    message = Message()
    message["Content-Type"] = header or BYTES
    kind = message.get_content_type()
    if kind == FORM:
        return FORM, str(message.get_param("boundary", ""))
    if kind == JSON:
        return JSON, ""
    if kind == BYTES or message.get_content_maintype() == "image":
        return BYTES, ""
    expected = f"image/jpeg or another image/*, {BYTES}, {FORM} or {JSON}"
    raise Refused(415, f"A photo does not come as {kind}; expected Content-Type: {expected}.")


def photos_in(body: bytes, kind: str, boundary: str) -> list[Photo]:
    """The photos of a body of this kind (see `media_type`). Raises Refused where there is none."""
    if kind == FORM:
        return _of_form(body, boundary.encode("latin-1", "replace"))
    return [Photo("", _of_json(body) if kind == JSON else body)]


_JSON_IMAGE = re.compile(rb'\s*\{\s*"image"\s*:\s*("[^"]*")\s*\}\s*')


def _of_json(body: bytes) -> bytes:
    """The image of a body in JSON; anything else is not parsed: 64 MB of brackets would take gigabytes and seconds."""
    found = _JSON_IMAGE.fullmatch(body)
    if not found:
        raise Refused(422, 'The body is not JSON of this form. Expected {"image": "the photo\'s bytes in base64"}.')
    try:
        text = str(json.loads(found[1]))
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except ValueError as error:
        raise Refused(422, "The image is not base64.") from error


def _of_form(body: bytes, boundary: bytes) -> list[Photo]:
    """The files of a form, in their order (RFC 7578; RFC 2046, 5.1.1)."""
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary, PARTS_A_FORM + 2) if boundary else [body]
    if len(parts) > PARTS_A_FORM + 1:  # the last is the end
        raise Refused(413, f"More than {PARTS_A_FORM} parts in a form.")
    if not parts or not parts[-1].startswith(b"--"):
        raise Refused(422, "The form is not whole.")
    photos = [photo for part in parts[:-1] if (photo := _of_part(part))]
    if not photos:
        raise Refused(422, "There is no file in the form.")
    if len(photos) > PHOTOS_A_REQUEST:
        raise Refused(413, f"More than {PHOTOS_A_REQUEST} photos in a request.")
    return photos


def _of_part(part: bytes) -> Photo | None:
    head, blank, content = part.partition(b"\r\n\r\n")
    if not blank or len(head) > _PART_HEAD_BYTES:
        raise Refused(422, "The form is not whole.")
    # Browsers write names in UTF-8, and an empty one where no file was chosen.
    name = HeaderParser().parsestr(head.decode("utf-8", "replace").lstrip()).get_filename()
    return Photo(name, content) if name else None
