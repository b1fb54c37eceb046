"""Folders that are the splits of a data set, told from folders that are classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from imagenet_pipeline.errors import BadInput, first_few

_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words}
_SET = re.compile(r"[-_ ]?(set|split|data|images)")
_NOT_LETTERS = re.compile(r"[\W\d_]+")
USUAL_NAMES = "train, val (valid, validation), test (testing)"


def split_called(name: str) -> str | None:
    """The split that a folder's name means, in any case, with or without "set" behind it; None for any other name."""
    folded = name.casefold()
    for word, split in _SPLIT_OF_WORD.items():
        rest = folded.removeprefix(word)
        if rest != folded and (not rest or _SET.fullmatch(rest)):
            return split
    return None


def split_folders(folder: Path, names: Sequence[str], with_images: Sequence[str]) -> dict[str, str]:
    """The folder of each split among the folders `names` in `folder`; none where all of them are classes.

    `with_images` are those of them that hold images and mean no split. Raises BadInput where two mean the same split,
    where others are beside the splits, where there is no train, and where classes look like splits.
    """
    found: dict[str, str] = {}
    for name in names:
        split = split_called(name)
        if split in found:
            both = f"{found[split]} and {name}"
            raise BadInput(f"two folders name the split {split}", where=folder, found=both, advice="keep either")
        if split:
            found[split] = name
    found = {split: found[split] for split in _WORDS if split in found}
    if not found:
        require_no_likeness(folder, names)
    elif with_images:
        raise _others_beside(folder, found, with_images)
    elif "train" not in found:
        held_out = next(iter(found.values()))
        raise BadInput(
            "the folder train is missing beside the other splits",
            where=folder,
            found=", ".join(found.values()),
            advice=f"to evaluate alone: --root {folder / held_out} --val-fraction 0 --test-fraction 0",
        )
    return found


def require_no_likeness(folder: Path, names: Sequence[str]) -> None:
    """Raise BadInput where names of classes, as seg_train and seg_test, look like those of two splits."""
    alike = {split: name for name in names if (split := _likeness(name))}
    if len(alike) > 1:
        raise BadInput(
            "the folders look like splits, not like classes",
            where=folder,
            expected=f"splits called {USUAL_NAMES}",
            found=first_few(list(alike.values())),
            advice="rename them, or, if they are classes, put all classes into a folder train",
        )


def _likeness(name: str) -> str | None:
    words = [word for word in _NOT_LETTERS.split(name.casefold()) if word]
    ends = (words[0], words[-1]) if words else ()
    return split_called(name) or next((_SPLIT_OF_WORD[word] for word in ends if word in _SPLIT_OF_WORD), None)


def _others_beside(folder: Path, found: dict[str, str], others: Sequence[str]) -> BadInput:
    splits = ", ".join(found.values())
    advice = f"move them away, or --leave-out {others[0]!r}"
    if "train" not in found:
        advice = f"put the class folders into a folder train, or --leave-out {next(iter(found.values()))!r}"
    advice += f"; if {splits} are classes, put all classes into a folder train" if len(others) > 1 else ""
    expected = f"nothing with images beside the splits ({splits})"
    return BadInput(
        "the folder has other folders beside its splits",
        where=folder,
        expected=expected,
        found=first_few(others),
        advice=advice,
    )
