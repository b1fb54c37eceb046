"""The only door to the disk: a file or folder appears whole under its name, or not at all.

Protocol: write beside the target under a part name, fsync, rename over the target, fsync the folder.
A failed sync is never retried: the kernel may have dropped the pages already
(Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020).
Parts that killed processes left are told from those that others are writing, and removed.

Calls that only some systems have (`pread`, O_NONBLOCK, fsync of a folder, locks) are made here and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, OutOfRoom, PipelineError

try:
    import fcntl
except ImportError:  # Windows, which removes no open file anyway
    fcntl = None  # type: ignore[assignment]

POINTER, POINTER_ADVICE = "a Git LFS pointer, not the file itself", "fetch the file with `git lfs pull`"
PART_MARK = ".part-"
_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.EINVAL, errno.ENOTSUP}
"""Answers of file systems, and of Windows to users without the right, that have no symbolic links."""
READING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Flags of os.open. O_NONBLOCK changes nothing for a file, but a pipe without it blocks until somebody writes."""
_seeking = threading.Lock()
_FEW, _SYNCED_TOGETHER = 64, 4096
"""Files of a folder that are made durable one by one; and of larger folders, those in hand at a time."""


@contextlib.contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Open `path` for writing so that it appears only once everything in the block has been written.

    Without `durable` nothing is synced: a killed process leaves it whole, a machine without power may not.
    Raises OutOfRoom when the disk (or a file size limit) is full; the earlier file of that name stays.
    """
    path = Path(path)
    part = _part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(part, path)
        if durable:
            _sync(path.parent)
    except BrokenPipeError:
        raise  # the reader of our answer went away; no fault of this file
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it is renamed to `path`, which must not exist yet, when the block ends well."""
    path = Path(path)
    part = _part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        yield part
        _sync_all([*part.rglob("*"), part])
        os.rename(part, path)
        _sync(path.parent)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _explained(error, path) from error
    except OutOfRoom as error:
        raise OutOfRoom(error.what, where=path, advice=error.advice) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def part_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` for files to be renamed to their final paths together; it goes with the block.

    Raises OutOfRoom naming `path`.
    """
    part = _part_of(Path(path))
    try:
        with explaining(path):
            part.mkdir(parents=True)
        yield part
    except OutOfRoom as error:
        raise OutOfRoom(error.what, where=path, advice=error.advice) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def regular_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file of the user's to read, and say its size in bytes (see `open_regular`).

    Raises BadInput for anything that cannot be read.
    """
    try:
        with open_regular(path) as stream:
            yield stream, os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror or error})", where=path) from error


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read; OSError for a pipe, a device or a folder, before it is waited for."""
    stream = open(path, "rb", opener=lambda name, flags: os.open(name, flags | READING))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError("not a regular file")
    return stream


def read_regular(path: Path) -> bytes:
    """Read the content of a file; OSError as `open_regular`."""
    with open_regular(path) as stream:
        return stream.read()


def read_at(descriptor: int, size_bytes: int, offset: int) -> bytes:
    """Read up to `size_bytes` from `offset` on; threads may share the descriptor."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size_bytes, offset)
    with _seeking:  # Windows has a single position for each descriptor
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size_bytes)


@contextlib.contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn an OSError met while writing in `path` into OutOfRoom or BadInput, a line for the user."""
    try:
        yield
    except OSError as error:
        raise _explained(error, Path(path)) from error


def write_whole(path: Path, content: bytes | str, durable: bool = True) -> None:
    """Write a small file whole (see `whole_file`)."""
    with whole_file(path, durable) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: object, durable: bool = True) -> None:
    """Write `value` as `json_bytes` has it (see `whole_file`)."""
    write_whole(path, json_bytes(value), durable)


def json_bytes(value: object) -> bytes:
    """Readable JSON of `value` with sorted keys, so that equal values give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read a JSON file of ours. Raises Damaged when it is absent or cannot be read."""
    try:
        return json.loads(read_regular(path).decode())
    except FileNotFoundError as error:
        raise Damaged("no such file", where=path) from error
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"cannot be read as JSON ({error})", where=path) from error


def append_line(path: Path, line: str, durable: bool = True) -> None:
    """Append a line with a single write and sync it, so that a kill leaves at most a torn last line.

    A torn last line, which has no newline, is cut off first: what was never finished does not count.
    Without `durable` it is not synced: for notes on progress, which may be lost.
    """
    content = line.encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        try:
            _cut_torn_line(descriptor)
            if os.write(descriptor, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _explained(error, Path(path)) from error


def rename(source: Path, target: Path) -> None:
    """Rename within a file system, into a folder made where it is missing; the new name is durable."""
    with explaining(target):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        _sync(Path(target).parent)


def adopt(part: Path, target: Path) -> None:
    """Rename a file that a library wrote in a part folder to its final path; its content is durable first."""
    with explaining(target):
        _sync(part)
    rename(part, target)


def point(link: Path, target_name: str) -> None:
    """Make `link` a symbolic link to its neighbour `target_name`, replacing an older link in a single step.

    It is for people alone: where there are no symbolic links, there is none.
    """
    part = _part_of(Path(link))
    with explaining(link):
        try:
            part.symlink_to(target_name)
        except OSError as error:
            if error.errno in _NO_LINKS:
                return
            raise
        rename(part, link)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill never leaves half of it under its name."""
    part = _part_of(Path(folder))
    with explaining(folder):
        os.rename(folder, part)
        shutil.rmtree(part)


def claim(path: Path, where: Path, work: str) -> AbstractContextManager[Any]:
    """Hold the lock file `path` until the block ends; the kernel lets go of it however the process ends.

    The file itself stays, and means nothing unless it is held. Raises Held, a BadInput saying that another process is
    at this `work` in `where`, if it is held already.
    """
    import filelock  # not before it is needed: it takes as long to import as all the rest of a command's start

    with explaining(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return filelock.FileLock(path, mode=0o644, thread_local=False).acquire(blocking=False)
        except filelock.Timeout as error:
            raise Held(f"another process is {work} here", where=where) from error
        except NotImplementedError as error:  # an older filelock's answer where there is no flock
            raise BadInput(f"cannot be locked ({error})", where=path) from error


class Held(BadInput):
    """The hold that `claim` was to take is another's."""


def hold(descriptor: int) -> bool:
    """Hold an open file with all others who do so, until it is closed; False where it is about to be removed."""
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_unheld(path: Path) -> bool:
    """Remove a file unless somebody, in any process, has a `hold` of it; tells whether it is gone."""
    held = contextlib.suppress(FileNotFoundError, BlockingIOError, PermissionError)
    with held, open(path, "r+b") if fcntl else contextlib.nullcontext() as stream:
        if fcntl and stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    return not path.exists()


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`; nobody else may be writing there."""
    for part in Path(folder).glob(f".*{PART_MARK}*"):
        remove(part)


def remove(part: Path) -> None:
    """Remove a part, a file or a folder; a part that is gone is no error."""
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)


def is_pointer(content: bytes) -> bool:
    """Recognise the beginning of a pointer: a file in place of a file that Git LFS has not fetched."""
    return content.startswith(b"version https://git-lfs.github.com/spec/v1")


def require_fetched(path: Path) -> None:
    """Raise BadInput for a Git LFS pointer; a file that is missing or cannot be read is for others to name."""
    if os.path.isfile(path):
        with contextlib.suppress(OSError), open(path, "rb") as stream:
            if is_pointer(stream.read(64)):
                raise BadInput(POINTER, where=path, advice=POINTER_ADVICE)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise OutOfRoom unless the file system that will hold `folder` has `needed_bytes` free."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        needed, free = f"{needed_bytes:,} bytes", f"{free_bytes:,} bytes free"
        advice = "free some room or write elsewhere"
        raise OutOfRoom("not enough free disk space", where=folder, expected=needed, found=free, advice=advice)


def require_ending(path: Path, endings: str | Sequence[str], what: str, advice: str | None = None) -> None:
    """Raise BadRecipe, saying `what` the file is, unless its name ends in one of `endings`, ".png", in any case."""
    endings = [endings] if isinstance(endings, str) else endings
    if path.suffix.lower() not in endings:
        raise BadRecipe(what, where=path, expected=f"a name that ends in {', '.join(endings)}", advice=advice)


def require_separate(outputs: Iterable[Path | None], inputs: Iterable[Path]) -> None:
    """Raise BadRecipe where two outputs are the same file, or an output is an input; None is not written."""
    taken = {os.path.realpath(path) for path in inputs}
    for path in outputs:
        if path is not None:
            resolved = os.path.realpath(path)
            if resolved in taken:
                raise BadRecipe("the output would overwrite an input or another output", where=path)
            taken.add(resolved)


def contained(root: Path, name: str) -> Path:
    """Path of `name` (relative, or absolute) inside `root`.

    Raises BadInput where it would lead outside, by `..` or by a symbolic link.
    """
    root = Path(root)
    if "\0" in name:
        raise BadInput("a path holds a NUL character", where=repr(name))
    path = root / name
    if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), "")):
        raise BadInput("leads outside the root folder", where=name, expected=f"a path inside {root}")
    return path


def _part_of(path: Path) -> Path:
    # In containers the process number alone is no name: a restart often gets that of the killed process.
    return path.with_name(f".{path.name}{PART_MARK}{os.getpid()}-{secrets.token_hex(4)}")


def _cut_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    if size and read_at(descriptor, 1, size - 1) != b"\n":
        os.ftruncate(descriptor, read_at(descriptor, size, 0).rfind(b"\n") + 1)


def _sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    flags = os.O_RDONLY
    if not hasattr(os, "O_DIRECTORY"):  # Windows syncs what may be written, and a folder by itself
        if os.path.isdir(path):
            return
        flags = os.O_RDWR
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_all(paths: Sequence[Path]) -> None:
    """Make files and folders durable, many of them side by side: a journal commits those together."""
    if len(paths) <= _FEW:
        for path in paths:
            _sync(path)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16, "syncing") as pool:
        for start in range(0, len(paths), _SYNCED_TOGETHER):
            list(pool.map(_sync, paths[start : start + _SYNCED_TOGETHER]))


def _explained(error: OSError, path: Path) -> PipelineError:
    if error.errno in _OUT_OF_SPACE:
        advice = "free some room and run the same command again; nothing that was finished is lost"
        return OutOfRoom(f"cannot be written ({error.strerror})", where=path, advice=advice)
    return BadInput(f"cannot be written ({error.strerror or error})", where=path)


def remove_left_parts(targets: Iterable[Path | None]) -> None:
    """Remove the parts of these files that killed processes left; this process may not have begun any of them.

    A part says which process made it. Where a process of that number runs, be it another, the part stays.
    """
    names: dict[Path, set[str]] = {}
    for target in targets:
        if target is not None:
            names.setdefault(target.parent, set()).add(target.name)
    for folder in names:
        for part in folder.glob(f".*{PART_MARK}*"):
            name, _, mark = part.name[1:].rpartition(PART_MARK)
            if name in names[folder] and not _runs(mark.partition("-")[0]):
                with contextlib.suppress(OSError):
                    remove(part)


def _runs(number: str) -> bool:
    """Look for another process of this number; Windows, where looking would end it, is taken at its word."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):  # no number, or a process of another user
        return True
    return int(number) != os.getpid()
