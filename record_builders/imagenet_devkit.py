"""A development kit of ILSVRC: its classes, the labels of the validation images and the blacklist.

The kit of 2015 has its classes in `map_clsloc.txt`, those of 2012 and 2014 in MATLAB's `meta.mat` or `meta_clsloc.mat`;
the format is told in the kit's readme.txt. That of 2012 may stay packed (`ILSVRC2012_devkit_t12.tar.gz`).
"""

from __future__ import annotations

import re
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.classes import WNID, ClassTable

from .matlab_table import read_table

ClassOrder = Literal["wnid", "devkit"]

CLASSES = "map_clsloc.txt"
METAS = ("meta_clsloc.mat", "meta.mat")
GROUND_TRUTH = "ILSVRC2015_clsloc_validation_ground_truth.txt"
GROUND_TRUTHS = (
    GROUND_TRUTH,
    "ILSVRC2014_clsloc_validation_ground_truth.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)
BLACKLIST = "ILSVRC2015_clsloc_validation_blacklist.txt"
BLACKLISTS = (BLACKLIST, "ILSVRC2014_clsloc_validation_blacklist.txt")
FILE_LIMIT_BYTES = 2**24
"""Fifty times the largest file of a genuine kit."""

_CLASS_LINE = re.compile(r"(n\d{8}) (\d{1,6}) (\S+)")
_NUMBER_LINE = re.compile(r"\d{1,9}")


@dataclass(frozen=True)
class Devkit:
    """The kit's classes in the order asked for; `label_of_id[i - 1]` is the label of the kit's class id i.

    `folder` holds its files, or is the archive of them, `packed`, by name. `source` names where the classes stand.
    """

    folder: Path
    classes: ClassTable
    label_of_id: NDArray[np.int64]
    source: str
    packed: Mapping[str, bytes] | None = None


def parse_devkit(folder: Path, class_order: ClassOrder = "wnid") -> Devkit:
    """Read the classes of a kit: its data folder, or its .tar.gz. Raises BadInput where ids are not 1..N, once each."""
    if class_order not in ("wnid", "devkit"):
        raise BadInput("the class order is unknown", expected="wnid or devkit", found=class_order)
    folder = Path(folder)
    packed = None if folder.is_dir() else _unpacked(folder)
    source = _first_there(folder, packed, (CLASSES, *METAS))
    content = _content(folder, packed, source)
    rows = (
        _classes_of_text(folder / source, content) if source == CLASSES else _classes_of_meta(folder / source, content)
    )
    names: dict[str, str] = {}
    wnids: dict[int, str] = {}
    for where, number, wnid, name in rows:
        if number in wnids or wnid in names:
            raise BadInput("the class is given twice", where=where, found=f"{wnid} {number} {name}")
        wnids[number], names[wnid] = wnid, name
    if not wnids:
        raise BadInput("there are no classes", where=folder / source)
    if sorted(wnids) != list(range(1, len(wnids) + 1)):
        expected = f"1..{len(wnids)}"
        raise BadInput("the class ids are not 1..N", where=folder / source, expected=expected, found=max(wnids))
    kit_order = [wnids[number] for number in range(1, len(wnids) + 1)]
    ids = sorted(kit_order) if class_order == "wnid" else kit_order
    label_of = {wnid: label for label, wnid in enumerate(ids)}
    return Devkit(
        folder=folder,
        classes=ClassTable(class_order, tuple(ids), tuple(names[wnid] for wnid in ids)),
        label_of_id=np.array([label_of[wnid] for wnid in kit_order], np.int64),
        source=source,
        packed=packed,
    )


def ground_truth_file(devkit: Devkit) -> str:
    """The name of the kit's file of validation labels. Raises BadInput where there is none."""
    return _first_there(devkit.folder, devkit.packed, GROUND_TRUTHS)


def validation_labels(devkit: Devkit) -> NDArray[np.int64]:
    """Labels of the validation images in number order, int64 [images]; row i is ILSVRC2012_val_{i+1:08d}.

    Raises BadInput, naming the line, for an id outside the kit's classes.
    """
    name = ground_truth_file(devkit)
    ids = []
    content = _content(devkit.folder, devkit.packed, name)
    for where, match in matched_lines(devkit.folder / name, content, _NUMBER_LINE, "a class id"):
        if not 1 <= int(match[0]) <= len(devkit.classes):
            valid = f"1..{len(devkit.classes)}"
            raise BadInput("the label is out of range", where=where, expected=valid, found=match[0])
        ids.append(int(match[0]))
    return np.take(devkit.label_of_id, np.array(ids, np.int64) - 1)


def blacklisted_numbers(devkit: Devkit) -> set[int]:
    """Numbers (from 1) of the validation images on the kit's blacklist. Raises BadInput where it has none."""
    name = _first_there(devkit.folder, devkit.packed, BLACKLISTS)
    content = _content(devkit.folder, devkit.packed, name)
    lines = matched_lines(devkit.folder / name, content, _NUMBER_LINE, "image number")
    return {int(match[0]) for _, match in lines}


def read_file(path: Path) -> bytes:
    """The content of a small file of a kit. Raises BadInput where it cannot be read."""
    with files.regular_file(path) as (stream, size_bytes):
        if size_bytes > 16 * FILE_LIMIT_BYTES:
            raise BadInput("too large for a file of ImageNet's kits", where=path, found=f"{size_bytes:,} bytes")
        return stream.read()


def matched_lines(
    path: Path, content: bytes, pattern: re.Pattern[str], form: str
) -> Iterator[tuple[str, re.Match[str]]]:
    """Each line of a text, matched whole; (file:line, match). Raises BadInput at the first that does not match."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput("cannot be read (not UTF-8 text)", where=path) from error
    del content  # 44 MB of ImageNet's training list
    if not lines:
        raise BadInput("the file is empty", where=path, expected=f"lines of the form {form}")
    for number, line in enumerate(lines, 1):
        match = pattern.fullmatch(line.strip())
        if match is None:
            raise BadInput("the line is malformed", where=f"{path}:{number}", expected=form, found=repr(line[:80]))
        yield f"{path}:{number}", match


def _first_there(folder: Path, packed: Mapping[str, bytes] | None, names: tuple[str, ...]) -> str:
    for name in names:
        if (folder / name).is_file() if packed is None else name in packed:
            return name
    raise BadInput("the development kit lacks a file", where=folder, expected=" or ".join(names))


def _content(folder: Path, packed: Mapping[str, bytes] | None, name: str) -> bytes:
    return read_file(folder / name) if packed is None else packed[name]


def _unpacked(archive: Path) -> dict[str, bytes]:
    """The kit's files that are used here, out of its .tar.gz, by their names."""
    wanted = {CLASSES, *METAS, *GROUND_TRUTHS, *BLACKLISTS}
    found = {}
    try:
        with files.regular_file(archive) as (stream, _), tarfile.open(fileobj=stream, mode="r:*") as tar:
            for member in tar:
                if member.size > FILE_LIMIT_BYTES or member.offset > 16 * FILE_LIMIT_BYTES:
                    raise BadInput("too large for a development kit", where=archive, found=member.name[:80])
                name = PurePosixPath(member.name).name
                content = tar.extractfile(member) if name in wanted and member.isreg() else None
                if content is not None:
                    found[name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise BadInput(f"not a development kit, or damaged ({error})", where=archive) from error
    return found


def _classes_of_text(path: Path, content: bytes) -> Iterator[tuple[str, int, str, str]]:
    for where, match in matched_lines(path, content, _CLASS_LINE, "WNID ID NAME"):
        yield where, int(match[2]), match[1], match[3]


def _classes_of_meta(path: Path, content: bytes) -> Iterator[tuple[str, int, str, str]]:
    """The rows of the MATLAB array `synsets` that are classes: (where, id, wnid, names); the others have children."""
    try:
        columns, rows = read_table(content, "synsets")
    except (ValueError, struct.error, zlib.error) as error:
        raise BadInput(f"not a MATLAB file with a table of synsets ({error})", where=path) from error
    number_column = next((name for name in columns if name.endswith("_ID")), "ID")
    name_column = "words" if "words" in columns else "name"
    if not {number_column, "WNID", name_column} <= {*columns}:
        found = ", ".join(columns)[:80]
        raise BadInput(
            "the file has no table of classes", where=path, expected="synsets with an ID, WNID, words", found=found
        )
    for row, synset in enumerate(rows, 1):
        number, wnid, name = (synset[column] for column in (number_column, "WNID", name_column))
        if synset.get("num_children"):
            continue
        where = f"{path}, row {row}"
        if not (isinstance(number, float) and isinstance(wnid, str) and isinstance(name, str)):
            raise BadInput("the synset is malformed", where=where, expected="a number, and two texts")
        if not (number.is_integer() and 0 < number < 10**6 and WNID.fullmatch(wnid) and name.isprintable()):
            raise BadInput(
                "the synset is malformed", where=where, expected="ID, WNID, words", found=f"{number}, {wnid[:20]}"
            )
        yield where, int(number), wnid, name
