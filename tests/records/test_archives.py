"""Archives looked through and read in place; hostile, cut and damaged ones are one line, and nothing is written."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records import archives
from imagenet_pipeline.records.archives import Archive, BadMember, blocks, is_archive, open_archive

NAMES = st.lists(st.text("abcxyzäß. -", min_size=1, max_size=6), min_size=1, max_size=3).map("/".join)
CONTENTS = st.dictionaries(NAMES, st.binary(max_size=3000).map(lambda part: part * 3), min_size=1, max_size=6)


def zip_of(contents: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(contents: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


PACKED: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "stored.zip": lambda contents: zip_of(contents, zipfile.ZIP_STORED),
    "deflated.zip": zip_of,
    "pax.tar": tar_of,
    "gnu.tar": lambda contents: tar_of(contents, tarfile.GNU_FORMAT),
    "x.tar.gz": lambda contents: gzip.compress(tar_of(contents), 1),
    "x.tar.bz2": lambda contents: bz2.compress(tar_of(contents)),
    "x.tar.xz": lambda contents: lzma.compress(tar_of(contents), preset=0),
}


def content(archive: Archive, name: str) -> bytes:
    return dict(archive.contents([name]))[name]


def whole(contents: Mapping[str, bytes]) -> bool:
    """Names that a folder can hold side by side, and that no archive's junk has."""
    parts = [name.split("/") for name in contents]
    plain = all(part.strip(".") and part != ".DS_Store" for name in parts for part in name)
    return plain and not any("/".join(name[:depth]) in contents for name in parts for depth in range(1, len(name)))


@pytest.mark.parametrize("name", PACKED)
@settings(max_examples=25)
@given(contents=CONTENTS.filter(whole))
def test_what_was_packed_is_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, contents: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    (folder / name).write_bytes(PACKED[name](contents))
    archive = open_archive(folder / name)
    assert dict(archive.contents(contents)) == contents
    for inner in archive.folders:
        (folder / "out" / inner).mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    archive.extract(contents, folder / "out")
    assert {part: (folder / "out" / part).read_bytes() for part in contents} == contents


@pytest.mark.parametrize("name", PACKED)
@settings(max_examples=25)
@given(at=st.integers(0, 10**6), noise=st.binary(max_size=40), cut=st.booleans())
def test_cut_and_flipped_bytes_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, name: str, at: int, noise: bytes, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("noise") / name
    contents = {"a/1.jpg": bytes(range(256)) * 9, "b/2.jpg": b"x" * 700, "b/" + "long" * 40: b"y"}
    packed = PACKED[name](contents)
    at %= len(packed)
    path.write_bytes(packed[:at] + (b"" if cut else noise + packed[at + len(noise) :]))
    with contextlib.suppress(BadInput):
        archive = open_archive(path)
        for member, found in archive.contents(archive.members):
            # A zip has checksums, and so has what is compressed.
            assert name.endswith(".tar") or member not in contents or found == contents[member]


def linked(name: str, kind: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def attributed(kind: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("cat/1.jpg")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def repeated() -> bytes:
    """A zip in which a name is given twice."""
    packed = zip_of({"cat/1.jpg": b"x", "dog/1.jpg": b"x"})
    return packed.replace(b"dog/1.jpg", b"cat/1.jpg")


def encrypted() -> bytes:
    packed = bytearray(zip_of({"cat/1.jpg": b"x"}))
    packed[packed.index(b"PK\x01\x02") + 8] |= 1
    return bytes(packed)


def with_global(**said: str) -> bytes:
    """A tar with a pax header that says something of all members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=said) as tar:
        tar.addfile(tarfile.TarInfo("cat/1.jpg"))
    return buffer.getvalue()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "up.zip": (
        zip_of({"cat/1.jpg": b"x", "../../etc/passwd": b"x"}),
        "leads out of the folder by '..'; found '../../et",
    ),
    "back.zip": (zip_of({"cat\\..\\..\\1.jpg": b"x"}), "leads out of the folder by '..'"),
    "root.zip": (zip_of({"/etc/passwd": b"x"}), "absolute name; found '/etc/passwd'"),
    "drive.zip": (zip_of({"C:\\1.jpg": b"x"}), "absolute name"),
    "link.zip": (attributed(stat.S_IFLNK), "no plain file .a symbolic link.; found 'cat/1.jpg'"),
    "pipe.zip": (attributed(stat.S_IFIFO), "no plain file .a device or a pipe.; found 'cat/1.jpg'"),
    "socket.zip": (attributed(stat.S_IFSOCK), "no plain file"),
    "twice.zip": (repeated(), "lies over another|member twice; found 'cat/1.jpg'"),
    "both.zip": (zip_of({"cat": b"x", "cat/1.jpg": b"x"}), "a file and a folder; found 'cat'"),
    "secret.zip": (encrypted(), "is encrypted"),
    "lzma.zip": (zip_of({"cat/1.jpg": b"x"}, zipfile.ZIP_LZMA), "compressed by method 14"),
    "empty.zip": (zip_of({}), "holds no files"),
    "no.zip": (b"PK\x03\x04" + bytes(90), "not a zip archive"),
    "long.zip": (zip_of({"a" * 300: b"x"}), "a name that no folder can hold"),
    "up.tar": (tar_of({"a/../../1.jpg": b"x"}), r"leads out of the folder by '..'; found 'a/../../1.jpg'"),
    "root.tar": (tar_of({"/etc/passwd": b"x"}), "absolute name"),
    "link.tar": (linked("cat/1.jpg", tarfile.SYMTYPE), "a symbolic link.; .* found 'cat/1.jpg'"),
    "hard.tar": (linked("cat/1.jpg", tarfile.LNKTYPE), "a hard link.; .* found 'cat/1.jpg'"),
    "device.tar": (linked("cat/1.jpg", tarfile.CHRTYPE), "a device"),
    "pipe.tar": (linked("cat/1.jpg", tarfile.FIFOTYPE), "a pipe"),
    "twice.tar": (tar_of({"cat/1.jpg": b"x"})[:1024] + tar_of({"cat/1.jpg": b"x"}), "member twice; found 'cat/1.jpg'"),
    "same.tar": (tar_of({"cat/1.jpg": b"x"})[:1024] + tar_of({"cat//1.jpg": b"x"}), "member twice; found 'cat/1.jpg'"),
    "deep.tar": (tar_of({"a/" * 1000 + "1.jpg": b"x"}), "lies in more than 100 folders; found 'a/a/a"),
    "nul.zip": (zip_of({"catX1.jpg": b"x"}).replace(b"X", b"\0"), "a name that no folder can hold"),
    "path of all.tar": (with_global(path="dog/1.jpg"), "a header that cannot be read .one path for all members"),
    "size of all.tar": (with_global(size="0"), "a header that cannot be read .one size for all members"),
    "link.tar.gz": (gzip.compress(linked("cat/1.jpg", tarfile.SYMTYPE)), "a symbolic link"),
    "cut.tar.gz": (gzip.compress(tar_of({"cat/1.jpg": b"x" * 900}))[:-20], "cut or damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_one_line(name: str, tmp_path: Path) -> None:
    packed, message = HOSTILE[name]
    (tmp_path / name).write_bytes(packed)
    with pytest.raises(BadInput, match=message) as error:
        open_archive(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def bomb(name: str, size_bytes: int) -> bytes:
    class Zeros(io.RawIOBase):
        left = size_bytes

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            count = min(len(buffer), self.left)
            buffer[:count] = bytes(count)
            self.left -= count
            return count

        def readable(self) -> bool:
            return True

    packed = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros.txt", "w") as member:
            member.write(bytes(size_bytes))
    else:
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            info = tarfile.TarInfo("zeros.txt")
            info.size = size_bytes
            tar.addfile(info, io.BufferedReader(Zeros()))
    return packed.getvalue()


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz"])
def test_a_bomb_is_refused_before_it_is_unpacked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "RATIO_FREE_BYTES", 2**20)
    (tmp_path / name).write_bytes(bomb(name, 2**24))
    with pytest.raises(BadInput, match="far more than photos would be; expected at most 200 times its size"):
        open_archive(tmp_path / name)


def test_a_member_that_says_less_than_it_holds_is_damaged(tmp_path: Path) -> None:
    packed = zip_of({"zeros.txt": bytes(2**22)})
    false = packed.replace((2**22).to_bytes(4, "little"), (2**10).to_bytes(4, "little"))
    (tmp_path / "x.zip").write_bytes(false)
    with pytest.raises(BadInput, match="the member is damaged; found 'zeros"):
        content(open_archive(tmp_path / "x.zip"), "zeros.txt")


def test_no_more_is_inflated_than_a_member_says_it_holds() -> None:
    packed = zlib.compress(np.random.default_rng(0).bytes(2**23), wbits=-15)

    def read_at(size_bytes: int, offset: int) -> bytes:
        return packed[offset : offset + size_bytes]

    with pytest.raises(BadMember, match="is damaged"):
        next(blocks(read_at, (0, len(packed), 100, -1)))


def test_members_that_lie_over_one_another_are_refused(tmp_path: Path) -> None:
    packed = bytearray(zip_of({"a.jpg": b"x" * 50, "b.jpg": b"x" * 50}, zipfile.ZIP_STORED))
    second = packed.index(b"PK\x01\x02", packed.index(b"PK\x01\x02") + 1)
    packed[second + 42 : second + 46] = bytes(4)  # its header is the first member's
    (tmp_path / "x.zip").write_bytes(packed)
    with pytest.raises(BadInput, match="lies over another; found"):
        open_archive(tmp_path / "x.zip")


def test_a_comment_on_all_members_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(with_global(comment="0f3a, as git archive writes it"))
    assert list(open_archive(tmp_path / "x.tar").members) == ["cat/1.jpg"]


def test_leftovers_of_a_mac_are_no_members(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zip_of({"cat/1.jpg": b"x", "__MACOSX/cat/._1.jpg": b"x", "cat/.DS_Store": b"x"}))
    assert [*open_archive(tmp_path / "x.zip").members] == ["cat/1.jpg"]


def test_its_first_bytes_say_what_an_archive_is(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(gzip.compress(tar_of({"a.jpg": b"x"})))
    assert content(open_archive(tmp_path / "x.tar"), "a.jpg") == b"x"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_archive_is_known_by_its_name(here: Path) -> None:
    (here / "photos.zip").mkdir()
    (here / "photos.rar").touch()
    assert is_archive(Path("no.TAR.GZ"))
    assert not is_archive(Path("photos.zip"))
    assert not is_archive(Path("train.parquet"))
    with pytest.raises(BadInput, match="archives of this kind are not read"):
        is_archive(Path("photos.rar"))
