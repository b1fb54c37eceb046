"""The embedded digits take the road of the real thing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.record_builders import digits, imagenet, imagenet_layout
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.image import decode_rgb
from imagenet_pipeline.records.plan import Images
from imagenet_pipeline.records.reader import RecordSet


def test_the_tree_is_a_miniature_of_the_real_one(tmp_path: Path) -> None:
    plan = digits.plan(tmp_path)
    assert plan.counts == {"train": 1197, "val": 300, "test": 300}
    assert plan.classes.names == digits.NAMES
    tree = tmp_path / digits.TREE
    assert len(list((tree / imagenet_layout.DATA).rglob("*.JPEG"))) == 1797
    before = sorted((path.name, path.read_bytes()) for path in tree.rglob("*.JPEG"))
    assert digits.plan(tmp_path).digest == plan.digest
    assert sorted((path.name, path.read_bytes()) for path in tree.rglob("*.JPEG")) == before
    assert len(imagenet.plan(tree, drop_blacklisted=True, test_images=0).splits["val"]) == 290


def test_its_records_hold_the_digits(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(digits.plan(out), out, BuildOptions(workers=1))
    originals = load_digits()
    small = {label: originals.images[originals.target == label] for label in range(10)}
    with RecordSet.open(out, "val") as records:
        for position in range(0, 300, 30):
            record = records.read(position)
            pixels = decode_rgb(record.image)
            assert pixels.shape == (32, 32, 3)
            shrunk = cv2.resize(pixels[:, :, 0], (8, 8), interpolation=cv2.INTER_AREA) / 255 * 16
            distance = np.abs(small[int(record.labels[0])] - shrunk).mean(axis=(1, 2)).min()
            assert distance < 1


def test_the_images_may_be_linked_from_another_disk(tmp_path: Path) -> None:
    digits.plan(tmp_path / "out")
    train = tmp_path / "out" / digits.TREE / imagenet_layout.DATA / "train"
    train.rename(tmp_path / "elsewhere")
    train.symlink_to(tmp_path / "elsewhere")
    plan = imagenet.plan(tmp_path / "out" / digits.TREE, test_images=0)
    few = Images(plan.splits["train"].paths[:20], plan.splits["train"].labels[:20])
    summary = build(replace(plan, splits={"train": few}), tmp_path / "set", BuildOptions(workers=1))
    assert summary.records == {"train": 20}


def test_a_tree_without_its_images_is_said_at_once(tmp_path: Path) -> None:
    plan = digits.plan(tmp_path)
    (tmp_path / digits.TREE / "Data").rename(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="Data/CLS-LOC/train: no such folder"):
        build(plan, tmp_path / "set", BuildOptions(workers=1))
