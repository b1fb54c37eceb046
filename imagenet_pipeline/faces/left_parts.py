"""What killed processes left half-written, told from what others are writing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from imagenet_pipeline import files


def remove_left_parts(targets: Iterable[Path | None]) -> None:
    """Remove the parts of these files that killed processes left; this process may not have begun any of them.

    A part says which process made it. Where one of that number runs, be it another one, the part stays.
    """
    names: dict[Path, set[str]] = {}
    for target in targets:
        if target is not None:
            names.setdefault(target.parent, set()).add(target.name)
    for folder in names:
        for part in folder.glob(f".*{files.PART_MARK}*"):
            name, _, mark = part.name[1:].rpartition(files.PART_MARK)
            if name in names[folder] and not _runs(mark.partition("-")[0]):
                with contextlib.suppress(OSError):
                    files.remove(part)


def _runs(number: str) -> bool:
    """Whether there is another process of this number."""
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):  # no number, or a process of another user
        return True
    return int(number) != os.getpid()
