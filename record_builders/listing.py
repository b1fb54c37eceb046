"""Any im2rec-style `.lst` of single whole-number labels into a plan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.lists import Row, read_list
from imagenet_pipeline.records.plan import LARGEST_EXACT_LABEL, Images, Plan
from record_builders.cutting import cut_shares


def plan(
    list_file: Path,
    root: Path,
    val_list: Path | None = None,
    test_list: Path | None = None,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    classes: Path | None = None,
    seed: int = 42,
) -> Plan:
    """Plan the images of a list (train, shuffled), and of further lists or fractions for val and test.

    Paths are relative to `root`, or absolute inside it. `classes` is a `classes.json`, or a text file with
    one class a line; without it classes are called "0", "1", ... up to the largest label.
    Raises BadInput naming the line that is malformed, leads outside `root`, or has not one whole label.
    """
    root = Path(root)
    given: Mapping[str, Path | None] = {"val": val_list, "test": test_list}
    fractions = {"val": val_fraction, "test": test_fraction}
    held_out = {split: _images(path, root) for split, path in given.items() if path is not None}
    wanted = {split: fraction for split, fraction in fractions.items() if split not in held_out}
    splits = {**cut_shares(_images(list_file, root), wanted, seed), **held_out}
    highest = max(int(images.labels.max()) for images in splits.values() if len(images))
    return Plan(
        root=root,
        splits=splits,
        classes=_class_table(classes) if classes else _numbered(highest + 1),
        source={"builder": "list", "seed": seed, "fractions": wanted},
    )


def _images(path: Path, root: Path) -> Images:
    rows = read_list(path)
    if not rows:
        raise BadInput("list is empty", where=path)
    labels = [_label(row, path) for row in rows]
    return Images([_inside(row, root, path) for row in rows], np.array(labels, np.int64))


def _label(row: Row, path: Path) -> int:
    label = row.labels[0]
    if len(row.labels) != 1 or not 0 <= label < LARGEST_EXACT_LABEL or label != int(label):
        raise BadInput(
            "one whole-number label wanted (a list for detection?)",
            where=f"{path}, index {row.index}",
            found=" ".join(map(str, row.labels[:8])),
        )
    return int(label)


def _inside(row: Row, root: Path, path: Path) -> str:
    """The path relative to the root. Symbolic links are looked at when the file is read."""
    base = os.path.abspath(root)
    full = os.path.normpath(os.path.join(base, row.path))
    if not full.startswith(os.path.join(base, "")):
        raise BadInput("path leads outside the root folder", where=f"{path}, index {row.index}", found=row.path)
    return os.path.relpath(full, base)


def _class_table(path: Path) -> ClassTable:
    if path.suffix == ".json":
        return ClassTable.read(path)
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("list of classes cannot be read", where=path) from error
    return _table(names)


def _numbered(count: int) -> ClassTable:
    return _table([str(label) for label in range(count)])


def _table(names: Sequence[str]) -> ClassTable:
    return ClassTable("list", tuple(names), tuple(names))
