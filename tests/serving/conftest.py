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

from imagenet_pipeline.serving.answers import open_answers
from imagenet_pipeline.serving.page import listen, own_names, page_app, page_server

ODD_NAMES = ("<script>alert(1)</script>", "cats & \"dogs\" 'n' $more", "犬")


class Site:
    """A page being served; `ask` gives status, headers and body."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port, self.address = host, port, f"http://{host}:{port}/"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(http.client.HTTPConnection(self.host, self.port, timeout=60)) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def look(self, body: Any, **headers: str) -> tuple[int, Any]:
        status, _, answer = self.ask("POST", "/look", body, **headers)
        return status, json.loads(answer)


@contextlib.contextmanager
def served(run: Path, top: int = 5, host: str = "127.0.0.1") -> Iterator[Site]:
    listening = listen(host, 0)
    server = page_server(page_app(open_answers(run, top=top), own_names(host, listening)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Site(host, listening.getsockname()[1])
    finally:
        server.should_exit = True
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
