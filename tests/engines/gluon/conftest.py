"""Ports for the clusters that tests make on this machine."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import pytest

Ports = Callable[[], int]


def is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return False
        return True


@pytest.fixture(scope="session")
def free_port() -> Ports:
    """Finds a port that is free, and the next as well; below those that the system gives to others' connections."""

    def find() -> int:
        while True:
            port = random.randrange(10_000, 32_000)
            if is_free(port) and is_free(port + 1):
                return port

    return find
