"""Looking into records: what each says of itself, how many of each class, and a picture of some of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imagenet_pipeline import files
from imagenet_pipeline.drawing import require_png
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records import image
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.reader import RecordSet

FIRST_EIGHT = range(8)
FIRST_FORTY = range(40)
MONTAGE_LIMIT = 400
_COLUMNS = 8
_TILE = 160
_CAPTION = 20
_GAP = 8
_BACKGROUND = (255, 255, 255)
_INK = (40, 40, 40)


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
    """Describe a data set folder (its first split unless one is named) or a `.rec` file, and some records.

    Positions past the end are left out. Raises BadInput where all are, or Damaged naming the record.
    """
    path = Path(path)
    data_set = read_data_set(path) if os.path.isdir(path) else None
    classes = data_set.classes if data_set else None
    splits = data_set.counts if data_set else {}
    split = split or next(iter(splits), None)
    with RecordSet.open(path, split) as found:
        shown = [_info(found, position, classes) for position in _within(records, found)]
        several = any(len(one.labels) > 1 for one in shown)
        return Inspection(
            path=str(path),
            split=split,
            splits=splits,
            count=len(found),
            classes=len(classes) if classes else None,
            class_counts={} if several else _class_counts(found, classes),
            mean=data_set.mean if data_set else None,
            std=data_set.std if data_set else None,
            records=shown,
        )


def montage(path: Path, out_png: Path, records: range = FIRST_FORTY, split: str | None = None) -> list[int]:
    """Draw records with number and class name on one sheet, eight to a row; returns the positions drawn.

    Raises BadInput where there is nothing to draw, or more than 400, BadRecipe for a name that is no PNG's.
    """
    require_png(out_png)
    path = Path(path)
    classes = read_data_set(path).classes if os.path.isdir(path) else None
    split = split or (next(iter(read_data_set(path).counts)) if classes else None)
    with RecordSet.open(path, split) as found:
        positions = list(_within(records, found))
        if not 1 <= len(positions) <= MONTAGE_LIMIT:
            raise BadInput(
                "number of records to draw", where=path, expected=f"1..{MONTAGE_LIMIT}", found=len(positions)
            )
        rows = -(-len(positions) // _COLUMNS)
        columns = min(_COLUMNS, len(positions))
        step_down = _TILE + _CAPTION + _GAP
        size = (_GAP + columns * (_TILE + _GAP), _GAP + rows * step_down)
        sheet = Image.new("RGB", size, _BACKGROUND)
        for place, position in enumerate(positions):
            row, column = divmod(place, _COLUMNS)
            _draw(sheet, found, position, classes, (_GAP + column * (_TILE + _GAP), _GAP + row * step_down))
    with files.whole_file(out_png) as stream:
        sheet.save(stream, format="PNG")
    return positions


def _within(records: range, found: RecordSet) -> range:
    """The part of a range that there is. Raises BadInput where there are records, but none in it."""
    within = range(min(records.start, len(found)), min(records.stop, len(found)))
    if found and not within:
        asked = f"records {records.start}:{records.stop}"
        raise BadInput(f"{asked} are outside 0..{len(found) - 1}", where=found.name)
    return within


def _class_counts(found: RecordSet, classes: ClassTable | None) -> dict[str, int]:
    labels, counts = np.unique(found.first_labels(), return_counts=True)
    named = [(_class_of(float(label), classes)[0] or f"{label:g}") for label in labels]
    return dict(zip(named, counts.tolist(), strict=True))


def _class_of(label: float, classes: ClassTable | None) -> tuple[str | None, str | None]:
    """(id, name) of a label, where there is a table and the label is in it."""
    if classes is None or label != int(label) or not 0 <= label < len(classes):
        return None, None
    return classes.ids[int(label)], classes.names[int(label)]


def _info(found: RecordSet, position: int, classes: ClassTable | None) -> RecordInfo:
    record = found.read(position)
    file, _, offset = found.place(position)
    try:
        header = image.read_header(record.image)
        width, height = header.width, header.height
    except image.Rejected:
        width, height = 0, 0
    class_id, class_name = _class_of(record.labels[0], classes) if record.labels else (None, None)
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


def _draw(
    sheet: Image.Image, found: RecordSet, position: int, classes: ClassTable | None, corner: tuple[int, int]
) -> None:
    """One tile: the image within a square, aspect kept, its caption below."""
    record = found.read(position)
    left, top = corner
    try:
        picture = Image.fromarray(image.decode_rgb(record.image))
        scale = _TILE / max(picture.size)
        fitted = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
        sheet.paste(fitted, (left + (_TILE - fitted.width) // 2, top + (_TILE - fitted.height) // 2))
    except BadInput:
        ImageDraw.Draw(sheet).text((left + 4, top + _TILE // 2), "no image", fill=_INK)
    label = record.labels[0] if record.labels else float("nan")
    name = _class_of(label, classes)[1] or (f"{label:g}" if len(record.labels) == 1 else "")
    font = ImageFont.load_default(size=13)
    caption = f"{record.number}  {name}"
    while font.getlength(caption) > _TILE and len(caption) > 1:
        caption = caption[:-2] + "…"
    ImageDraw.Draw(sheet).text((left, top + _TILE + 2), caption, font=font, fill=_INK)
