"""The Extended Cohn-Kanade faces (CK+, Lucey et al. 2010), as distributed or a sub-folder an emotion, into a plan.

Files are called SUBJECT_SEQUENCE_FRAME, as S010_004_00000017.png: the frames of a sequence differ by a blink, so val
and test are cut by subject, that no face is in two splits. As distributed each of 593 sequences goes from a neutral
face to the peak of an expression, and 327 have a file in Emotion/ that says which. The last three frames of these are
taken, the peak, as is usual: the sub-folders that are handed around as CK+48 are those 981.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image_files import ImageTree
from imagenet_pipeline.records.plan import Images, Plan

from . import folder
from .cutting import cut_subjects

PEAK_FRAMES = 3
EMOTIONS = ("neutral", "anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")
"""By the numbers in the files of Emotion/; the names are those of CK+48's folders."""
_NAME = re.compile(r"(S\d{3})_(\d{3})_\d{8}\.\w+", re.IGNORECASE)
_EMOTION = re.compile(r"(S\d{3})_(\d{3})_\d{8}_emotion\.txt", re.IGNORECASE)

_Sequence = tuple[str, str]


def plan(
    root: Annotated[Path, "CK+ as distributed; or a sub-folder an emotion, of faces S010_004_00000017.png."],
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 42,
) -> Plan:
    """Build the faces of CK+; val and test are cut by subject, that no face is in two splits.

    ROOT has cohn-kanade-images/ and Emotion/, of whose sequences with an emotion the last three frames are taken; or it
    has a sub-folder for each emotion. Of each emotion about that share is cut; a fraction 0 leaves the split out.

    \b
    Examples:
      imagenet-pipeline build ckplus --root CK+48 --out output/ckplus
      imagenet-pipeline build ckplus --root CK+ --out output/ckplus

    Raises BadInput for a file whose name has no subject, and where fractions leave nothing, or nothing of a class, or
    there are too few subjects, or images of a class, to cut so.
    """
    root = Path(root)
    emotion_files = sorted(path for path in root.rglob("*.txt") if _EMOTION.fullmatch(path.name))
    whole = _as_distributed(root, emotion_files) if emotion_files else _in_folders(root, seed)
    faces, fractions = whole.splits["train"], {"val": val_fraction, "test": test_fraction}
    subjects = [_match(path, root)[1].upper() for path in faces.paths]
    splits = cut_subjects(faces, subjects, fractions, seed, whole.classes.ids)
    source = {"builder": "ckplus", "seed": seed, "fractions": fractions}
    return replace(whole, splits=splits, source=source, subjects=dict(zip(faces.paths, subjects, strict=True)))


def _in_folders(root: Path, seed: int) -> Plan:
    if folder.find_layout(root, follow=False).divided:
        raise BadInput("the folder has splits already", where=root, advice="use `build folder`, which keeps them")
    return folder.plan(root, val_fraction=0.0, test_fraction=0.0, seed=seed, follow=False)


def _as_distributed(root: Path, emotion_files: Sequence[Path]) -> Plan:
    """The last frames of each sequence that has an emotion, all in train."""
    frames: defaultdict[_Sequence, list[str]] = defaultdict(list)
    for image in ImageTree(root, follow=False).images(root):
        path = image.relative_to(root).as_posix()
        match = _match(path, root)
        frames[match[1].upper(), match[2]].append(path)
    emotions: dict[_Sequence, str] = {}
    for file in emotion_files:
        named = _EMOTION.fullmatch(file.name)
        sequence = (named[1].upper(), named[2]) if named else ("", "")
        if sequence in emotions:
            raise BadInput("the sequence has two emotions", where=file)
        if sequence not in frames:
            expected = f"cohn-kanade-images/{'/'.join(sequence)}/ in {root}"
            raise BadInput("the sequence of this emotion has no images", where=file, expected=expected)
        emotions[sequence] = _emotion(file)
    ids = tuple(sorted(set(emotions.values())))
    rows = [
        (path, ids.index(emotion))
        for sequence, emotion in sorted(emotions.items())
        for path in sorted(frames[sequence], key=lambda path: path.rpartition("/")[2])[-PEAK_FRAMES:]
    ]
    faces = Images([path for path, _ in rows], np.array([label for _, label in rows], np.int64))
    return Plan(root, {"train": faces}, ClassTable("folder", ids, ids), walked=True)


def _emotion(path: Path) -> str:
    """The emotion that a file says by a number, "   3.0000000e+00"."""
    text = files.read_regular(path).decode("ascii", "replace").strip()
    try:
        number = float(text)
        return EMOTIONS[[float(known) for known in range(len(EMOTIONS))].index(number)]
    except ValueError as error:
        expected = f"a number 0..{len(EMOTIONS) - 1}"
        raise BadInput("no emotion of CK+", where=path, expected=expected, found=repr(text[:40])) from error


def _match(path: str, root: Path) -> re.Match[str]:
    name = _NAME.fullmatch(Path(path).name)
    if name is None:
        expected = "SUBJECT_SEQUENCE_FRAME, as S010_004_00000017.png"
        advice = "faces without subjects: `build folder` cuts by image"
        raise BadInput("no subject in the name", where=Path(root) / path, expected=expected, advice=advice)
    return name
