"""Webdataset: tars of samples, each some files of one name, 0001.jpg and 0001.cls, into a plan.

The tars are read as they are; nothing is unpacked.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from imagenet_pipeline.errors import BadInput, counted, printable
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.archives import Archive, open_archive, size_of
from imagenet_pipeline.records.image_files import READ_ENDINGS
from imagenet_pipeline.records.plan import Plan

from .sharded import Samples, plan_of_samples, split_files

LABEL_ENDINGS = ("cls", "json", "txt")
"""Endings of what may hold a sample's label; the first that a sample has."""
_LABEL_LIMIT_BYTES = 2**20
_SHARD = re.compile(r".+\.tar")
_NUMBER = re.compile(r"-?\d{1,18}")
_IMAGE_ENDINGS = tuple(ending.removeprefix(".") for ending in READ_ENDINGS)

log = logging.getLogger("imagenet_pipeline")


def plan(
    root: Annotated[Path, "The folder of the tars."],
    train: Annotated[Sequence[str], "Tars of train, 'train-{000..009}.tar'; may be repeated [default: by name]."] = (),
    val: Annotated[Sequence[str], "Tars of val."] = (),
    test: Annotated[Sequence[str], "Tars of test."] = (),
    label: Annotated[
        Literal["cls", "json", "txt"] | None, "The file of a sample that holds its label [default: the first it has]."
    ] = None,
    label_key: Annotated[str, "The label's key in .json."] = "label",
    classes: Path | None = None,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    seed: int = 42,
) -> Plan:
    """Build from webdataset's tars, read as they are.

    A sample is the files of one name: an image (0001.jpg, .png) and its label (.cls, a number or the name of a class;
    .json, with a key; .txt). The tars of a split are those with train, val or test in their names, unless they are
    given. Numbers become the classes 0, 1, ... in their order, names are sorted.

    \b
    Examples:
      imagenet-pipeline build webdataset --root shards --out output/mine
      imagenet-pipeline build webdataset --root shards --train 'in1k-{000000..001281}.tar' --out output/imagenet

    Raises BadInput for a tar that is cut, damaged or hostile, and for a sample with no label or with two images.
    """
    found = split_files(root, _SHARD, {"train": train, "val": val, "test": test}, "train-000000.tar")
    splits = {split: Samples() for split in found}
    shards = [(split, shard) for split, paths in found.items() for shard in paths]
    with Bar("scan", "files") as bar:
        for done, (split, shard) in enumerate(shards):
            bar.show(done, len(shards))
            _add(splits[split], shard, label, label_key)
    _numbered(splits)
    fractions = {"val": val_fraction, "test": test_fraction}
    return plan_of_samples(root, splits, {"builder": "webdataset"}, classes=classes, fractions=fractions, seed=seed)


def _add(samples: Samples, shard: Path, label: str | None, label_key: str) -> None:
    """Add the samples of a tar, in its order."""
    archive = open_archive(shard)
    if archive.unpacked_bytes or any(len(span) > 2 for span in archive.members.values()):
        raise BadInput("the file is no plain tar", where=shard, advice="decompress it: gunzip, unxz, bunzip2 or unzip")
    grouped = _grouped(archive)
    images = {key: image for key, parts in grouped.items() if (image := _image_of(key, parts, shard))}
    if len(images) < len(grouped):
        log.info("%s: left out: %s without an image", shard, counted(len(grouped) - len(images), "sample"))
    label_files = {_label_file(key, grouped[key], shard, label): key for key in images}
    large = next((name for name in label_files if size_of(archive.members[name]) > _LABEL_LIMIT_BYTES), None)
    if large:
        raise BadInput("is too large for a label", where=printable(f"{shard}/{large}"))
    labels = {label_files[name]: text for name, text in archive.contents(label_files)}
    for key, name in images.items():
        label_file = _label_file(key, grouped[key], shard, label)
        where = printable(f"{shard}/{label_file}")
        offset, size_bytes = archive.members[name][:2]
        samples.add(f"{shard.name}/{name}", _label(labels[key], label_file, label_key, where), (offset, size_bytes))


def _grouped(archive: Archive) -> dict[str, dict[str, str]]:
    """The members of each sample by their endings, all that stands behind the first dot of a name."""
    grouped: dict[str, dict[str, str]] = {}
    for name in archive.members:
        folder, slash, file = name.rpartition("/")
        stem, _, ending = file.partition(".")
        if stem and grouped.setdefault(folder + slash + stem, {}).setdefault(ending.lower(), name) != name:
            where = printable(f"{archive.path}/{name}")
            raise BadInput("the sample has two files of an ending", where=where, found=f".{ending}, in either case")
    return grouped


def _image_of(key: str, parts: Mapping[str, str], shard: Path) -> str | None:
    found = [parts[ending] for ending in _IMAGE_ENDINGS if ending in parts]
    if len(found) > 1:
        raise BadInput("the sample has two images", where=printable(f"{shard}/{key}"), found=", ".join(found[:2]))
    return found[0] if found else None


def _label_file(key: str, parts: Mapping[str, str], shard: Path, wanted: str | None) -> str:
    for ending in (wanted,) if wanted else LABEL_ENDINGS:
        if ending in parts:
            return parts[ending]
    expected = " or ".join(f".{ending}" for ending in ((wanted,) if wanted else LABEL_ENDINGS))
    found = ", ".join(f".{ending}" for ending in parts)
    raise BadInput("the sample has no label", where=printable(f"{shard}/{key}"), expected=expected, found=found[:200])


def _label(content: bytes, name: str, key: str, where: str) -> str:
    """The label as text."""
    try:
        text = content.decode().strip()
        value = json.loads(text) if name.lower().endswith(".json") else text
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the label cannot be read ({error})", where=where) from error
    if isinstance(value, dict):
        if key not in value:
            keys = ", ".join(map(str, [*value][:10]))
            raise BadInput(f"no key {key!r}", where=where, found=keys, advice="name it with --label-key")
        value = value[key]
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value) or "\n" in str(value):
        raise BadInput("is no label", where=where, expected="a number or the name of a class", found=str(value)[:80])
    return str(value)


def _numbered(splits: Mapping[str, Samples]) -> None:
    """Make the labels numbers where all of them are."""

    def labels() -> Iterator[str]:
        return (str(label) for samples in splits.values() for label in samples.labels)

    if all(_NUMBER.fullmatch(label) for label in labels()):
        for samples in splits.values():
            samples.labels = [int(label) for label in samples.labels]
