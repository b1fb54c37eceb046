"""The embedded default data: scikit-learn's handwritten digits as a miniature ILSVRC2015 tree.

1,797 grey 8x8 images (E. Alpaydin, C. Kaynak, UCI "Optical Recognition of Handwritten Digits", 1998),
written as 32x32 `.JPEG` files with a development kit, so that they take the road of the real thing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.records import image
from imagenet_pipeline.records.plan import Images, Plan

from . import imagenet, imagenet_devkit, imagenet_layout
from .cutting import cut

TREE = "ILSVRC2015"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WNIDS = tuple(f"n{digit:08d}" for digit in range(10))
VAL_IMAGES = 300
TEST_IMAGES = 300
BLACKLIST_EVERY = 29
_QUALITY = 95
_SCALE = 4


def plan(out: Path, seed: int = 42) -> Plan:
    """Build scikit-learn's 1,797 handwritten digits, through a miniature ILSVRC2015 tree: data that is always there.

    About 1,197 train, 300 val and 300 test images of 10 classes. The tree is written into ILSVRC2015 beside the
    records, unless it is there.

    Example: imagenet-pipeline build digits --out output/digits
    """
    tree = Path(out) / TREE
    if not tree.exists():
        with files.whole_folder(tree) as folder:
            write_tree(folder)
    return imagenet.plan(tree, test_images=TEST_IMAGES, seed=seed)


def write_tree(folder: Path) -> None:
    """Lay the digits out as ILSVRC2015 CLS-LOC does, in an existing empty folder."""
    from sklearn.datasets import load_digits  # which takes a second to import

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    everything = Images([str(i) for i in range(len(labels))], labels)
    train, val = cut(everything, VAL_IMAGES, seed=0)
    data, lists, kit = folder / imagenet_layout.DATA, folder / imagenet_layout.LISTS, folder / imagenet_layout.DEVKIT
    ordered = sorted(zip(train.labels.tolist(), map(int, train.paths), strict=True))
    train_names = [f"{WNIDS[label]}/{WNIDS[label]}_{row}" for label, row in ordered]
    val_names = [f"ILSVRC2012_val_{n:08d}" for n in range(1, len(val) + 1)]
    for wnid in WNIDS:
        (data / "train" / wnid).mkdir(parents=True)
    for (_, row), name in zip(ordered, train_names, strict=True):
        _write_digit(data / "train" / f"{name}.JPEG", digits.images[row])
    (data / "val").mkdir()
    for row, name in zip(map(int, val.paths), val_names, strict=True):
        _write_digit(data / "val" / f"{name}.JPEG", digits.images[row])
    _write_lines(lists / "train_cls.txt", [f"{name} {n}" for n, name in enumerate(train_names, 1)])
    _write_lines(lists / "val.txt", [f"{name} {n}" for n, name in enumerate(val_names, 1)])
    rows = enumerate(zip(WNIDS, NAMES, strict=True), 1)
    _write_lines(kit / imagenet_devkit.CLASSES, [f"{wnid} {n} {name}" for n, (wnid, name) in rows])
    _write_lines(kit / imagenet_devkit.GROUND_TRUTH, [str(label + 1) for label in val.labels.tolist()])
    blacklisted = range(BLACKLIST_EVERY, len(val) + 1, BLACKLIST_EVERY)
    _write_lines(kit / imagenet_devkit.BLACKLIST, [str(number) for number in blacklisted])


def _write_digit(path: Path, digit: NDArray[np.float64]) -> None:
    """One 8x8 digit, 0..16, as a grey JPEG four times as large."""
    grey = np.asarray(digit * 255 / 16, np.uint8)
    path.write_bytes(image.encode_jpeg(image.enlarge(grey, _SCALE), _QUALITY))


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
