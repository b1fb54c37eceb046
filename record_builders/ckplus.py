"""The Extended Cohn-Kanade faces (CK+, Lucey et al. 2010), a sub-folder an emotion, into a plan.

Files are called SUBJECT_SEQUENCE_FRAME, as S010_004_00000017.png: the frames of a sequence differ by a blink, so val
and test are cut by subject, that no face is in two splits.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.plan import Images, Plan
from record_builders import folder
from record_builders.cutting import take

_FOLDS_LIMIT = 20
_NAME = re.compile(r"(S\d{3})_\d{3}_\d{8}\.\w+", re.IGNORECASE)


def plan(root: Path, val_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 42) -> Plan:
    """Plan the faces below `root`; a fraction 0 leaves that split out. Of each emotion about that share is cut.

    Raises BadInput for a file whose name has no subject, and where fractions leave nothing, or there are too few
    subjects to cut so.
    """
    if val_fraction + test_fraction >= 1:
        raise BadInput(
            "fractions leave nothing to train on", expected="a sum below 1", found=val_fraction + test_fraction
        )
    whole = folder.plan(root, val_fraction=0.0, test_fraction=0.0, seed=seed)
    if set(whole.splits) != {"train"} or (Path(root) / "train").is_dir():
        raise BadInput("splits are there already", where=root, advice="use `build folder`, which keeps them")
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
    """Which images are cut out: those of some subjects, about `fraction` of each class."""
    groups = len(set(subjects.tolist()))
    # The fewer the folds, the closer each comes to its share of every class.
    smallest_class = int(np.unique(images.labels, return_counts=True)[1].min())
    share = Fraction(fraction).limit_denominator(min(_FOLDS_LIMIT, groups, smallest_class))
    if not 0 < share < 1:
        raise BadInput(
            f"{groups} subjects cannot be cut so", expected=f"fractions of at least {1 / max(groups, 2):.2g}"
        )
    folds = StratifiedGroupKFold(share.denominator, shuffle=True, random_state=seed)
    mask = np.zeros(len(images), bool)
    for _, fold in islice(folds.split(images.paths, images.labels, subjects), share.numerator):
        mask[fold] = True
    return mask
