"""A look into records: what each says of itself, and how many there are of each class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records import image
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.lists import read_list
from imagenet_pipeline.records.manifest import DataSet, is_data_set, read_data_set
from imagenet_pipeline.records.reader import RecordSet

FIRST_EIGHT = range(8)


@dataclass(frozen=True)
class RecordInfo:
    """One record: position in the split, where it lies, and what it holds; width 0 where no image decodes."""

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
    """

    path: str
    split: str | None
    splits: dict[str, int]
    count: int
    classes: int | None
    class_counts: dict[str, int]
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
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
        several = any(len(record.labels) > 1 for record in shown)
        return Inspection(
            path=data_set.name if data_set else str(path),
            split=split,
            splits=splits,
            count=len(found),
            classes=len(classes) if classes else None,
            class_counts={} if several else _class_counts(_labels(found, data_set, split), classes),
            mean=data_set.mean if data_set else None,
            std=data_set.std if data_set else None,
            records=shown,
        )


def within(records: range, found: RecordSet) -> range:
    """Cut a range of positions at the last record. Raises BadInput where there are records, but none in it."""
    there = range(min(records.start, len(found)), min(records.stop, len(found)))
    if found and not there:
        asked = f"records {records.start}:{records.stop}"
        raise BadInput(f"{asked} are outside 0..{len(found) - 1}", where=found.name)
    return there


def _labels(found: RecordSet, data_set: DataSet | None, split: str | None) -> NDArray[np.float32]:
    """The label of every record; of a data set in object storage by its list, which is here."""
    if data_set is None or data_set.cache is None or data_set.manifest.labels is not None:
        return found.first_labels()
    return np.array([row.labels[0] for row in read_list(data_set.folder / f"{split}.lst")], np.float32)


def _class_counts(labels: NDArray[np.float32], classes: ClassTable | None) -> dict[str, int]:
    labels, counts = np.unique(labels, return_counts=True)
    named = [(class_of(float(label), classes)[0] or f"{label:g}") for label in labels]
    return dict(zip(named, counts.tolist(), strict=True))


def class_of(label: float, classes: ClassTable | None) -> tuple[str | None, str | None]:
    """Class id and name of a label; (None, None) without a table, and for a label that is not in it."""
    if classes is None or not label.is_integer() or not 0 <= label < len(classes):
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
    class_id, class_name = class_of(record.labels[0], classes) if record.labels else (None, None)
    return RecordInfo(
        position=position,
        file=file.name,
        offset=offset,
        number=record.number,
        labels=record.labels,
        class_id=class_id,
        class_name=class_name,
        width=width,
        height=height,
        bytes=len(record.image),
        checked=record.checked,
    )
