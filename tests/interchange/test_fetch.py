"""Public weights from the web, that is from a server of this machine: whole, gone on with, or refused."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from imagenet_pipeline.cli import main
from imagenet_pipeline.errors import BadInput, BadRecipe, OutOfRoom
from imagenet_pipeline.interchange import fetch as fetching
from imagenet_pipeline.interchange import public_weights
from imagenet_pipeline.interchange.fetch import fetch, weights_called
from imagenet_pipeline.interchange.public_weights import MIB, PUBLIC_WEIGHTS, PublicWeights

CONTENT = bytes(range(256)) * 4096  # a MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server does, and what it was asked for."""

    address: str
    requests: list[tuple[str, str | None]]
    content: bytes = CONTENT
    cut: int | None = None
    """Bytes of the answer after which it breaks the connection."""
    status: int = 200
    location: str = ""
    ranges: bool = True
    says_length: bool = True


class Handler(http.server.BaseHTTPRequestHandler):
    server_of: Server

    def do_GET(self) -> None:
        server, wanted = self.server_of, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if server.status != 200 and self.path != "/elsewhere":
            self.send_response(server.status)
            self.send_header("Location", server.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        begin = int(re.findall(r"\d+", wanted)[0]) if wanted and server.ranges else 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
        if server.says_length:
            self.send_header("Content-Length", str(len(server.content) - begin))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # a client that has seen enough
            self.wfile.write(server.content[begin:][: server.cut])

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        Handler.server_of = Server(f"http://127.0.0.1:{running.server_port}", [])
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Handler.server_of
        running.shutdown()
        thread.join()


@pytest.fixture
def entry(server: Server) -> PublicWeights:
    return PublicWeights("net", "resnet18", f"{server.address}/net-{DIGEST[:8]}.pth", DIGEST, 1.0, MIB, 70, 90, 0.875)


def message(entry: PublicWeights, folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        fetch(entry, folder)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_the_file_arrives_and_is_not_asked_for_again(server: Server, entry: PublicWeights, tmp_path: Path) -> None:
    for _ in range(2):
        assert fetch(entry, tmp_path / "new") == tmp_path / f"new/{entry.file_name}"
    assert server.requests == [(f"/{entry.file_name}", None)]
    assert [path.read_bytes() for path in (tmp_path / "new").iterdir()] == [CONTENT]


@pytest.mark.parametrize("says_length", [True, False])
def test_a_broken_download_goes_on(server: Server, entry: PublicWeights, tmp_path: Path, says_length: bool) -> None:
    server.cut, server.says_length = 700_000, says_length
    said = f"{entry.url}: the connection broke after 700,000 bytes; the same command goes on from there"
    assert message(entry, tmp_path) == said
    part = tmp_path / f"{entry.file_name}.part"
    assert part.read_bytes() == CONTENT[:700_000]
    server.cut = None
    assert fetch(entry, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=700000-"]
    assert not part.exists()


def test_a_server_without_ranges_begins_anew(server: Server, entry: PublicWeights, tmp_path: Path) -> None:
    (tmp_path / f"{entry.file_name}.part").write_bytes(b"x" * 1000)
    server.ranges = False
    assert fetch(entry, tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_whole_needs_no_server(entry: PublicWeights, server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{entry.file_name}.part").write_bytes(CONTENT)
    assert fetch(entry, tmp_path).read_bytes() == CONTENT
    assert server.requests == []


@pytest.mark.parametrize("extra", [0, 5])
def test_a_part_that_is_too_long_or_wrong_is_begun_anew(
    entry: PublicWeights, server: Server, tmp_path: Path, extra: int
) -> None:
    (tmp_path / f"{entry.file_name}.part").write_bytes(b"x" * (MIB + extra))
    assert fetch(entry, tmp_path).read_bytes() == CONTENT
    assert server.requests == [(f"/{entry.file_name}", None)]


def test_another_digest_is_kept_under_no_name(server: Server, entry: PublicWeights, tmp_path: Path) -> None:
    server.content = bytes(MIB)
    found = hashlib.sha256(server.content).hexdigest()
    what = "the file did not arrive as it should"
    assert message(entry, tmp_path) == (
        f"{tmp_path / entry.file_name}: {what}; expected SHA-256 {DIGEST}; found {found}; "
        "nothing of it was kept; try again"
    )
    assert list(tmp_path.iterdir()) == []
    short = replace(entry, digest=DIGEST[:8])
    assert f"expected SHA-256 {DIGEST[:8]}...; found" in message(short, tmp_path)
    server.content = CONTENT
    assert fetch(short, tmp_path).read_bytes() == CONTENT
    (tmp_path / entry.file_name).write_bytes(b"mine")
    assert "another file has this name" in message(entry, tmp_path)
    assert (tmp_path / entry.file_name).read_bytes() == b"mine"


def test_another_size_is_refused_before_it_is_received(server: Server, entry: PublicWeights, tmp_path: Path) -> None:
    server.content = CONTENT + b"more"
    said = message(entry, tmp_path)
    assert said.endswith("a file of another size; expected 1,048,576 bytes; found 1,048,580 bytes")
    assert list(tmp_path.iterdir()) == []
    server.says_length = False
    assert message(entry, tmp_path).endswith("the server sends more than the file has")
    about = replace(entry, size_bytes=None)
    server.content, server.says_length = bytes(2 * MIB), True
    assert "expected 1.0 MiB; found 2,097,152 bytes" in message(about, tmp_path / "other")


@pytest.mark.parametrize("status", [404, 500, 403])
def test_what_the_server_answers_is_said(server: Server, entry: PublicWeights, tmp_path: Path, status: int) -> None:
    server.status = status
    assert f"{entry.url}: the server answers {status} " in message(entry, tmp_path)


def test_a_redirect_is_followed_to_where_it_may_lead(server: Server, entry: PublicWeights, tmp_path: Path) -> None:
    server.status, server.location = 302, "/elsewhere"
    assert fetch(entry, tmp_path / "a").read_bytes() == CONTENT
    for location in ("http://example.org/x", "ftp://127.0.0.1/x"):
        server.location = location
        assert message(entry, tmp_path / "b") == f"{location}: the address is not one of https"
    server.location = "file:///etc/passwd"
    assert "the server answers 302 Found - Redirection to url 'file:///etc/passwd'" in message(entry, tmp_path / "b")


def test_only_https_is_asked(tmp_path: Path, entry: PublicWeights) -> None:
    assert all(weights.url.startswith("https://") for weights in PUBLIC_WEIGHTS)
    for url in ("http://download.pytorch.org/x", "file:///etc/passwd"):
        assert message(replace(entry, url=url), tmp_path) == f"{url}: the address is not one of https"


def test_a_server_that_is_not_there_is_one_line(entry: PublicWeights, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/net.pth"
    said = message(replace(entry, url=address), tmp_path)
    assert said.startswith(f"{address}: cannot be reached ([Errno 111] Connection refused); where there is no network,")


def test_a_full_disk_is_told_before_or_meanwhile(
    entry: PublicWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "_write", full)
    with pytest.raises(OutOfRoom, match=r"\.part: cannot be written \(No space left on device\)"):
        fetch(entry, tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(OutOfRoom, match="not enough free disk space"):
        fetch(entry, tmp_path)


def test_the_list_is_what_torchvision_states() -> None:
    for weights in PUBLIC_WEIGHTS:
        assert weights.file_name.rpartition("-")[2] == f"{weights.digest[:8]}.pth"
        assert len(weights.digest) in (8, 64)
        assert weights.size_bytes is None or abs(weights.size_bytes / MIB - weights.mib) <= 0.0005
    assert len({weights.name for weights in PUBLIC_WEIGHTS}) == len(PUBLIC_WEIGHTS)
    with pytest.raises(BadRecipe, match=r"no weights are called 'resnet-50'; did you mean resnet50 or"):
        weights_called("resnet-50")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["fetch", *words])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return call


def test_the_verb_lists_and_fetches(
    command: Callable[..., tuple[int, str, str]],
    entry: PublicWeights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, _ = command()
    assert code == 0
    assert re.search(r"^resnet50 +resnet50 +97\.8   80\.86   95\.43  whole$", out, re.M)
    assert re.search(r"^vgg11 .* first 8 digits$", out, re.M)
    assert len(json.loads(command("--json")[1])["weights"]) == len(PUBLIC_WEIGHTS)
    monkeypatch.setattr(fetching, "PUBLIC_WEIGHTS", (entry,))
    monkeypatch.setattr(public_weights, "PUBLIC_WEIGHTS", (entry,))
    code, out, _ = command("net", "--out", str(tmp_path))
    path = tmp_path / entry.file_name
    assert out.splitlines() == [
        f"{path}  1,048,576 bytes  sha256 {DIGEST} (all of it)",
        f"licence: {entry.licence}",
        f"imagenet-pipeline import --torchvision {path} --out output/runs/net",
    ]
    assert json.loads(command("net", "--out", str(tmp_path), "--json")[1])["sha256"] == DIGEST
    code, _, err = command("nets")
    assert (code, err) == (2, "error: fetch: no weights are called 'nets'; did you mean net?\n")
