"""Which files are taken for images, by their names, and where they are found."""

from __future__ import annotations

import os
from pathlib import Path

_COMMON_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".webp", ".tif", ".tiff")
READ_ENDINGS = (*_COMMON_ENDINGS, ".ppm", ".pgm", ".pnm")
"""Those of formats that can be read."""
IMAGE_ENDINGS = (*READ_ENDINGS, ".gif", ".heic", ".avif", ".jp2", ".svg")
"""What is taken for an image; whoever reads it looks into each and rejects what cannot be used."""


def image_files(folder: Path) -> tuple[list[Path], int]:
    """The images below a folder, sorted, and the number of other files: links, and what is no image by its name.

    What begins with a dot is passed over; symbolic links are not followed.
    """
    names = []
    others = 0
    for place, folders, entries in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in entries:
            path = Path(place, name)
            if name.startswith("."):
                continue
            if name.lower().endswith(IMAGE_ENDINGS) and not path.is_symlink():
                names.append(path)
            else:
                others += 1
    return sorted(names), others
