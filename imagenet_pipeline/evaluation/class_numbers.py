"""Records whose classes are numbered otherwise than the network's: which of its classes each of theirs is."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.evaluation.outcomes import Whole
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.checkpoint import State
from imagenet_pipeline.training.data import IMPORTED, NUMBERED, require_its_classes

IMAGENET_CLASSES = 1000
_NUMBERS = {str(number) for number in range(IMAGENET_CLASSES)}
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Numbering:
    """`table` names the network's classes; label i of the records is `relabel[i]` there. `note` says what was done."""

    table: ClassTable
    relabel: Whole
    note: str = ""


def numbering_of(state: State, data: DataSet) -> Numbering:
    """How the classes of records are those of a network. Raises BadInput where they are not.

    Records from folders 0 to 999, which ImageNetV2 has, are ImageNet's classes by number. Records of some of the
    network's classes are matched by class id. All others must have its very table, as in training.
    """
    own, theirs = state.class_table, data.classes
    unnamed = is_unnamed(state)
    if set(theirs.ids) == _NUMBERS and own.ids != theirs.ids and _has_imagenet_s(own):
        return _by_number(own, theirs)
    if unnamed or not set(theirs.ids) < set(own.ids):
        require_its_classes(state, data)
        return Numbering(theirs if unnamed else own, np.arange(len(theirs)))
    label_of = {name: label for label, name in enumerate(own.ids)}
    relabel = np.array([label_of[name] for name in theirs.ids], np.int64)
    note = f"the records have {len(theirs):,} of the network's {len(own):,} classes, matched by class id"
    return Numbering(own, relabel, note)


def is_unnamed(state: State) -> bool:
    """Whether a network was imported without the names of its classes."""
    return (state.data_digest, state.class_order) == (IMPORTED, NUMBERED)


def sorted_numbers(table: ClassTable) -> Whole:
    """ImageNet's number, that is the place among the sorted WordNet ids, of each label [1000].

    Raises BadInput for a table of other classes; of a network whose classes nobody named the labels are those numbers.
    """
    if not _has_imagenet_s(table):
        raise BadInput(
            "the network's classes are not ImageNet's",
            expected=f"{IMAGENET_CLASSES:,} WordNet ids",
            found=f"{len(table):,} classes, {table.ids[0]} first",
        )
    numbers: Whole = np.argsort(np.argsort(table.ids))
    return np.arange(len(table)) if table.order == NUMBERED else numbers


def _by_number(own: ClassTable, theirs: ClassTable) -> Numbering:
    label_of_number = np.argsort(sorted_numbers(own))
    relabel = label_of_number[np.array(theirs.ids, np.int64)]
    return Numbering(own, relabel, "records of folders 0 to 999 are ImageNet's classes in the order of WordNet ids")


def _has_imagenet_s(table: ClassTable) -> bool:
    return len(table) == IMAGENET_CLASSES and (table.order == NUMBERED or all(map(_WNID.fullmatch, table.ids)))
