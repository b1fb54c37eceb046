"""A look into records: what each says of itself, and how many there are of each class."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records import image, lists
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.manifest import DataSet, is_data_set, read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import number_columns

FIRST_EIGHT = range(8)


@dataclass(frozen=True)
class RecordInfo:
    """One record: position in the split, where it lies, and what it holds; width 0 where no image decodes.

    Of several classes a record `class_name` has all of them, of numbers these with their names; `class_id` none.
    """

    position: int
    file: str
    offset: int
    number: int
    labels: tuple[float, ...]
    class_id: str | None
    class_name: str | None
    width: int
    height: int
    bytes: int
    checked: bool


@dataclass(frozen=True)
class Inspection:
    """A split of a data set or a lone `.rec` file.

    `class_counts` is by class id, or by label where unnamed; none where labels are several numbers, as in detection.
    Of several classes a record it has the records that show each; of numbers there is none.
    `mean_images` is the number of images in the sample whose mean and std these are, None where they are those of all.
    """

    path: str
    split: str | None
    splits: dict[str, int]
    count: int
    classes: int | None
    class_counts: dict[str, int]
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    mean_images: int | None
    records: list[RecordInfo]


def inspect(path: Path, records: range = FIRST_EIGHT, split: str | None = None) -> Inspection:
    """Describe a data set folder (its first split unless `split` is given) or a `.rec` file, and some records.

    Positions past the end are left out. Raises BadInput where all are, or Damaged naming the record.
    """
    data_set = read_data_set(path) if is_data_set(path) else None
    classes = data_set.classes if data_set else None
    splits = data_set.counts if data_set else {}
    split = split or next(iter(splits), None)
    with RecordSet.of(data_set, split) if data_set else RecordSet.open(path) as found:
        shown = [_info(found, position, classes) for position in within(records, found)]
        several = classes is None and any(len(record.labels) > 1 for record in shown)
        return Inspection(
            path=data_set.name if data_set else str(path),
            split=split,
            splits=splits,
            count=len(found),
            classes=len(classes) if classes else None,
            class_counts={} if several else _class_counts(found, data_set, split),
            mean=data_set.mean if data_set else None,
            std=data_set.std if data_set else None,
            mean_images=data_set.mean_images if data_set else None,
            records=shown,
        )


def within(records: range, found: RecordSet) -> range:
    """Cut a range of positions at the last record. Raises BadInput where there are records, but none in it."""
    there = range(min(records.start, len(found)), min(records.stop, len(found)))
    if found and not there:
        asked = f"records {records.start}:{records.stop}"
        raise BadInput(f"{asked} are outside 0..{len(found) - 1}", where=found.name)
    return there


def count_labels(found: RecordSet, data: DataSet | None, split: str | None) -> dict[float, int]:
    """Records of each first label, by label in ascending order; as `labels_of` has them."""
    return dict(sorted(_counted(labels_of(found, data, split)).items()))


def labels_of(found: RecordSet, data: DataSet | None, split: str | None) -> NDArray[np.float32]:
    """The first label of every record, float32 [records].

    Of a data set's split as its list has it, a file beside so many headers; as the records have it where they are
    another program's, and where the list is not as it was written.
    """
    listed = None
    if data is not None and data.samples is None and data.manifest.labels is None:
        listed = _listed(data.folder / f"{split}.lst", data.manifest.files.get(f"{split}.lst", ""))
    return listed if listed is not None and len(listed) == len(found) else found.first_labels()


def _listed(path: Path, digest: str) -> NDArray[np.float32] | None:
    """The label of each line of a list, whose order is that of the records; None where it has not that SHA-256."""
    with contextlib.suppress(OSError, BadInput, ValueError):
        if files.sha256_of(path) != digest:
            return None
        columns = [columns[:, 1].astype(np.float32) for columns in number_columns(path, lists.COLUMNS)]
        listed: NDArray[np.float32] = np.concatenate([np.empty(0, np.float32), *columns])
        return listed
    return None


def _counted(labels: NDArray[Any]) -> Counter[float]:
    values, counts = np.unique(labels, return_counts=True)
    return Counter(dict(zip(map(float, values), counts.tolist(), strict=True)))


def _class_counts(found: RecordSet, data: DataSet | None, split: str | None) -> dict[str, int]:
    classes = None if data is None else data.classes
    if data is not None and classes is not None and classes.label_kind != "class":
        if classes.label_kind == "number":
            return {}
        shown = np.count_nonzero(label_vectors(data, split), axis=0).tolist()
        return dict(zip(classes.ids, shown, strict=True))
    counts = count_labels(found, data, split)
    return {class_of(label, classes)[0] or f"{label:g}": count for label, count in counts.items()}


def label_vectors(data: DataSet, split: str | None) -> NDArray[np.float32]:
    """The label vectors of a split, [n, labels], as its list has them. Raises BadInput where that cannot be read."""
    rows = [row.labels for row in lists.rows_of(data.folder / f"{split}.lst")]
    return np.array(rows, np.float32).reshape(len(rows), -1)


def words_of(labels: Sequence[float], classes: ClassTable | None) -> str:
    """The labels of a record for people: its class, all its classes, or its numbers by name; empty for unknown ones."""
    if classes is None or classes.label_kind == "class":
        return (class_of(labels[0], classes)[1] or "") if labels else ""
    if classes.label_kind == "number":
        return ", ".join(f"{name} {value:g}" for name, value in zip(classes.names, labels, strict=False))
    return ", ".join(name for name, shown in zip(classes.names, labels, strict=False) if shown)


def class_of(label: float, classes: ClassTable | None) -> tuple[str | None, str | None]:
    """Class id and name of a label; (None, None) without a table, and for a label that is not in it."""
    if classes is None or classes.label_kind != "class" or not label.is_integer() or not 0 <= label < len(classes):
        return None, None
    return classes.ids[int(label)], classes.names[int(label)]


def _info(found: RecordSet, position: int, classes: ClassTable | None) -> RecordInfo:
    record = found.read(position)
    file, _, offset = found.location(position)
    try:
        header = image.read_header(record.image)
        width, height = header.width, header.height
    except image.Rejected:
        width, height = 0, 0
    class_id = class_of(record.labels[0], classes)[0] if record.labels else None
    return RecordInfo(
        position=position,
        file=file.name,
        offset=offset,
        number=record.number,
        labels=record.labels,
        class_id=class_id,
        class_name=words_of(record.labels, classes) or None,
        width=width,
        height=height,
        bytes=len(record.image),
        checked=record.checked,
    )
