"""Any im2rec-style `.lst` into a plan: of single whole-number labels, or of label vectors."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput, counted, extent, first_few, printable
from imagenet_pipeline.records.class_names import read_classes
from imagenet_pipeline.records.classes import ClassTable, LabelKind
from imagenet_pipeline.records.lists import Row, path_inside, read_list, require_no_backslashes
from imagenet_pipeline.records.plan import LARGEST_EXACT_LABEL, Images, Labels, Plan

from .cutting import cut_shares

BEGIN_AT_ONE = "labels begin at 1? subtract one from each"

log = logging.getLogger("imagenet_pipeline")


def plan(
    list_file: Annotated[Path, "--list", "im2rec-style .lst: number TAB label(s) TAB path."],
    root: Annotated[Path, "Folder the paths start from."],
    val_list: Annotated[Path | None, "A list for val."] = None,
    test_list: Annotated[Path | None, "A list for test."] = None,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    classes: Path | None = None,
    seed: int = 42,
    label_kind: Annotated[LabelKind, "A line has one class, or 0 or 1 for each of the classes, or numbers."] = "class",
) -> Plan:
    """Build from an im2rec-style list (train, shuffled), and from further lists or fractions for val and test.

    Paths are relative to the root, or absolute inside it. Labels are whole numbers from 0. Without --classes every
    label up to the largest has a training image, and classes are called "0", "1", ...; with it, class i is the i-th of
    the file, or that with the number i, and need have none. --label-kind classes and number take lines of as many
    labels as there are classes, or numbers, in that order.

    \b
    Examples:
      imagenet-pipeline build list --list train.lst --root photos --out output/mine
      imagenet-pipeline build list --list train.lst --root photos --classes names.txt --out output/named
      imagenet-pipeline build list --list tags.lst --root photos --label-kind classes --out output/tags

    Raises BadInput naming the line that is malformed, leads outside `root`, has no single whole label (or another
    number of labels than the first line), or another label than an earlier line for the same image.
    """
    root = Path(root)
    given: Mapping[str, Path | None] = {"train": list_file, "val": val_list, "test": test_list}
    lists = {split: _images(path, root, label_kind) for split, path in given.items() if path is not None}
    _require_one_label(lists.values())
    held_out = {split: found.images for split, found in lists.items() if split != "train"}
    fractions = {"val": val_fraction, "test": test_fraction}
    wanted = {split: fraction for split, fraction in fractions.items() if split not in held_out}
    if label_kind != "class":
        table = replace(read_classes(classes) if classes else _columns(lists["train"]), label_kind=label_kind)
    else:
        table = read_classes(classes) if classes else _numbered(lists["train"])
        _require_in_table(lists.values(), len(table))
    _say_empty(lists["train"], table)
    return Plan(
        root=root,
        splits={**cut_shares(lists["train"].images, wanted, seed), **held_out},
        classes=table,
        source={
            "builder": "list",
            "seed": seed,
            "fractions": wanted,
            **({} if label_kind == "class" else {"label_kind": label_kind}),
        },
    )


@dataclass(frozen=True)
class _List:
    """A list file's images in its order, and the line that each stands on."""

    path: Path
    images: Images
    lines: NDArray[np.int64]

    def where(self, row: int) -> str:
        return f"{self.path}:{self.lines[row]}"


def _images(path: Path, root: Path, label_kind: LabelKind) -> _List:
    rows = read_list(path)
    if not rows:
        raise BadInput("the list is empty", where=path)
    require_no_backslashes((row.path for row in rows), root, path)
    labels: Labels
    if label_kind == "class":
        labels = np.array([_label(row, path) for row in rows], np.int64)
    else:
        labels = np.array([_vector(row, rows[0], path) for row in rows], np.float32)
    images = Images([path_inside(row.path, root, f"{path}, index {row.index}") for row in rows], labels)
    return _List(path, images, np.array([row.line for row in rows], np.int64))


def _label(row: Row, path: Path) -> int:
    label = row.labels[0]
    if len(row.labels) != 1 or not 0 <= label < LARGEST_EXACT_LABEL or label != int(label):
        raise BadInput(
            "the line needs a single whole-number label (a list for detection?)",
            where=f"{path}, index {row.index}",
            found=" ".join(map(str, row.labels[:8])),
        )
    return int(label)


def _vector(row: Row, first: Row, path: Path) -> tuple[float, ...]:
    if len(row.labels) != len(first.labels):
        raise BadInput(
            "the line has another number of labels than the first",
            where=f"{path}, index {row.index}",
            expected=len(first.labels),
            found=len(row.labels),
        )
    return row.labels


def _columns(train: _List) -> ClassTable:
    """Name the labels of a vector by their places, from 0."""
    names = tuple(map(str, range(train.images.labels.shape[1])))
    return ClassTable("list", names, names)


def _require_one_label(lists: Iterable[_List]) -> None:
    """Raise BadInput where an image has two labels; lines of a list that repeat an image are counted on the log."""
    seen: dict[str, tuple[_List, int]] = {}
    for current in lists:
        repeats = []
        for row, (path, label) in enumerate(zip(current.images.paths, current.images.labels.tolist(), strict=True)):
            first, at = seen.setdefault(path, (current, row))
            if (first is not current or at != row) and first.images.labels[at].tolist() != label:
                raise BadInput(
                    "the image has two labels",
                    where=current.where(row),
                    found=f"{path} as {label}, and as {first.images.labels[at].tolist()} in {first.where(at)}",
                    advice="keep the right line",
                )
            if first is current and at != row:
                repeats.append(f"{path} in line {current.lines[row]}")
        if repeats:
            log.info("%s", printable(f"{current.path}: lines that repeat an image, kept: {first_few(repeats)}"))


def _numbered(train: _List) -> ClassTable:
    """Name the classes by their labels. Raises BadInput, before making anything that large, for an empty class."""
    labels = np.unique(train.images.labels)
    if labels[-1] != len(labels) - 1:
        lacking = int(np.argmax(labels != np.arange(len(labels))))
        highest = train.where(int(np.argmax(train.images.labels)))
        raise BadInput(
            f"no training image has label {lacking}",
            where=train.path,
            expected=f"labels 0..{len(labels) - 1}, as there are {len(labels):,}",
            found=f"{extent(int(labels[0]), int(labels[-1]))} (the highest in {highest})",
            advice=f"{_guess(labels)}, or name every class with --classes",
        )
    names = tuple(map(str, labels.tolist()))
    return ClassTable("list", names, names)


def _guess(labels: NDArray[Any]) -> str:
    if labels[0] == 1 and labels[-1] == len(labels):
        return BEGIN_AT_ONE
    return "number the classes from 0, without gaps"


def _say_empty(train: _List, table: ClassTable) -> None:
    if table.label_kind == "number":
        return
    labels = train.images.labels
    met = np.unique(labels) if labels.ndim == 1 else np.flatnonzero(labels.any(axis=0))
    empty = sorted(set(range(len(table))) - set(met.tolist()))
    if empty:
        names = first_few([f"{label} = {table.ids[label]}" for label in empty])
        log.warning("%s", printable(f"{train.path}: classes without a training image: {names}"))


def _require_in_table(lists: Iterable[_List], classes: int) -> None:
    for current in lists:
        labels = np.unique(current.images.labels)
        if labels[-1] >= classes:
            begin_at_one = labels[0] == 1 and labels[-1] == classes
            raise BadInput(
                "the label is out of range",
                where=current.where(int(np.argmax(current.images.labels))),
                expected=f"{extent(0, classes - 1)}, the labels of {counted(classes, 'class')}",
                found=f"{labels[-1]:,}",
                advice=BEGIN_AT_ONE if begin_at_one else None,
            )
