"""Objects of a real S3 server on this machine, of a web server, and of fsspec's own kinds."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline import storage
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged
from imagenet_pipeline.storage import Storage, is_remote

pytest.importorskip("fsspec")

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(storage, "RANGE_BYTES", 4000)


@pytest.fixture
def bucket(object_store: Any, tmp_path: Path) -> Storage:
    """A folder with an object."""
    (tmp_path / "here").write_bytes(CONTENT)
    folder = Storage(f"{object_store.url}/set")
    folder.upload(tmp_path / "here", "train.rec")
    object_store.requests.clear()
    return folder


def test_addresses_are_told_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for address in (
        "s3://b/x",
        "gs://b/x",
        "gcs://b",
        "http://h/x",
        "https://h/x",
        "file:///x",
        "memory://x",
        "ss3://b",
    ):
        assert is_remote(address), address
    assert is_remote(Path("s3://bucket/set"))
    assert str(Storage(Path("s3://bucket/set"))) == "s3://bucket/set"
    assert str(Storage(Path("file:///tmp/x"))) == "file:///tmp/x"
    assert str(Storage(Path("FILE:///tmp/x"))) == "file:///tmp/x"
    assert Storage(Path("S3://Bucket/Set")).url == Storage("S3://Bucket/Set").url == "s3://Bucket/Set"
    for mistyped in ("s4://b/x", "S3://b/x", "sftp://h/x"):
        assert is_remote(Path(mistyped)), mistyped
    assert is_remote(Path("s3://"))
    for empty in ("s3://", Path("s3://")):
        with pytest.raises(BadRecipe, match=r"^s3://: the address names no bucket or folder"):
            Storage(empty)
    with pytest.raises(BadRecipe, match=r"^s4://b/x: no such kind of storage; found s4; did you mean s3"):
        Storage(Path("s4://b/x"))
    (tmp_path / "data:").mkdir()
    assert not is_remote(Path("data:/x"))
    for folder in ("data:x", "C://data", "C:/x", "data:", "/s4:/x"):
        assert not is_remote(Path(folder)), folder
    for folder in ("data", "/data", "./s3", r"C:\data", "C:/data", "C://data", "a b://c", "s3:", "s3:x", ""):
        assert not is_remote(folder), folder


@pytest.mark.parametrize("kind", ["s3", "file", "memory"])
def test_an_object_is_put_told_of_and_fetched(kind: str, object_store: Any, tmp_path: Path) -> None:
    base = {"s3": object_store.url, "file": f"file://{tmp_path}/store", "memory": "memory://store"}[kind]
    folder = Storage(f"{base}/set")
    (tmp_path / "here").write_bytes(CONTENT)
    assert (folder.size("train.rec"), folder.exists("train.rec"), folder.list()) == (None, False, {})
    folder.upload(tmp_path / "here", "train.rec")
    assert (folder.size("train.rec"), folder.exists("train.rec")) == (len(CONTENT), True)
    assert (folder.list(), folder.list("val")) == ({"train.rec": len(CONTENT)}, {})
    assert folder.read("train.rec", len(CONTENT)) == CONTENT
    folder.download("train.rec", tmp_path / "new" / "there", len(CONTENT), DIGEST)
    assert (tmp_path / "new" / "there").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["there"]
    with pytest.raises(BadInput, match="larger than it can be; expected 100 bytes at most"):
        folder.read("train.rec", 100)
    assert pickle.loads(pickle.dumps(folder)).read("train.rec", 2**20) == CONTENT
    folder.remove("train.rec")
    folder.remove("train.rec")
    assert not folder.exists("train.rec")


def test_a_failing_store_is_asked_again(bucket: Storage, object_store: Any, tmp_path: Path) -> None:
    for fault in ("500", "503", "cut"):
        object_store.fail(fault, 2, "GET")
        bucket.download("train.rec", tmp_path / fault, len(CONTENT), DIGEST)
        assert (tmp_path / fault).read_bytes() == CONTENT
    object_store.fail("500", 3, "PUT")
    bucket.upload(tmp_path / "cut", "again.rec")
    assert bucket.size("again.rec") == len(CONTENT)
    object_store.fail("500", 20, "GET")
    with pytest.raises(BadInput, match=r"set/train.rec: the store fails, 4 times .*the same command goes on from here"):
        bucket.download("train.rec", tmp_path / "never", len(CONTENT), DIGEST)
    assert not (tmp_path / "never").exists()


def test_a_download_goes_on_where_it_was(bucket: Storage, object_store: Any, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:5000])
    bucket.download("train.rec", tmp_path / "file", len(CONTENT), DIGEST)
    asked = [span for method, _, span in object_store.requests if method == "GET"]
    assert asked == ["bytes=5000-8999", "bytes=9000-10239"]


def test_wrong_bytes_are_fetched_again_and_never_named(bucket: Storage, object_store: Any, tmp_path: Path) -> None:
    object_store.fail("wrong", 1, "GET")
    bucket.download("train.rec", tmp_path / "file", len(CONTENT), DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT
    (tmp_path / "left.part").write_bytes(b"x" * 5000)  # of another object, or torn by a loss of power
    bucket.download("train.rec", tmp_path / "left", len(CONTENT), DIGEST)
    assert (tmp_path / "left").read_bytes() == CONTENT
    with pytest.raises(Damaged, match="other bytes than were put here"):
        bucket.download("train.rec", tmp_path / "other", len(CONTENT), "0" * 64)
    with pytest.raises(Damaged, match="missing or of another size; expected 10,241 bytes; found 10,240"):
        bucket.download("train.rec", tmp_path / "other", len(CONTENT) + 1, DIGEST)
    with pytest.raises(Damaged, match="expected 10 bytes; found nothing"):
        bucket.download("absent.rec", tmp_path / "other", 10, DIGEST)
    assert [path.name for path in tmp_path.glob("other*")] == []


def test_what_did_not_arrive_is_put_again(bucket: Storage, object_store: Any, tmp_path: Path) -> None:
    put = bucket._put

    def damaged_once(file: Path, name: str) -> None:
        if not object_store.requests:
            file = tmp_path / "damaged"
            file.write_bytes(b"!" + CONTENT[1:])
        put(file, name)

    bucket._put = damaged_once  # type: ignore[method-assign]
    bucket.upload(tmp_path / "here", "new.rec")
    assert bucket.read("new.rec", 2**20) == CONTENT


def test_what_is_wrong_is_one_line(object_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(url: str) -> str:
        with pytest.raises((BadInput, BadRecipe)) as caught:
            Storage(url).read("manifest.json", 100)
        return str(caught.value)

    made_by = "correct its name, or make it first: aws s3 mb s3://nowhere-at-all"
    assert line("s3://nowhere-at-all/set") == f"s3://nowhere-at-all/set: no such bucket; {made_by}"
    assert line(object_store.url) == f"{object_store.url}/manifest.json: no such object"
    assert "did you mean s3?" in line("s33://bucket")
    assert "names no bucket" in line("s3://")
    object_store.fail("403")
    assert line(object_store.url).startswith(f"{object_store.url}/manifest.json: the store refuses access (")
    assert "cannot be asked so" in line("s3://NOT_a_bucket!/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert line(object_store.url).startswith(f"{object_store.url}: the store does not answer (")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert line(object_store.url).startswith(f"{object_store.url}: no credentials for the store (")
    assert line("http://me:hunter2@127.0.0.1:1/set?sig=s3cr3t").startswith("http://127.0.0.1:1/set: the store does not")
    assert "ssl" not in line("http://127.0.0.1:1/set")
    assert line("http://127.0.0.1:1/set").endswith("; look at the network, and at the address")
    assert "hunter2" not in line("http://me:hunter2@127.0.0.1:1/set?sig=s3cr3t")
    assert "s3cr3t" not in line("http://me:hunter2@127.0.0.1:1/set?sig=s3cr3t")


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:hunter2@bucket/x",
        "s3://user:hun/hunter2@bucket/x",
        "gs://hunter2@bucket",
        "s3://bucket/x?versionId=hunter2",
        "http://127.0.0.1:1/x?tok=hunter2",
        "http://user:hunter2@127.0.0.1:1/x",
    ],
)
def test_no_message_says_a_secret(url: str, object_store: Any) -> None:
    for address in (url, Path(url)):
        with pytest.raises((BadInput, BadRecipe)) as caught:
            Storage(address).read("manifest.json", 100)
        assert "hun" not in str(caught.value)
    said = Storage("http://me:hunter2@h/x?tok=s3cr3t")._reason(OSError("/x/manifest?tok=s3cr3t of me, hunter2"))
    assert said == "/x/manifest?... of me, ..."
    assert str(Storage("s3://bucket/a@b:c")) == "s3://bucket/a@b:c"
    assert str(Storage("s3://arn:aws:s3:eu:1:accesspoint/a@b")) == "s3://arn:aws:s3:eu:1:accesspoint/a@b"
