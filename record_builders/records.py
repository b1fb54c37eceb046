"""Record files that other programs wrote (im2rec, insightface, GluonCV, own scripts) into a plan.

Labels are whole numbers of any kind, shuffled or with gaps: the classes are numbered by them in rising order, and the
bytes keep them. Where the records have several labels, `label_column` says which is the class.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput, BadRecipe, first_few, printable
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.class_names import classes_of_labels
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.foreign import RecordFile, RecordsPlan, scan
from imagenet_pipeline.records.lists import Row, read_list
from imagenet_pipeline.records.plan import Images

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")

log = logging.getLogger("imagenet_pipeline")

Paths = Path | Sequence[Path]


def plan(
    out: Path,
    train: Paths = (),
    val: Paths = (),
    test: Paths = (),
    lists: Paths = (),
    classes: Path | None = None,
    label_column: int | None = None,
    adopt: bool = False,
) -> RecordsPlan:
    """Build from record files of other programs, as they are; several to a split are taken in turn.

    `lists` are the `.lst` they were packed from, which name the photos: each of the name of its record file, or as many
    as there are files, in their order. With `adopt` the files stay where they are, in `out`.
    """
    given = {"train": _several(train), "val": _several(val), "test": _several(test)}
    given = {split: paths for split, paths in given.items() if paths}
    _require_distinct([path for paths in given.values() for path in paths])
    if label_column is not None and label_column < 0:
        raise BadRecipe("not a place among labels", where="label_column", expected="from 0", found=label_column)
    names = {split: _names(split, paths, out if adopt else None) for split, paths in given.items()}
    found = {split: [_scanned(path, label_column) for path in paths] for split, paths in given.items()}
    found = _with_names(found, _several(lists))
    table, labels = _classes(found, classes)
    _say(found, table, labels)
    numbers = np.array(labels, np.int64)
    files = [(name, file) for split in found for name, file in zip(names[split], found[split], strict=True)]
    return RecordsPlan(
        root=Path(out),
        splits={split: _images(several, names[split], numbers) for split, several in found.items()},
        classes=table,
        source={
            "builder": "records",
            "label_column": label_column,
            "files": {name: file.state[0] for name, file in files},
            "photos_named": [name for name, file in files if file.names],
        },
        remarks={"called": {name: file.path.name for name, file in files}},
        record_files=found,
        names=names,
        original_labels=tuple(labels),
        in_place=adopt,
    )


def _several(paths: Paths) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | os.PathLike) else list(map(Path, paths))


def _require_distinct(paths: Sequence[Path]) -> None:
    if not paths:
        raise BadRecipe("no record file is given", where="build records", expected="--train FILE.rec")
    seen: dict[str, Path] = {}
    for path in paths:
        first = seen.setdefault(os.path.realpath(path), path)
        if first is not path:
            raise BadInput("the same record file is given twice", where=path, expected="every image in one split")


def _names(split: str, paths: Sequence[Path], folder: Path | None) -> list[str]:
    """Names of the files in the data set; those they have, where they stay in `folder`."""
    if folder is None:
        count = len(paths)
        return [f"{split}.rec" if count == 1 else f"{split}-{i:05d}-of-{count:05d}.rec" for i in range(count)]
    for path in paths:
        if os.path.realpath(path.parent) != os.path.realpath(folder):
            advice = "take that folder as --out, or leave out --adopt"
            raise BadInput(
                "the record file is not in the folder to be adopted", where=path, expected=folder, advice=advice
            )
        if not _PLAIN_NAME.fullmatch(path.name):
            expected = "letters, digits, . - and _"
            raise BadInput("the file's name cannot be kept", where=path, expected=expected, advice="leave out --adopt")
    return [path.name for path in paths]


def _scanned(path: Path, label_column: int | None) -> RecordFile:
    with Bar(f"headers of {path.name}", "bytes") as bar:
        return scan(path, label_column, bar.show)


def _with_names(found: Mapping[str, list[RecordFile]], lists: Sequence[Path]) -> dict[str, list[RecordFile]]:
    """The record files with the names of their photos, from the lists that belong to them."""
    every = [file.path for files in found.values() for file in files]
    by_stem = {path.stem: path for path in lists}
    pairs = {path: by_stem[path.stem] for path in every if path.stem in by_stem}
    if len(set(pairs.values())) < len(lists):
        if len(lists) != len(every):
            expected = f"a list of the name of its record file, or {len(every)} lists in the order of the files"
            raise BadInput(
                "no saying which list belongs to which records", expected=expected, found=f"{len(lists)} lists"
            )
        pairs = dict(zip(every, lists, strict=True))
    return {
        split: [replace(file, names=_photos(file, pairs[file.path])) if file.path in pairs else file for file in files]
        for split, files in found.items()
    }


def _photos(file: RecordFile, path: Path) -> list[str]:
    """The name of each sample's photo, by its number. Raises BadInput for a list of other records."""
    rows: dict[int, Row] = {row.index: row for row in read_list(path)}
    names = []
    for number, label, position in zip(
        file.numbers.tolist(), file.labels.tolist(), file.positions.tolist(), strict=True
    ):
        row = rows.get(number)
        if row is None or float(label) not in row.labels:
            found = f"the label {' '.join(f'{number:g}' for number in row.labels[:6])}" if row else "no such line"
            raise BadInput(
                "the list is of other records",
                where=path,
                expected=f"number {number} with the label {label}, as record {position} of {file.path.name}",
                found=found,
                advice="leave out --list",
            )
        names.append(row.path)
    return names


def _classes(found: Mapping[str, Sequence[RecordFile]], path: Path | None) -> tuple[ClassTable, list[int]]:
    """The classes, and the label that each has in the records."""
    there = sorted({int(label) for files in found.values() for file in files for label in np.unique(file.labels)})
    if path is not None:
        return classes_of_labels(there, path)
    names = tuple(map(str, there))
    return ClassTable("list", names, names), there


def _images(found: Sequence[RecordFile], names: Sequence[str], numbers: NDArray[np.int64]) -> Images:
    """The samples of a split, called by record file and position; labels are classes."""
    paths = [f"{name}/{row}" for name, file in zip(names, found, strict=True) for row in file.positions.tolist()]
    labels = np.concatenate([file.labels for file in found])
    order = np.argsort(numbers, kind="stable")
    spans = np.concatenate([np.column_stack([file.starts, file.ends - file.starts]) for file in found])
    return Images(paths, order[np.searchsorted(numbers, labels, sorter=order)], spans)


def _say(found: Mapping[str, Sequence[RecordFile]], table: ClassTable, labels: Sequence[int]) -> None:
    """Say on the log what is not as one might think: other labels than classes, classes without training images."""
    if list(labels) != list(range(len(labels))):
        pairs = first_few([f"{label} is class {i}" for i, label in enumerate(labels)])
        log.info("the labels are %d..%d and stay in the records; %s", min(labels), max(labels), pairs)
    files = [file for files in found.values() for file in files]
    for file in files:
        if file.without_image:
            log.info("%s: %s", file.path, f"records without an image: {file.without_image:,}, left out, as headers are")
        if (repeats := len(file) - len(np.unique(file.numbers))) > 0:
            log.info("%s: %s", file.path, f"records with the number of an earlier one: {repeats:,}, kept")
    _say_empty(found.get("train", ()), table, labels)


def _say_empty(train: Iterable[RecordFile], table: ClassTable, labels: Sequence[int]) -> None:
    trained = {int(label) for file in train for label in np.unique(file.labels)}
    empty = [name for name, label in zip(table.names, labels, strict=True) if label not in trained]
    if trained and empty:
        log.warning("%s", printable(f"classes without a training image: {first_few(empty)}"))
