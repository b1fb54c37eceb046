"""The members of a tar from its headers alone: where in the file each lies.

A member is stored in a single piece, so that an image is an offset and a length; nothing need be unpacked. The format:
POSIX.1-1988 (ustar), with GNU's and pax's long names.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from imagenet_pipeline.errors import BadInput

BLOCK_BYTES = 512
LONG_NAME_LIMIT_BYTES = 2**16

Span = tuple[int, int]
"""Offset and bytes in the file."""
ReadAt = Callable[[int, int], bytes]
"""Reads up to so many bytes from an offset on; fewer at the end. The offsets that are asked for rise."""

_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_BESIDE = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE)
"""Headers that say something of the member behind them, the last kind of all members behind it."""
_NAMED = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_SHOWN = 80


class Member(NamedTuple):
    """A file or a folder in a tar."""

    name: str
    span: Span
    is_folder: bool


def members(read_at: ReadAt, span: Span, where: object) -> Iterator[Member]:
    """Yield the members of the tar that fills a span, "./" before their names left out.

    Raises BadInput, naming the member, where the tar is cut or damaged, holds anything but files and folders, or a file
    twice.
    """
    at, end = span[0], span[0] + span[1]
    seen: set[str] = set()
    long_name, long_size = "", None
    while True:
        header = read_at(max(0, min(BLOCK_BYTES, end - at)), at)
        if len(header) < BLOCK_BYTES:
            found = f"{at + len(header) - span[0]:,} bytes"
            raise BadInput("the archive is cut: it ends without an end mark", where=where, found=found)
        if not any(header):
            return
        member = _member(header, where, at - span[0])
        at += BLOCK_BYTES
        size = member.size if long_size is None or member.type not in _FILES else long_size
        name = (long_name or member.name).removeprefix("./")
        if not 0 <= size <= end - at:
            found = f"{end - at:,} bytes of {name[:_SHOWN]}"
            raise BadInput("the archive is cut", where=where, expected=f"{size:,} bytes", found=found)
        if member.type in _BESIDE:
            said = _long(member, read_at(min(size, LONG_NAME_LIMIT_BYTES + 1), at), where)
            long_name, long_size = (long_name, long_size) if member.type == tarfile.XGLTYPE else said
        elif member.type in (*_FILES, tarfile.DIRTYPE):
            if member.type in _FILES and name in seen:
                raise BadInput("the archive holds a member twice", where=where, found=repr(name[:_SHOWN]))
            seen.add(name)
            yield Member(name, (at, size), member.type == tarfile.DIRTYPE)
            long_name, long_size = "", None
        at += -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _member(header: bytes, where: object, offset: int) -> tarfile.TarInfo:
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        reason = f"not a tar archive, or damaged ({error})"
        raise BadInput(reason, where=f"{where}, byte {offset:,}") from error
    if member.type not in (*_FILES, tarfile.DIRTYPE, *_BESIDE):
        kind = member.type.decode("latin-1")
        named = f", {_NAMED[member.type]}" if member.type in _NAMED else ""
        raise BadInput(
            f"the archive holds a member that is no plain file (type {kind!r}{named})",
            where=where,
            expected="files and folders",
            found=repr(member.name[:_SHOWN]),
            advice="repack it with tar --dereference --format=ustar",
        )
    return member


def _long(member: tarfile.TarInfo, content: bytes, where: object) -> tuple[str, int | None]:
    """The name, and the size where it is given, that a header before a member's own has for it."""
    try:
        if len(content) > LONG_NAME_LIMIT_BYTES or len(content) < member.size:
            raise ValueError(f"{member.size:,} bytes")
        if member.type == tarfile.GNUTYPE_LONGNAME:
            return content.rstrip(b"\0").decode(), None
        fields = dict(_pax_fields(content))
        if any(key.startswith("GNU.sparse") for key in fields):
            raise ValueError("a sparse file")
        if fields and member.type == tarfile.XGLTYPE:
            raise ValueError(f"one {next(iter(fields))} for all members")
        return fields.get("path", ""), int(fields["size"]) if "size" in fields else None
    except ValueError as error:
        reason = f"the archive holds a header that cannot be read ({error})"
        raise BadInput(reason, where=where, found=repr(member.name[:_SHOWN])) from error


def _pax_fields(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the keys and values of pax records, "LENGTH KEY=VALUE" and a line break. Raises ValueError."""
    at = 0
    while at < len(content):
        digits, space, _ = content[at : at + 20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        key, equals, value = content[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if not equals or content[at + length - 1 : at + length] != b"\n":
            raise ValueError("no pax record")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse"):
            yield key.decode(), value.decode()
        at += length
