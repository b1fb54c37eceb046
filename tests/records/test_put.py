"""Data sets that are made straight into object storage, of a real S3 server on this machine."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import imagenet_pipeline as ip
from imagenet_pipeline import storage
from imagenet_pipeline.cli import main
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records import pieces
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.put import BUILDING_OBJECT, build_remote, working_folder
from imagenet_pipeline.storage import Storage

OPTIONS = BuildOptions(resize=32, shards=3, workers=1)
PROGRAM = """
import pickle, sys
from imagenet_pipeline.records.build import BuildOptions
from imagenet_pipeline.records.put import build_remote
from imagenet_pipeline.storage import Storage

if __name__ == "__main__":
    plan = pickle.load(sys.stdin.buffer)
    build_remote(plan, Storage(sys.argv[1]), BuildOptions(resize=32, shards=3, workers=1))
"""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES_SECONDS", (0.01, 0.01))


@pytest.fixture
def there(object_store: Any) -> Storage:
    return Storage(f"{object_store.url}/set")


@pytest.fixture(scope="module")
def local(small_plan: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the files of the same data set, made on this machine."""
    out = tmp_path_factory.mktemp("local") / "set"
    build(small_plan, out, OPTIONS)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}


def digests(there: Storage) -> dict[str, str]:
    return {name: hashlib.sha256(there.read(name, 2**24)).hexdigest() for name in there.list()}


def puts(object_store: Any) -> list[str]:
    return [path.rpartition("/")[2] for method, path, _ in object_store.requests if method == "PUT"]


def test_the_bytes_are_those_of_a_local_build(
    there: Storage, object_store: Any, small_plan: Any, local: dict[str, str], inline: Executor
) -> None:
    summary = build_remote(small_plan, there, OPTIONS, executor=inline)
    assert (summary.folder, summary.already_built, summary.records["train"]) == (str(there), False, 18)
    assert digests(there) == local
    assert puts(object_store)[0] == "build.json"
    assert puts(object_store)[-1] == "manifest.json"
    assert not working_folder(str(there)).exists()
    object_store.requests.clear()
    again = build_remote(small_plan, there, OPTIONS, executor=inline)
    assert (again, puts(object_store)) == (replace(summary, already_built=True), [])


def test_a_shard_is_put_when_it_is_made_and_takes_no_more_room(
    there: Storage, small_plan: Any, inline: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0

    def look(done: int, total: int) -> None:
        nonlocal most
        most = max(most, len(list(working_folder(str(there)).glob("*.rec"))))

    build_remote(small_plan, there, OPTIONS, look, inline)
    assert most == 1  # of five


def test_shards_are_joined_from_pieces_and_put(
    there: Storage, small_plan: Any, local: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_IMAGES", 2)
    with ThreadPoolExecutor(3) as threads:
        build_remote(small_plan, there, replace(OPTIONS, workers=3), executor=threads)
    assert digests(there) == local


def test_each_reject_is_listed_once(there: Storage, small_plan: Any, inline: Executor, tmp_path: Path) -> None:
    plan = replace(small_plan, root=Path(shutil.copytree(small_plan.root, tmp_path / "photos")))
    (plan.root / "3.jpg").write_bytes(b"")
    with pytest.raises(BadInput, match="found 1 so far"):
        build_remote(plan, there, OPTIONS, executor=inline)
    assert (working_folder(str(there)) / "rejects.csv").read_text().count("3.jpg") == 1


def test_a_failed_build_goes_on(
    there: Storage, object_store: Any, small_plan: Any, local: dict[str, str], inline: Executor
) -> None:
    object_store.fail("500", 3, "PUT", "train-00001-of-00003.rec")
    with pytest.raises(
        BadInput, match=r"train-00001-of-00003.rec: the store fails, 3 times .*the same command goes on"
    ):
        build_remote(small_plan, there, OPTIONS, executor=inline)
    assert not there.exists("manifest.json")
    with pytest.raises(BadInput, match=r"an unfinished build of another plan.*remove .building/build.json there"):
        build_remote(small_plan, there, replace(OPTIONS, quality=50), executor=inline)
    there.remove("train-00000-of-00003.rec")
    object_store.requests.clear()
    object_store.fail("403", 1, "PUT", "manifest.json")
    with pytest.raises(BadInput, match="refuses access"):
        build_remote(small_plan, there, OPTIONS, executor=inline)
    assert "train-00000-of-00003.rec" in puts(object_store)
    assert "val.rec" in puts(object_store)
    object_store.requests.clear()
    there.remove("train.lst")
    build_remote(small_plan, there, OPTIONS, executor=inline)
    assert puts(object_store) == ["train.lst", "manifest.json"]
    assert digests(there) == local


def test_what_is_there_is_left_alone_or_mended(
    there: Storage, small_plan: Any, local: dict[str, str], inline: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    build_remote(small_plan, there, OPTIONS, executor=inline)
    with pytest.raises(BadInput, match=r"^s3://bucket\d+/set: the address holds another data set already .*choose"):
        build_remote(small_plan, there, replace(OPTIONS, quality=50), executor=inline)
    assert digests(there) == local
    there.remove("val.rec")
    build_remote(small_plan, there, OPTIONS, executor=inline)
    assert "missing or cut: val.rec" in caplog.text
    assert digests(there) == local


def test_a_refused_build_leaves_nothing_here(
    there: Storage, object_store: Any, small_plan: Any, inline: Executor
) -> None:
    def refused(place: Storage, why: str) -> Path:
        work = working_folder(str(place))
        (work / "ILSVRC2015").mkdir(parents=True)  # as a builder unpacks photos
        with pytest.raises(BadInput, match=why):
            build_remote(small_plan, place, replace(OPTIONS, quality=50), executor=inline)
        return work

    build_remote(small_plan, there, OPTIONS, executor=inline)
    assert not refused(there, "holds another data set already").exists()
    begun = Storage(f"{object_store.url}/begun")
    object_store.fail("403", 1, "PUT", "manifest.json")
    with pytest.raises(BadInput, match="refuses access"):
        build_remote(small_plan, begun, OPTIONS, executor=inline)
    work = refused(begun, "an unfinished build of another plan")
    assert (work / "manifest.json").is_file()  # of the build that can go on
    shutil.rmtree(work)
    assert not refused(begun, "an unfinished build of another plan").exists()
    build_remote(small_plan, begun, OPTIONS, executor=inline)


def test_a_data_set_is_not_made_in_another(
    there: Storage, object_store: Any, small_plan: Any, inline: Executor
) -> None:
    build_remote(small_plan, there, OPTIONS, executor=inline)
    inner = Storage(f"{there.url}/inner")
    with pytest.raises(BadInput, match=rf"^{inner}: lies in a data set; choose another address than below {there}$"):
        build_remote(small_plan, inner, OPTIONS, executor=inline)
    assert there.list("inner") == {}
    object_store.fail("403", 1, "HEAD", "/set/manifest.json")  # who may not look there, builds
    build_remote(small_plan, inner, OPTIONS, executor=inline)


def test_a_killed_build_goes_on_to_the_same_bytes(
    object_store: Any, small_plan: Any, local: dict[str, str], inline: Executor
) -> None:
    names = ["train-00001-of-00003.rec"]
    if os.environ.get("IMAGENET_PIPELINE_LONG"):
        names = random.Random(7).choices([*local, BUILDING_OBJECT], k=20)
    for number, name in enumerate(names):
        place = Storage(f"{object_store.url}/set{number}")
        words = [sys.executable, "-c", PROGRAM, str(place)]
        with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
            object_store.fail(functools.partial(os.kill, process.pid, signal.SIGKILL), 1, "PUT", f"/{name}")
            process.communicate(pickle.dumps(small_plan))
        assert process.returncode == -signal.SIGKILL
        assert name == "manifest.json" or not place.exists("manifest.json")
        build_remote(small_plan, place, OPTIONS, executor=inline)
        assert digests(place) == local


def test_every_builder_and_what_cannot_be_put(
    there: Storage,
    data_set: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    inline: Executor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out + captured.err

    train = data_set / "train-00000-of-00002.rec"
    for is_there in (False, True):
        summary = ip.build("records", train=train, out=str(there), executor=inline)
        assert (summary.folder, summary.already_built) == (str(there), is_there)
    assert there.read("train.rec", 2**24) == train.read_bytes()
    assert not working_folder(str(there)).exists()
    code, said = run("build", "records", "--train", train, "--adopt", "--out", there)
    assert (code, said.count("\n"), "take that folder as --out, or leave out --adopt" in said) == (3, 1, True)
    for name in ("cat", "dog"):
        shutil.copytree(photos, tmp_path / "photos" / name)
    code, said = run("build", "folder", "--root", tmp_path / "photos", "--out", there, "--lists-only")
    assert (code, said.count("\n"), "--lists-only is for a folder" in said) == (2, 1, True)
    caplog.clear()
    code, said = run("build", "folder", "--root", tmp_path, "--out", "s3://not-there/set")
    made_by = "correct its name, or make it first: aws s3 mb s3://not-there"
    assert (code, said.count("\n"), f"no such bucket; {made_by}\n" in said) == (3, 1, True)
    assert "credentials" not in caplog.text
    code, said = run("build", "folder", "--root", tmp_path, "--out", "http://127.0.0.1:1/set")
    assert (code, "a web server is read from" in said) == (2, True)
    monkeypatch.chdir(tmp_path)
    code, said = run("build", "folder", "--root", tmp_path / "photos", "--out", "s4://bucket/set")
    assert (code, said.count("\n"), "no such kind of storage; found s4; did you mean s3" in said) == (2, 1, True)
    assert not (tmp_path / "s4:").exists()
