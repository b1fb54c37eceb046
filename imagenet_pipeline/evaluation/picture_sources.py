"""What a user points at, pictures, folders and lists, as the pictures themselves."""

from __future__ import annotations

import logging
import os
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.image_files import READ_ENDINGS, ImageTree
from imagenet_pipeline.records.lists import LINE_LIMIT_BYTES, read_list, require_no_backslashes

log = logging.getLogger("imagenet_pipeline")

LIST_ENDINGS = (".txt", ".lst")


def find_pictures(sources: Sequence[Path], root: Path) -> list[Path]:
    """The pictures of these sources, in their order: a folder's sorted, with those of the folders in it.

    A `.txt` has a path a line, an `.lst` is im2rec's; relative paths in them start from `root`. Any other file is
    taken for a picture, whatever its name. Symbolic links are followed. Raises BadInput for a source that does not
    exist or has no pictures, and for a list of paths with backslashes; what else a list names is not looked for.
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
    require_no_backslashes(names, root, source)
    return [root / name for name in names]


def _in_folder(folder: Path) -> list[Path]:
    tree = ImageTree(folder)
    found = tree.images(folder)
    if not found:
        expected = "files ending in " + " ".join(READ_ENDINGS)
        raise BadInput("no pictures in this folder", where=folder, expected=expected, found=tree.left_out_below(folder))
    tree.say()
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
