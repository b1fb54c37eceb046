"""Public weights from the web: gone on with where a connection broke, and named only once the digest is right.

A file grows under its name with ".part" behind it. Proxies are those of the environment (https_proxy, no_proxy).
"""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from io import RawIOBase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from imagenet_pipeline import __version__, files
from imagenet_pipeline.errors import BadInput, BadRecipe, did_you_mean
from imagenet_pipeline.interchange.public_weights import PUBLIC_WEIGHTS, PublicWeights
from imagenet_pipeline.progress import Bar

CHUNK_BYTES = 2**18
SECONDS = 30
"""Longest silence of a server."""
LOOPBACK = "127.0.0.1"
PARTIAL = 206
SLACK_BYTES = 4096
"""A file whose size is known in MiB alone is begun anew so near its end: it may have all its bytes, and wrong ones."""
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def weights_called(name: str) -> PublicWeights:
    """The file on the list of this name. Raises BadRecipe with the nearest names where there is none."""
    by_name = {entry.name: entry for entry in PUBLIC_WEIGHTS}
    if name not in by_name:
        advice = did_you_mean(name, by_name, "imagenet-pipeline fetch lists them")
        raise BadRecipe(f"no weights are called {name!r}", where="fetch", advice=advice)
    return by_name[name]


def fetch(entry: PublicWeights, folder: Path) -> Path:
    """Download a file of weights into `folder`, checked by its size and its SHA-256, as far as these are known.

    A file that is there already is checked alone. Raises BadInput where the server cannot be reached, answers with
    another file or breaks off (then the same call goes on from there), and OutOfRoom where the disk is full.
    """
    target = folder / entry.file_name
    if target.exists():
        _require_digest(entry, files.sha256_of(target), target, "another file has this name", "move it away")
        return target
    part = target.with_name(f"{target.name}.part")
    digest, done = _begun(part)
    if not digest.startswith(entry.digest):
        last = entry.size_bytes or entry.most_bytes - SLACK_BYTES
        _receive(entry, part, done if done < last else 0)
        digest, _ = _begun(part)
    try:
        what, advice = "the file did not arrive as it should", "nothing of it was kept; try again"
        _require_digest(entry, digest, target, what, advice)
    except BadInput:
        files.remove(part)
        raise
    files.adopt(part, target)
    return target


def _begun(part: Path) -> tuple[str, int]:
    """The digest and the number of the bytes that are there."""
    digest, done = hashlib.sha256(), 0
    if part.exists():
        with files.regular_file(part) as (stream, _):
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
    return digest.hexdigest(), done


def _receive(entry: PublicWeights, part: Path, done: int) -> None:
    """Add to `part`, of which `done` bytes are there, what the server has behind them; from the start where it must."""
    try:
        with _opened(entry, done) as answer:
            _copy(entry, answer, part, _first_byte(entry, answer, done))
    except urllib.error.HTTPError as error:
        with error:
            raise BadInput(f"the server answers {error.code} {error.reason}", where=entry.url) from error
    except (OSError, http.client.HTTPException) as error:  # OSError: what urllib and sockets raise
        raise _broken(entry, part, error) from error


def _opened(entry: PublicWeights, done: int) -> Any:
    headers = {"User-Agent": f"imagenet-pipeline/{__version__}", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    _require_safe(entry.url)
    opener = urllib.request.build_opener(_SafeRedirects)
    return opener.open(urllib.request.Request(entry.url, headers=headers), timeout=SECONDS)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a server only to where the first address might have led."""

    def redirect_request(self, request: Any, stream: Any, code: int, message: str, headers: Any, url: str) -> Any:
        try:
            _require_safe(url, may_be_local=request.type == "http")
        except BadInput:
            stream.close()
            raise
        return super().redirect_request(request, stream, code, message, headers, url)


def _require_safe(url: str, may_be_local: bool = True) -> None:
    """Raise BadInput for any address but https, or http on this very machine."""
    parts = urlsplit(url)
    is_local = parts.scheme == "http" and parts.hostname == LOOPBACK
    if parts.scheme != "https" and not (may_be_local and is_local):
        raise BadInput("the address is not one of https", where=url[:200])


def _first_byte(entry: PublicWeights, answer: Any, done: int) -> int:
    """The offset in the file at which an answer begins. Raises BadInput for another whole size than the list's."""
    ranged = RANGE.fullmatch(answer.headers.get("Content-Range", "")) if answer.status == PARTIAL else None
    begun, total = (int(ranged[1]), int(ranged[2])) if ranged else (0, answer.length)
    if begun not in (0, done) or (answer.status == PARTIAL and ranged is None):
        raise BadInput(
            "the server answers with another part of the file", where=entry.url, expected=f"byte {done:,} on"
        )
    if total is not None and not entry.has_size(total):
        stated = f"{entry.size_bytes:,} bytes" if entry.size_bytes else f"{entry.mib} MiB"
        raise BadInput(
            "the server has a file of another size", where=entry.url, expected=stated, found=f"{total:,} bytes"
        )
    return begun


def _copy(entry: PublicWeights, answer: Any, part: Path, done: int) -> None:
    """The rest of a file to the disk, from byte `done` on, and no more of it than there can be."""
    files.check_free_space(part.parent, entry.most_bytes - done)
    with files.explaining(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        stream = open(part, "r+b" if part.exists() else "xb", buffering=0)  # noqa: SIM115
    with stream, Bar(entry.file_name, "KiB") as bar:
        with files.explaining(part):
            stream.truncate(done)
            stream.seek(done)
        while chunk := answer.read(CHUNK_BYTES):
            done += len(chunk)
            if done > entry.most_bytes:
                raise BadInput("the server sends more than the file has", where=entry.url)
            with files.explaining(part):
                _write(stream, chunk)
            bar.show(done // 1024, entry.most_bytes // 1024)
    if not entry.has_size(done):
        raise http.client.IncompleteRead(b"")


def _write(stream: RawIOBase, chunk: bytes) -> None:
    """The whole chunk: a write to a disk that fills up may stop in the middle before one fails."""
    left = memoryview(chunk)
    while left:
        left = left[stream.write(left) or 0 :]


def _broken(entry: PublicWeights, part: Path, error: Exception) -> BadInput:
    """The error for a server that is not there, or no longer."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, http.client.IncompleteRead | TimeoutError | ConnectionError) and part.exists():
        what = f"the connection broke after {part.stat().st_size:,} bytes"
        return BadInput(what, where=entry.url, advice="the same command goes on from there")
    advice = f"where there is no network, copy {entry.file_name} here by other means: import --torchvision takes it"
    return BadInput(f"cannot be reached ({ascii(str(reason))[1:-1][:120]})", where=entry.url, advice=advice)


def _require_digest(entry: PublicWeights, found: str, where: Path, what: str, advice: str) -> None:
    if not found.startswith(entry.digest):
        expected = f"SHA-256 {entry.digest}{'' if entry.is_digest_whole else '...'}"
        raise BadInput(what, where=where, expected=expected, found=found, advice=advice)
