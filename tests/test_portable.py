"""What Windows and macOS lack is hidden from every process: records are built and a run trains all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagenet_pipeline import files
from imagenet_pipeline.processes import available_processors, memory_bytes

REPOSITORY = Path(__file__).resolve().parent.parent
HIDING = """
import errno, os, shutil, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for module, names in (
    (os, "pread sched_getaffinity set_blocking sysconf killpg getpgid O_NONBLOCK O_DIRECTORY O_NOFOLLOW"),
    (signal, "SIGHUP SIGQUIT"),
):
    for name in names.split():
        delattr(module, name)
shutil._use_fd_functions = False
def symlink(*_, **__):
    raise OSError(errno.EINVAL, "A required privilege is not held by the client")
os.symlink = symlink
"""


def test_a_run_needs_nothing_that_only_unix_has(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    words = [sys.executable, "-W", "ignore", "-m", "imagenet_pipeline"]
    recipe = str(REPOSITORY / "config" / "demo.toml")
    for command in (
        ("build", "digits", "--out", "digits", "--workers", "2"),
        ("train", recipe, "engine=pytorch", "devices=cpu", "epochs=1", "records=digits", "--run", "run"),
    ):
        result = subprocess.run(
            [*words, *command], check=False, capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["epoch-0001"]


def test_reading_at_a_place_needs_no_pread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    monkeypatch.delattr(os, "pread")
    with open(tmp_path / "file", "rb") as stream:
        assert [files.read_at(stream.fileno(), 3, place) for place in (90, 5, 99)] == [b"Z[\\", b"\5\6\7", b"c"]


def test_a_machine_that_does_not_say_is_taken_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sysconf")
    assert (available_processors(), memory_bytes()) == (os.cpu_count(), None)
