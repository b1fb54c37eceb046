"""Which of a network's classes the records' classes are: by their ids, by ImageNet's numbers, or by a file's labels.

Where the records have some of the classes alone, a network may be scored on the logits of those, as the authors of
ImageNet-A (Hendrycks et al. 2019, arXiv 1907.07174) and ImageNet-R (arXiv 2006.16241) do with their 200 classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from imagenet_pipeline.errors import BadInput, counted, extent, first_few
from imagenet_pipeline.evaluation.scoring import Whole
from imagenet_pipeline.records.classes import NUMBERED, WNID, ClassTable
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.checkpoint import State
from imagenet_pipeline.training.data import IMPORTED, require_its_classes

IMAGENET_CLASSES = 1000
_NUMBERS = {str(number) for number in range(IMAGENET_CLASSES)}


@dataclass(frozen=True)
class Numbering:
    """`table` names the classes that are scored; label i of the records is `relabel[i]` there.

    Class i of the table is output `columns[i]` of the network, where not all of its outputs are scored. `note` says
    what was done.
    """

    table: ClassTable
    relabel: Whole
    note: str = ""
    columns: Whole | None = None


def numbering_of(state: State, data: DataSet) -> Numbering:
    """Map the data set's labels to the network's. Raises BadInput where a class is none of the network's.

    Records from folders 0 to 999, which ImageNetV2 has, are ImageNet's classes by number. Records of some of the
    network's classes are matched by class id. A lone record file's labels are the classes of those names, where the
    network has them, or else its numbers. All others must have its very table, as in training.
    """
    own, theirs = state.class_table, data.classes
    if data.samples is not None:
        return _by_label(own, data)
    unnamed = is_unnamed(state)
    if set(theirs.ids) == _NUMBERS and own.ids != theirs.ids and _has_imagenet_s(own):
        return _by_number(own, theirs)
    if unnamed or not set(theirs.ids) < set(own.ids):
        require_its_classes(state, data)
        return Numbering(theirs if unnamed else own, np.arange(len(theirs)))
    label_of = {name: label for label, name in enumerate(own.ids)}
    relabel = np.array([label_of[name] for name in theirs.ids], np.int64)
    note = f"the records have {len(theirs):,} of the network's {counted(len(own), 'class')}, matched by class id"
    return Numbering(own, relabel, note)


SUBSETS = ("imagenet-a", "imagenet-r")
"""Sets of `build imagenet-test` that their authors score on the logits of their own classes."""


def is_subset_by_name(data: DataSet) -> bool:
    """True for a data set whose authors score the logits of its own classes alone."""
    return data.manifest.source.get("set") in SUBSETS


def subset_of(state: State, data: DataSet) -> Numbering:
    """Map the data set's labels to the network's, and leave the logits of all other classes out.

    Raises BadInput, beside what `numbering_of` raises, naming the classes that are none of the network's, and where a
    single class is left.
    """
    own, theirs = state.class_table, data.classes
    known = set(own.ids)
    if data.samples is None and len(theirs) < len(own) and not set(theirs.ids) <= known:
        unknown = [name for name in theirs.ids if name not in known]
        unnamed = "; import the network with --classes, which names its outputs" if is_unnamed(state) else ""
        raise BadInput(
            f"{len(unknown):,} of the {counted(len(theirs), 'class')} are none of the network's",
            where=data.name,
            expected=f"ids as the network's, {own.ids[0]}",
            found=first_few(unknown),
            advice=f"class folders must be named by id, as ImageNet's by WordNet id{unnamed}",
        )
    whole = numbering_of(state, data)
    columns = np.unique(whole.relabel)
    if len(columns) == len(whole.table):
        return whole
    if len(columns) < 2:
        raise BadInput("a single class: there is nothing to tell it from", where=data.name, found=data.classes.ids[0])
    table = replace(
        whole.table,
        ids=tuple(whole.table.ids[column] for column in columns),
        names=tuple(whole.table.names[column] for column in columns),
    )
    note = f"scored on the logits of the {len(table):,} classes that the records have, of the network's {len(own):,}"
    others = "" if data.samples is None else f"; {whole.note}"
    return Numbering(table, np.searchsorted(columns, whole.relabel), note + others, columns)


def is_unnamed(state: State) -> bool:
    """True for a network that was imported without the names of its classes."""
    return (state.data_digest, state.class_order) == (IMPORTED, NUMBERED)


def sorted_numbers(table: ClassTable) -> Whole:
    """Find ImageNet's number, the rank among the sorted WordNet ids, of each label [1000].

    Raises BadInput for a table of other classes; of a network whose classes nobody named the labels are those numbers.
    """
    if not _has_imagenet_s(table):
        raise BadInput(
            "the network's classes are not ImageNet's",
            expected=f"{IMAGENET_CLASSES:,} WordNet ids",
            found=f"{counted(len(table), 'class')}, {table.ids[0]} first",
        )
    numbers: Whole = np.argsort(np.argsort(table.ids))
    return np.arange(len(table)) if table.order == NUMBERED else numbers


def _by_number(own: ClassTable, theirs: ClassTable) -> Numbering:
    label_of_number = np.argsort(sorted_numbers(own))
    relabel = label_of_number[np.array(theirs.ids, np.int64)]
    return Numbering(own, relabel, "records of folders 0 to 999 are ImageNet's classes in the order of WordNet ids")


def _by_label(own: ClassTable, data: DataSet) -> Numbering:
    label_of, theirs = {name: label for label, name in enumerate(own.ids)}, data.classes.ids
    if all(name in label_of for name in theirs):
        note = f"{data.name} names no classes: its labels are taken for the network's classes of those names"
        return Numbering(own, np.array([label_of[name] for name in theirs], np.int64), note)
    labels = np.array(theirs, np.int64)
    if labels[0] < 0 or labels[-1] >= len(own):
        raise BadInput(
            "the file's labels are not the network's",
            where=data.name,
            expected=extent(0, len(own) - 1),
            found=extent(int(labels[0]), int(labels[-1])),
            advice="name the classes of its labels: build records --test FILE.rec --classes NAMES --out DIR",
        )
    note = f"{data.name} names no classes: its labels are taken for the network's numbers, 0 for {own.names[0]}"
    return Numbering(own, labels, f"{note}; nothing here can check it")


def _has_imagenet_s(table: ClassTable) -> bool:
    return len(table) == IMAGENET_CLASSES and (table.order == NUMBERED or all(map(WNID.fullmatch, table.ids)))
