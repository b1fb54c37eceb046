"""ILSVRC CLS-LOC (ImageNet-1k), in any of the forms in which people have it, into a plan.

The ILSVRC2015 tree with its development kit; Kaggle's tree; train and val sorted into class folders; the official
archives, packed. Where each part is found: imagenet_layout.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.records.class_names import names_of
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.plan import Images, Plan

from . import imagenet_layout as layout
from .cutting import cut, cut_each
from .imagenet_archives import TRAIN_ARCHIVE
from .imagenet_devkit import ClassOrder, Devkit, blacklisted_numbers

TEST_IMAGES_PER_CLASS = 50

log = logging.getLogger("imagenet_pipeline")


def plan(
    root: Path,
    class_order: ClassOrder = "wnid",
    drop_blacklisted: bool = False,
    test_images: int | None = None,
    seed: int = 42,
    test_per_class: int | None = None,
) -> Plan:
    """Plan train (shuffled), test (cut out of train, stratified) and val (in file-name order).

    `test_images`: 0 for none; by default 50 times the number of classes, each class in proportion to its training
    images: 28 to 51 of each of ImageNet's. `test_per_class`: exactly that many of each class instead.
    `drop_blacklisted` leaves out the validation images whose boxes (not labels) the kit doubts: 1,762 of ImageNet's
    50,000. Raises BadInput naming file and line, or what was looked for.
    """
    if test_images is not None and test_per_class is not None:
        raise BadRecipe("--test-images and --test-per-class exclude each other", advice="give either")
    root = layout.image_root(root)
    devkit = layout.find_devkit(root, class_order)
    if devkit is None:
        _require_no_need(root, class_order, drop_blacklisted)
    found = layout.find_train(root)
    classes, by = _classes(root, devkit, found)
    dropped = blacklisted_numbers(devkit) if devkit and drop_blacklisted else set()
    found_val = layout.find_validation(root, layout.find_ground_truth(root, devkit), dropped)
    everything, val = _images(root, found, classes, by), _images(root, found_val, classes, by)
    _require_every_class(everything, classes, root / found.by)
    kit = {"classes": by, "train": found.by, "val": found_val.by}
    name = _kit_name(devkit, kit)
    log.info("%s: %s: %s", root, name, "; ".join(f"{part} by {source}" for part, source in kit.items()))
    layout.say_unused(root)
    train, test, asked = _cut_test(everything, test_images, test_per_class, seed)
    return Plan(
        root=root,
        splits={"train": train, "val": val, "test": test},
        classes=classes,
        source={
            "builder": "imagenet",
            "class_order": class_order,
            "drop_blacklisted": drop_blacklisted,
            "seed": seed,
            **asked,
        },
        folders=(*found.folders, *found_val.folders),
        follow_links=True,
        remarks={"kit": {"name": name, **kit}},
    )


def _cut_test(
    everything: Images, test_images: int | None, test_per_class: int | None, seed: int
) -> tuple[Images, Images, dict[str, int]]:
    """Training images, test images, and what was asked for."""
    if test_per_class is not None:
        train, test = cut_each(everything, test_per_class, seed, "--test-per-class 0")
        return train, test, {"test_per_class": test_per_class}
    classes = len(np.unique(everything.labels))
    wanted = TEST_IMAGES_PER_CLASS * classes if test_images is None else test_images
    train, test = cut(everything, wanted, seed, "--test-images 0")
    return train, test, {"test_images": wanted}


def _require_no_need(root: Path, class_order: str, drop_blacklisted: bool) -> None:
    wanted = {"--drop-blacklisted": drop_blacklisted, "--class-order devkit": class_order != "wnid"}
    for option, asked in wanted.items():
        if asked:
            expected = " or ".join(layout.DEVKITS)
            raise BadInput(f"{option} needs a development kit, and there is none", where=root, expected=expected)


def _classes(root: Path, devkit: Devkit | None, train: layout.Found) -> tuple[ClassTable, str]:
    """The class table, and the origin of its names: the kit's classes, or else those of the training images."""
    if devkit is not None:
        return devkit.classes, f"{os.path.relpath(devkit.folder, root)}/{devkit.source}"
    ids = tuple(sorted(set(train.wnids)))
    path = layout.beside(root, layout.NAME_FILES)
    if path is None:
        return ClassTable("wnid", ids, ids), train.by
    return ClassTable("wnid", ids, names_of(ids, path)), path.name


def _kit_name(devkit: Devkit | None, kit: Mapping[str, str]) -> str:
    if kit["train"] == TRAIN_ARCHIVE:
        return "the official archives"
    if devkit is not None:
        return "ImageNet with its development kit"
    return "ImageNet as Kaggle hands it out" if kit["val"].endswith(layout.SOLUTION) else "ImageNet in class folders"


def _images(root: Path, found: layout.Found, classes: ClassTable, by: str) -> Images:
    label_of = {wnid: label for label, wnid in enumerate(classes.ids)}
    labels = np.fromiter((label_of.get(wnid, -1) for wnid in found.wnids), np.int64, len(found.wnids))
    if len(labels) and labels.min() < 0:
        row = int(np.argmin(labels))
        where = f"{root / found.by}:{row + 1}" if found.by.endswith("train_cls.txt") else root / found.paths[row]
        raise BadInput(f"the class is not in {by}", where=where, found=found.wnids[row])
    return Images(found.paths, labels, found.spans)


def _require_every_class(train: Images, classes: ClassTable, where: Path) -> None:
    counts = np.bincount(train.labels, minlength=len(classes))
    if not counts.all():
        empty = classes.ids[int(np.argmin(counts))]
        found = f"none of {empty} ({int((counts == 0).sum())} such classes)"
        raise BadInput("a class has no training images", where=where, expected="images of every class", found=found)
