"""The Extended Cohn-Kanade faces (CK+, Lucey et al. 2010), a sub-folder an emotion, into a plan.

Files are called SUBJECT_SEQUENCE_FRAME, as S010_004_00000017.png: the frames of a sequence differ by a blink, so val
and test are cut by subject, that no face is in two splits.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.plan import Images, Plan

from . import folder
from .cutting import take

_FOLDS_LIMIT = 20
_NAME = re.compile(r"(S\d{3})_\d{3}_\d{8}\.\w+", re.IGNORECASE)


def plan(
    root: Annotated[Path, "A sub-folder an emotion, of faces S010_004_00000017.png."],
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 42,
) -> Plan:
    """Build the faces of CK+; val and test are cut by subject, that no face is in two splits.

    Of each emotion about that share is cut; a fraction 0 leaves the split out.

    Example: imagenet-pipeline build ckplus --root CK+48 --out output/ckplus

    Raises BadInput for a file whose name has no subject, and where fractions leave nothing, or nothing of a class, or
    there are too few subjects, or images of a class, to cut so.
    """
    if val_fraction + test_fraction >= 1:
        raise BadInput(
            "the fractions leave nothing to train on", expected="a sum below 1", found=val_fraction + test_fraction
        )
    if folder.find_layout(root, follow=False).divided:
        raise BadInput("the folder has splits already", where=root, advice="use `build folder`, which keeps them")
    whole = folder.plan(root, val_fraction=0.0, test_fraction=0.0, seed=seed, follow=False)
    rest, splits = whole.splits["train"], {}
    subjects = np.array([_subject(path, root) for path in rest.paths])
    for split, fraction in (("val", val_fraction), ("test", test_fraction)):
        if fraction:
            chosen = _cut(rest, subjects, fraction * len(whole.splits["train"]) / len(rest), seed)
            splits[split] = take(rest, np.flatnonzero(chosen))
            rest, subjects = take(rest, np.flatnonzero(~chosen)), subjects[~chosen]
    source = {"builder": "ckplus", "seed": seed, "fractions": {"val": val_fraction, "test": test_fraction}}
    return replace(whole, splits={"train": rest, **splits}, source=source)


def _subject(path: str, root: Path) -> str:
    name = _NAME.fullmatch(Path(path).name)
    if name is None:
        expected = "SUBJECT_SEQUENCE_FRAME, as S010_004_00000017.png"
        advice = "faces without subjects: `build folder` cuts by image"
        raise BadInput("no subject in the name", where=Path(root) / path, expected=expected, advice=advice)
    return name[1].upper()


def _cut(images: Images, subjects: NDArray[np.str_], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose the images to cut out: those of some subjects, about `fraction` of each class. Some of each class stay."""
    share = _share(images, len(set(subjects.tolist())), fraction)
    folds = StratifiedGroupKFold(share.denominator, shuffle=True, random_state=seed)
    cut_out = np.zeros(len(images), bool)
    emptied, wanted = "", share.numerator
    for _, fold in folds.split(images.paths, images.labels, subjects):
        tried = cut_out.copy()
        tried[fold] = True
        gone = images.labels[fold][~np.isin(images.labels[fold], images.labels[~tried])]
        # The faces of a class may be of so few subjects that a single fold has them all.
        if len(gone):
            emptied = _class_of(images, int(gone[0]))
            continue
        cut_out, wanted = tried, wanted - 1
        if not wanted:
            return cut_out
    what = f"no cut of {fraction:.2g} leaves faces of the class {emptied} in train"
    raise BadInput(what, expected="faces of more subjects, or smaller fractions")


def _share(images: Images, subjects: int, fraction: float) -> Fraction:
    """`fraction` as folds of the subjects: the fewer the folds, the closer each comes to its share of every class."""
    labels, sizes = np.unique(images.labels, return_counts=True)
    most = min(_FOLDS_LIMIT, subjects, int(sizes.min()))
    share = Fraction(fraction).limit_denominator(most)
    if not 0 < share < 1:
        what, expected = f"{subjects} subjects", "2 or more, or fractions of 0"
        if most < min(_FOLDS_LIMIT, subjects):
            what = f"the smallest class, {_class_of(images, int(labels[sizes.argmin()]))}, of {most} images"
        if most > 1:
            expected = f"fractions from {1 / most:.2g} to {1 - 1 / most:.2g}"
        raise BadInput(f"{what} cannot be cut so", expected=expected)
    return share


def _class_of(images: Images, label: int) -> str:
    return Path(images.paths[int(np.argmax(images.labels == label))]).parts[0]
