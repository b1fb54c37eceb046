"""A table of images and their labels, as Kaggle's labels.csv, into a plan."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput, BadRecipe, first_few, printable
from imagenet_pipeline.records.class_names import names_of
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image_files import READ_ENDINGS
from imagenet_pipeline.records.lists import path_inside, require_no_backslashes
from imagenet_pipeline.records.plan import Images, Labels, Plan

from .csv_rows import line_of, rows_of
from .cutting import USUAL_FRACTION, cut_shares, usual_share
from .split_folders import USUAL_NAMES, split_called

_WHOLE_NUMBER = re.compile(r"(0|-?[1-9]\d{0,14})(\.0*)?", re.ASCII)

log = logging.getLogger("imagenet_pipeline")


def plan(
    csv_file: Annotated[Path, "--csv", "Table with a header, a row an image; .gz and .xz too."],
    root: Annotated[Path, "Folder the images' paths start from."],
    image_column: Annotated[str, "Column of the images' paths or ids."],
    label_column: Annotated[str | None, "Column of the labels, words or numbers."] = None,
    label_columns: Annotated[str | None, "Several, commas between: 0 or 1 for a class each, or numbers."] = None,
    label_separator: Annotated[str | None, "What is between the classes of an image in --label-column."] = None,
    regression: Annotated[bool, "Labels are numbers, not classes."] = False,
    suffix: Annotated[str, "Ending that ids lack, as .jpg."] = "",
    split_column: Annotated[str | None, f"Column that says {USUAL_NAMES}."] = None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    classes: Path | None = None,
    seed: int = 42,
) -> Plan:
    """Build from a table of images and labels (CSV), as Kaggle has them.

    Fields end at commas, semicolons, tabs or bars. The classes are the labels, sorted; numbers by value. An image of
    several classes has a column for each (--label-columns), or all in one (--label-separator). The fractions count
    where no row is for val or test [default: 0.1 without --split-column, else none]. Every image must be there.

    \b
    Examples:
      imagenet-pipeline build csv --csv labels.csv --image-column id --label-column breed --suffix .jpg \\
        --root train --out output/breeds
      imagenet-pipeline build csv --csv faces.csv --image-column path --label-column age --split-column set \\
        --root faces --out output/faces
      imagenet-pipeline build csv --csv tags.csv --image-column file --label-column tags --label-separator " " \\
        --root photos --out output/tags
      imagenet-pipeline build csv --csv faces.csv --image-column path --label-column age --regression \\
        --root faces --out output/ages

    Raises BadInput naming the line that is malformed, has no label or no split, or leads outside `root`; where images
    are missing, or an image has two labels or splits.
    """
    columns = _label_columns(csv_file, label_column, label_columns, label_separator, regression)
    table = read_table(csv_file, root, (image_column, columns, split_column), suffix)
    _require_there(table.paths, root, suffix)
    class_table, labels = _labels(table, columns, label_columns is not None, label_separator, regression, classes)
    images = Images(table.paths, labels)
    held_out: dict[str, Images] = {
        split: _rows(images, table, split) for split in ("val", "test") if split in table.splits
    }
    fractions = {"val": val_fraction, "test": test_fraction}
    for split in held_out:
        if fractions.pop(split):
            raise BadInput(f"rows are for {split}: no {split} split is cut out of train", where=csv_file)
    train = _rows(images, table, "train")
    if not len(train):
        raise BadInput("no row is for train", where=csv_file, found=", ".join(sorted(set(table.splits))))
    kind = class_table.label_kind
    usual = 0.0 if split_column else usual_share(len(train), len(class_table)) if kind == "class" else USUAL_FRACTION
    shares = {split: usual if fraction is None else fraction for split, fraction in fractions.items()}
    return Plan(
        root=Path(root),
        splits={**cut_shares(train, shares, seed), **held_out},
        classes=class_table,
        source={
            "builder": "csv",
            "seed": seed,
            "fractions": shares,
            **({} if kind == "class" else {"label_kind": kind}),
        },
    )


def _label_columns(
    csv_file: Path, one: str | None, several: str | None, separator: str | None, regression: bool
) -> list[str]:
    """The columns of labels. Raises BadRecipe unless the options say which, and go together."""
    columns = [one] if one else [name.strip() for name in (several or "").split(",") if name.strip()]
    if bool(one) == bool(several) or not columns:
        raise BadRecipe("which column has the labels", where=csv_file, expected="--label-column or --label-columns")
    if separator == "" or (separator and (several or regression)):
        raise BadRecipe("--label-separator parts the classes of --label-column", where=csv_file, found=ascii(separator))
    return columns


def _labels(
    table: Table, columns: Sequence[str], several: bool, separator: str | None, regression: bool, classes: Path | None
) -> tuple[ClassTable, Labels]:
    """The class table and the labels of the rows, of the kind that the options of `plan` say."""
    if not (several or separator or regression):
        return classes_of(table, classes)
    # Of a table with one class an image nothing of this is needed.
    from .csv_vectors import classes_a_column, classes_between, numbers_in

    if separator:
        return classes_between(separator, table.labels, table.path, classes)
    if classes is not None:
        raise BadRecipe("the columns name the labels", where="--classes", advice="leave it out")
    of_columns = numbers_in if regression else classes_a_column
    return of_columns(table.path, columns, table.labels, table.lines)


@dataclass(frozen=True)
class Table:
    """The rows of a table: paths relative to the root, fields of the columns of labels, splits, and lines."""

    path: Path
    paths: list[str]
    labels: list[tuple[str, ...]]
    splits: list[str]
    lines: list[int]


def read_table(csv_file: Path, root: Path, columns: tuple[str, Sequence[str], str | None], suffix: str = "") -> Table:
    """Read the columns of images, labels, and splits (all rows are for train where there is none).

    Rows that repeat an image and its label count once, which is said on the log. Raises BadInput as `plan`.
    """
    image, labels, split = columns
    named = [image, *labels, *([] if split is None else [split])]
    table = Table(Path(csv_file), [], [], [], [])
    seen: dict[str, int] = {}
    repeats = []
    for line, row in rows_of(csv_file, named):
        where = line_of(csv_file, line)
        if not row[image]:
            raise BadInput("the row has no image", where=where)
        name = row[image] if row[image].lower().endswith(suffix.lower()) else row[image] + suffix
        path = path_inside(name, root, where)
        made = (tuple(row[label] for label in labels), _split(row[split], where) if split is not None else "train")
        first = seen.setdefault(path, len(table.paths))
        if first == len(table.paths):
            table.paths.append(path)
            table.labels.append(made[0])
            table.splits.append(made[1])
            table.lines.append(line)
        else:
            _require_same(table, first, made, where)
            repeats.append(f"{path} in line {line}")
    if not table.paths:
        raise BadInput("the table has no rows", where=csv_file, expected="a row an image")
    if repeats:
        log.info("%s", printable(f"{csv_file}: rows that repeat an image, left out: {first_few(repeats)}"))
    require_no_backslashes(table.paths, root, Path(csv_file))
    return table


def classes_of(table: Table, classes: Path | None = None) -> tuple[ClassTable, NDArray[np.int64]]:
    """The classes of a table's labels, sorted, numbers ("3" and "3.0" alike) by value, and the class of each row.

    `classes` names them (see `names_of`). Raises BadInput for a row without a label, and for fewer than two labels.
    """
    written = [label for (label,) in table.labels]
    for label, line in zip(written, table.lines, strict=True):
        if not label or not label.isprintable():
            what = "the label cannot be printed" if label else "the row has no label"
            advice = None if label else "leave such rows out"
            raise BadInput(what, where=line_of(table.path, line), found=ascii(label[:80]), advice=advice)
    numbers = {label: _WHOLE_NUMBER.fullmatch(label) for label in set(written)}
    if all(numbers.values()):
        words = [str(int(match[1])) if (match := numbers[label]) else "" for label in written]
        ids = sorted(set(words), key=int)
    else:
        words, ids = written, sorted(numbers)
    if len(ids) < 2:
        raise BadInput("all rows have one label", where=table.path, expected="two or more classes", found=ids[0])
    label_of = {word: label for label, word in enumerate(ids)}
    names = names_of(ids, classes) if classes else ids
    return ClassTable("list", tuple(ids), tuple(names)), np.array([label_of[word] for word in words], np.int64)


def _rows(images: Images, table: Table, split: str) -> Images:
    rows = [row for row, name in enumerate(table.splits) if name == split]
    return Images([images.paths[row] for row in rows], images.labels[rows])


def _split(word: str, where: str) -> str:
    split = split_called(word)
    if split is None:
        raise BadInput("the split is unknown", where=where, expected=USUAL_NAMES, found=repr(word[:40]))
    return split


def _require_same(table: Table, first: int, made: tuple[tuple[str, ...], str], where: str) -> None:
    """Raise BadInput unless a row says of an image what an earlier one does."""
    rows = ((" ".join(labels), split) for labels, split in (made, (table.labels[first], table.splits[first])))
    for what, value, known in zip(("labels", "splits"), *rows, strict=True):
        if value != known:
            found = f"{table.paths[first]} as {value!r}, and as {known!r} in line {table.lines[first]}"
            raise BadInput(f"the image has two {what}", where=where, found=found, advice="keep the right row")


def _require_there(paths: Sequence[str], root: Path, suffix: str) -> None:
    """Raise BadInput, naming the first few, where files are missing; links are looked at when they are read."""
    if not os.path.isdir(root):
        raise BadInput("no such folder", where=root)
    missing = [path for path in paths if not os.path.lexists(os.path.join(root, path))]
    if missing:
        bare = os.path.join(root, missing[0].removesuffix(suffix))
        ending = next((ending for ending in ("", *READ_ENDINGS) if os.path.isfile(bare + ending)), None)
        advice = "compare --root with the table's paths"
        if ending is not None:
            advice = f"say --suffix {ending}" if ending else "do without --suffix"
        what = f"{len(missing):,} of {len(paths):,} images are not there"
        raise BadInput(what, where=root, expected=first_few(missing), advice=advice)
