"""The layouts of ILSVRC on disk: its images and what tells their classes, in each form in which people have them.

Training images: named by ImageSets/CLS-LOC/train_cls.txt, in train/WNID/ or in the official archive. Validation images:
in val/WNID/, named by ImageSets/CLS-LOC/val.txt, in val/ or in the official archive. Each of these on its own.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput, first_few
from imagenet_pipeline.records.classes import WNID
from imagenet_pipeline.records.image_files import IMAGE_ENDINGS

from .imagenet_archives import TRAIN_ARCHIVE, VAL_ARCHIVE, train_members, val_members
from .imagenet_devkit import (
    ClassOrder,
    Devkit,
    ground_truth_file,
    matched_lines,
    parse_devkit,
    read_file,
    validation_labels,
)

DATA = "Data/CLS-LOC"
LISTS = "ImageSets/CLS-LOC"
DEVKIT = "devkit/data"
DEVKITS = (
    DEVKIT,
    "ILSVRC2015_devkit/data",
    "ILSVRC2014_devkit/data",
    "ILSVRC2012_devkit_t12/data",
    "ILSVRC2012_devkit_t12.tar.gz",
)
SOLUTION = "LOC_val_solution.csv"
NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt")
KAGGLE = "ILSVRC"
"""The folder in which Kaggle's archive has the images, beside the files that name them."""

_TRAIN_LINE = re.compile(r"((n\d{8})/\2_\d{1,9}) \d{1,9}")
_VAL_LINE = re.compile(r"(ILSVRC\d{4}_val_(\d{8})) (\d{1,9})")
_VAL_IMAGE = re.compile(r"ILSVRC\d{4}_val_(\d{8})\.JPEG")
_SOLUTION_LINE = re.compile(r"ImageId,PredictionString|ILSVRC\d{4}_val_(\d{8}),(n\d{8})(?: .*)?")

log = logging.getLogger("imagenet_pipeline")


@dataclass(frozen=True)
class Found:
    """Images, with the wnid of each, in columns; `by` is their origin, relative to the root.

    `folders` must be there before the images are read; `spans` as in Images.
    """

    by: str
    paths: list[str]
    wnids: list[str]
    folders: tuple[str, ...] = ()
    spans: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class GroundTruth:
    """The wnid of each validation image: that of ILSVRC2012_val_{i+1:08d} is `wnids[i]`, by the file `by`."""

    by: str
    wnids: list[str]


def image_root(root: Path) -> Path:
    """The folder that has Data, train or the archives: ROOT, or ROOT/ILSVRC as Kaggle has it. Raises BadInput."""
    root = Path(root)
    if not root.is_dir():
        raise BadInput("no such folder", where=root)
    return root / KAGGLE if (root / KAGGLE).is_dir() else root


def beside(root: Path, names: Collection[str]) -> Path | None:
    """The first of some files or folders that is there: in the root, or next to it where it is Kaggle's ILSVRC."""
    here = Path(os.path.abspath(root))
    folders = [root, here.parent] if here.name == KAGGLE else [root]
    return next((folder / name for folder in folders for name in names if (folder / name).exists()), None)


def find_devkit(root: Path, class_order: ClassOrder) -> Devkit | None:
    """The development kit, unpacked or packed, if there is any."""
    kit = beside(root, DEVKITS)
    return None if kit is None else parse_devkit(kit, class_order)


def find_ground_truth(root: Path, devkit: Devkit | None) -> GroundTruth | None:
    """The labels of the validation images: the kit's or else Kaggle's, if there are any."""
    if devkit is not None:
        labels = validation_labels(devkit).tolist()
        return GroundTruth(ground_truth_file(devkit), [devkit.classes.ids[label] for label in labels])
    path = beside(root, (SOLUTION,))
    return None if path is None else GroundTruth(SOLUTION, _solution(path))


def find_train(root: Path) -> Found:
    """The training images, in the order of their list or sorted. Raises BadInput where there are none."""
    data = _data_folder(root)
    listed, folder, archive = root / LISTS / "train_cls.txt", f"{data}train", root / TRAIN_ARCHIVE
    if listed.is_file():
        return _listed_train(listed, folder)
    if _class_folders(root / folder):
        rows = list(_images_in_classes(root, folder))
        return Found(f"{folder}/WNID", [path for _, path in rows], [wnid for wnid, _ in rows], (folder,))
    if archive.is_file():
        return _archived_train(archive)
    looked_for = f"{LISTS}/train_cls.txt, train/n01440764 (also in {DATA} and {KAGGLE}/{DATA}) or {TRAIN_ARCHIVE}"
    raise _nothing("the folder has no training images of ImageNet", root, looked_for)


def find_validation(root: Path, ground_truth: GroundTruth | None, dropped: Collection[int]) -> Found:
    """The validation images but those of some numbers, in file-name order. Raises BadInput where there are none."""
    folder = f"{_data_folder(root)}val"
    listed, archive = root / LISTS / "val.txt", root / VAL_ARCHIVE
    if _class_folders(root / folder):
        return _sorted_validation(root, folder, ground_truth, dropped)
    if listed.is_file():
        names, by = {number: f"{folder}/{name}.JPEG" for number, name in _listed_names(listed).items()}, listed
    elif (root / folder).is_dir():
        names, by = _numbered(root / folder, folder), root / folder
    elif archive.is_file():
        return _archived_validation(archive, ground_truth, dropped)
    else:
        looked_for = f"{LISTS}/val.txt, val (also in {DATA}) or {VAL_ARCHIVE}"
        raise _nothing("the folder has no validation images of ImageNet", root, looked_for)
    labels = _labels(ground_truth, names, by)
    kept = sorted(names.keys() - dropped, key=names.__getitem__)
    origin = f"{by.relative_to(root).as_posix()} and {ground_truth.by if ground_truth else ''}"
    return Found(origin, [names[number] for number in kept], [labels[number - 1] for number in kept], (folder,))


def say_unused(root: Path) -> None:
    """Log the official test images, whose labels are not public."""
    for unused in (f"{_data_folder(root)}test", "ILSVRC2012_img_test.tar", "ILSVRC2012_img_test_v10102019.tar"):
        if (root / unused).exists():
            log.info("%s is not used, its labels are not public: test images are cut out of train", root / unused)


def _data_folder(root: Path) -> str:
    return "" if not (root / DATA).is_dir() and (root / "train").is_dir() else f"{DATA}/"


def _listed_train(listed: Path, folder: str) -> Found:
    paths, wnids = [], []
    seen: set[str] = set()
    for where, match in matched_lines(listed, read_file(listed), _TRAIN_LINE, "WNID/WNID_N NUMBER"):
        if match[1] in seen:
            raise BadInput("the image is given twice", where=where, found=match[1])
        seen.add(match[1])
        paths.append(f"{folder}/{match[1]}.JPEG")
        wnids.append(sys.intern(match[2]))
    return Found(f"{LISTS}/train_cls.txt", paths, wnids, (folder,))


def _archived_train(archive: Path) -> Found:
    paths, wnids, spans = [], [], array("q")
    for wnid, name, span in train_members(archive):
        paths.append(f"{TRAIN_ARCHIVE}/{name}")
        wnids.append(wnid)
        spans.extend(span)
    return Found(TRAIN_ARCHIVE, paths, wnids, spans=np.array(spans, np.int64).reshape(-1, 2))


def _archived_validation(archive: Path, ground_truth: GroundTruth | None, dropped: Collection[int]) -> Found:
    members = val_members(archive)
    names = _by_number([name for name, _ in members], archive)
    spans = dict(members)
    labels = _labels(ground_truth, names, archive)
    kept = sorted(names.keys() - dropped, key=names.__getitem__)
    return Found(
        f"{VAL_ARCHIVE} and {ground_truth.by if ground_truth else ''}",
        [f"{VAL_ARCHIVE}/{names[number]}" for number in kept],
        [labels[number - 1] for number in kept],
        spans=np.array([spans[names[number]] for number in kept], np.int64).reshape(-1, 2),
    )


def _sorted_validation(root: Path, folder: str, ground_truth: GroundTruth | None, dropped: Collection[int]) -> Found:
    """The validation images in class folders, in the order of their own names, as if they lay in a single folder."""
    rows = sorted((Path(path).name, wnid, path) for wnid, path in _images_in_classes(root, folder))
    numbers = [match and int(match[1]) for match in (_VAL_IMAGE.fullmatch(name) for name, _, _ in rows)]
    if dropped and None in numbers:
        name = rows[numbers.index(None)][2]
        raise BadInput(
            "the blacklist needs image names with a number", where=root, expected="ILSVRC2012_val_N", found=name
        )
    by = f"{folder}/WNID"
    if ground_truth is not None and None not in numbers:
        by = f"{by} and {ground_truth.by}"
        labels = _labels(ground_truth, _by_number([name for name, _, _ in rows], root / folder), root / folder)
        for number, (_, wnid, path) in zip(numbers, rows, strict=True):
            if number and labels[number - 1] != wnid:
                raise BadInput(
                    f"the class differs from that in {ground_truth.by}", where=root / path, expected=labels[number - 1]
                )
    kept = [(wnid, path) for number, (_, wnid, path) in zip(numbers, rows, strict=True) if number not in dropped]
    return Found(by, [path for _, path in kept], [wnid for wnid, _ in kept], (folder,))


def _listed_names(path: Path) -> dict[int, str]:
    """Names of the validation images by number."""
    names: dict[int, str] = {}
    for where, match in matched_lines(path, read_file(path), _VAL_LINE, "ILSVRC2012_val_N NUMBER"):
        number = int(match[3])
        if number != int(match[2]):
            raise BadInput("the image's number differs from its name's", where=where, found=match[0])
        if number in names:
            raise BadInput("the image is given twice", where=where, found=match[0])
        names[number] = match[1]
    return names


def _numbered(path: Path, folder: str) -> dict[int, str]:
    """Paths of the validation images that lie in a folder, by number."""
    names = [entry.name for entry in _entries(path)]
    images = [name for name in names if _VAL_IMAGE.fullmatch(name)]
    if len(images) < len(names):
        others = first_few([name for name in names if not _VAL_IMAGE.fullmatch(name)])
        log.info("%s: left out, not called ILSVRC2012_val_N.JPEG: %s", path, others)
    return {number: f"{folder}/{name}" for number, name in _by_number(images, path).items()}


def _by_number(names: Collection[str], where: Path) -> dict[int, str]:
    numbered: dict[int, str] = {}
    for name in names:
        match = _VAL_IMAGE.fullmatch(name)
        if match is None or int(match[1]) in numbered:
            raise BadInput("two validation images have the same number", where=where, found=name)
        numbered[int(match[1])] = name
    if not numbered:
        raise BadInput(
            "the folder has no validation images", where=where, expected="ILSVRC2012_val_00000001.JPEG and so on"
        )
    return numbered


def _labels(ground_truth: GroundTruth | None, names: Mapping[int, str], where: Path) -> list[str]:
    """The wnids in number order. Raises BadInput unless they are of just these images."""
    if ground_truth is None:
        looked_for = f"{', '.join(DEVKITS)} or {SOLUTION}, or class folders in val"
        raise BadInput("the classes of the validation images are unknown", where=where, expected=looked_for)
    if names.keys() != set(range(1, len(ground_truth.wnids) + 1)):
        raise BadInput(
            f"{ground_truth.by} does not belong to these images",
            where=where,
            expected=f"images 1..{len(ground_truth.wnids)}, once each",
            found=f"{len(names)} of {min(names)}..{max(names)}",
        )
    return ground_truth.wnids


def _solution(path: Path) -> list[str]:
    wnids: dict[int, str] = {}
    for where, match in matched_lines(path, read_file(path), _SOLUTION_LINE, "ILSVRC2012_val_N,WNID X Y X Y"):
        if match[1] is None:
            continue
        if int(match[1]) in wnids:
            raise BadInput("the image is given twice", where=where, found=match[0][:80])
        wnids[int(match[1])] = match[2]
    if wnids.keys() != set(range(1, len(wnids) + 1)):
        found = f"{len(wnids)} of {min(wnids)}..{max(wnids)}"
        raise BadInput("images are missing", where=path, expected=f"images 1..{len(wnids)}", found=found)
    return [wnids[number] for number in range(1, len(wnids) + 1)]


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [entry.name for entry in _entries(folder) if WNID.fullmatch(entry.name) and entry.is_dir()]


def _images_in_classes(root: Path, folder: str) -> Iterator[tuple[str, str]]:
    """The wnid and the path, relative to the root, of each image in the class folders, sorted.

    Raises BadInput for a class without images and for images beside the class folders.
    """
    wnids = _class_folders(root / folder)
    others = sorted({entry.name for entry in _entries(root / folder)}.difference(wnids))
    unsorted = [name for name in others if name.lower().endswith(IMAGE_ENDINGS)]
    if unsorted:
        raise BadInput("images lie beside class folders: half sorted?", where=root / folder, found=first_few(unsorted))
    for wnid in wnids:
        entries = _entries(root / folder / wnid)
        images = [entry.name for entry in entries if entry.name.lower().endswith(IMAGE_ENDINGS)]
        others += [f"{wnid}/{name}" for name in sorted({entry.name for entry in entries}.difference(images))]
        if not images:
            raise BadInput("the class folder holds no images", where=root / folder / wnid)
        yield from ((wnid, f"{folder}/{wnid}/{name}") for name in images)
    if others:
        log.info("%s: left out, no images or no class folders: %s", root / folder, first_few(others))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder, sorted, but for what begins with a dot. Raises BadInput where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror})", where=folder) from error


def _nothing(what: str, root: Path, looked_for: str) -> BadInput:
    found = first_few([entry.name for entry in _entries(root)])
    return BadInput(what, where=root, expected=looked_for, found=found)
