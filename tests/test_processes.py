"""What a launcher says through the environment, and what it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.loading import loader
from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.processes import RankedProcess, tell_launcher, this_process

TOLD = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1",
}  # fmt: skip


def test_a_process_knows_its_place() -> None:
    assert this_process(TOLD) == RankedProcess(3, 4, 1, 2, launched=True)


@pytest.mark.parametrize("missing", TOLD)
def test_without_all_of_the_words_there_is_one_process(missing: str) -> None:
    """Clusters and shells have a RANK or WORLD_SIZE of their own."""
    words = {word: value for word, value in TOLD.items() if word != missing}
    assert (
        this_process(words)
        == this_process(words | {missing: ""})
        == this_process({})
        == RankedProcess(0, 1, 0, 1, launched=False)
    )


def test_words_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(
        BadRecipe, match=r"RANK, WORLD_SIZE, .*: the launcher's variables must be numbers; found -1 4 1 2"
    ):
        this_process(TOLD | {"RANK": "-1"})


def test_a_line_is_left_to_a_launcher_of_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    assert not tell_launcher("no launcher")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    assert not tell_launcher("one process speaks for itself")
    for word, value in TOLD.items():
        monkeypatch.setenv(word, value)
    assert tell_launcher("gone \u00e9")
    assert json.loads(file.read_text())["message"] == "gone \u00e9"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file / "error.json"))
    assert not tell_launcher("nowhere to write")


def test_processes_on_one_machine_share_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "available_processors", lambda: 8)
    assert Loader([], size=1, batch_size=1).threads == 8  # type: ignore[arg-type]
    for word, value in TOLD.items():
        monkeypatch.setenv(word, value)
    assert Loader([], size=1, batch_size=1).threads == 4  # type: ignore[arg-type]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert Loader([], size=1, batch_size=1).threads == 1  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_is_asked_to_leave_when_its_launcher_is_killed(tmp_path: Path) -> None:
    """Else it would train on, unseen, in a folder that a restart wants."""
    program = (
        "import pathlib, signal, sys, time\nfrom imagenet_pipeline.processes import end_with_launcher\n"
        "def left(*_):\n    pathlib.Path(sys.argv[1]).write_text('asked')\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, left)\nend_with_launcher()\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    launcher = (
        "import os, subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], start_new_session=True).wait()\n"
    )
    file = tmp_path / "asked"
    command = [sys.executable, "-c", launcher, program, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **TOLD}) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        assert process.stdout.read() == ""  # until the last who holds it has ended
    assert file.read_text() == "asked"
