"""A look at the photos of a plan before anything is built: sizes, formats, damage, grey ones, repeats."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.processes import available_processors
from imagenet_pipeline.records.archives import MemberSpan
from imagenet_pipeline.records.image import Rejected, silence_opencv
from imagenet_pipeline.records.perceptual_hash import DISTANCE, near_pairs, perceptual_hash, require_hash
from imagenet_pipeline.records.plan import Images, Plan
from imagenet_pipeline.records.prepare import examine
from imagenet_pipeline.records.shard import read_archived_image, read_image_file

MOST_LOOKED_AT = 2_000
"""Photos that are decoded; of more an evenly spaced sample."""
_GREY_DIFFERENCE = 2.0
"""Mean difference of the channels, of 255, up to which a photo counts as grey: JPEG's rounding leaves less than 1."""
_SIDE_LOOKED_AT = 64


@dataclass(frozen=True)
class Seen:
    """One photo: why it cannot be used, or its size in pixels, its format, whether it is grey, and a hash of it."""

    split: str
    path: str
    label: int
    reason: str = ""
    height: int = 0
    width: int = 0
    format: str = ""
    grey: bool = False
    hash: int = 0


@dataclass(frozen=True)
class Survey:
    """The content of a folder of photos.

    images: photos of each split. class_counts: photos of each class in train. looked_at: photos decoded, all or a
    sample. edges: shortest, median and longest of their shorter edges, pixels. size: the most frequent, (width,
    height). unusable: path and reason. repeated: pairs of paths, in two splits or two classes, of nearly the same photo
    by a perceptual hash, or without ImageHash of the same bytes. seconds: for reading and decoding.
    """

    images: dict[str, int]
    class_counts: dict[str, int]
    looked_at: int
    edges: tuple[int, int, int]
    size: tuple[int, int]
    formats: dict[str, int]
    unusable: tuple[tuple[str, str], ...]
    grey: int
    repeated: tuple[tuple[str, str], ...]
    seconds: float = field(compare=False)

    @property
    def total(self) -> int:
        """Photos of all splits."""
        return sum(self.images.values())

    @property
    def usable(self) -> int:
        """Photos looked at that can be used."""
        return self.looked_at - len(self.unusable)

    @property
    def imbalance(self) -> float:
        """Photos of the largest class for each of the smallest."""
        return max(self.class_counts.values()) / max(1, min(self.class_counts.values()))


def survey(plan: Plan, show: Callable[[int, int], None], most: int = MOST_LOOKED_AT) -> Survey:
    """Look at the photos of a plan, at `most` of them if there are more.

    `show` is told (photos done, all). Raises BadInput where none of them can be used, and for archives that are
    compressed all together, which are not read in place.
    """
    if plan.unpack:
        what, advice = "an archive that is compressed as a whole is not looked into", "unpack it, or pack it as a zip"
        raise BadInput(what, where=plan.root / plan.archive, advice=advice)
    silence_opencv()
    started = time.perf_counter()
    seen = []
    hashed = _hash()
    with ThreadPoolExecutor(available_processors()) as pool:
        chosen = list(_chosen(plan, most))
        for photo in pool.map(lambda job: _look(plan, hashed, *job), chosen):
            seen.append(photo)
            show(len(seen), len(chosen))
    usable = [photo for photo in seen if not photo.reason]
    unusable = tuple((photo.path, photo.reason) for photo in seen if photo.reason)
    if not usable:
        path, reason = unusable[0]
        what = "no photo can be used" if len(seen) > 1 else "the photo cannot be used"
        raise BadInput(what, where=plan.root, found=f"{path}: {reason}", advice="mend the photos, or take others")
    edges = sorted(min(photo.height, photo.width) for photo in usable)
    return Survey(
        images=plan.counts,
        class_counts=_class_counts(plan),
        looked_at=len(seen),
        edges=(edges[0], int(statistics.median(edges)), edges[-1]),
        size=Counter((photo.width, photo.height) for photo in usable).most_common(1)[0][0],
        formats=dict(Counter(photo.format for photo in usable).most_common()),
        unusable=unusable,
        grey=sum(photo.grey for photo in usable),
        repeated=tuple(_repeated(usable, 0 if hashed is _digest else DISTANCE)),
        seconds=time.perf_counter() - started,
    )


def sample_of(plan: Plan, most: int, without: Sequence[str] = ()) -> Plan:
    """The plan with an evenly spaced sample of at most so many photos of train and of val, none of them `without`."""
    left_out = set(without)
    splits = {}
    for name in ("train", "val"):
        if name in plan.splits:
            images = plan.splits[name]
            rows = np.array([row for row, path in enumerate(images.paths) if path not in left_out], np.int64)
            splits[name] = _taken(images, rows[_even(len(rows), most)])
    return replace(plan, splits=splits, subjects={}, walked=False)


def _taken(images: Images, rows: NDArray[np.int64]) -> Images:
    spans = None if images.spans is None else images.spans[rows]
    return Images([images.paths[row] for row in rows.tolist()], images.labels[rows], spans)


def _even(count: int, most: int) -> NDArray[np.int64]:
    """Up to `most` of the numbers below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)) if count else np.empty(0, np.int64)


Job = tuple[str, str, int, MemberSpan | None]
"""Split, path, label, and where in an archive the photo lies."""


def _chosen(plan: Plan, most: int) -> Iterator[Job]:
    """The photos to look at, the same share of each split."""
    total = sum(plan.counts.values())
    for name, images in plan.splits.items():
        spans = None if images.spans is None else images.spans.tolist()
        for row in _even(len(images), -(-most * len(images) // total)).tolist():
            yield name, images.paths[row], int(images.labels[row]), None if spans is None else tuple(spans[row])


def _hash() -> Callable[[bytes], int | None]:
    """The perceptual hash of an encoded photo, or where ImageHash is not installed its digest; 64 bits either."""
    try:
        require_hash()
    except BadRecipe:
        return _digest
    return partial(perceptual_hash, upright=True)


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _look(
    plan: Plan, hashed: Callable[[bytes], int | None], split: str, path: str, label: int, span: MemberSpan | None
) -> Seen:
    try:
        if span is None:
            data = read_image_file(plan.root, path, plan.follow_links)
        else:
            data = read_archived_image(plan.root / (plan.archive or path.partition("/")[0]), span)
        header, pixels, _ = examine(data)
    except Rejected as reason:
        return Seen(split, path, label, str(reason))
    hashes = hashed(data) or 0
    return Seen(split, path, label, "", header.height, header.width, header.format, _is_grey(pixels), hashes)


def _is_grey(pixels: NDArray[np.uint8]) -> bool:
    """Tell whether the channels hardly differ, on a small copy of the photo [height, width, 3]."""
    small = cv2.resize(pixels, (_SIDE_LOOKED_AT, _SIDE_LOOKED_AT), interpolation=cv2.INTER_AREA).astype(np.int16)
    return float(np.abs(np.diff(small, axis=2)).mean()) <= _GREY_DIFFERENCE


def _repeated(photos: Sequence[Seen], distance: int) -> Iterator[tuple[str, str]]:
    """The pairs of alike photos in two splits or two classes; others are only wasteful. None where nearly all are."""
    hashes = np.array([photo.hash for photo in photos], np.uint64)
    try:
        first, second, _ = near_pairs(hashes, distance)
    except BadInput:  # drawings, say, whose hashes are all the same
        return
    for row, other_row in zip(first.tolist(), second.tolist(), strict=True):
        own, other = photos[row], photos[other_row]
        if (own.split, own.label) != (other.split, other.label):
            yield own.path, other.path


def _class_counts(plan: Plan) -> dict[str, int]:
    train = plan.splits["train"]
    counts = np.bincount(train.labels, minlength=len(plan.classes))
    return dict(zip(plan.classes.names, counts.tolist(), strict=True))
