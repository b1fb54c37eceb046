"""The socket of the page, and the names by which it may be asked: without a library, so that it is said at once."""

from __future__ import annotations

import ipaddress
import os
import socket

from imagenet_pipeline.errors import BadRecipe

LOOPBACK_NAMES = ("127.0.0.1", "[::1]", "localhost")


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


def _place(host: str, port: int) -> str:
    return f"{_bracketed(host)}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _system_reason(error: OSError) -> str | None:
    """The reason of an error without the address, which Python adds to some; faults of names have numbers below 0."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
