"""Archives as the root of builders: the data sets of the folders that they unpack to, byte for byte."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import imagenet_pipeline as ip
from imagenet_pipeline import api, builders
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.record_builders import folder as folder_builder
from imagenet_pipeline.records import archives as archives_module
from imagenet_pipeline.records.build import BuildSummary
from imagenet_pipeline.records.plan import Plan

Photo = Callable[[str], bytes]
OPTIONS: dict[str, Any] = {"resize": 16, "shards": 2}


def build(builder: str, **options: Any) -> BuildSummary:
    """Build by a thread, which is there sooner than a process."""
    with ThreadPoolExecutor(1) as executor:
        return ip.build(builder, executor=executor, **options)


@pytest.fixture(scope="module")
def contents(photo: Photo) -> dict[str, bytes]:
    """Three classes of photos, in no order, with what else lies about."""
    names = [f"{name}/{number:02d}.jpg" for number in reversed(range(12)) for name in ("dog", "ape", "cat")]
    return {name: photo(name) for name in names} | {"ape/notes.txt": b"none"}


def pack(path: Path, contents: Mapping[str, bytes], top: str = "") -> Path:
    """An archive of these files, below a folder `top`, of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        method = zipfile.ZIP_STORED if "stored" in path.name else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in contents.items():
                archive.writestr(top + name, content)
        return path
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as tar:  # type: ignore[call-overload]
        for name, content in contents.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def lay(root: Path, contents: Mapping[str, bytes]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def stored(folder: Path) -> dict[str, bytes]:
    """The files of a data set; but for the markers, which have size and time of the photos' files."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "markers.txt"}


@pytest.fixture(scope="module")
def from_folder(tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]) -> dict[str, bytes]:
    place = tmp_path_factory.mktemp("folder")
    build("folder", root=lay(place / "photos", contents), out=place / "out", **OPTIONS)
    return stored(place / "out")


@pytest.mark.parametrize(
    ("name", "top"),
    [("stored.zip", ""), ("deflated.zip", "photos/"), ("x.tar", "a/"), ("x.tar.gz", "photos/"), ("x.tar.xz", "")],
)
def test_the_data_set_is_that_of_the_folder(
    name: str, top: str, tmp_path: Path, contents: dict[str, bytes], from_folder: dict[str, bytes]
) -> None:
    pack(tmp_path / name, contents, top)
    build("folder", root=str(tmp_path / name), out=tmp_path / "out", **OPTIONS)
    assert stored(tmp_path / "out") == from_folder
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out"])


@pytest.mark.parametrize("name", ["deflated.zip", "x.tar.gz"])
def test_building_again_unpacks_nothing_and_mends(
    name: str,
    tmp_path: Path,
    contents: dict[str, bytes],
    from_folder: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, out = pack(tmp_path / name, contents), tmp_path / "out"
    build("folder", root=root, out=out, **OPTIONS)
    unpacked: list[int] = []
    unpack = archives_module.Archive.unpack
    monkeypatch.setattr(archives_module.Archive, "unpack", lambda *given: (unpacked.append(1), unpack(*given)))
    again = build("folder", root=root, out=out, **OPTIONS)
    assert (again.already_built, again.remade, again.changed, unpacked) == (True, [], [], [])
    shard = next(out.glob("train-*.rec"))
    shard.write_bytes(b"")
    again = build("folder", root=root, out=out, **OPTIONS)
    assert again.remade == [shard.name]
    assert stored(out) == from_folder
    assert unpacked == [1] * name.endswith(".gz")
    os.utime(root, ns=(1, 1))
    assert build("folder", root=root, out=out, **OPTIONS).changed == [name]


def test_a_folders_data_set_is_mended_from_its_archive(
    tmp_path: Path, contents: dict[str, bytes], from_folder: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    build("folder", root=lay(tmp_path / "photos", contents), out=out, **OPTIONS)
    next(out.glob("train-*.rec")).unlink()
    assert build("folder", root=pack(tmp_path / "x.zip", contents), out=out, **OPTIONS).remade
    assert stored(out) == from_folder


@pytest.mark.parametrize("name", ["stored.zip", "x.tar.gz"])
def test_a_stopped_build_goes_on(
    name: str,
    tmp_path: Path,
    contents: dict[str, bytes],
    from_folder: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, out = pack(tmp_path / name, contents), tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if list((out / ".building").glob("train-*.json")):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(api.Bar, "show", lambda bar, done, total: stop(done, total))
        with pytest.raises(KeyboardInterrupt):
            build("folder", root=root, out=out, **OPTIONS)
    first = next(out.glob("train-*.rec"))
    stamp = first.stat().st_mtime_ns
    kept = [path.stat().st_ino for path in (out / ".building").glob("*.unpacked")]
    assert len(kept) == name.endswith(".gz")
    build("folder", root=root, out=out, **OPTIONS)
    assert first.stat().st_mtime_ns == stamp
    assert stored(out) == from_folder


def test_into_object_storage(
    tmp_path: Path, contents: dict[str, bytes], from_folder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setenv("IMAGENET_PIPELINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bucket").mkdir()
    root = pack(tmp_path / "x.tar.gz", contents)
    build("folder", root=root, out=f"file://{tmp_path}/bucket/out", **OPTIONS)
    assert stored(tmp_path / "bucket" / "out") == from_folder


def test_a_single_folder_is_the_root_and_any_may_be_named(tmp_path: Path, contents: dict[str, bytes]) -> None:
    photos = {name: content for name, content in contents.items() if name.endswith(".jpg")}
    root = pack(tmp_path / "x.zip", photos, "set/train/")
    counts = [api.plan_of("folder", tmp_path / "out", {"root": given}).counts for given in (root, root / "set/train")]
    assert counts == [{"train": 36}, {"train": 28, "val": 4, "test": 4}]
    root = pack(tmp_path / "y.zip", photos, "set/photos/")
    with pytest.raises(BadInput, match="the folder has a single class") as error:
        build("folder", root=root, out=tmp_path / "out")
    assert error.value.advice == f"say --root {root}/set/photos"
    assert api.plan_of("folder", tmp_path / "out", {"root": root / "set/photos"}).counts == counts[1]
    with pytest.raises(BadInput, match=r"no such folder in the archive; found set .1 in all."):
        build("folder", root=root / "seta", out=tmp_path / "out")


def test_lists_count_from_the_archive_or_from_its_folder(tmp_path: Path, contents: dict[str, bytes]) -> None:
    root = pack(tmp_path / "x.zip", contents, "photos/")
    for top in ("", "photos/"):
        lines = [f"{n}\t{n % 2}\t{top}ape/{n:02d}.jpg\n" for n in range(6)]
        (tmp_path / "x.lst").write_text("".join([*lines, f"6\t0\t{top}ape/99.jpg\n"]))
        options = {**OPTIONS, "root": root, "list_file": tmp_path / "x.lst"}
        summary = build("list", out=tmp_path / f"out {len(top)}", max_rejects=1, **options)
        assert (summary.records, summary.rejected) == ({"train": 6}, {"train": 1})
    assert "file is missing" in (tmp_path / "out 0" / "rejects.csv").read_text()


def test_imagenet_in_a_zip(tmp_path: Path, kaggle: Path, archives: Path) -> None:
    options = {"test_images": 0}
    for root in (kaggle, archives):
        files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        packed = pack(tmp_path / f"{root.name} stored.zip", files)
        plans = [api.plan_of("imagenet", tmp_path / "out", {"root": given, **options}) for given in (root, packed)]
        assert plans[0].digest == plans[1].digest
    build("imagenet", root=archives, out=tmp_path / "from folder", **options)
    build("imagenet", root=packed, out=tmp_path / "from zip", **options)
    assert stored(tmp_path / "from zip") == stored(tmp_path / "from folder")
    packed = pack(tmp_path / "deflated.zip", files)
    with pytest.raises(BadInput, match="an archive inside of one is compressed; unpack the outer one"):
        api.plan_of("imagenet", tmp_path / "out", {"root": packed, **options})


def test_a_builder_of_others_sees_the_photos(
    tmp_path: Path, contents: dict[str, bytes], from_folder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def plan(root: Path) -> Plan:
        seen.append((root / "ape" / "00.jpg").read_bytes())
        return folder_builder.plan(root)

    monkeypatch.setattr(builders.BUILDERS, "_items", dict(builders.BUILDERS._items))
    ip.register_builder("theirs", plan)
    build("theirs", root=pack(tmp_path / "x.zip", contents), out=tmp_path / "out", **OPTIONS)
    assert seen == [contents["ape/00.jpg"]]
    assert stored(tmp_path / "out") == from_folder


def test_an_error_names_the_archive_and_leaves_nothing(tmp_path: Path, photo: Photo) -> None:
    root = pack(tmp_path / "x.zip", {"ape/1.jpg": photo("ape"), "cat/notes.txt": b"", "dog/1.jpg": photo("dog")})
    with pytest.raises(BadInput, match="class folder cat holds no images") as error:
        build("folder", root=root, out=tmp_path / "out", **OPTIONS)
    assert str(error.value).startswith(f"{root}: ")
    root = pack(tmp_path / "y.zip", {"ape/1.jpg": b"x", "../dog/1.jpg": b"x"})
    with pytest.raises(BadInput, match=r"leads out of the folder"):
        build("folder", root=root, out=tmp_path / "out", **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zip", "y.zip"]


@pytest.mark.parametrize("name", ["stored.zip", "deflated.zip"])
def test_a_photo_that_is_damaged_in_a_zip_is_rejected(name: str, tmp_path: Path, contents: dict[str, bytes]) -> None:
    root = pack(tmp_path / name, contents)
    with zipfile.ZipFile(root) as archive:
        at = archive.getinfo("ape/03.jpg").header_offset + 30 + len("ape/03.jpg") + 300
    damaged = bytearray(root.read_bytes())
    damaged[at] ^= 1
    root.write_bytes(damaged)
    with pytest.raises(BadInput, match="its member of the archive is damaged"):
        build("folder", root=root, out=tmp_path / "out", **OPTIONS)


def test_an_archive_that_changes_meanwhile_is_noticed(tmp_path: Path, contents: dict[str, bytes]) -> None:
    root = pack(tmp_path / "x.tar.gz", contents)
    archive = archives_module.open_archive(root)
    root.write_bytes(gzip.compress(b"\0" * 10240))
    with pytest.raises(BadInput, match="the archive has changed meanwhile"), open(tmp_path / "x", "wb") as stream:
        archive.unpack(stream)


def test_the_command_line_takes_an_archive(tmp_path: Path, contents: dict[str, bytes], capsys: Any) -> None:
    from imagenet_pipeline.cli import main

    root = pack(tmp_path / "x.zip", contents)
    with pytest.raises(SystemExit) as ended:
        main(["build", "folder", "--root", str(root), "--out", str(tmp_path / "out"), "--workers", "1", "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["records"] == {"train": 28, "val": 4, "test": 4}
