"""ReaL: the reassessed labels of ImageNet's validation images (Beyer et al. 2020, "Are we done with ImageNet?").

`real.json` of github.com/google-research/reassessed-imagenet is a list of 50,000 lists, one for each validation
image in the order of their names: every class that the image shows, by its rank among the sorted WordNet ids. A
prediction is right when it is in its image's list; an image whose list is empty does not count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.evaluation.numbering import IMAGENET_CLASSES, sorted_numbers
from imagenet_pipeline.evaluation.scoring import Whole
from imagenet_pipeline.evaluation.stats import Rate, rate
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.lists import photos_of
from imagenet_pipeline.records.manifest import DataSet

IMAGES = 50_000
_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")
_LEAST_AGREEMENT = 0.5
"""Least share of lists with the class an image was collected for; of the genuine images, nine in ten have it."""


@dataclass(frozen=True)
class RealLabels:
    """ReaL labels of a split: `valid` classes by the number a record carries, in the network's own labels."""

    path: Path
    valid: dict[int, frozenset[int]]

    def rate(self, numbers: Whole, predicted: Whole) -> Rate:
        """Rank-1 by ReaL labels of first predictions [n] for the records of these numbers [n]."""
        return real_rate(predicted, [self.valid[number] for number in numbers.tolist()])

    def require_agreement(self, numbers: Whole, labels: Whole) -> None:
        """Raise BadInput where the records' own labels [n] say that the lists are those of other images."""
        own = self.rate(numbers, labels)
        if own.percent < 100 * _LEAST_AGREEMENT:
            raise BadInput(
                "the ReaL labels belong to other images",
                where=self.path,
                expected="most images to show the class they are labelled with",
                found=f"{own.percent:.1f} % of {own.images:,}",
                advice="the images' file names must have their genuine numbers, ILSVRC2012_val_00000001 to 00050000",
            )


def real_rate(predicted: Whole, valid: Sequence[Collection[int]]) -> Rate:
    """ReaL accuracy of first predictions [n] where image i shows `valid[i]`. Raises BadInput where no image counts."""
    if len(predicted) != len(valid):
        raise BadInput("predictions and ReaL labels differ in length", expected=len(valid), found=len(predicted))
    counted = [guess in shown for guess, shown in zip(predicted.tolist(), valid, strict=True) if shown]
    if not counted:
        raise BadInput("no image has a ReaL label", expected="an image that counts", found=f"{len(valid)} without")
    return rate(sum(counted), len(counted))


def read_real_labels(path: Path) -> list[list[int]]:
    """Read `real.json`: image number n's classes are at n - 1. Raises BadInput for anything else."""
    with files.regular_file(path) as (stream, _):
        content = stream.read()
    try:
        lists = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadInput("not a JSON file", where=path, expected="the real.json of reassessed-imagenet") from error
    if not isinstance(lists, list) or len(lists) != IMAGES:
        found = f"{len(lists):,}" if isinstance(lists, list) else type(lists).__name__
        raise BadInput("not a file of ReaL labels", where=path, expected=f"a list of {IMAGES:,} lists", found=found)
    for number, shown in enumerate(lists, 1):
        if not isinstance(shown, list) or not all(
            type(label) is int and 0 <= label < IMAGENET_CLASSES for label in shown
        ):
            expected = f"a list of class numbers 0 to {IMAGENET_CLASSES - 1}"
            raise BadInput(
                f"the ReaL labels of image {number} are malformed",
                where=path,
                expected=expected,
                found=repr(shown)[:80],
            )
    return lists


def real_labels(path: Path, table: ClassTable, data: DataSet, split: str) -> RealLabels:
    """The ReaL labels of a split's records, which its list ties to the images' names, for a network of these classes.

    Raises BadInput where the classes are not ImageNet's, or a record is no validation image.
    """
    label_of = np.argsort(sorted_numbers(table)).tolist()
    lists = read_real_labels(path)
    sets = [frozenset(label_of[number] for number in shown) for shown in lists]
    return RealLabels(path, {number: sets[image - 1] for number, image in _images(data, split).items()})


def _images(data: DataSet, split: str) -> dict[int, int]:
    """The validation image (from 1) of each record number."""
    images = {}
    for number, name, where in photos_of(data, split):
        match = _NAME.fullmatch(name.rpartition("/")[2])
        if match is None or not 1 <= int(match[1]) <= IMAGES:
            raise BadInput(
                f"record {number} is no validation image of ImageNet",
                where=where,
                expected="ILSVRC2012_val_00000001.JPEG to 00050000",
                found=name or "a record whose photo no --list names",
            )
        images[number] = int(match[1])
    return images
