"""A folder of class sub-folders, with or without `train`, `val` and `test` above them, into a plan."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.classes import ClassTable, read_classes
from imagenet_pipeline.records.image_files import READ_ENDINGS, image_files
from imagenet_pipeline.records.plan import Images, Plan
from record_builders.cutting import ONE_EACH, Share, cut_shares

DEFAULT_FRACTION = 0.1

log = logging.getLogger("imagenet_pipeline")


def plan(
    root: Path,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    seed: int = 42,
    classes: Path | None = None,
) -> Plan:
    """Plan a folder: class = sub-folder, images anywhere below it. Symbolic links are not followed.

    With ROOT/train, the splits are ROOT/{train,val,test}, and an absent one is cut out of train if a fraction
    is given. Without it ROOT holds the classes, and val and test are cut out (stratified; by default a tenth each, or
    one image a class where that is more).
    `classes` names them: classes.json, or lines "n01440764 tench"; they stay in the order of their folders.
    Raises BadInput where a class is empty, has no name in `classes`, or one of val or test is not in train.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise BadInput("no such folder", where=root)
    divided = (root / "train").is_dir()
    ids = _class_folders(root / "train" if divided else root)
    train = _images(root, "train" if divided else "", ids)
    _require_all_classes(root / "train" if divided else root, train, ids)
    held_out: dict[str, Images] = {}
    wanted: dict[str, Share] = {}
    for split, fraction in (("val", val_fraction), ("test", test_fraction)):
        if divided and (root / split).is_dir():
            if fraction:
                raise BadInput(f"there is a {split} folder: none is cut out of train", where=root / split)
            held_out[split] = _images(root, split, ids)
        else:
            wanted[split] = (0.0 if divided else _usual_share(train, ids)) if fraction is None else fraction
    few = [split for split, share in wanted.items() if share == ONE_EACH]
    if few:
        log.info("%s: fewer than ten images a class: one of each is cut out for %s", root, " and ".join(few))
    return Plan(
        root=root,
        splits={**cut_shares(train, wanted, seed), **held_out},
        classes=ClassTable("folder", tuple(ids), _names(ids, classes)),
        source={"builder": "folder", "seed": seed, "fractions": wanted},
        walked=True,
    )


def _usual_share(train: Images, ids: Sequence[str]) -> Share:
    return DEFAULT_FRACTION if round(len(train) * DEFAULT_FRACTION) >= len(ids) else ONE_EACH


def _names(ids: Sequence[str], file: Path | None) -> tuple[str, ...]:
    if file is None:
        return tuple(ids)
    table = read_classes(file)
    names = dict(zip(table.ids, table.names, strict=True))
    lacking = [one for one in ids if one not in names]
    if lacking:
        raise BadInput("no name for a class", where=file, expected=f"lines such as {lacking[0]!r} NAME")
    return tuple(names[one] for one in ids)


def _class_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
    if not names:
        raise BadInput("no class folders here", where=folder, expected="a sub-folder of images for each class")
    return sorted(names)


def _images(root: Path, split: str, ids: Sequence[str]) -> Images:
    found = _class_folders(root / split)
    unknown = sorted(set(found) - set(ids))
    if unknown:
        raise BadInput("class is not in train", where=root / split / unknown[0])
    paths: list[str] = []
    labels: list[int] = []
    left_out = 0
    for label, class_id in enumerate(ids):
        if class_id in found:
            names, others = image_files(root / split / class_id)
            paths.extend(name.relative_to(root).as_posix() for name in names)
            labels.extend([label] * len(names))
            left_out += others
    if left_out:
        log.info("%s: %d other files were left out", root / split, left_out)
    return Images(paths, np.array(labels, np.int64))


def _require_all_classes(folder: Path, train: Images, ids: Sequence[str]) -> None:
    counts = np.bincount(train.labels, minlength=len(ids))
    if not counts.all():
        empty = ids[int(np.argmin(counts))]
        _, others = image_files(folder / empty)
        raise BadInput(
            f"class folder {empty} holds no images",
            where=folder,
            expected="files ending in " + " ".join(READ_ENDINGS),
            found=f"{others} other files",
            advice="add images, or remove the folder",
        )
