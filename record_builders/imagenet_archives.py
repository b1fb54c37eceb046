"""ILSVRC's official archives as they are: where in them each image lies, from their headers alone.

`ILSVRC2012_img_train.tar` is a tar of 1,000 tars, one for each class, `ILSVRC2012_img_val.tar` a tar of images. A
member of a tar is stored in a single piece, so that an image is an offset and a length in the outermost file; nothing
is unpacked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records import tar
from imagenet_pipeline.records.tar import Span

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VAL_ARCHIVE = "ILSVRC2012_img_val.tar"

_CLASS_ARCHIVE = re.compile(r"(n\d{8})\.tar")
_MEGABYTE = 10**6


def train_members(archive: Path) -> Iterator[tuple[str, str, Span]]:
    """The wnid, the name within the archive ("n01440764.tar/n01440764_18.JPEG") and the span of each image, sorted.

    Raises BadInput where the archive is cut or damaged, or holds anything but the images of classes.
    """
    with files.regular_file(archive) as (stream, size_bytes), Bar("scan", "MB") as bar:
        descriptor = stream.fileno()
        classes = sorted(_members(descriptor, (0, size_bytes), archive))
        if not classes:
            raise BadInput("the archive is empty", where=archive)
        scanned = 0
        for name, span in classes:
            match = _CLASS_ARCHIVE.fullmatch(name)
            if match is None:
                raise BadInput(
                    "the member is not the archive of a class", where=archive, expected="n01440764.tar", found=name[:80]
                )
            images = sorted(_members(descriptor, span, archive / name))
            _require_images(images, archive / name, re.compile(rf"{match[1]}_\d{{1,9}}\.JPEG"))
            wnid = match[1]
            for image, span in images:
                yield wnid, f"{name}/{image}", span
            scanned += span[1]
            bar.show(scanned // _MEGABYTE, size_bytes // _MEGABYTE)


def val_members(archive: Path) -> list[tuple[str, Span]]:
    """Yield the name and the span of each image. Raises BadInput as `train_members` does."""
    with files.regular_file(archive) as (stream, size_bytes):
        images = sorted(_members(stream.fileno(), (0, size_bytes), archive))
    _require_images(images, archive, re.compile(r"ILSVRC\d{4}_val_\d{8}\.JPEG"))
    return images


def _require_images(images: list[tuple[str, Span]], where: Path, pattern: re.Pattern[str]) -> None:
    if not images:
        raise BadInput("the archive is empty", where=where)
    for name, _ in images:
        if not pattern.fullmatch(name):
            raise BadInput(
                "the member is not named as an image", where=where, expected=pattern.pattern, found=repr(name[:80])
            )


def _members(descriptor: int, span: Span, where: Path) -> Iterator[tuple[str, Span]]:
    """Yield the name and the span of each file, but no folder, of the tar that fills a span of the open file."""
    for name, found, is_folder in tar.members(partial(files.read_at, descriptor), span, where):
        if not is_folder:
            yield name, found
