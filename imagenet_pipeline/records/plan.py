"""The plan of a data set: the images of each split with their labels, and the classes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput, extent, first_few
from imagenet_pipeline.records import lists
from imagenet_pipeline.records.classes import ClassTable

SPLITS = ("train", "train_val", "val", "test")
"""Train_val is a part of train that is not trained on: it tells what is lost from images to unseen images alone."""
LARGEST_EXACT_LABEL = 2**24
Labels = NDArray[np.int64] | NDArray[np.float32]
"""Classes [images], or label vectors [images, labels]."""


@dataclass(frozen=True)
class Images:
    """The images of a split, in the order in which they are stored; columns, to be lean at 1.28 M rows.

    `labels` are the number of each image's class, or where the class table says so, a vector of labels for each.

    `spans`, of images in archives that are not unpacked: offset and bytes of each, int64 [images, 2], in the file that
    its path begins with ("ILSVRC2012_img_val.tar/ILSVRC2012_val_00000001.JPEG"), or in the plan's `archive`. Of a zip
    [images, 4], as `archives.MemberSpan`. A size below 0 says that the image is not there.
    """

    paths: list[str]
    labels: Labels
    spans: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Plan:
    """Images by split (`train`, `val`, `test`; absent or empty ones are left out), paths relative to `root`.

    `source` tells where the plan came from and goes into the manifest; plain JSON values only. So does `remarks`, which
    is no part of the digest: other words about equal rows.
    `folders` (relative to `root`) must be there before images are read.
    `follow_links` allows symbolic links out of `root`, for layouts whose names the builder has checked.
    `walked` says that every folder in `root` counts, so that a data set inside it would be taken for a class.
    `archive` is the file in `root` that holds all images, whose paths are those in it.
    `unpack` has the files in `root` that hold images compressed all together, each with a function that writes what it
    holds, as long as spans are of that.
    `subjects` says of each path who is shown, where nobody may be in two splits.
    Raises BadInput for what cannot be stored, and where an image, or a subject, is in two splits.
    """

    root: Path
    splits: Mapping[str, Images]
    classes: ClassTable
    source: Mapping[str, Any] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    follow_links: bool = False
    walked: bool = False
    remarks: Mapping[str, Any] = field(default_factory=dict)
    archive: str = ""
    unpack: Mapping[str, Callable[[BinaryIO], None]] = field(default_factory=dict)
    subjects: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        splits = {name: self.splits[name] for name in SPLITS if len(self.splits.get(name, ()))}
        object.__setattr__(self, "splits", splits)
        if not splits:
            raise BadInput("no images found", where=self.root)
        for name, images in splits.items():
            _check(name, images, self.classes)
        for pair in combinations(splits.items(), 2):
            _require_disjoint(*pair)
        if self.subjects:
            _require_apart_subjects(splits, self.subjects)

    @property
    def counts(self) -> dict[str, int]:
        """Images per split."""
        return {name: len(images) for name, images in self.splits.items()}

    @property
    def digest(self) -> str:
        """SHA-256 over classes, source and every row: equal plans build equal records."""
        head = json.dumps([self.classes.as_json(), dict(self.source)], sort_keys=True)
        digest = hashlib.sha256(head.encode())
        for name, images in self.splits.items():
            digest.update(f"\0{name}\0".encode())
            digest.update(images.labels.astype("<i8" if images.labels.ndim == 1 else "<f4").tobytes())
            digest.update("\n".join(images.paths).encode())
        return digest.hexdigest()


def require_apart(plan: Plan, out: Path) -> None:
    """Raise BadInput where a data set in `out` would lie among the images of the plan."""
    root, target = os.path.realpath(plan.root), os.path.realpath(out)
    if target == root or (plan.walked and target.startswith(os.path.join(root, ""))):
        raise BadInput("a data set may not be made where the images are", where=out, advice="choose another --out")


def write_lists(plan: Plan, out: Path) -> dict[str, Path]:
    """Write `{train,val,test}.lst` and `classes.json` into the folder `out`; the paths of the lists, by split."""
    from imagenet_pipeline.storage import require_folder  # training reads this module, and has no use for it

    require_folder(out, "--lists-only")
    require_apart(plan, out)
    written = {}
    for name, images in plan.splits.items():
        written[name] = Path(out) / f"{name}.lst"
        lists.write_list(written[name], range(len(images)), images.labels.tolist(), images.paths)
    plan.classes.write(Path(out) / "classes.json")
    return written


def _require_disjoint(first: tuple[str, Images], second: tuple[str, Images]) -> None:
    (name, images), (other_name, others) = first, second
    both = set(others.paths).intersection(images.paths)
    if both:
        first_of_both = next(path for path in others.paths if path in both)
        raise BadInput(
            f"the same image is in {name} and in {other_name}",
            expected="every image in one split",
            found=f"{first_of_both} (of {len(both):,})",
            advice="list it once, or cut the splits from a list without repeats",
        )


def _require_apart_subjects(splits: Mapping[str, Images], subjects: Mapping[str, str]) -> None:
    shown = {name: {subjects[path] for path in images.paths} for name, images in splits.items()}
    for (name, people), (other_name, others) in combinations(shown.items(), 2):
        if both := people & others:
            what = f"the same subject is in {name} and in {other_name}"
            found, advice = first_few(sorted(both)), "move all of its images into either, or cut the splits here"
            raise BadInput(what, expected="every subject in one split", found=found, advice=advice)


def _check(name: str, images: Images, classes: ClassTable) -> None:
    if len(images.labels) != len(images.paths):
        raise BadInput(f"{name}: {len(images.paths)} paths but {len(images.labels)} labels")
    if classes.label_kind != "class":
        _check_vectors(name, images, classes)
    else:
        lowest, highest = int(images.labels.min()), int(images.labels.max())
        if lowest < 0 or highest >= min(len(classes), LARGEST_EXACT_LABEL):
            raise BadInput(
                f"{name}: a label is out of range", expected=extent(0, len(classes) - 1), found=extent(lowest, highest)
            )
    joined = "\n".join(images.paths)
    if joined.count("\n") != len(images) - 1 or "\t" in joined:
        raise BadInput(f"{name}: a path holds a tab or a line break, which a list cannot hold")
    if not joined.isascii() and any(0xD800 <= ord(letter) < 0xE000 for letter in joined):
        raise BadInput(f"{name}: a path is not valid UTF-8")
    limit_bytes = lists.PATH_LIMIT_BYTES
    if any(len(path) > limit_bytes // 4 and len(path.encode()) > limit_bytes for path in images.paths):
        raise BadInput(f"{name}: a path is too long for a list", expected=f"<= {limit_bytes:,} bytes")


def _check_vectors(name: str, images: Images, classes: ClassTable) -> None:
    """Raise BadInput where an image has not as many labels as there are names for them, or labels of another kind."""
    if images.labels.ndim != 2 or images.labels.shape[1] != len(classes):
        found = " x ".join(map(str, images.labels.shape))
        raise BadInput(
            f"{name}: the labels have another shape", expected=f"{len(images)} x {len(classes)}", found=found
        )
    fits = np.isfinite(images.labels) if classes.label_kind == "number" else np.isin(images.labels, (0, 1))
    rows, columns = np.nonzero(~fits)
    if len(rows):
        raise BadInput(
            f"{name}: a label is not what it should be",
            where=f"{images.paths[rows[0]]}, {classes.ids[columns[0]]}",
            expected="a number" if classes.label_kind == "number" else "0 or 1",
            found=f"{images.labels[rows[0], columns[0]]:g}",
        )
