"""Image files, known by the ends of their names, found in folders and below them."""

from __future__ import annotations

import errno
import logging
import os
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imagenet_pipeline.errors import BadInput, first_few, printable

_COMMON_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".webp", ".tif", ".tiff")
READ_ENDINGS = (*_COMMON_ENDINGS, ".ppm", ".pgm", ".pnm")
"""Endings of the formats that can be read."""
IMAGE_ENDINGS = (*READ_ENDINGS, ".gif", ".heic", ".avif", ".jp2", ".svg")
"""Endings of names that are taken for images; each file is looked into when it is read, and rejected if unusable."""

OTHER_FILES = "other files"
BROKEN_LINKS = "links to nothing"
OUTER_LINKS = "links out of the folder"
REPEATED_LINKS = "links to what is read already"
_ARCHIVE_LEFTOVERS = "__MACOSX"
_SHOWN_PATH = 300

log = logging.getLogger("imagenet_pipeline")


@dataclass
class Contents:
    """The content of a folder, sorted: sub-folders and images, links among them."""

    folders: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)


class ImageTree:
    """A folder of images in folders, and everything in it that was looked at and not taken.

    Symbolic links are followed; without `follow`, those alone that stay in `root`. What begins with a dot, and
    __MACOSX, is passed over. Its methods raise BadInput naming a folder that cannot be read.
    """

    def __init__(self, root: Path, follow: bool = True) -> None:
        self.root = root
        self.linked: set[Path] = set()
        """The images found that lie behind a link."""
        self.left_out: defaultdict[str, set[str]] = defaultdict(set)
        """Files that were not taken, by kind."""
        self._real_root = os.path.realpath(root)
        self._follow = follow

    def look(self, folder: Path) -> Contents:
        """One folder's own contents."""
        contents = Contents()
        with _readable(folder), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = folder / entry.name
                if entry.name.startswith(".") or entry.name == _ARCHIVE_LEFTOVERS:
                    continue
                fault = self._fault_of_link(path) if entry.is_symlink() else ""
                if fault:
                    self.leave_out(fault, path)
                elif entry.is_dir():
                    contents.folders.append(path)
                elif entry.name.lower().endswith(IMAGE_ENDINGS):
                    contents.images.append(path)
                    if entry.is_symlink():
                        self.linked.add(path)
                else:
                    self.leave_out(OTHER_FILES, path)
        return contents

    def images(self, folder: Path) -> list[Path]:
        """The images anywhere below a folder, sorted; a folder that links lead to again is read once."""
        found = []
        seen = {_identity(above) for above in (folder, *folder.parents) if above.is_relative_to(self.root)}
        behind_link = folder != self.root and os.path.realpath(folder) != self._plain_path(folder)
        plain, links = [(folder, behind_link)], deque[Path]()
        while plain or links:
            if plain:
                current, behind = plain.pop()
            else:
                # Links come last, that what lies here is known by its own path.
                current, behind = links.popleft(), True
                if (identity := _identity(current)) in seen:
                    self.leave_out(REPEATED_LINKS, current)
                    continue
                seen.add(identity)
            contents = self.look(current)
            found += contents.images
            if behind:
                self.linked.update(contents.images)
            for inner in contents.folders:
                if os.path.islink(inner):
                    links.append(inner)
                else:
                    seen.add(_identity(inner))
                    plain.append((inner, behind))
        return sorted(found)

    def leave_out(self, kind: str, path: Path) -> None:
        """Note what is not taken."""
        self.left_out[kind].add(os.path.relpath(path, self.root))

    def real_path(self, image: Path) -> str:
        """The path of an image found, without links."""
        return os.path.realpath(image) if image in self.linked else self._plain_path(image)

    def left_out_below(self, folder: Path) -> str:
        """Say what was not taken in a folder as a phrase: by kind how many, and the first few."""
        below = "" if folder == self.root else os.path.join(os.path.relpath(folder, self.root), "")
        phrases = []
        for kind, names in sorted(self.left_out.items()):
            if there := sorted(name for name in names if name.startswith(below)):
                phrases.append(f"{kind}: {first_few(there)}")
        return "; ".join(phrases) or "nothing"

    def say(self) -> None:
        """Name on the log what was not taken."""
        if self.left_out:
            level = logging.INFO if set(self.left_out) == {OTHER_FILES} else logging.WARNING
            log.log(level, printable(f"{self.root}: left out: {self.left_out_below(self.root)}"))

    def _plain_path(self, path: Path) -> str:
        return os.path.join(self._real_root, os.path.relpath(path, self.root))

    def _fault_of_link(self, path: Path) -> str:
        try:
            os.stat(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                return BROKEN_LINKS
            raise
        inside = os.path.join(os.path.realpath(path), "").startswith(os.path.join(self._real_root, ""))
        return "" if self._follow or inside else OUTER_LINKS


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = str(error.filename or folder)
        shown = path if len(path) <= _SHOWN_PATH else f"{path[: _SHOWN_PATH // 2]}...{path[-_SHOWN_PATH // 2 :]}"
        what = f"cannot be read ({error.strerror})"
        raise BadInput(what, where=shown, advice="its images would be missing: mend or move it") from error


def _identity(folder: Path) -> tuple[int, int]:
    with _readable(folder):
        status = os.stat(folder)
    return status.st_dev, status.st_ino
