"""The Extended Cohn-Kanade faces (CK+, Lucey et al. 2010), a sub-folder an emotion, into a plan.

Files are called SUBJECT_SEQUENCE_FRAME, as S010_004_00000017.png: the frames of a sequence differ by a blink, so val
and test are cut by subject, that no face is in two splits.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.plan import Images, Plan
from record_builders import folder
from record_builders.cutting import take

_NAME = re.compile(r"(S\d{3})_\d{3}_\d{8}\.\w+", re.IGNORECASE)


def plan(root: Path, val_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 42) -> Plan:
    """Plan the faces below `root`; a fraction 0 leaves that split out. Of each emotion about that share is cut.

    Raises BadInput for a file whose name has no subject, and fractions that the subjects cannot be cut into.
    """
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
    parts, groups = round(1 / fraction), len(set(subjects.tolist()))
    if not 2 <= parts <= groups:
        raise BadInput(f"{groups} subjects cannot be cut so", expected=f"fractions from {1 / groups:.2g} to 0.5")
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    _, chosen = next(folds.split(images.paths, images.labels, subjects))
    mask = np.zeros(len(images), bool)
    mask[chosen] = True
    return mask
