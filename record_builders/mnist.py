"""MNIST and the sets made like it (Fashion-MNIST, KMNIST, EMNIST), from their IDX files, into a plan.

The format (LeCun, Cortes, Burges, "The MNIST database", 1998): 00 00, a byte for the type, 08 for unsigned bytes, a
byte for the number of dimensions, each dimension as four bytes, the most significant first, then the values. EMNIST
(Cohen et al. 2017, arXiv 1702.05373) has rows and columns changed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput, did_you_mean
from imagenet_pipeline.records.class_names import classes_of_labels
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.plan import Plan

from .raw_pictures import Pictures, Sources, find_sources, plan_pictures

_UNSIGNED_BYTES = 0x08
_NAME = re.compile(
    r"(?P<set>.*?)-?(?:(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte|(?P<mapping>mapping)\.txt)"
)
_USUAL = "train-images-idx3-ubyte and train-labels-idx1-ubyte, t10k-..., or either, also as .gz"
_TRANSPOSED = "emnist"


def plan(
    root: Annotated[Path, "Folder, or archive, of train-images-idx3-ubyte, t10k-... and so on, .gz or not."],
    out: Path,
    data_set: Annotated[str | None, "--set", "Which, where there are several: emnist-letters."] = None,
    transposed: Annotated[
        bool, "--transposed", "Rows and columns are changed over, as in files called emnist-..."
    ] = False,
    val_fraction: float | None = None,
    val_images: Annotated[int | None, "Images to cut out as val, instead of a share."] = None,
    test_fraction: float | None = None,
    test_images: Annotated[int | None, "Images to cut out as test, instead of a share."] = None,
    classes: Path | None = None,
    seed: int = 42,
) -> Plan:
    """Build from MNIST's IDX files, or those of Fashion-MNIST, KMNIST and EMNIST, without loss.

    The t10k (or test) files are test. Val is cut out of train, by default a tenth; so is test where there are files of
    one kind alone. The classes are the labels that there are; --classes names them. The pictures are packed as PNGs
    into `pictures` beside the records, unless they are there.

    \b
    Examples:
      imagenet-pipeline build mnist --root mnist --out output/mnist
      imagenet-pipeline build mnist --root t10k --val-images 1000 --test-images 1000 --out output/t10k
      imagenet-pipeline build mnist --root gzip --set emnist-letters --out output/letters

    Raises BadInput for a file that is no such IDX file, or is cut; where images and labels are not as many.
    """
    sources = find_sources(root, _NAME, _USUAL)
    files_of = _files(sources, data_set)
    contents = sources.read(files_of.values())
    transposed = transposed or next(iter(files_of.values())).startswith(_TRANSPOSED)
    pixels, numbers = {}, {}
    for part in ("train", "test"):
        if (part, "images") in files_of or (part, "labels") in files_of:
            pixels[part], numbers[part] = _part(sources, contents, files_of, part)
    mapping = contents.get(files_of.get(("", "mapping"), ""))
    table, there = _classes(np.unique(np.concatenate([*numbers.values()])).tolist(), classes, mapping)
    parts = {
        part: Pictures(shown.transpose(0, 2, 1) if transposed else shown, np.searchsorted(there, numbers[part]))
        for part, shown in pixels.items()
    }
    if "train" not in parts:
        parts = {"train": parts["test"]}
    cuts = {"val": (val_fraction, val_images), "test": (test_fraction, test_images)}
    return plan_pictures("mnist", parts, table, out, cuts, seed)


def read_idx(content: bytes, dimensions: int, where: object) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes. Raises BadInput for another, an empty, or a cut file."""
    head_bytes = 4 + 4 * dimensions
    magic = bytes([0, 0, _UNSIGNED_BYTES, dimensions])
    if content[:4] != magic:
        what = f"not an IDX file of bytes in {dimensions} dimension{'s' if dimensions > 1 else ''}"
        raise BadInput(
            what, where=where, expected=f"{magic.hex(' ')} in front", found=content[:4].hex(" ") or "nothing"
        )
    if len(content) < head_bytes:
        raise BadInput("the file is cut", where=where, expected=f"{head_bytes} bytes or more", found=len(content))
    shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
    size_bytes = head_bytes + math.prod(shape)
    if size_bytes == head_bytes:
        raise BadInput("the file is empty", where=where, found=" x ".join(map(str, shape)))
    if len(content) != size_bytes:
        what = "the file is cut" if len(content) < size_bytes else "the file is longer than it says"
        raise BadInput(what, where=where, expected=f"{size_bytes:,} bytes", found=f"{len(content):,}")
    return np.frombuffer(content, np.uint8, offset=head_bytes).reshape(shape)


def _files(sources: Sources, data_set: str | None) -> dict[tuple[str, str], str]:
    """The name of each file of a set, by its part ("train", "test") and kind ("images", "labels", "mapping")."""
    matches = [match for name in sources.places if (match := _NAME.fullmatch(name))]
    sets = sorted({match["set"] for match in matches if match["part"]})
    if data_set is None and len(sets) > 1:
        found = ", ".join(name or "one without a name" for name in sets)
        raise BadInput("there are several data sets", where=sources.root, found=found, advice=f"say --set {sets[-1]}")
    if data_set is not None and data_set not in sets:
        advice = did_you_mean(data_set, sets, f"there are {', '.join(sets)}")
        raise BadInput(f"no data set is called {data_set!r}", where=sources.root, advice=advice)
    chosen = sets[0] if data_set is None and sets else data_set
    found_files: dict[tuple[str, str], str] = {}
    for match in matches:
        part = {"train": "train", None: ""}.get(match["part"], "test")
        key = (part, match["kind"] or "mapping")
        if match["set"] == chosen:
            if key in found_files:
                found = f"{found_files[key]} and {match[0]}"
                raise BadInput(f"two files have the {key[1]} of {part}", where=sources.root, found=found)
            found_files[key] = match[0]
    return found_files


def _part(
    sources: Sources, contents: Mapping[str, bytes], files_of: Mapping[tuple[str, str], str], part: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The pictures of a part, and the numbers that are their labels."""
    for kind, other in (("images", "labels"), ("labels", "images")):
        if (part, kind) not in files_of:
            raise BadInput(f"there are no {kind} of these {other}", where=sources.where(files_of[part, other]))
    images_file, labels_file = files_of[part, "images"], files_of[part, "labels"]
    pixels = read_idx(contents[images_file], 3, sources.where(images_file))
    labels = read_idx(contents[labels_file], 1, sources.where(labels_file))
    if len(pixels) != len(labels):
        expected, found = f"{len(pixels):,} labels, as there are images", f"{len(labels):,}"
        raise BadInput(
            "images and labels are not as many", where=sources.where(labels_file), expected=expected, found=found
        )
    return pixels, labels.astype(np.int64)


def _classes(numbers: list[int], classes: Path | None, mapping: bytes | None) -> tuple[ClassTable, list[int]]:
    """The classes of these labels, rising, and the label of each: names of a file, of EMNIST's mapping, or numbers."""
    if classes is not None:
        return classes_of_labels(numbers, classes)
    ids = tuple(map(str, numbers))
    letters: dict[str, str] = {}
    for line in (mapping or b"").splitlines():
        number, *codes = line.decode("ascii", "replace").split() or [""]
        # Upper case and lower, as two codes, where they are one class.
        letters[number] = "".join(chr(int(code)) for code in codes if code.isdigit() and len(code) < 4)
    names = [name if (name := letters.get(number, "")) and name.isprintable() else number for number in ids]
    return ClassTable("list", ids, tuple(names)), numbers
