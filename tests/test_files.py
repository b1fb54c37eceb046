"""The door to the disk: whole or not at all, whatever fails."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, OutOfRoom

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_appears_only_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with files.whole_file(path) as stream:
        stream.write(b"content")
        stream.flush()
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert names(path.parent) == ["file"]


def test_an_error_in_the_block_leaves_the_earlier_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_whole(path, "earlier")

    def write() -> None:
        with files.whole_file(path) as stream:
            stream.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["file"]


def test_a_reader_that_went_away_is_not_the_file_s_fault(tmp_path: Path) -> None:
    for opened in (files.whole_file, files.whole_folder):
        with pytest.raises(BrokenPipeError), opened(tmp_path / "target"):
            raise BrokenPipeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_full_disk_is_out_of_room_and_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    path = tmp_path / "file"
    files.write_whole(path, "earlier")
    monkeypatch.setattr(os, operation, failing(FULL))
    with pytest.raises(OutOfRoom, match="No space left") as caught:
        files.write_whole(path, "later")
    assert str(path) in str(caught.value)
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["file"]


def test_a_file_size_limit_is_out_of_room(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_whole(path, "earlier")
    program = f"""
import resource, signal, sys
from pathlib import Path
from imagenet_pipeline import files
from imagenet_pipeline.errors import OutOfRoom
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    files.write_whole(Path({str(path)!r}), bytes(1_000_000))
except OutOfRoom as error:
    sys.exit(error.exit_code)
"""
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (5, "")
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["file"]


def test_a_failed_sync_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(BadInput, match="Input/output error"):
        files.write_whole(tmp_path / "file", "content")
    assert len(calls) == 1
    assert names(tmp_path) == []


def test_the_file_is_synced_before_it_is_renamed_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    files.write_whole(tmp_path / "file", "content")
    part, rename, folder = events
    assert part.startswith(str(tmp_path / f".file{files.PART_MARK}"))
    assert (rename, folder) == ("rename", str(tmp_path))


def test_a_left_part_of_the_same_process_number_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / f".file{files.PART_MARK}{os.getpid()}").write_bytes(b"left by a kill")
    files.write_whole(tmp_path / "file", "content")
    assert (tmp_path / "file").read_text() == "content"


def test_a_folder_appears_only_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with files.whole_folder(path) as part:
        (part / "inner").mkdir()
        (part / "inner" / "file").write_text("content")
        assert not path.exists()
    assert (path / "inner" / "file").read_text() == "content"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("count", [3, 200])
@pytest.mark.parametrize("failing_name", ["none", "1"])
def test_everything_in_a_folder_is_durable_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, failing_name: str
) -> None:
    synced: list[str] = []

    def sync(path: Path) -> None:
        assert (tmp_path / "folder").exists() == (path == tmp_path)
        synced.append(path.name)
        if path.name == failing_name:
            raise FULL

    monkeypatch.setattr(files, "_sync", sync)
    with contextlib.suppress(OutOfRoom), files.whole_folder(tmp_path / "folder") as part:
        (part / "inner").mkdir()
        for number in range(count):
            (part / "inner" / str(number)).touch()
    assert names(tmp_path) == (["folder"] if failing_name == "none" else [])
    if failing_name == "none":
        assert sorted(synced) == sorted(["inner", part.name, tmp_path.name, *map(str, range(count))])


def test_everything_in_a_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    with files.whole_folder(tmp_path / "folder") as part:
        (part / "inner").mkdir()
        (part / "inner" / "file").write_text("content")
    wanted = [part / "inner", part / "inner" / "file", part, tmp_path]
    assert sorted(synced) == sorted(map(str, wanted))


@pytest.mark.parametrize("error", [FULL, KeyError("x")])
def test_an_error_while_filling_a_folder_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    def fill() -> None:
        with files.whole_folder(tmp_path / "folder") as part:
            (part / "file").write_text("content")
            raise error

    with pytest.raises(OutOfRoom if error is FULL else KeyError):
        fill()
    assert names(tmp_path) == []


def test_a_folder_does_not_replace_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    with pytest.raises(BadInput, match="cannot be written"), files.whole_folder(tmp_path / "folder") as part:
        (part / "file").write_text("content")
    assert names(tmp_path / "folder") == ["mine"]
    assert names(tmp_path) == ["folder"]


def test_removing_a_folder_takes_its_name_away_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("content")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", failing(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            files.remove_folder(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    files.remove_parts(tmp_path)
    assert names(tmp_path) == []


def test_remove_parts_takes_parts_alone(tmp_path: Path) -> None:
    (tmp_path / f".a{files.PART_MARK}1").mkdir()
    (tmp_path / f".a{files.PART_MARK}1" / "inner").write_text("x")
    (tmp_path / f".b{files.PART_MARK}2").write_text("x")
    (tmp_path / "outside").mkdir()
    (tmp_path / f".c{files.PART_MARK}3").symlink_to(tmp_path / "outside")
    (tmp_path / ".hidden").write_text("x")
    files.remove_parts(tmp_path)
    assert names(tmp_path) == [".hidden", "outside"]


def test_point_replaces_a_link_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.point(tmp_path / "latest", name)
        assert (tmp_path / "latest").resolve() == tmp_path / name
    assert names(tmp_path) == ["latest", "one", "two"]


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False) | st.none()))
def test_json_reads_back_and_equal_values_give_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("json")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # lone surrogates have no bytes
    files.write_json(folder / "a", value)
    files.write_json(folder / "b", dict(reversed(value.items())))
    assert files.read_json(folder / "a") == value
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_broken_json_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"x\.json: cannot be read as JSON"):
        files.read_json(tmp_path / "x.json")


def test_absent_json_is_damage(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="no such file"):
        files.read_json(tmp_path / "x.json")


@pytest.mark.parametrize("durable", [True, False])
def test_lines_are_appended(tmp_path: Path, durable: bool) -> None:
    for line in ("one", "two"):
        files.append_line(tmp_path / "log", line, durable)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


@pytest.mark.parametrize(("left", "kept"), [("one\ntw", "one\n"), ("on", ""), ("one\n", "one\n"), ("", "")])
def test_a_torn_last_line_is_cut_off_before_the_next(tmp_path: Path, left: str, kept: str) -> None:
    (tmp_path / "log").write_text(left)
    files.append_line(tmp_path / "log", "next")
    assert (tmp_path / "log").read_text() == f"{kept}next\n"


def test_a_line_that_does_not_fit_is_out_of_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.append_line(tmp_path / "log", "one")
    write = os.write
    for stopped in (lambda descriptor, content: write(descriptor, content[:2]), failing(FULL)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", stopped)
            with pytest.raises(OutOfRoom):
                files.append_line(tmp_path / "log", "two")
    files.append_line(tmp_path / "log", "three")
    assert (tmp_path / "log").read_text() == "one\nthree\n"


def test_free_space_is_checked_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    files.check_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(OutOfRoom, match=r"not/yet: not enough free disk space; expected 1,000,000,.* bytes"):
        files.check_free_space(tmp_path / "not" / "yet", 10**30)


@pytest.mark.parametrize("name", ["a", "a/b", "./a", "a/../b", "..a", "link/x", "a b"])
def test_names_inside_are_allowed(tmp_path: Path, name: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "link").symlink_to("inner")
    assert files.contained(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", ["..", "../a", "a/../../b", "/etc/passwd", "", ".", "out/x", "up/x", "a\0b"])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to("/etc")
    (root / "up").symlink_to("..")
    with pytest.raises(BadInput):
        files.contained(root, name)


def test_a_neighbour_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "rootless").mkdir()
    with pytest.raises(BadInput):
        files.contained(tmp_path / "root", "../rootless/x")


def test_an_absolute_name_inside_is_allowed(tmp_path: Path) -> None:
    assert files.contained(tmp_path, str(tmp_path / "a")) == tmp_path / "a"


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256_of(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_a_part_folder_stands_beside_its_path_and_goes_with_the_block(tmp_path: Path) -> None:
    target = tmp_path / "new" / "net"
    with files.part_folder(target) as part:
        assert part.parent == target.parent
        files.write_whole(part / "net.a", "a")
        files.rename(part / "net.a", target.with_name("net.a"))
    assert names(tmp_path / "new") == ["net.a"]
    full = pytest.raises(OutOfRoom, match=f"^{target}: cannot be written .*; free some room")
    with full, files.part_folder(target) as part, files.whole_file(part / "net.b"):
        raise FULL
    assert names(tmp_path / "new") == ["net.a"]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "absent", Path("/dev/zero")):
        with pytest.raises(BadInput, match=f"{path}: cannot be read"), files.regular_file(path):
            raise AssertionError
    (tmp_path / "file").write_bytes(b"abc")
    with files.regular_file(tmp_path / "file") as (stream, size):
        assert (stream.read(), size) == (b"abc", 3)


def test_the_ending_of_a_name_is_required_in_any_case() -> None:
    files.require_ending(Path("a.PNG"), ".png", "the picture is written as PNG")
    files.require_ending(Path("a.svg"), (".dot", ".svg"), "unknown kind of picture")
    with pytest.raises(
        BadRecipe, match=r"^a\.gif: a picture; expected a name that ends in \.dot, \.svg; take another$"
    ):
        files.require_ending(Path("a.gif"), (".dot", ".svg"), "a picture", "take another")


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Some versions of filelock raise NotImplementedError where the system has no flock."""
    monkeypatch.setattr(filelock.FileLock, "_acquire", failing(error))
    with pytest.raises(BadInput, match=rf"^{tmp_path / 'lock'}: cannot be "):
        files.claim(tmp_path / "lock", tmp_path, "training")
