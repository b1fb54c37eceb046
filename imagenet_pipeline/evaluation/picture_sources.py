"""What a user points at, pictures, folders and lists, as the pictures themselves."""

from __future__ import annotations

import logging
import os
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.image_files import READ_ENDINGS, image_files
from imagenet_pipeline.records.lists import LINE_LIMIT_BYTES, read_list

log = logging.getLogger("imagenet_pipeline")

LIST_ENDINGS = (".txt", ".lst")


def find_pictures(sources: Sequence[Path], root: Path) -> list[Path]:
    """The pictures of these sources, in their order: a folder's sorted, with those of the folders in it.

    A `.txt` has a path a line, an `.lst` is im2rec's; relative paths in them start from `root`. Any other file is
    taken for a picture, whatever its name. Raises BadInput for a source that does not exist and for one that has no
    pictures; what a list names is not looked for.
    """
    missing = next((source for source in sources if not os.path.exists(source)), None)
    if missing is not None:
        raise BadInput("no such picture, folder or list", where=missing)
    return [picture for source in sources for picture in _pictures_of(source, root)]


def _pictures_of(source: Path, root: Path) -> list[Path]:
    if os.path.isdir(source):
        return _in_folder(source)
    if source.suffix.lower() not in LIST_ENDINGS:
        return [source]
    names = [row.path for row in read_list(source)] if source.suffix.lower() == ".lst" else list(_lines(source))
    if not names:
        raise BadInput("the list is empty", where=source, expected="the path of a picture on each line")
    return [root / name for name in names]


def _in_folder(folder: Path) -> list[Path]:
    found, others = image_files(folder)
    if not found:
        expected = "files ending in " + " ".join(READ_ENDINGS)
        raise BadInput("no pictures in this folder", where=folder, expected=expected, found=f"{others} other files")
    if others:
        log.info("%s: %d other files were left out", folder, others)
    return found


def _lines(path: Path) -> Iterator[str]:
    with files.regular_file(path) as (stream, _):
        for number, line in enumerate(iter(lambda: stream.readline(LINE_LIMIT_BYTES + 1), b""), 1):
            if len(line) > LINE_LIMIT_BYTES or b"\0" in line:
                raise BadInput("not a path", where=f"{path}:{number}", found=repr(line[:80]))
            # A file's name may hold any bytes, and spaces at its ends.
            name = line.removeprefix(BOM_UTF8 if number == 1 else b"").rstrip(b"\r\n")
            if name.strip():
                yield name.decode("utf-8", "surrogateescape")
