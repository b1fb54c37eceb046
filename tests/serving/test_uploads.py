"""Uploads too large, too many, too slow and broken off: refused, not kept, in nobody's way."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import cv2
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from imagenet_pipeline.records.image import FILE_LIMIT_BYTES
from imagenet_pipeline.serving import connections, uploads
from imagenet_pipeline.serving.answers import Answers

PHOTO = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()

HEAD = b"POST /look HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


def connected(site: Any) -> socket.socket:
    return socket.create_connection((site.host, site.port), 20)


@contextlib.contextmanager
def half_sent(site: Any, count: int) -> Iterator[list[socket.socket]]:
    """Connections that have sent the head of a request and two bytes of its body."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connected(site)) for _ in range(count)]
        for connection in opened:
            connection.sendall(HEAD % 1000 + b"ab")
        yield opened


@pytest.mark.parametrize("stated", [True, False])
def test_200_megabytes_are_refused_and_not_kept(odd_site: Any, stated: bool) -> None:
    size = 200 * 2**20

    def pieces() -> Iterator[bytes]:
        for _ in range(200):
            yield bytes(2**20)

    tracemalloc.start()
    try:
        got, answer = odd_site.look(pieces(), **({"Content-Length": str(size)} if stated else {}))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (got, answer) == (413, {"error": "This file is too large: more than 64 MB."})
    # What was received before it was too large shows that the measure sees it.
    assert 0.9 * FILE_LIMIT_BYTES < most < 1.5 * FILE_LIMIT_BYTES


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (uploads.JSON, b'{"image": [' + b"[]," * 300_000 + b"[]]}"),
        (uploads.FORM, b"--b\r\n\r\n" * 100_000 + b"--b--"),
        (uploads.FORM, b"--b\r\n" + b"a:b\r\n" * 200_000 + b"\r\nx\r\n--b--"),
    ],
    ids=["brackets", "parts", "headers"],
)
def test_a_body_of_very_many_pieces_is_not_taken_apart(kind: str, body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(uploads.Refused):
            uploads.photos_in(body, kind, "b")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 * len(body)


def test_an_upload_broken_off_does_no_harm(odd_site: Any) -> None:
    for _ in range(4):
        with half_sent(odd_site, 1):
            pass
    assert odd_site.look(PHOTO)[0] == 200


def test_senders_that_stop_hold_up_nobody(odd_site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 30.0)
    with half_sent(odd_site, 50):
        began = time.monotonic()
        assert odd_site.look(PHOTO)[0] == 200
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("trickling", [False, True])
def test_an_upload_that_stops_or_takes_too_long_is_given_up(
    odd_site: Any, monkeypatch: pytest.MonkeyPatch, trickling: bool
) -> None:
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 30.0 if trickling else 0.3)
    monkeypatch.setattr(uploads, "REQUEST_SECONDS", 1.0 if trickling else 30.0)
    with half_sent(odd_site, 1) as (connection,):
        connection.settimeout(0.1)
        answer, end = b"", time.monotonic() + 15
        while not answer and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                if trickling:
                    connection.sendall(b"c")
                answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408")


class Sender:
    """A request whose body comes in pieces, each when the event loop gets to it."""

    def __init__(self, pieces: int, size: int) -> None:
        self.pieces, self.size = pieces, size

    async def stream(self) -> AsyncIterator[bytes]:
        for _ in range(self.pieces):
            await asyncio.sleep(0)
            yield bytes(self.size)


@hypothesis.given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 200)), min_size=1, max_size=20))
def test_bodies_are_bounded_together_and_all_arrive(sent: list[tuple[int, int]]) -> None:
    limits = {"FILE_LIMIT_BYTES": 1200, "UPLOADS_LIMIT_BYTES": 2000}
    most = arrived = 0

    async def receive(receiving: Any, sender: Any) -> None:
        nonlocal most, arrived
        async with receiving.body(sender) as body:
            most = max(most, receiving._bytes)
            await asyncio.sleep(0)
            arrived += len(body) == sender.pieces * sender.size

    async def receive_all() -> None:
        receiving = uploads.Uploads()
        async with asyncio.timeout(20):
            await asyncio.gather(*(receive(receiving, Sender(*each)) for each in sent))
        assert receiving._bytes == 0

    with mock.patch.multiple(uploads, **limits):
        asyncio.run(receive_all())
    assert arrived == len(sent)
    assert most <= sum(limits.values())


def test_uploads_that_are_too_large_take_no_room_from_others(odd_site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 30.0)
    monkeypatch.setattr(uploads, "FILE_LIMIT_BYTES", 1000)
    monkeypatch.setattr(uploads, "UPLOADS_LIMIT_BYTES", 8 * 1000)
    films = [connected(odd_site) for _ in range(8)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as other:
        for film in films:
            stack.enter_context(film).sendall(HEAD % 5000 + bytes(1000))
        time.sleep(0.3)
        waiting = other.submit(odd_site.look, PHOTO)
        time.sleep(0.3)
        assert not waiting.done()
        for film in films:
            film.sendall(b"1")
        assert waiting.result()[0] == 200
        for film in films:
            film.sendall(bytes(3999))
            assert film.recv(1000).startswith(b"HTTP/1.1 413")
    assert odd_site.look(PHOTO)[0] == 200


def test_an_upload_that_stops_gives_its_room_back(odd_site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(uploads, "UPLOADS_LIMIT_BYTES", 1)
    with half_sent(odd_site, 5):
        assert odd_site.look(PHOTO)[0] == 200


def test_connections_are_bounded(serving: Callable[..., Any], odd_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_AT_ONCE", 4)

    def asked(connection: http.client.HTTPConnection) -> int:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        return answer.status

    with serving(odd_run) as site, contextlib.ExitStack() as stack:
        opened = [http.client.HTTPConnection(site.host, site.port, timeout=20) for _ in range(4)]
        for connection in opened:
            stack.callback(connection.close)
            assert asked(connection) == 200
        status, headers, body = site.ask("GET", "/health")
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert "Too many connections" in json.loads(body)["error"]
        assert [asked(connection) for connection in opened] == [200] * 4
        opened[0].close()
        assert any(site.ask("GET", "/health")[0] == 200 for _ in range(50))


TOO_LATE = b"HTTP/1.1 408"


def sent_slowly(connection: socket.socket, beginning: bytes, then: bytes, most_seconds: float) -> tuple[bytes, float]:
    """What comes back by the time the server closes, and when that is, where `then` follows by the byte for ever."""
    began, answer = time.monotonic(), b""
    connection.settimeout(0.05)
    with contextlib.suppress(ConnectionError):
        connection.sendall(beginning)
        while time.monotonic() - began < most_seconds:
            with contextlib.suppress(TimeoutError):
                received = connection.recv(1000)
                answer += received
                if not received:
                    break
            connection.sendall(then)
    return answer, time.monotonic() - began


@pytest.mark.parametrize(
    ("beginning", "then", "told"),
    [
        (b"", b"", b""),
        (b"GET / HTTP/1.1\r\n", b"", TOO_LATE),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"x", TOO_LATE),
        (HEAD % 1_000_000, b"x", TOO_LATE),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n", b"x", b"HTTP/1.1 200"),
        (b"GET /files/page.js HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT", b"x", b"HTTP/1.1 200"),
    ],
    ids=["nothing", "half the headers", "headers by the byte", "body by the byte", "body after the answer", "the next"],
)
def test_a_request_has_so_long_in_all(
    odd_site: Any, monkeypatch: pytest.MonkeyPatch, beginning: bytes, then: bytes, told: bytes
) -> None:
    monkeypatch.setattr(uploads, "REQUEST_SECONDS", 0.6)
    with connected(odd_site) as connection:
        answer, seconds = sent_slowly(connection, beginning, then, 10.0)
    assert answer.startswith(told)
    assert bool(answer) is bool(told)
    assert 0.5 < seconds < 6.0


def test_connections_that_say_nothing_shut_nobody_out_for_longer(
    odd_site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "REQUEST_SECONDS", 2.0)
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connected(odd_site)).sendall(b"GET / HTTP/1.1\r\nHost:")
        full = odd_site.ask("GET", "/")[0]
        opened = time.monotonic()
        while time.monotonic() - opened < 15 and odd_site.ask("GET", "/")[0] != 200:
            time.sleep(0.1)
        assert (full, odd_site.ask("GET", "/")[0]) == (503, 200)


def test_an_answer_that_is_not_taken_ends_with_its_connection(odd_site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "REQUEST_SECONDS", 0.6)
    # More than the system keeps for a reader that does not read.
    monkeypatch.setattr(Answers, "answer", lambda *_: {"picture": "x" * 30_000_000})
    with connected(odd_site) as connection:
        connection.sendall(HEAD % len(PHOTO) + PHOTO)
        time.sleep(2.0)
        taken = 0
        with contextlib.suppress(ConnectionResetError):
            while received := len(connection.recv(2**16)):
                taken += received
    assert 0 < taken < 30_000_000


def test_the_clock_stands_while_an_answer_is_made(odd_site: Any, odd_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "REQUEST_SECONDS", 0.4)
    slow = Answers.answer

    def slowly(self: Answers, data: bytes) -> dict[str, Any]:
        time.sleep(1.0)
        return slow(self, data)

    monkeypatch.setattr(Answers, "answer", slowly)
    assert odd_site.look(PHOTO)[0] == 200
