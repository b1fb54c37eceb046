"""Runs behind the page, served on a free port of loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline.serving.address import listen, own_names
from imagenet_pipeline.serving.answers import Answers, open_answers
from imagenet_pipeline.serving.connections import PageServer
from imagenet_pipeline.serving.page import page_app
from imagenet_pipeline.serving.service import Service

ODD_NAMES = ("<script>alert(1)</script>", "cats & \"dogs\" 'n' $more", "犬")


class Site:
    """A page being served; `ask` gives status, headers and body."""

    def __init__(self, host: str, port: int, server: PageServer) -> None:
        self.host, self.port, self.address = host, port, f"http://{host}:{port}/"
        self.server = server

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(http.client.HTTPConnection(self.host, self.port, timeout=60)) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def look(self, body: Any, **headers: str) -> tuple[int, Any]:
        status, _, answer = self.ask("POST", "/look", body, **headers)
        return status, json.loads(answer)

    def predict(self, body: Any, kind: str = "image/png", query: str = "") -> tuple[int, Any]:
        status, _, answer = self.ask("POST", f"/predict{query}", body, **{"Content-Type": kind})
        return status, json.loads(answer)

    def health(self) -> tuple[int, Any]:
        status, _, answer = self.ask("GET", "/health")
        return status, json.loads(answer)


@contextlib.contextmanager
def served(
    run: Path,
    top: int = 5,
    host: str = "127.0.0.1",
    opened: Callable[..., Answers] = open_answers,
    status: str = "ready",
) -> Iterator[Site]:
    """A site that has come to this status; `opened` opens the run."""
    listening = listen(host, 0)
    service = Service(run.name, lambda: opened(run, top=top))
    server = PageServer(page_app(service, own_names(host, listening)), service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not (server.started and service.status == status) and thread.is_alive():
        time.sleep(0.01)
    try:
        yield Site(host, listening.getsockname()[1], server)
    finally:
        server.stop()
        thread.join()
        listening.close()


@pytest.fixture(scope="session")
def serving() -> Callable[..., Any]:
    """`with serving(run, host="::1") as site:` serves another page."""
    return served


@pytest.fixture(scope="session")
def odd_run(drawn_run: Callable[..., Path]) -> Path:
    return drawn_run("n01", "n02", "n03", names=ODD_NAMES)


@pytest.fixture(scope="session")
def odd_site(odd_run: Path) -> Iterator[Site]:
    """A run of three classes with odd names."""
    with served(odd_run, top=2) as site:
        yield site


@pytest.fixture(scope="session")
def emotion_site(emotion_run: Path) -> Iterator[Site]:
    """A run of seven emotions."""
    with served(emotion_run) as site:
        yield site
