"""Uploads too large, too many, too slow and broken off: refused, not kept, in nobody's way."""

from __future__ import annotations

import contextlib
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline.records.image import FILE_LIMIT_BYTES
from imagenet_pipeline.serving import page, uploads

PHOTO = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()

HEAD = b"POST /look HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


def connected(site: Any) -> socket.socket:
    return socket.create_connection((site.host, site.port), 20)


def comes_to(site: Any, status: int) -> bool:
    """Whether a photo is answered so within some seconds: what was sent before it is received by then."""
    return any(site.look(PHOTO)[0] == status or time.sleep(0.1) for _ in range(100))


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
    monkeypatch.setattr(uploads, "UPLOAD_SECONDS", 1.0 if trickling else 30.0)
    with half_sent(odd_site, 1) as (connection,):
        connection.settimeout(0.1)
        answer, end = b"", time.monotonic() + 15
        while not answer and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                if trickling:
                    connection.sendall(b"c")
                answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408")


def test_photos_are_bounded_together_and_room_comes_back(odd_site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "UPLOADS_LIMIT_BYTES", len(PHOTO) + 1000)
    for _ in range(5):
        refused = 503, {"error": "Too many photos at once; try again in a moment."}
        assert odd_site.look(bytes(len(PHOTO) + 2000)) == refused
        assert odd_site.look(b"only text")[0] == 415
        assert odd_site.look(PHOTO)[0] == 200


def test_uploads_that_are_too_large_take_no_room_from_others(odd_site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 30.0)
    monkeypatch.setattr(uploads, "FILE_LIMIT_BYTES", 1000)
    monkeypatch.setattr(uploads, "UPLOADS_LIMIT_BYTES", 8 * 1000)
    films = [connected(odd_site) for _ in range(8)]
    with contextlib.ExitStack() as stack:
        for film in films:
            stack.enter_context(film).sendall(HEAD % 5000 + bytes(1000))
        assert comes_to(odd_site, 503)
        for film in films:
            film.sendall(b"1")
        assert comes_to(odd_site, 200)
        for film in films:
            film.sendall(bytes(3999))
            assert film.recv(1000).startswith(b"HTTP/1.1 413")
    assert odd_site.look(PHOTO)[0] == 200


def test_connections_are_bounded(serving: Callable[..., Any], odd_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "CONNECTIONS_AT_ONCE", 4)
    with serving(odd_run) as site:
        assert site.ask("GET", "/")[0] == 200
        with half_sent(site, 6):
            assert site.ask("GET", "/")[0] == 503
