"""Label vectors out of the columns of a table: a class a column, several classes in one, or numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.class_names import names_of
from imagenet_pipeline.records.classes import ClassTable

from .csv_rows import line_of

Vectors = tuple[ClassTable, NDArray[np.float32]]
Fields = Sequence[tuple[str, ...]]
"""The fields of the columns of labels, by row."""
_LARGEST = float(np.finfo(np.float32).max)
_FLAGS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0}


def numbers_in(path: Path, columns: Sequence[str], rows: Fields, lines: Sequence[int]) -> Vectors:
    """A number a column. Raises BadInput, naming the line, for what is none."""
    labels = np.empty((len(rows), len(columns)), np.float32)
    for at, (fields, line) in enumerate(zip(rows, lines, strict=True)):
        for column, (name, field) in enumerate(zip(columns, fields, strict=True)):
            try:
                number = float(field)
            except ValueError:
                number = np.nan
            if not abs(number) <= _LARGEST:
                raise BadInput(f"{name} is no number", where=line_of(path, line), found=ascii(field[:40]))
            labels[at, column] = number
    return ClassTable("list", tuple(columns), tuple(columns), "number"), labels


def classes_a_column(path: Path, columns: Sequence[str], rows: Fields, lines: Sequence[int]) -> Vectors:
    """A class a column, 0 or 1 (or false, true, no, yes). Raises BadInput, naming the line, for anything else."""
    labels = np.empty((len(rows), len(columns)), np.float32)
    for at, (fields, line) in enumerate(zip(rows, lines, strict=True)):
        for column, (name, field) in enumerate(zip(columns, fields, strict=True)):
            # Programs that hold columns as floats write them so.
            flag = _FLAGS.get(field.removesuffix(".0").lower())
            if flag is None:
                what, where = f"{name} is neither 0 nor 1", line_of(path, line)
                advice = "--regression takes numbers"
                raise BadInput(what, where=where, found=ascii(field[:40]), advice=advice)
            labels[at, column] = flag
    return ClassTable("list", tuple(columns), tuple(columns), "classes"), labels


def classes_between(separator: str, rows: Fields, path: Path, classes: Path | None) -> Vectors:
    """The classes whose ids stand in one column with separators between, maybe none, sorted; named by `classes`."""
    chosen = [{word.strip() for word in fields[0].split(separator)} - {""} for fields in rows]
    ids = sorted(set().union(*chosen))
    if not ids:
        raise BadInput("no row has a label", where=path)
    unprintable = next((name for name in ids if not name.isprintable()), None)
    if unprintable is not None:
        raise BadInput("a label cannot be printed", where=path, found=ascii(unprintable[:80]))
    table = ClassTable("list", tuple(ids), tuple(names_of(ids, classes) if classes else ids))
    column = {name: place for place, name in enumerate(ids)}
    labels = np.zeros((len(rows), len(ids)), np.float32)
    for at, words in enumerate(chosen):
        labels[at, [column[word] for word in words]] = 1
    return replace(table, label_kind="classes"), labels
