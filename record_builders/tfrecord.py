"""TFRecord: files of tf.train.Example, as TensorFlow's scripts and TFDS make them of ImageNet, into a plan.

Read without TensorFlow, and in place. A record: its length (8 bytes), the masked CRC-32C of that, the content, the
masked CRC-32C of this (tensorflow/core/lib/io/record_writer.h). The content is a message of Protocol Buffers: a map
from names to lists of bytes, floats or whole numbers (tensorflow/core/example/feature.proto).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import google_crc32c

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, did_you_mean
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.plan import Plan

from .sharded import Samples, plan_of_samples, split_files

IMAGE_KEYS, LABEL_KEYS = ("image/encoded", "image"), ("image/class/label", "label")
NAME_KEYS = ("image/filename", "file_name")
SYNSET_KEY, TEXT_KEY = "image/class/synset", "image/class/text"
RECORD_LIMIT_BYTES = 2**30

Feature = list[int] | list[tuple[int, int]]
"""The values of a feature: whole numbers, or of bytes where each begins and ends in the record."""

_FILE = re.compile(r".+\.tfrec(ords?)?(-\d{5}-of-\d{5})?|.+-\d{5}-of-\d{5}")
_HEAD, _CHECKSUM = struct.Struct("<QI"), struct.Struct("<I")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types of Protocol Buffers."""
_LONGEST_VARINT = 10


def plan(
    root: Annotated[Path, "The folder of the files."],
    train: Annotated[Sequence[str], "Files of train, 'train-*'; may be repeated [default: by their names]."] = (),
    val: Annotated[Sequence[str], "Files of val."] = (),
    test: Annotated[Sequence[str], "Files of test."] = (),
    image_key: Annotated[str | None, "The feature of the image [default: image/encoded or image]."] = None,
    label_key: Annotated[str | None, "The feature of the label [default: image/class/label or label]."] = None,
    classes: Path | None = None,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    seed: int = 42,
) -> Plan:
    """Build from TFRecord files of tf.train.Example, as of ImageNet; read as they are, without TensorFlow.

    The files of a split are those with train, val (validation) or test in their names, train-00000-of-01024, all of
    them, unless they are given. Labels become the classes 0, 1, ... in their order, so that ImageNet's 1..1000 are
    0..999; image/class/synset and image/class/text, where they are, are the ids and names. Every checksum is checked.

    Example: imagenet-pipeline build tfrecord --root imagenet-tfrecords --out output/imagenet

    Raises BadInput, naming file and record, for a file that is cut, damaged or of another form.
    """
    found = split_files(root, _FILE, {"train": train, "val": val, "test": test}, "train-00000-of-01024")
    splits = {split: Samples() for split in found}
    known: dict[int, tuple[str, str]] = {}
    keys = (image_key, label_key)
    total = sum(path.stat().st_size for paths in found.values() for path in paths) // 10**6
    with Bar("scan", "MB") as bar:
        done = 0
        for split, path in ((split, path) for split, paths in found.items() for path in paths):
            for number, (start, record) in enumerate(records(path)):
                _add(splits[split], path, f"{path}, record {number}", start, record, keys, known)
                done += len(record)
                bar.show(done // 10**6, total)
    every_class = known if known.keys() == {*splits["train"].labels} else None
    fractions = {"val": val_fraction, "test": test_fraction}
    source = {"builder": "tfrecord"}
    return plan_of_samples(root, splits, source, known=every_class, classes=classes, fractions=fractions, seed=seed)


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the content of each record, checked. Raises BadInput where the file is cut or damaged."""
    with files.regular_file(path) as (stream, size_bytes):
        at = number = 0
        while at < size_bytes:
            where = f"{path}, record {number}"
            head = stream.read(_HEAD.size)
            length, checksum = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, -1)
            if checksum != _masked(head[:8]):
                advice = "decompress it, if it is compressed" if not at else None
                raise BadInput("not TFRecord, or damaged: the length's checksum differs", where=where, advice=advice)
            if length > min(RECORD_LIMIT_BYTES, size_bytes - at - _HEAD.size - _CHECKSUM.size):
                raise BadInput("the file is cut, or the record too large", where=where, found=f"{length:,} bytes")
            content = stream.read(length)
            if stream.read(_CHECKSUM.size) != _CHECKSUM.pack(_masked(content)):
                raise BadInput("the record is damaged: its checksum differs", where=where)
            yield at + _HEAD.size, content
            at += _HEAD.size + length + _CHECKSUM.size
            number += 1


def features(record: bytes) -> dict[str, Feature]:
    """The features of a tf.train.Example by name; those of floats are left out. Raises ValueError for another form."""
    found: dict[str, Feature] = {}
    for map_start, map_end in _parts(record, 0, len(record), 1):
        for start, end in _parts(record, map_start, map_end, 1):
            key = b"".join(record[slice(*span)] for span in _parts(record, start, end, 1))
            for feature_start, feature_end in _parts(record, start, end, 2):
                values = _values(record, feature_start, feature_end)
                if values is not None:
                    found[key.decode()] = values
    return found


def _add(
    samples: Samples,
    path: Path,
    where: str,
    start: int,
    record: bytes,
    keys: tuple[str | None, str | None],
    known: dict[int, tuple[str, str]],
) -> None:
    """Add the sample of a record that begins at `start`, and what its class is called."""
    try:
        found = features(record)
        image = _only(found, (keys[0],) if keys[0] else IMAGE_KEYS, tuple, where)
        label = _only(found, (keys[1],) if keys[1] else LABEL_KEYS, int, where)
        name, synset, text = (_text(record, found, names) for names in (NAME_KEYS, (SYNSET_KEY,), (TEXT_KEY,)))
    except ValueError as error:
        raise BadInput(f"not a tf.train.Example ({error})", where=where) from error
    number = where.rpartition(" ")[2]
    # No control characters, which no list can hold.
    name = "".join(letter for letter in name if letter.isprintable())
    samples.add(f"{path.name}/{number}" + (f"/{name}" if name else ""), label, (start + image[0], image[1] - image[0]))
    if synset or text:
        names = (synset or text, text or synset)
        if known.setdefault(label, names) != names:
            expected, other = known[label][0], names[0]
            raise BadInput(f"the label {label} has two names", where=where, expected=expected, found=other)


def _only(found: dict[str, Feature], keys: Sequence[str], kind: type, where: str) -> Any:
    """The single value of the first of the keys that is there. Raises BadInput where there is none of this kind."""
    key = next((key for key in keys if key in found), None)
    if key is None:
        advice = did_you_mean(keys[0], found, "name it with --image-key or --label-key")
        expected = " or ".join(keys)
        raise BadInput(
            "no such feature", where=where, expected=expected, found=", ".join(sorted(found))[:300], advice=advice
        )
    if len(found[key]) != 1 or not isinstance(found[key][0], kind):
        expected = "a single image" if kind is tuple else "a single whole number"
        raise BadInput(f"the feature {key} is another than expected", where=where, expected=expected)
    return found[key][0]


def _text(record: bytes, found: dict[str, Feature], keys: Sequence[str]) -> str:
    """The text of the first of the keys that is there; "" where none is. Raises ValueError."""
    values = next((found[key] for key in keys if key in found), [])
    value = values[0] if len(values) == 1 else 0
    return record[slice(*value)].decode().strip() if isinstance(value, tuple) else ""


def _values(record: bytes, start: int, end: int) -> Feature | None:
    """The values of a feature; None for floats."""
    for field, kind, value, after in _fields(record, start, end):
        if field == 1 and kind == _BYTES:
            return list(_parts(record, value, after, 1))
        if field == 3 and kind == _BYTES:
            return [number for part in _fields(record, value, after) for number in _numbers(record, *part)]
    return None


def _numbers(record: bytes, field: int, kind: int, value: int, after: int) -> Iterator[int]:
    """The whole numbers of a field, signed: packed into bytes, or a single one."""
    if field == 1 and kind == _VARINT:
        yield _signed(value)
    while field == 1 and kind == _BYTES and value < after:
        number, value = _varint(record, value, after)
        yield _signed(number)


def _parts(record: bytes, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Beginning and end of each message, or bytes, of a field."""
    for field, kind, value, after in _fields(record, start, end):
        if field == wanted and kind == _BYTES:
            yield value, after


def _fields(record: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number and wire type of each field; of bytes where they begin and end, of a number its value, and 0."""
    at = start
    while at < end:
        tag, at = _varint(record, at, end)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(record, at, end)
            yield field, kind, value, 0
        elif kind == _BYTES:
            length, at = _varint(record, at, end)
            yield field, kind, at, min(at + length, end)
            at += length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
    if at > end:
        raise ValueError(f"cut at byte {end}")


def _varint(record: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and the offset behind it."""
    value = 0
    for place in range(min(_LONGEST_VARINT, end - at)):
        byte = record[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ValueError(f"no number at byte {at}")


def _signed(value: int) -> int:
    return (value & 2**64 - 1) - (2**64 if value >> 63 & 1 else 0)


def _masked(content: bytes) -> int:
    """CRC-32C as TFRecord stores it: turned by 15 bits, and a constant added."""
    checksum = int(google_crc32c.value(content))
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
