"""One record made usable: image decoded, label checked, or an error that says where."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from imagenet_pipeline.errors import BadInput, Damaged, PipelineError
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.records.image import decode_rgb, refuse_damaged
from imagenet_pipeline.records.recordio import ImageRecord

_CLASS_LIMIT = 2**24  # beyond it float32 labels are no longer exact


class Records(Protocol):
    """What the loader needs of a record set; `read` is called from several threads at once."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, position: int) -> ImageRecord: ...

    def place(self, position: int) -> tuple[Path, int, int]: ...


class Sample(NamedTuple):
    """A decoded record: RGB [H, W, 3], its class, and the number it carries."""

    image: Pixels
    label: int
    number: int


def read_sample(records: Records, position: int, classes: int | None) -> Sample:
    """Read, check and decode one record.

    Raises BadInput for a label that is no whole number from 0 to `classes` - 1, for a number beyond 63 bits, and
    for an image that cannot be decoded (Damaged where its checksum holds) or, without a checksum, has lost part of
    its picture; what the record set raises passes.
    """
    record = records.read(position)
    try:
        return Sample(_decoded(record), _label(record, classes), _number(record))
    except PipelineError as error:
        file, _, offset = records.place(position)
        where = f"{file}, record {position}, offset {offset}"
        raise type(error)(error.what, where=where, expected=error.expected, found=error.found) from error


def _decoded(record: ImageRecord) -> Pixels:
    try:
        # With one, the build has looked, and stored damaged images because it was told to.
        return decode_rgb(record.image, None if record.checked else refuse_damaged)
    except PipelineError as error:
        # An image whose checksum holds was readable when it was built: the records are at fault.
        raise (Damaged if record.checked else BadInput)(error.what) from error


def _number(record: ImageRecord) -> int:
    if record.number >= 2**63:
        raise BadInput("record number too large", expected="less than 2**63", found=record.number)
    return record.number


def _label(record: ImageRecord, classes: int | None) -> int:
    first = record.labels[0] if record.labels else None
    if first is None or not first.is_integer() or not 0 <= first < (classes or _CLASS_LIMIT):
        raise BadInput(
            "unusable label",
            expected="a whole number from 0" + ("" if classes is None else f" to {classes - 1}"),
            found="none" if first is None else f"{first:g}",
        )
    return int(first)
