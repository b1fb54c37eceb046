"""Data sets in files of many samples each, as webdataset and TFRecord: the files of each split; samples to a plan."""

from __future__ import annotations

import itertools
import logging
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from imagenet_pipeline.errors import BadInput, counted, extent, first_few, printable
from imagenet_pipeline.records.class_names import classes_of_labels, names_of
from imagenet_pipeline.records.classes import WNID, ClassTable
from imagenet_pipeline.records.plan import SPLITS, Images, Plan

from .cutting import cut_shares
from .split_folders import split_called

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_OF = re.compile(r"(?P<before>.*?)(?P<number>\d{5})-of-(?P<count>\d{5})(?P<after>.*)")
_NOT_LETTERS = re.compile(r"[\W\d_]+")
_FILES_LIMIT = 1_000_000

Given = Mapping[str, Sequence[str]]
"""Names of the files of each split, as the user gives them."""

log = logging.getLogger("imagenet_pipeline")


@dataclass
class Samples:
    """The samples of a split, in their order: paths, labels (numbers, or names of classes), spans."""

    paths: list[str] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)
    spans: array[int] = field(default_factory=lambda: array("q"))

    def add(self, path: str, label: int | str, span: tuple[int, int]) -> None:
        """Add a sample. Raises BadInput for a label beyond 64 bits."""
        if isinstance(label, int) and not -(2**63) <= label < 2**63:
            raise BadInput("the label is no number of a class", where=path, found=label)
        self.paths.append(path)
        self.labels.append(label)
        self.spans.extend(span)


def split_files(root: Path, kind: re.Pattern[str], given: Given, expected: str) -> dict[str, list[Path]]:
    """The files of each split in `root`, sorted: those `given`, by name, "{000..009}" or "*", or else by their names.

    A file belongs to the split that a word of its name means; where none does, all are of train. `expected` says for
    people what `kind` of names is looked for. Raises BadInput where there is none, where one that is given does not
    exist, or is given twice, and where others of "00000-of-00008" are missing.
    """
    if not root.is_dir():
        raise BadInput("no such folder", where=root)
    names = sorted(path.name for path in root.iterdir() if path.is_file() and kind.fullmatch(path.name))
    if any(given.values()):
        chosen = {split: [*_matching(root, names, patterns)] for split, patterns in given.items() if patterns}
        _require_once([path for paths in chosen.values() for path in paths])
        return chosen
    if not names:
        raise BadInput("the folder has no files of this kind", where=root, expected=expected)
    found: dict[str, list[Path]] = {}
    for name in names:
        found.setdefault(_split_of(name, root), []).append(root / name)
    unnamed = found.pop("", [])
    if unnamed and found:
        log.info("%s", printable(f"{root}: left out, named as no split: {first_few([path.name for path in unnamed])}"))
    found = {split: found[split] for split in SPLITS if split in found} or {"train": unnamed}
    for split, paths in found.items():
        _require_all([path.name for path in paths], root, split)
    return found


def plan_of_samples(
    root: Path,
    splits: Mapping[str, Samples],
    source: Mapping[str, Any],
    *,
    known: Mapping[int, tuple[str, str]] | None = None,
    classes: Path | None = None,
    fractions: Mapping[str, float],
    seed: int,
    unpack: Mapping[str, Callable[[BinaryIO], None]] | None = None,
) -> Plan:
    """The plan of samples: train in a random order, val and test as they lie, or cut out of train by `fractions`.

    `known` has the ids and names of classes by their numbers. Labels that are numbers become 0, 1, ... in their order;
    names are sorted. A split whose labels are all below 0 has none, and is left out. Raises BadInput for labels of
    another split that train has not.
    """
    labelled = {split: samples for split, samples in splits.items() if not _is_unlabelled(samples, split, root)}
    if "train" not in labelled or not labelled["train"].paths:
        raise BadInput("there are no samples of train", where=root)
    table, number_of = _classes(labelled, known or {}, classes, root)
    unprintable = next((name for name in (*table.ids, *table.names) if not name or not name.isprintable()), None)
    if unprintable is not None:
        raise BadInput("the name of a class cannot be printed", where=root, found=ascii(unprintable[:80]))
    images = {split: _images(samples, number_of, split, root) for split, samples in labelled.items()}
    cuts = {split: fraction for split, fraction in fractions.items() if fraction or split not in images}
    for split in cuts:
        if split in images:
            raise BadInput(f"there are files of {split}: no {split} split is cut out of train", where=root)
    return Plan(
        root=root,
        splits={**images, **cut_shares(images["train"], cuts, seed)},
        classes=table,
        source={**source, "seed": seed, "fractions": dict(cuts)},
        unpack=unpack or {},
    )


def _matching(root: Path, names: Sequence[str], patterns: Sequence[str]) -> Iterator[Path]:
    """The files in `root` that patterns mean, each pattern's sorted."""
    for pattern in patterns:
        for name in itertools.islice(_expanded(pattern), _FILES_LIMIT):
            found = [known for known in names if fnmatchcase(known, name)] if "*" in name else [name]
            missing = [known for known in found or [name] if not (root / known).is_file()]
            if missing or "/" in name:
                raise BadInput("no such file", where=root / name, advice="files are named as they lie in ROOT")
            yield from (root / known for known in found)


def _require_once(paths: Sequence[Path]) -> None:
    path, count = Counter(paths).most_common(1)[0]
    if count > 1:
        raise BadInput("the file is named twice", where=path, advice="name each file once, for one split")


def _expanded(pattern: str) -> Iterator[str]:
    """A shell's expansion of braces: {000..009}, {a,b}."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    ends = _RANGE.fullmatch(braces[1])
    words: Iterator[str] = iter(braces[1].split(","))
    if ends:
        words = (str(number).zfill(len(ends[1])) for number in range(int(ends[1]), int(ends[2]) + 1))
    for word in words:
        yield from _expanded(pattern[: braces.start()] + word + pattern[braces.end() :])


def _split_of(name: str, root: Path) -> str:
    found = {split for word in _NOT_LETTERS.split(name) if (split := split_called(word))}
    if len(found) > 1:
        advice = "say which files are which: --train NAME --val NAME"
        raise BadInput("the file's name means two splits", where=root / name, advice=advice)
    return found.pop() if found else ""


def _require_all(names: Sequence[str], root: Path, split: str) -> None:
    """Raise BadInput where files are named as some of a number, and not all are there."""
    found: dict[tuple[str, int], dict[int, str]] = {}
    for name in names:
        if match := _OF.fullmatch(name):
            # What stands behind, of Hugging Face a part of a digest, differs.
            known = found.setdefault((match["before"], int(match["count"])), {}).setdefault(int(match["number"]), name)
            if known != name:
                advice = "of two versions keep either, or name the files to use"
                raise BadInput("two files are the same part", where=root, found=f"{known}, {name}", advice=advice)
    for (before, count), numbers in found.items():
        lacking = sorted(set(range(min(count, _FILES_LIMIT))) - numbers.keys())
        if lacking:
            raise BadInput(
                f"files of {split} are missing",
                where=root,
                expected=counted(count, "file"),
                found=f"{len(numbers):,}, none {before}{lacking[0]:05d}-of-{count:05d}",
                advice=f"fetch them, or name those to use: --{split} '{before}*'",
            )


def _is_unlabelled(samples: Samples, split: str, root: Path) -> bool:
    """Tell whether a split has no labels, -1 in place of each. Raises BadInput where some of its samples have none."""
    rows = [row for row, label in enumerate(samples.labels) if isinstance(label, int) and label < 0]
    if rows and len(rows) < len(samples.labels):
        raise BadInput("the sample has no label", where=root / samples.paths[rows[0]], found=samples.labels[rows[0]])
    if rows:
        log.warning("%s: the samples of %s have no labels, and are left out", root, split)
    return bool(rows)


def _classes(
    splits: Mapping[str, Samples], known: Mapping[int, tuple[str, str]], path: Path | None, root: Path
) -> tuple[ClassTable, dict[int | str, int]]:
    """The class table, and the class that each label means."""
    labels = {label for samples in splits.values() for label in samples.labels}
    numbers = sorted(label for label in labels if isinstance(label, int))
    if len(numbers) < len(labels):
        ids = tuple(sorted(map(str, {*splits["train"].labels})))
        order = "wnid" if all(map(WNID.fullmatch, ids)) else "folder"
        return ClassTable(order, ids, names_of(ids, path) if path else ids), {name: i for i, name in enumerate(ids)}
    if path is not None:
        table, numbered = classes_of_labels(numbers, path)
        return table, {label: i for i, label in enumerate(numbered)}
    # Val may have none of a class, but train has every class, unless somebody names them.
    numbers = sorted(known or {label for label in splits["train"].labels if isinstance(label, int)})
    if not known and numbers != list(range(len(numbers))):
        found, classes = extent(numbers[0], numbers[-1]), extent(0, len(numbers) - 1)
        log.info("%s: the labels are %s: the classes are %s, in their order", root, found, classes)
    ids = tuple(known[number][0] if known else str(number) for number in numbers)
    names = tuple(known[number][1] if known else str(number) for number in numbers)
    order = "wnid" if all(map(WNID.fullmatch, ids)) and [*ids] == sorted(ids) else "list"
    return ClassTable(order, ids, names), {number: i for i, number in enumerate(numbers)}


def _images(samples: Samples, number_of: Mapping[int | str, int], split: str, root: Path) -> Images:
    labels = np.array([number_of.get(label, -1) for label in samples.labels], np.int64)
    if len(labels) and labels.min() < 0:
        row = int(np.argmin(labels))
        what = "the class is not in train" if split != "train" else "the label means no class"
        raise BadInput(what, where=root / samples.paths[row], found=samples.labels[row])
    return Images(samples.paths, labels, np.array(samples.spans, np.int64).reshape(-1, 2))
