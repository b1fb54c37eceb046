"""Archives of photos, read as they are: where in a zip or a tar each member lies, and what it holds.

Of a zip and of a plain tar each member is read in place; a tar that is compressed as a whole is decompressed into a
file of ours first, where a build needs it. An archive with a member that may lead out of a folder is refused as a
whole, before anything is written.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records import tar
from imagenet_pipeline.records.tar import ReadAt

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
OTHER_ENDINGS = (".rar", ".7z", ".tar.zst", ".tzst", ".tar.lz4", ".tar.z")
MEMBERS_LIMIT = 20_000_000
RATIO_LIMIT, RATIO_FREE_BYTES = 200, 2**30
"""Times its own size that an archive may hold, and bytes that any may: what holds more is made to fill disks."""

MemberSpan = Sequence[int]
"""Offset and bytes in the file; of a zip's member also the bytes when inflated (0: it is stored), and its CRC-32."""

_OPENERS: Mapping[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
"""The opener of a compressed file, by its first bytes."""
_DECOMPRESSION_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, MemoryError)
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OSError, EOFError, OverflowError)
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")
"""Signature, flags, method, bytes of the name and of the extra field of a member of a zip."""
_ENCRYPTED, _IN_UTF8 = 1, 0x800
_DRIVE = re.compile(r"[A-Za-z]:")
_BLOCK_BYTES = 2**20
_NAME_LIMIT_BYTES, _DEPTH_LIMIT = 255, 100
_SHOWN = 80


class BadMember(Exception):
    """A member of an archive that cannot be read, with the reason."""


@dataclass(frozen=True)
class Archive:
    """An archive that was looked through: the span of each file in it, by its name, and the names of its folders.

    `unpacked_bytes` is the size of what it holds compressed as a whole, where its members are read; else 0.
    """

    path: Path
    members: dict[str, MemberSpan] = field(repr=False)
    folders: set[str] = field(repr=False)
    unpacked_bytes: int = 0

    def contents(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the contents of members, in the order in which they lie. Raises BadInput for one that is damaged."""
        with self._reading() as read_at:
            for name in sorted(names, key=lambda name: self.members[name][0]):
                yield name, b"".join(self._blocks(read_at, name))

    def extract(self, names: Iterable[str], folder: Path) -> None:
        """Write members into an empty folder, each under its name. Raises OutOfRoom, and BadInput as `contents`."""
        names = sorted(names, key=lambda name: self.members[name][0])
        files.check_free_space(folder, sum(size_of(self.members[name]) for name in names))
        with self._reading() as read_at:
            for name in names:
                with files.explaining(folder / name), open(folder / name, "xb") as stream:
                    for block in self._blocks(read_at, name):
                        stream.write(block)

    def unpack(self, stream: BinaryIO) -> None:
        """Write all that the archive holds, where it is compressed as a whole, into a file.

        Raises OutOfRoom, and BadInput where the archive has changed.
        """
        files.check_free_space(Path(stream.name).parent, self.unpacked_bytes)
        with _decompressed(self.path) as reader:
            while block := reader.read_at(_BLOCK_BYTES, reader.at):
                with files.explaining(Path(stream.name)):
                    stream.write(block)
        if reader.at != self.unpacked_bytes:
            raise BadInput("the archive has changed meanwhile", where=self.path, advice="run the same build again")

    @contextmanager
    def _reading(self) -> Iterator[ReadAt]:
        if self.unpacked_bytes:
            with _decompressed(self.path) as reader:
                yield reader.read_at
        else:
            with _plain(self.path) as read_at:
                yield read_at

    def _blocks(self, read_at: ReadAt, name: str) -> Iterator[bytes]:
        try:
            yield from blocks(read_at, self.members[name])
        except BadMember as error:
            raise BadInput(f"the member {error}", where=self.path, found=repr(name[:_SHOWN])) from error


def is_archive(path: Path) -> bool:
    """Tell whether a path is an archive, by its name. Raises BadInput for one of a kind that is not read."""
    name = path.name.lower()
    if name.endswith(OTHER_ENDINGS) and path.is_file():
        advice = "unpack it, or pack it again as one of those"
        raise BadInput("archives of this kind are not read", where=path, expected=" ".join(ENDINGS), advice=advice)
    return name.endswith(ENDINGS) and not path.is_dir()


def open_archive(path: Path) -> Archive:
    """Look through an archive, whatever its name ends in: its kind is in its first bytes.

    Every member is checked. Raises BadInput, naming it, for one whose name is absolute or leads out of a folder, for
    links, devices and pipes, a name that is given twice; for archives that are encrypted, cut, damaged, or hold far
    more than their size.
    """
    with files.regular_file(path) as (stream, size_bytes):
        head = files.read_at(stream.fileno(), 6, 0)
        if head.startswith(_ZIP_STARTS):
            return _gathered(path, _zip_members(stream, size_bytes, path))
    if any(map(head.startswith, _OPENERS)):
        with _decompressed(path) as reader:
            archive = _gathered(path, _tar_members(reader.read_at, 2**62, path))
            return replace(archive, unpacked_bytes=reader.read_to_end())
    with _plain(path) as read_at:
        return _gathered(path, _tar_members(read_at, size_bytes, path))


def size_of(span: MemberSpan) -> int:
    """The bytes of what a member holds."""
    return span[2] if len(span) > 2 and span[2] else span[1]


def blocks(read_at: ReadAt, span: MemberSpan) -> Iterator[bytes]:
    """Yield what a member holds, a block at a time. Raises BadMember where that is not what was packed."""
    offset, size_bytes, inflated_bytes, checksum = span if len(span) == 4 else (*span, 0, -1)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS) if inflated_bytes else None
    done = made = found = 0
    while done < size_bytes:
        block = read_at(min(_BLOCK_BYTES, size_bytes - done), offset + done)
        if not block:
            raise BadMember("is cut")
        done += len(block)
        for part in _inflated(inflater, block, inflated_bytes) if inflater else (block,):
            made += len(part)
            if made > (inflated_bytes or size_bytes):
                raise BadMember("is damaged")
            found = zlib.crc32(part, found) if checksum >= 0 else 0
            yield part
    if made != (inflated_bytes or size_bytes) or (checksum >= 0 and found != checksum):
        raise BadMember("is damaged")


def _inflated(inflater: Any, block: bytes, limit_bytes: int) -> Iterator[bytes]:
    """Yield what a block holds, less than `limit_bytes` more than that in all."""
    made = 0
    try:
        while block and made <= limit_bytes:
            part = inflater.decompress(block, _BLOCK_BYTES)
            block = inflater.unconsumed_tail
            made += len(part)
            yield part
    except zlib.error as error:
        raise BadMember(f"is damaged ({error})") from error


def _gathered(path: Path, found: Iterable[tuple[str, MemberSpan | None]]) -> Archive:
    """The archive of the members found, a folder's without a span, each name checked."""
    archive, total = Archive(path, {}, set()), 0
    for given, span in found:
        name = _checked_name(given, path)
        if not name or name.partition("/")[0] == "__MACOSX" or name.rpartition("/")[2] == ".DS_Store":
            continue
        if span is None:
            archive.folders.add(name)
        elif name in archive.members:
            raise BadInput("the archive holds a member twice", where=path, found=repr(name[:_SHOWN]))
        else:
            archive.members[name] = span
            total += size_of(span)
        above = name.rpartition("/")[0]
        while above and above not in archive.folders:
            archive.folders.add(above)
            above = above.rpartition("/")[0]
        if len(archive.members) + len(archive.folders) > MEMBERS_LIMIT:
            raise BadInput("the archive holds too many members", where=path, expected=f"at most {MEMBERS_LIMIT:,}")
    both = archive.folders.intersection(archive.members)
    if both:
        raise BadInput("a member is a file and a folder", where=path, found=repr(min(both)[:_SHOWN]))
    if not archive.members:
        raise BadInput("the archive holds no files", where=path)
    _require_likely(total, path.stat().st_size, path)
    return archive


def _checked_name(given: str, where: Path) -> str:
    """A member's name without needless parts, "/" between the others. Raises BadInput where it may lead elsewhere."""
    parts = [part for part in given.replace("\\", "/").split("/") if part not in ("", ".")]
    fault = ""
    if given.startswith(("/", "\\")) or _DRIVE.match(given):
        fault = "has an absolute name"
    elif ".." in parts:
        fault = "leads out of the folder by '..'"
    elif "\0" in given or any(len(part.encode(errors="surrogatepass")) > _NAME_LIMIT_BYTES for part in parts):
        fault = "has a name that no folder can hold"
    elif len(parts) > _DEPTH_LIMIT:
        fault = f"lies in more than {_DEPTH_LIMIT} folders"
    if fault:
        shown = repr(given[:_SHOWN])
        raise BadInput(f"a member of the archive {fault}", where=where, found=shown, advice="it is not unpacked")
    return "/".join(parts)


def _require_likely(total_bytes: int, size_bytes: int, path: Path) -> None:
    limit_bytes = max(RATIO_FREE_BYTES, RATIO_LIMIT * size_bytes)
    if total_bytes > limit_bytes:
        expected = f"at most {RATIO_LIMIT} times its size"
        what = "the archive holds far more than photos would be"
        raise BadInput(what, where=path, expected=expected, found=f"{total_bytes:,} bytes", advice="it is not unpacked")


@contextmanager
def _plain(path: Path) -> Iterator[ReadAt]:
    with files.regular_file(path) as (stream, _):
        yield partial(files.read_at, stream.fileno())


class _Forward:
    """A compressed file read as if it were not, forward only; `at` is where, in bytes of what it holds."""

    def __init__(self, path: Path, raw: BinaryIO, size_bytes: int, bar: Bar) -> None:
        head = files.read_at(raw.fileno(), 6, 0)
        opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
        if opener is None:
            raise BadInput("is no compressed archive any more", where=path)
        self.at = 0
        self._path, self._raw, self._size_bytes, self._bar = path, raw, size_bytes, bar
        self._stream = opener(raw)

    def read_at(self, wanted_bytes: int, offset: int) -> bytes:
        """Read on from an offset that is not behind. Raises BadInput where the file is cut, damaged or a bomb."""
        while self.at < offset:
            if not self._read(min(_BLOCK_BYTES, offset - self.at)):
                return b""
        return self._read(wanted_bytes)

    def read_to_end(self) -> int:
        """Read all that is left; the bytes that the file holds."""
        while self._read(_BLOCK_BYTES):
            pass
        return self.at

    def _read(self, wanted_bytes: int) -> bytes:
        try:
            content: bytes = self._stream.read(wanted_bytes)
        except _DECOMPRESSION_ERRORS as error:
            raise BadInput(f"the archive is cut or damaged ({error})", where=self._path) from error
        self.at += len(content)
        _require_likely(self.at, self._size_bytes, self._path)
        self._bar.show(self._raw.tell() // 10**6, self._size_bytes // 10**6)
        return content


@contextmanager
def _decompressed(path: Path) -> Iterator[_Forward]:
    with files.regular_file(path) as (raw, size_bytes), Bar("unpack", "MB") as bar:
        yield _Forward(path, raw, size_bytes, bar)


def _tar_members(read_at: ReadAt, size_bytes: int, path: Path) -> Iterator[tuple[str, MemberSpan | None]]:
    for name, span, is_folder in tar.members(read_at, (0, size_bytes), path):
        yield name, None if is_folder else span


def _zip_members(stream: BinaryIO, size_bytes: int, path: Path) -> Iterator[tuple[str, MemberSpan | None]]:
    """Yield name and span of each member of a zip, as its directory and the header before each member agree on them."""
    try:
        with zipfile.ZipFile(stream) as archive:
            infos, end = sorted(archive.infolist(), key=lambda info: info.header_offset), archive.start_dir
    except _ZIP_ERRORS as error:
        raise BadInput(f"not a zip archive, cut or damaged ({error})", where=path) from error
    free_from = 0
    for info in infos:
        fault, start = _fault_of(info), 0
        if not fault:
            start = _start_of(info, partial(files.read_at, stream.fileno()))
            overlaps = info.header_offset < free_from or not 0 < start <= min(end, size_bytes) - info.compress_size
            fault = "is cut, damaged, or lies over another" if overlaps else ""
        if fault:
            shown = repr(info.filename[:_SHOWN])
            raise BadInput(f"a member of the archive {fault}", where=path, found=shown)
        free_from = start + info.compress_size
        is_stored = info.compress_type == zipfile.ZIP_STORED
        sizes = (info.compress_size, 0 if is_stored else info.file_size) if info.file_size else (0, 0)
        yield info.filename, None if info.is_dir() else (start, *sizes, info.CRC)


def _fault_of(info: zipfile.ZipInfo) -> str:
    """The reason, as the end of a sentence, for which a member of a zip is refused; none for most."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"is no plain file ({'a symbolic link' if kind == stat.S_IFLNK else 'a device or a pipe'})"
    if "\0" in info.orig_filename:
        return "has a name that no folder can hold"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted: unpack it with its password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type}: pack it again, with stored or deflated members"
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        return "is cut or damaged"
    return ""


def _start_of(info: zipfile.ZipInfo, read_at: ReadAt) -> int:
    """Offset of a member's content, by the header before it; 0 where that is another's."""
    try:
        name = info.orig_filename.encode("utf-8" if info.flag_bits & _IN_UTF8 else "cp437")
    except UnicodeEncodeError:
        return 0
    header = read_at(_LOCAL_HEADER.size + len(name), info.header_offset)
    if len(header) < _LOCAL_HEADER.size:
        return 0
    signature, _, method, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(header)
    alike = (signature, method, header[_LOCAL_HEADER.size :]) == (b"PK\x03\x04", info.compress_type, name)
    return (
        info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes if alike and name_bytes == len(name) else 0
    )
