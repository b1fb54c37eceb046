"""What a launcher (torchrun, or `train` itself on several devices) and one of its processes tell each other.

The words are those of torch's elastic launcher: RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE say which of how
many processes this is, on all machines and on this one; a process leaves its error in TORCHELASTIC_ERROR_FILE.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe, PipelineError

_WORDS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SIGNAL_AT_DEATH_OF_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


@dataclass(frozen=True)
class Place:
    """Which of the processes this is: `rank` of all `ranks`, and `local_rank` of the `local_ranks` on this machine."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_ranks: int = 1
    launched: bool = False


ALONE = Place()


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """Where a launcher put this process; the one and only where none did. Raises BadRecipe for words that are odd."""
    if not all(environment.get(word) for word in _WORDS):
        return ALONE
    numbers = [environment[word] for word in _WORDS[:4]]
    if not all(number.isdecimal() for number in numbers):
        raise BadRecipe("are no numbers", where=", ".join(_WORDS[:4]), found=" ".join(numbers))
    rank, ranks, local_rank, local_ranks = map(int, numbers)
    return Place(rank, ranks, local_rank, local_ranks, launched=True)


def tell_launcher(line: str) -> bool:
    """Leave this process's error to the launcher, which tells the user once for all; whether there is one that will."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or place().ranks == 1:
        return False
    try:
        files.write_whole(Path(file), json.dumps({"message": line, "timestamp": int(time.time())}))
    except (OSError, PipelineError):
        return False
    return True


def end_with_launcher() -> None:
    """Be asked to save and leave, as by SIGTERM, when the launcher itself is killed (on Linux)."""
    if sys.platform == "linux" and place().launched:
        ctypes.CDLL(None).prctl(_SIGNAL_AT_DEATH_OF_PARENT, signal.SIGTERM)
