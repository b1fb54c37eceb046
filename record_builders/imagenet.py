"""ILSVRC CLS-LOC (ImageNet-1k): the development kit's text files into a plan.

ROOT/ImageSets/CLS-LOC/{train_cls,val}.txt, ROOT/devkit/data/{map_clsloc,...ground_truth,...blacklist}.txt,
images in ROOT/Data/CLS-LOC/{train/WNID,val}. Format: the kit's readme.txt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.plan import Images, Plan
from record_builders.cutting import cut

ClassOrder = Literal["wnid", "devkit"]

DATA = "Data/CLS-LOC"
LISTS = "ImageSets/CLS-LOC"
DEVKIT = "devkit/data"
CLASSES = "map_clsloc.txt"
GROUND_TRUTH = "ILSVRC2015_clsloc_validation_ground_truth.txt"
BLACKLIST = "ILSVRC2015_clsloc_validation_blacklist.txt"
TEST_IMAGES_PER_CLASS = 50

_CLASS_LINE = re.compile(r"(n\d{8}) (\d{1,6}) (\S+)")
_TRAIN_LINE = re.compile(r"((n\d{8})/\2_\d{1,9}) \d{1,9}")
_VAL_LINE = re.compile(r"(ILSVRC\d{4}_val_(\d{8})) (\d{1,9})")
_NUMBER_LINE = re.compile(r"\d{1,9}")


@dataclass(frozen=True)
class Devkit:
    """The kit's classes in the order asked for; `label_of_id[i - 1]` is the label of the kit's class id i."""

    folder: Path
    classes: ClassTable
    label_of_id: NDArray[np.int64]


def plan(
    root: Path,
    class_order: ClassOrder = "wnid",
    drop_blacklisted: bool = False,
    test_images: int | None = None,
    seed: int = 42,
) -> Plan:
    """Plan train (shuffled), test (cut out of train, stratified) and val (in file-name order).

    `test_images`: default 50 a class, 0 for none. `drop_blacklisted` leaves out the validation images whose
    boxes (not labels) the kit doubts: 1,762 of ImageNet's 50,000. Raises BadInput naming file and line.
    """
    root = Path(root)
    devkit = parse_devkit(root / DEVKIT, class_order)
    wanted = TEST_IMAGES_PER_CLASS * len(devkit.classes) if test_images is None else test_images
    everything, val = _train(root, devkit), _validation(root, devkit, drop_blacklisted)
    train, test = cut(everything, wanted, seed, "--test-images 0")
    source = {
        "builder": "imagenet",
        "class_order": class_order,
        "drop_blacklisted": drop_blacklisted,
        "test_images": wanted,
        "seed": seed,
    }
    return Plan(
        root=root,
        splits={"train": train, "val": val, "test": test},
        classes=devkit.classes,
        source=source,
        folders=(f"{DATA}/train", f"{DATA}/val"),
        follow_links=True,
    )


def parse_devkit(folder: Path, class_order: ClassOrder = "wnid") -> Devkit:
    """Read `map_clsloc.txt` in the kit's data folder. Raises BadInput where ids are not 1..N, once each."""
    if class_order not in ("wnid", "devkit"):
        raise BadInput("unknown class order", expected="wnid or devkit", found=class_order)
    path = Path(folder) / CLASSES
    names: dict[str, str] = {}
    wnids: dict[int, str] = {}
    for where, match in _matches(path, _CLASS_LINE, "WNID ID NAME"):
        wnid, number, names[match[1]] = match[1], int(match[2]), match[3]
        if number in wnids or wnid in wnids.values():
            raise BadInput("class given twice", where=where, found=match[0])
        wnids[number] = wnid
    if sorted(wnids) != list(range(1, len(wnids) + 1)):
        raise BadInput("class ids are not 1..N", where=path, expected=f"1..{len(wnids)}", found=max(wnids))
    kit_order = [wnids[number] for number in range(1, len(wnids) + 1)]
    ids = sorted(kit_order) if class_order == "wnid" else kit_order
    label_of = {wnid: label for label, wnid in enumerate(ids)}
    return Devkit(
        folder=Path(folder),
        classes=ClassTable(class_order, tuple(ids), tuple(names[wnid] for wnid in ids)),
        label_of_id=np.array([label_of[wnid] for wnid in kit_order], np.int64),
    )


def validation_labels(devkit: Devkit) -> NDArray[np.int64]:
    """Labels of the validation images in number order, int64 [images]; row i is ILSVRC2012_val_{i+1:08d}.

    Raises BadInput, naming the line, for an id outside the kit's classes.
    """
    path = devkit.folder / GROUND_TRUTH
    ids = []
    for where, match in _matches(path, _NUMBER_LINE, "one class id"):
        if not 1 <= int(match[0]) <= len(devkit.classes):
            valid = f"1..{len(devkit.classes)}"
            raise BadInput("label out of range", where=where, expected=valid, found=match[0])
        ids.append(int(match[0]))
    return np.take(devkit.label_of_id, np.array(ids, np.int64) - 1)


def blacklisted_numbers(devkit: Devkit) -> set[int]:
    """Numbers (from 1) of the validation images on the kit's blacklist."""
    return {int(match[0]) for _, match in _matches(devkit.folder / BLACKLIST, _NUMBER_LINE, "image number")}


def _train(root: Path, devkit: Devkit) -> Images:
    label_of = {wnid: label for label, wnid in enumerate(devkit.classes.ids)}
    names, labels = [], []
    seen: set[str] = set()
    for where, match in _matches(root / LISTS / "train_cls.txt", _TRAIN_LINE, "WNID/WNID_N NUMBER"):
        label = label_of.get(match[2])
        if label is None:
            raise BadInput(f"class not in {CLASSES}", where=where, found=match[2])
        if match[1] in seen:
            raise BadInput("image given twice", where=where, found=match[1])
        seen.add(match[1])
        names.append(match[1])
        labels.append(label)
    return Images([f"{DATA}/train/{name}.JPEG" for name in names], np.array(labels, np.int64))


def _validation(root: Path, devkit: Devkit, drop_blacklisted: bool) -> Images:
    path = root / LISTS / "val.txt"
    names = _validation_names(path)
    labels = validation_labels(devkit)  # line n is for image number n, wherever the list names it
    if sorted(names) != list(range(1, len(labels) + 1)):
        raise BadInput(
            f"{GROUND_TRUTH} does not belong to this list",
            where=path,
            expected=f"images 1..{len(labels)}, once each",
            found=f"{len(names)} of {min(names)}..{max(names)}",
        )
    dropped = blacklisted_numbers(devkit) if drop_blacklisted else set()
    kept = sorted(names.keys() - dropped, key=lambda number: names[number])
    return Images([f"{DATA}/val/{names[number]}.JPEG" for number in kept], labels[np.array(kept, np.int64) - 1])


def _validation_names(path: Path) -> dict[int, str]:
    """Names of the validation images by number."""
    names: dict[int, str] = {}
    for where, match in _matches(path, _VAL_LINE, "ILSVRC2012_val_N NUMBER"):
        number = int(match[3])
        if number != int(match[2]):
            raise BadInput("image number differs from the name's", where=where, found=match[0])
        if number in names:
            raise BadInput("image given twice", where=where, found=match[0])
        names[number] = match[1]
    return names


def _matches(path: Path, pattern: re.Pattern[str], form: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Each line of a text file, matched whole; (file:line, match). Raises BadInput at one that does not."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise BadInput(
            f"cannot be read ({reason})", where=path, advice="--root is the ILSVRC2015 folder itself"
        ) from error
    if not lines:
        raise BadInput("file is empty", where=path, expected=f"lines of the form {form}")
    for number, line in enumerate(lines, 1):
        match = pattern.fullmatch(line.strip())
        if match is None:
            raise BadInput("malformed line", where=f"{path}:{number}", expected=form, found=repr(line[:80]))
        yield f"{path}:{number}", match
