"""The official archives, read as they are; hostile and cut ones are one line."""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagenet_pipeline.record_builders.imagenet_archives import TRAIN_ARCHIVE, VAL_ARCHIVE, train_members, val_members

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.record_builders import imagenet
from imagenet_pipeline.records.build import BuildOptions, build

Tar = Callable[..., bytes]


def test_real_photos_are_found_where_tar_wrote_them(shared_data: Path, tar_of: Tar, tmp_path: Path) -> None:
    photos: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shared_data / "imagenette224_6000.tar") as tar:
        for member in tar:
            if "/train/" in member.name and (content := tar.extractfile(member)):
                wnid = member.name.split("/")[-2]
                photos.setdefault(wnid, {})[f"{wnid}_{len(photos[wnid]) if wnid in photos else 0}.JPEG"] = (
                    content.read()
                )
            if len(photos) == 3:
                break
    archive = tmp_path / TRAIN_ARCHIVE
    archive.write_bytes(tar_of({f"{wnid}.tar": tar_of(images) for wnid, images in reversed(photos.items())}))
    whole = archive.read_bytes()
    found = {name: whole[at : at + size] for _, name, (at, size) in train_members(archive)}
    expected = {f"{wnid}.tar/{name}": content for wnid, images in photos.items() for name, content in images.items()}
    assert found == expected
    assert [*found] == sorted(found)
    assert len(found) > 1000


@given(st.dictionaries(st.integers(0, 10**8 - 1), st.binary(max_size=2000), min_size=1, max_size=8), st.data())
def test_a_cut_archive_is_named_wherever_it_is_cut(
    tar_of: Tar, tmp_path_factory: pytest.TempPathFactory, images: dict[int, bytes], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / VAL_ARCHIVE
    members = {f"ILSVRC2012_val_{n:08d}.JPEG": content for n, content in images.items()}
    whole = tar_of(members)
    path.write_bytes(whole)
    assert {name: whole[at : at + size] for name, (at, size) in val_members(path)} == members
    end = max(at + -(-size // 512) * 512 for _, (at, size) in val_members(path))
    path.write_bytes(whole[: data.draw(st.integers(0, end + 511))])
    with pytest.raises(BadInput, match="cut"):
        val_members(path)


@given(st.binary(max_size=1500), st.integers(0, 1500))
def test_no_bytes_raise_anything_else(
    tar_of: Tar, tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    path = tmp_path_factory.mktemp("noise") / VAL_ARCHIVE
    whole = tar_of({"ILSVRC2012_val_00000001.JPEG": b"x" * 700})
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    with contextlib.suppress(BadInput):
        assert all(at + size <= path.stat().st_size for _, (at, size) in val_members(path))


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **fields: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


IMAGE = "ILSVRC2012_val_00000001.JPEG"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (member(IMAGE, tarfile.SYMTYPE, linkname="/etc/passwd"), "no plain file .type '2'.*--format=ustar"),
        (member(IMAGE, tarfile.LNKTYPE, linkname="x"), "no plain file .type '1'"),
        (member(IMAGE, tarfile.FIFOTYPE), "no plain file"),
        (member(IMAGE, tarfile.GNUTYPE_SPARSE), "no plain file"),
        (member("a" * 300), "the member is not named as an image"),
        (member("/" + IMAGE), "the member is not named as an image"),
        (member("../" + IMAGE), "the member is not named as an image"),
        (member("x/" + IMAGE), "the member is not named as an image"),
        (member(IMAGE, size=-1), "the archive is cut; expected -1 bytes"),
        (member(IMAGE, size=2**40), "archive is cut; expected 1,099,511,627,776 bytes"),
        (member(IMAGE) * 2, "the archive holds a member twice"),
        (b"", "archive is empty"),
        (b"\x1f\x8b" + bytes(510), "not a tar archive, or damaged"),
    ],
)
def test_a_hostile_archive_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / VAL_ARCHIVE).write_bytes(content + bytes(1024))
    with pytest.raises(BadInput, match=message) as error:
        val_members(tmp_path / VAL_ARCHIVE)
    assert str(error.value).startswith(str(tmp_path / VAL_ARCHIVE))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("outer", "inner", "message"),
    [
        (
            "n00000001.zip",
            "n00000001_1.JPEG",
            "the member is not the archive of a class; expected n01440764.tar; found n00000001.zip",
        ),
        (
            "n00000001.tar",
            "n00000002_1.JPEG",
            r"n00000001.tar: the member is not named as an image; .*found 'n00000002_1.JPEG'",
        ),
    ],
)
def test_a_class_archive_holds_its_own_images(
    outer: str, inner: str, message: str, tar_of: Tar, tmp_path: Path
) -> None:
    (tmp_path / TRAIN_ARCHIVE).write_bytes(tar_of({outer: tar_of({inner: b"x"})}))
    with pytest.raises(BadInput, match=message):
        list(train_members(tmp_path / TRAIN_ARCHIVE))


def test_folders_and_dots_before_names_do_not_matter(tar_of: Tar, tmp_path: Path) -> None:
    (tmp_path / VAL_ARCHIVE).write_bytes(member("./", tarfile.DIRTYPE) + tar_of({f"./{IMAGE}": b"x"}))
    assert [name for name, _ in val_members(tmp_path / VAL_ARCHIVE)] == [IMAGE]


def test_a_build_out_of_archives_goes_on_where_it_was(archives: Path, tmp_path: Path) -> None:
    plan, options = imagenet.plan(archives, test_images=0), BuildOptions(workers=1, shards=4)
    build(plan, tmp_path / "at once", options)

    def stop(done: int, total: int) -> None:
        if list((tmp_path / "in two" / ".building").glob("train-*.json")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(plan, tmp_path / "in two", options, stop)
    first = next((tmp_path / "in two").glob("train-*.rec"))
    stamp = first.stat().st_mtime_ns
    build(imagenet.plan(archives, test_images=0), tmp_path / "in two", options)
    assert first.stat().st_mtime_ns == stamp
    # Every shard is out of it, and it is one file.
    os.utime(archives / TRAIN_ARCHIVE, ns=(1, 1))
    assert build(plan, tmp_path / "in two", options).changed == [TRAIN_ARCHIVE]
    for path in (tmp_path / "at once").iterdir():
        if path.is_file():
            assert (tmp_path / "in two" / path.name).read_bytes() == path.read_bytes()


def test_an_archive_that_shrinks_or_goes_meanwhile_is_a_reason(archives: Path, tmp_path: Path) -> None:
    plan = imagenet.plan(archives, test_images=0)
    archive = archives / TRAIN_ARCHIVE
    archive.write_bytes(archive.read_bytes()[:600])
    with pytest.raises(BadInput, match="its archive is shorter than it was"):
        build(plan, tmp_path / "out", BuildOptions(workers=1))
    archive.unlink()
    with pytest.raises(BadInput, match="its archive cannot be read"):
        build(plan, tmp_path / "out", BuildOptions(workers=1))
