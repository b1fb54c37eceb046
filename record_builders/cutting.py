"""Stratified cuts and seeded order, the same for every builder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.errors import BadInput, BadRecipe, extent
from imagenet_pipeline.records.plan import Images, Plan

Indices = NDArray[np.int64]
ONE_EACH: Literal["one a class"] = "one a class"
Share = float | Literal["one a class"]
"""The share of a split: a fraction 0..1 of the images, or an image of each class."""

USUAL_FRACTION = 0.1
_FOLDS_LIMIT = 20


def usual_share(images: int, classes: int) -> Share:
    """The share of a split where nobody says it: a tenth, or an image of each class where that is more."""
    return USUAL_FRACTION if round(images * USUAL_FRACTION) >= classes else ONE_EACH


def shares_of(total: int, asked: Mapping[str, tuple[float | None, int | None]], usual: Share) -> dict[str, Share]:
    """The share of each split, asked for as a fraction or as a number of the `total` images, or else the usual one.

    Raises BadRecipe where both are asked for, BadInput for more images than there are.
    """
    shares: dict[str, Share] = {}
    for split, (fraction, count) in asked.items():
        if fraction is not None and count is not None:
            raise BadRecipe(f"--{split}-fraction and --{split}-images are both given", expected="either")
        if count is not None and not 0 <= count < total:
            raise BadInput(f"--{split}-images is out of range", expected=extent(0, total - 1), found=count)
        shares[split] = usual if fraction is None else fraction
        if count is not None:
            shares[split] = count / total
    return shares


def take(images: Images, indices: Indices) -> Images:
    """The images at `indices`, in that order."""
    spans = None if images.spans is None else images.spans[indices]
    return Images([images.paths[i] for i in indices.tolist()], images.labels[indices], spans)


def shuffled(images: Images, seed: int) -> Images:
    """The images in a random order that depends on nothing but their number and the seed."""
    return take(images, np.random.default_rng(seed).permutation(len(images)))


def cut(images: Images, count: int, seed: int, no_cut: str = "0") -> tuple[Images, Images]:
    """Cut `count` images out, each class in proportion: (the rest, shuffled; the cut, in the order it had).

    The cut is scikit-learn's `train_test_split(stratify=labels, random_state=seed)`, as the book does it. Of label
    vectors, which have no proportion to keep, it is of images drawn at random.
    `no_cut` is what the user would say for none. Raises BadInput where classes are too small for it.
    """
    if count == 0:
        return shuffled(images, seed), Images([], np.empty(0, np.int64))
    if images.labels.ndim == 2:
        drawn = np.random.default_rng(seed).permutation(len(images))
        return take(images, drawn[count:]), take(images, np.sort(drawn[:count]))
    labels, rows, sizes = np.unique(images.labels, return_index=True, return_counts=True)
    classes, smallest = len(labels), int(np.argmin(sizes))
    failure = f"cannot cut {count} of {len(images)} images of {classes} classes out"
    if sizes[smallest] < 2:
        raise BadInput(
            f"{failure}: label {labels[smallest]} has a single image ({images.paths[rows[smallest]]})",
            advice=f"add images of that class, or say {no_cut}",
        )
    if not classes <= count <= len(images) - classes:
        advice = f"ask for another number, add images, or say {no_cut}"
        raise BadInput(failure, expected=f"{classes}..{len(images) - classes}", advice=advice)
    # Not above: photos that lie in splits already are not cut, and it takes a second to import.
    from sklearn.model_selection import train_test_split

    rest, chosen = train_test_split(np.arange(len(images)), test_size=count, stratify=images.labels, random_state=seed)
    return take(images, rest), take(images, np.sort(chosen))


def cut_one_each(images: Images, no_cut: str) -> tuple[Images, Images]:
    """Cut the first image of each class out, a random image where they are shuffled: (the rest, the cut)."""
    labels, first, sizes = np.unique(images.labels, return_index=True, return_counts=True)
    smallest = int(np.argmin(sizes))
    if sizes[smallest] < 2:
        raise BadInput(
            f"cannot cut an image of each class out: label {labels[smallest]} has none to spare "
            f"({images.paths[first[smallest]]})",
            expected="an image of each class for every split",
            advice=f"add images of that class, or say {no_cut}",
        )
    return take(images, np.delete(np.arange(len(images)), first)), take(images, first)


def cut_each(images: Images, per_class: int, seed: int, no_cut: str = "0") -> tuple[Images, Images]:
    """Cut exactly `per_class` images of each class out: (the rest, shuffled; the cut, sorted by path).

    Both depend on the paths and the seed, not on the order of the images. Raises BadInput where a class would have
    none left.
    """
    _require_more(images, per_class, no_cut)
    by_path = take(images, np.array(sorted(range(len(images)), key=images.paths.__getitem__), np.int64))
    drawn = np.random.default_rng(seed).permutation(len(images))
    order = np.argsort(by_path.labels[drawn], kind="stable")
    _, first, sizes = np.unique(by_path.labels[drawn[order]], return_index=True, return_counts=True)
    chosen = order[np.arange(len(order)) - np.repeat(first, sizes) < per_class]
    return take(by_path, np.delete(drawn, chosen)), take(by_path, np.sort(drawn[chosen]))


def _require_more(images: Images, per_class: int, no_cut: str) -> None:
    labels, first, sizes = np.unique(images.labels, return_index=True, return_counts=True)
    smallest = int(np.argmin(sizes))
    if not 0 <= per_class < sizes[smallest]:
        raise BadInput(
            f"cannot cut {per_class} images of each class out: label {labels[smallest]} has {sizes[smallest]} "
            f"({images.paths[first[smallest]]})",
            expected=f"0..{sizes[smallest] - 1}, that every class keeps an image to train on",
            advice=f"ask for fewer, add images, or say {no_cut}",
        )


def fractions_of(shares: Mapping[str, Share]) -> dict[str, float]:
    """The fraction of each share, 0 for one image of each class. Raises BadInput where nothing is left to train on."""
    fractions = {split: 0.0 if share == ONE_EACH else share for split, share in shares.items()}
    if not all(0 <= fraction < 1 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        found = ", ".join(f"{split} {fraction:g}" for split, fraction in fractions.items())
        advice = "cut out fewer images"
        raise BadInput("the fractions leave nothing to train on", expected="0 <= sum < 1", found=found, advice=advice)
    return fractions


def cut_shares(images: Images, shares: Mapping[str, Share], seed: int) -> dict[str, Images]:
    """Cut a share of the images out for each named split; the rest, shuffled, is `train`."""
    fractions = fractions_of(shares)
    counts = {split: round(len(images) * fraction) for split, fraction in fractions.items()}
    no_cut = " ".join(f"--{split}-fraction 0" for split in shares if counts[split] or shares[split] == ONE_EACH)
    splits = {}
    rest = shuffled(images, seed)
    for split, count in counts.items():
        if shares[split] == ONE_EACH:
            rest, splits[split] = cut_one_each(rest, no_cut)
        elif count:
            rest, splits[split] = cut(rest, count, seed, no_cut)
    emptied = np.setdiff1d(images.labels, rest.labels) if images.labels.ndim == 1 else np.empty(0)
    if len(emptied):
        what = f"the cuts leave no training image of label {emptied[0]}"
        raise BadInput(what, found=dict(fractions), advice="ask for smaller shares, or add images of that class")
    return {"train": rest, **splits}


def with_train_val(plan: Plan, fraction: float) -> Plan:
    """The plan with a share of train cut out as train_val, each class in proportion, by the seed of the plan's cuts.

    Where the plan keeps subjects apart, whole subjects are cut out. Raises BadInput for a share that leaves nothing,
    where train is too small for it, or there is none, and where the plan has a train_val already.
    """
    from imagenet_pipeline.records.foreign import RecordsPlan

    if not 0 < fraction < 1:
        what, where = "the share leaves nothing to train on", "--train-val-fraction"
        raise BadInput(what, where=where, expected="above 0, below 1", found=fraction)
    if isinstance(plan, RecordsPlan) or "train" not in plan.splits or "train_val" in plan.splits:
        what = "no train_val can be cut out"
        found = "record files, which stay as they are" if isinstance(plan, RecordsPlan) else ", ".join(plan.splits)
        raise BadInput(what, where="--train-val-fraction", expected="images of train, and no train_val", found=found)
    train, seed = plan.splits["train"], int(plan.source.get("seed", 42))
    if plan.subjects:
        subjects = [plan.subjects[path] for path in train.paths]
        made = cut_subjects(train, subjects, {"train_val": fraction}, seed, plan.classes.ids)
    else:
        rest, chosen = cut(train, max(1, round(len(train) * fraction)), seed, "--train-val-fraction 0")
        made = {"train": rest, "train_val": chosen}
    source = {**plan.source, "train_val_fraction": fraction}
    return replace(plan, splits={**plan.splits, **made}, source=source)


def cut_subjects(
    images: Images, subjects: Sequence[str], fractions: Mapping[str, float], seed: int, ids: Sequence[str]
) -> dict[str, Images]:
    """Cut some subjects' images out for each named split, about that share of each class; the rest is `train`.

    `ids` name the classes. Raises BadInput where the fractions leave nothing, or nothing of a class, or there are too
    few subjects, or images of a class, to cut so.
    """
    if sum(fractions.values()) >= 1:
        found = sum(fractions.values())
        raise BadInput("the fractions leave nothing to train on", expected="a sum below 1", found=found)
    rest, shown, splits = images, np.array(subjects), {}
    for split, fraction in fractions.items():
        if fraction:
            chosen = _of_subjects(rest, shown, fraction * len(images) / len(rest), seed, ids)
            splits[split] = take(rest, np.flatnonzero(chosen))
            rest, shown = take(rest, np.flatnonzero(~chosen)), shown[~chosen]
    return {"train": rest, **splits}


def _of_subjects(
    images: Images, subjects: NDArray[np.str_], fraction: float, seed: int, ids: Sequence[str]
) -> NDArray[np.bool_]:
    """Choose the images to cut out: those of some subjects, about `fraction` of each class. Some of each class stay."""
    from sklearn.model_selection import StratifiedGroupKFold

    share = _folds(images, len(set(subjects.tolist())), fraction, ids)
    folds = StratifiedGroupKFold(share.denominator, shuffle=True, random_state=seed)
    cut_out = np.zeros(len(images), bool)
    emptied, wanted = "", share.numerator
    for _, fold in folds.split(images.paths, images.labels, subjects):
        tried = cut_out.copy()
        tried[fold] = True
        gone = images.labels[fold][~np.isin(images.labels[fold], images.labels[~tried])]
        # The faces of a class may be of so few subjects that a single fold has them all.
        if len(gone):
            emptied = ids[gone[0]]
            continue
        cut_out, wanted = tried, wanted - 1
        if not wanted:
            return cut_out
    what = f"no cut of {fraction:.2g} leaves images of the class {emptied} in train"
    raise BadInput(what, expected="images of more subjects, or smaller fractions")


def _folds(images: Images, subjects: int, fraction: float, ids: Sequence[str]) -> Fraction:
    """`fraction` as folds of the subjects: the fewer the folds, the closer each comes to its share of every class."""
    labels, sizes = np.unique(images.labels, return_counts=True)
    most = min(_FOLDS_LIMIT, subjects, int(sizes.min()))
    share = Fraction(fraction).limit_denominator(most)
    if not 0 < share < 1:
        what, expected = f"{subjects} subjects", "2 or more, or fractions of 0"
        if most < min(_FOLDS_LIMIT, subjects):
            what = f"the smallest class, {ids[labels[sizes.argmin()]]}, of {most} images"
        if most > 1:
            expected = f"fractions from {1 / most:.2g} to {1 - 1 / most:.2g}"
        raise BadInput(f"{what} cannot be cut so", expected=expected)
    return share
