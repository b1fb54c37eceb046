"""Records back to forms that other programs read: folders of images, tar files, WebDataset shards, plain RecordIO.

An export is a folder that appears whole or not at all. It holds the stored bytes of every image, a list of each split
as im2rec has it (number, label, path; none beside shards), and `classes.txt` (folder of the class, its name).
"""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, did_you_mean, printable
from imagenet_pipeline.records import recordio
from imagenet_pipeline.records.classes import ClassTable, require_one_class
from imagenet_pipeline.records.image import Rejected, read_header
from imagenet_pipeline.records.manifest import is_data_set, no_split, read_data_set
from imagenet_pipeline.records.plan import SPLITS
from imagenet_pipeline.records.reader import RecordSet

Progress = Callable[[int, int], None]

DEFAULT_SHARD_BYTES = 500_000_000
LONGEST_FOLDER_BYTES = 200
"""Longest name, characters, of the 255 that file systems allow."""
LABEL_LIMIT = 2**24
"""Labels below are exact in float32."""
_ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "DIB": ".bmp", "TIFF": ".tif"}
"""Endings of formats that are not called like them."""
_TAR_END_BYTES = 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE
"""The most that ends a tar file: two empty blocks, and zeros up to a whole record."""
_UNUSABLE = frozenset('/\\:*?"<>|')
"""Letters that names cannot have on some file system."""


@dataclass(frozen=True)
class ExportedRecords:
    """An export: its folder and form, its records of each split, and its files, those in folders apart."""

    folder: str
    form: str
    records: dict[str, int]
    files: list[str]


@dataclass(frozen=True)
class ClassEntry:
    """One class: its id and name, and the name of its folder, which is the id wherever that can be one."""

    class_id: str
    name: str
    folder: str


@dataclass(frozen=True)
class Sample:
    """One record on its way out. Its number is the record's, or another where two records have the same."""

    split: str
    number: int
    label: int
    entry: ClassEntry
    image: bytes
    ending: str

    @property
    def key(self) -> str:
        """The number in digits enough that names sort like numbers."""
        return f"{self.number:08d}"

    @property
    def path(self) -> str:
        """The path in the layout of folders: train/n01440764/00000012.jpg."""
        return f"{self.split}/{self.entry.folder}/{self.key}{self.ending}"


Write = Callable[[Path, str, Iterator[Sample], int], Iterator[Sample]]
"""Writes the samples of a split into a folder, and yields each once it is written; a shard has `limit_bytes`."""


def export_records(
    path: Path,
    form: str,
    out: Path,
    split: str | None = None,
    limit_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> ExportedRecords:
    """Write the records of a data set, or of a `.rec` file, into the new folder `out`.

    `form` is one of FORMS; without `split` all are written. `progress(done, total)` is called with record counts.
    Raises BadRecipe for an unknown form or split and where `out` is there already, BadInput for a record that is not
    an image with a whole-number label, Damaged, OutOfRoom; nothing is left of an export that fails.
    """
    out = Path(out)
    if form not in FORMS:
        advice = did_you_mean(form, FORMS, "") or None
        raise BadRecipe("unknown format", where="--format", expected=", ".join(FORMS), found=form, advice=advice)
    if os.path.lexists(out):
        raise BadRecipe("is there already and is kept", where=out, advice="give another --out, or remove it")
    with ExitStack() as opened:
        table, sets = _opened(Path(path), split)
        for records in sets.values():
            opened.enter_context(records)
        labels = {name: _labels(records, table) for name, records in sets.items()}
        classes = _classes(table, labels)
        files.remove_left_parts([out])
        files.check_free_space(out, sum(file.stat().st_size for records in sets.values() for file in records.files))
        done, total = itertools.count(1), sum(map(len, sets.values()))
        with files.whole_folder(out) as folder:
            for name, records in sets.items():
                samples = _samples(records, name, labels[name], classes, in_order=form == "tar")
                written = FORMS[form](folder, name, samples, limit_bytes)
                for _ in written if form == "webdataset" else _listed(written, folder / f"{name}.lst"):
                    if progress is not None:
                        progress(next(done), total)
            _write_classes(folder / "classes.txt", classes)
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    return ExportedRecords(str(out), form, {name: len(labels[name]) for name in sets}, names)


def _opened(path: Path, split: str | None) -> tuple[ClassTable | None, dict[str, RecordSet]]:
    """The class table, where there is one, and the records of the splits; those of a lone file are a split."""
    if not is_data_set(path):
        name = path.stem if path.stem in SPLITS else SPLITS[0]
        if split not in (None, name):
            raise no_split(path, split, [name])
        return None, {name: RecordSet.open(path)}
    data = read_data_set(path)
    if split is not None and split not in data.counts:
        raise no_split(path, split, data.counts)
    require_one_class(data.classes, data.name, "`export-records`")
    return data.classes, {name: RecordSet.of(data, name) for name in data.counts if split in (None, name)}


def _labels(records: RecordSet, table: ClassTable | None) -> list[int]:
    """The label of every record. Raises BadInput where it is not the number of a class."""
    labels: list[float] = records.first_labels().tolist()
    limit = LABEL_LIMIT if table is None else len(table)
    for position, label in enumerate(labels):
        if not label.is_integer() or not 0 <= label < limit:
            raise _no_sample(records, position, "the label is not the number of a class", f"{label:g}")
    return list(map(int, labels))


def _classes(table: ClassTable | None, labels: Mapping[str, Sequence[int]]) -> dict[int, ClassEntry]:
    """The classes by label; without a table those that records have, called by their numbers."""
    if table is not None:
        return class_entries(dict(enumerate(zip(table.ids, table.names, strict=True))))
    there = sorted(set().union(*labels.values()))
    return class_entries({label: (str(label), str(label)) for label in there})


def class_entries(classes: Mapping[int, tuple[str, str]]) -> dict[int, ClassEntry]:
    """Give the classes, id and name by label, folders of their own: distinct on any file system, none leads outside."""
    entries: dict[int, ClassEntry] = {}
    used: set[str] = set()
    misleading = _would_be_labels(classes) and any(class_id != name for class_id, name in classes.values())
    ids = {class_id.casefold() for class_id, _ in classes.values()}
    for label, (class_id, name) in classes.items():
        folder = class_id
        if misleading or not _can_be_folder(class_id) or class_id.casefold() in used:
            marked = (f"class-{label}{'-' * marks}" for marks in itertools.count())
            folder = next(word for word in marked if word not in ids)
        used.add(folder.casefold())
        entries[label] = ClassEntry(class_id, name, folder)
    return entries


def _would_be_labels(classes: Mapping[int, tuple[str, str]]) -> bool:
    """Tell whether ids before a tab would be read as labels, which they are not (2, 3, 10 of the labels 0, 1, 2)."""
    ids = [class_id for class_id, _ in classes.values()]
    return all(class_id.isdecimal() for class_id in ids) and ids != [str(label) for label in classes]


def _can_be_folder(class_id: str) -> bool:
    """Tell whether an id can name a folder that `build folder` finds: no path, not hidden, not too long."""
    plain = class_id.isprintable() and not _UNUSABLE.intersection(class_id) and class_id == class_id.strip(" .")
    return plain and class_id != "__MACOSX" and 0 < len(class_id.encode()) <= LONGEST_FOLDER_BYTES


def _samples(
    records: RecordSet, split: str, labels: Sequence[int], classes: Mapping[int, ClassEntry], in_order: bool
) -> Iterator[Sample]:
    """Read the records in their own order, or `in_order` of classes and numbers. Raises BadInput as `_no_sample`."""
    numbers = _distinct(records.numbers())
    positions = list(range(len(records)))
    if in_order:
        positions.sort(key=lambda position: (classes[labels[position]].folder, numbers[position]))
    for position in positions:
        record = records.read(position)
        if len(record.labels) != 1:
            advice = "`build records --label-column K` makes a data set of single labels first"
            raise _no_sample(records, position, "the record has several labels", f"{len(record.labels)}", advice)
        if not record.image:
            raise _no_sample(records, position, "the record has no image", "a header alone")
        entry = classes[labels[position]]
        yield Sample(split, numbers[position], labels[position], entry, record.image, _ending(record.image))


def _no_sample(records: RecordSet, position: int, what: str, found: str, advice: str | None = None) -> BadInput:
    file, _, offset = records.location(position)
    expected = "an image with one whole-number label"
    return BadInput(what, where=f"{file}, offset {offset}", expected=expected, found=found, advice=advice)


def _distinct(numbers: Sequence[int]) -> list[int]:
    """The numbers, each that came before replaced by the lowest that is free."""
    taken, seen = set(numbers), set[int]()
    free = (number for number in itertools.count() if number not in taken)
    distinct = []
    for number in numbers:
        distinct.append(next(free) if number in seen else number)
        seen.add(number)
    return distinct


def _ending(image: bytes) -> str:
    """The ending of a file that holds these bytes: ".jpg" by its content; ".bin" for what is no image."""
    try:
        form = read_header(image).format
    except Rejected:
        return ".jpg" if image.startswith(b"\xff\xd8") else ".bin"
    return _ENDINGS.get(form, f".{form.lower()}")


def _listed(samples: Iterator[Sample], path: Path) -> Iterator[Sample]:
    """Pass the samples on, each with a line in a new list."""
    with open(path, "x", encoding="utf-8") as stream:
        for sample in samples:
            stream.write(f"{sample.number}\t{sample.label}\t{sample.path}\n")
            yield sample


def _write_classes(path: Path, classes: Mapping[int, ClassEntry]) -> None:
    if _would_be_labels({label: (entry.folder, entry.name) for label, entry in classes.items()}):
        lines = [f"{entry.folder}\n" for entry in classes.values()]
    else:
        lines = [f"{entry.folder}\t{printable(entry.name).strip() or entry.folder}\n" for entry in classes.values()]
    path.write_text("".join(lines), encoding="utf-8")


def write_folder(folder: Path, split: str, samples: Iterator[Sample], limit_bytes: int) -> Iterator[Sample]:
    """Write SPLIT/CLASS/NUMBER.jpg."""
    (folder / split).mkdir()
    for sample in samples:
        path = folder / sample.path
        path.parent.mkdir(exist_ok=True)
        with open(path, "xb") as stream:
            stream.write(sample.image)
        yield sample


def write_tar(folder: Path, split: str, samples: Iterator[Sample], limit_bytes: int) -> Iterator[Sample]:
    """Write SPLIT.tar, of the layout of `write_folder`; equal records give equal bytes."""
    with tarfile.open(folder / f"{split}.tar", "x") as archive:
        for sample in samples:
            _add(archive, sample.path, sample.image)
            yield sample


def write_webdataset(folder: Path, split: str, samples: Iterator[Sample], limit_bytes: int) -> Iterator[Sample]:
    """Write SPLIT-000000.tar and so on: of each sample KEY.jpg, KEY.cls and KEY.json, one after another."""
    shards, room = itertools.count(), 0
    with ExitStack() as opened:
        archive: tarfile.TarFile | None = None
        for sample in samples:
            about = {"label": sample.label, "class_id": sample.entry.class_id, "class_name": sample.entry.name}
            members = {sample.ending: sample.image, ".cls": b"%d" % sample.label, ".json": json.dumps(about).encode()}
            size = sum(map(_tar_bytes, members.values()))
            if archive is None or size > room:
                opened.close()
                path = folder / f"{split}-{next(shards):06d}.tar"
                archive, room = opened.enter_context(tarfile.open(path, "x")), limit_bytes - _TAR_END_BYTES
            for ending, content in members.items():
                _add(archive, sample.key + ending, content)
            room -= size
            yield sample


def write_rec(folder: Path, split: str, samples: Iterator[Sample], limit_bytes: int) -> Iterator[Sample]:
    """Write SPLIT.rec and SPLIT.idx as MXNet's im2rec has them: a single label, `id2` 0, the number as the key."""
    with open(folder / f"{split}.rec", "xb") as records, open(folder / f"{split}.idx", "xb") as index:
        for sample in samples:
            index.write(f"{sample.number}\t{records.tell()}\n".encode())
            records.write(recordio.frame(recordio.pack((sample.label,), sample.number, sample.image, checked=False)))
            yield sample


FORMS: dict[str, Write] = {
    "folder": write_folder,
    "tar": write_tar,
    "webdataset": write_webdataset,
    "rec": write_rec,
}


def _tar_bytes(content: bytes) -> int:
    """Bytes of a file in a tar: its head, and its content in blocks."""
    return (1 + -(-len(content) // tarfile.BLOCKSIZE)) * tarfile.BLOCKSIZE


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without time and owner
    member.size, member.mode = len(content), 0o644
    archive.addfile(member, io.BytesIO(content))
