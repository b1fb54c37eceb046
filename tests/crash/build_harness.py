"""Builds a small data set while the disk fails on purpose; run as a script by test_build.py.

    build_harness.py every KIND PHOTOS SCRATCH     KIND: kill | full
    build_harness.py once WORKERS PHOTOS OUT       one real build in worker processes

`every`: in a forked child, disk operation k of the build is made to fail (the process dies there, or the disk is
full from there on), then the build is run again; for every k. Prints the number of operations tried.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_pipeline.errors import OutOfRoom, PipelineError
from imagenet_pipeline.records import pieces
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.plan import Images, Plan

KILLED, REFUSED = 9, 10
pieces.PIECE_IMAGES = 4  # train is a shard of two pieces
WATCHED = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Inline(Executor):
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def plan_of(photos: Path) -> Plan:
    names = sorted(path.name for path in photos.iterdir())
    splits = {"train": Images(names[:8], np.arange(8) % 2), "val": Images(names[8:12], np.arange(4) % 2)}
    return Plan(photos, splits, ClassTable("list", ("a", "b"), ("a", "b")))


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return total.hexdigest()


def fail_at(number: int, kind: str, out: Path) -> None:
    """Make the disk operation of that number fail, and with a full disk all later ones that need room."""
    count = 0

    def operation(needs_room: bool) -> None:
        nonlocal count
        count += 1
        if kind == "kill" and count == number:
            os._exit(KILLED)
        if kind == "full" and count >= number and needs_room:
            raise OSError(errno.ENOSPC, "No space left on device")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            if str(arguments[0]).startswith(str(out)):
                operation(needs_room=True)
        elif event in WATCHED and str(arguments[0]).startswith(str(out)):
            operation(needs_room=event in ("os.mkdir", "os.rename"))

    plain_sync, plain_write = os.fsync, os.write

    def sync(descriptor: int) -> None:
        operation(needs_room=True)
        plain_sync(descriptor)

    def write(descriptor: int, data: bytes) -> int:
        operation(needs_room=True)
        return plain_write(descriptor, data)

    os.fsync, os.write = sync, write
    sys.addaudithook(hook)


def attempt(number: int, kind: str, photos: Path, out: Path) -> int:
    """Fork a child whose disk fails at that operation; its exit code."""
    child = os.fork()
    if child == 0:
        try:
            fail_at(number, kind, out)
            build(plan_of(photos), out, BuildOptions(resize=16, shards=1, workers=1), executor=Inline())
            os._exit(0)
        except OutOfRoom:
            os._exit(REFUSED)
        except BaseException as error:
            sys.stderr.write(f"operation {number}: {type(error).__name__}: {error}\n")
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def every(kind: str, photos: Path, scratch: Path) -> int:
    options = BuildOptions(resize=16, shards=1, workers=1)
    build(plan_of(photos), scratch / "unbroken", options, executor=Inline())
    expected = digest(scratch / "unbroken")
    number = 0
    while True:
        number += 1
        out = scratch / f"out{number}"
        code = attempt(number, kind, photos, out)
        if code not in (0, KILLED, REFUSED):
            raise SystemExit(f"{kind} at operation {number}: exit code {code}")
        complete = (out / "manifest.json").exists()
        if complete and digest(out).strip() != expected and not (out / ".building").exists():
            raise SystemExit(f"{kind} at operation {number}: a finished data set that differs")
        build(plan_of(photos), out, options, executor=Inline())
        if digest(out) != expected:
            raise SystemExit(f"{kind} at operation {number}: the second run ends in other bytes")
        shutil.rmtree(out)
        if code == 0:
            return number - 1


if __name__ == "__main__":
    mode, argument, photos, out = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    if mode == "every":
        print(every(argument, photos, out))
    else:
        try:
            build(plan_of(photos), out, BuildOptions(resize=16, shards=1, workers=int(argument)))
        except PipelineError as error:
            raise SystemExit(str(error)) from error
