"""Stratified cuts and seeded order, the same for every builder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.plan import Images

Indices = NDArray[np.int64]


def take(images: Images, indices: Indices) -> Images:
    """The images at `indices`, in that order."""
    return Images([images.paths[i] for i in indices.tolist()], images.labels[indices])


def shuffled(images: Images, seed: int) -> Images:
    """The images in a random order that depends on nothing but their number and the seed."""
    return take(images, np.random.default_rng(seed).permutation(len(images)))


def cut(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """Cut `count` images out, each class in proportion: (the rest, shuffled; the cut, in the order it had).

    The cut is scikit-learn's `train_test_split(stratify=labels, random_state=seed)`, as the book does it.
    Raises BadInput where classes are too small for it.
    """
    if count == 0:
        return shuffled(images, seed), Images([], np.empty(0, np.int64))
    smallest = int(np.unique(images.labels, return_counts=True)[1].min())
    classes = len(np.unique(images.labels))
    if smallest < 2 or not classes <= count <= len(images) - classes:
        raise BadInput(
            f"cannot cut {count} images out of {len(images)} of {classes} classes, the smallest {smallest}",
            expected=f"{classes}..{len(images) - classes}, and two images of every class",
            advice="ask for another number of images, or 0 for none",
        )
    rest, chosen = train_test_split(np.arange(len(images)), test_size=count, stratify=images.labels, random_state=seed)
    return take(images, rest), take(images, np.sort(chosen))


def cut_fractions(images: Images, fractions: Mapping[str, float], seed: int) -> dict[str, Images]:
    """Cut a fraction 0..1 of the images out for each named split; the rest, shuffled, is `train`."""
    if not all(0 <= fraction < 1 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        raise BadInput("fractions leave nothing to train on", expected="0 <= sum < 1", found=dict(fractions))
    counts = {split: round(len(images) * fraction) for split, fraction in fractions.items()}
    splits = {}
    rest = shuffled(images, seed)
    for split, count in counts.items():
        if count:
            rest, splits[split] = cut(rest, count, seed)
    return {"train": rest, **splits}
