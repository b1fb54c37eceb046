"""Photos whose class, subject or split stands in their names, as cat.0.jpg or KA.AN1.39.tiff, read off by expressions.

An expression is searched for in a file's name, or, where it has a "/", in the path from the root. What it is for is its
group of that name, or else its first: '^(cat|dog)\\.', '^(?P<split>[a-z]+)_(?P<label>[a-z]+)'.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from imagenet_pipeline.errors import BadInput, BadRecipe, first_few
from imagenet_pipeline.records.image_files import ImageTree

from .split_folders import USUAL_NAMES, split_called, split_folders

LONGEST_SECONDS = 10.0
OTHER_NAMES = "names that are not so"

Found = dict[tuple[str, str], list[str]]
"""The paths of the images of each split and class, sorted."""


class Expression:
    """An expression that reads `what` ("label", "subject") off a name, and the split where it has such a group."""

    def __init__(self, text: str, what: str) -> None:
        """Raises BadRecipe for a text that is no regular expression, or one without a group."""
        self._where = where = f"--{what}-from"
        try:
            self._pattern = re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise BadRecipe(f"not a regular expression ({error})", where=where, found=repr(text[:80])) from error
        if not self._pattern.groups:
            expected = f"a group in round brackets, which is the {what}"
            raise BadRecipe("the expression has no group", where=where, expected=expected, found=repr(text[:80]))
        self.text = text
        self.has_split = "split" in self._pattern.groupindex
        self._group = self._pattern.groupindex.get(what, 1)

    def read(self, path: str) -> str:
        """The text that the name of a path has for it; "" where it has none."""
        return self._read(path, self._group)

    def read_split(self, path: str) -> str:
        """The text that the name of a path has for the split; "" where it has none."""
        return self._read(path, "split")

    def _read(self, path: str, group: int | str) -> str:
        with _in_time(self._where, path):
            match = self._pattern.search(path if "/" in self.text else path.rpartition("/")[2])
        return (match[group] or "") if match else ""


@contextmanager
def _in_time(where: str, path: str) -> Iterator[None]:
    """End a search that has taken LONGEST_SECONDS: what repeats within repeats may take longer than the sun lasts.

    The search itself lets a signal in, which the main thread alone can ask for. Raises BadRecipe.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        expected, advice = f"<= {LONGEST_SECONDS} s for a name", "write it without repeats in repeats, as (a+)+"
        raise BadRecipe("the expression takes too long", where=where, expected=expected, found=path, advice=advice)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def found_by_name(
    tree: ImageTree, folders: Sequence[str], left_out: Collection[str], label: Expression
) -> tuple[dict[str, Path], Found]:
    """The folder of each split, and the images of each split and class by their names, anywhere below the root.

    `folders` are those in the root but for the ones `left_out`. Splits are those the expression reads, or folders
    in the root of their usual names, or all is train. Images of other names are noted in the tree.
    Raises BadInput where no image is named so, for fewer than two classes, and as `split_folders`.
    """
    labels: dict[str, str] = {}
    for image in tree.images(tree.root):
        path = image.relative_to(tree.root).as_posix()
        if path.partition("/")[0] in left_out:
            continue
        if class_id := label.read(path):
            labels[path] = class_id
        else:
            tree.leave_out(OTHER_NAMES, image)
    classes = sorted(set(labels.values()))
    if len(classes) < 2:
        what = "all images are named as one class" if classes else "no image is named so"
        found = classes[0] if classes else tree.left_out_below(tree.root)
        raise BadInput(what, where=tree.root, expected=f"names that {label.text!r} matches", found=found)
    tops, splits = _splits(tree, folders, labels, label)
    found_paths: Found = {}
    for path, class_id in labels.items():
        if path in splits:
            found_paths.setdefault((splits[path], class_id), []).append(path)
        else:
            tree.leave_out("images in no folder of a split", tree.root / path)
    return tops, found_paths


def subjects_of(paths: Sequence[str], subject: Expression, root: Path) -> list[str]:
    """The subject of each image by its name. Raises BadInput for a name without one."""
    subjects = [subject.read(path) for path in paths]
    lacking = [path for path, name in zip(paths, subjects, strict=True) if not name]
    if lacking:
        expected = f"names that {subject.text!r} matches"
        raise BadInput("no subject in the name", where=root, expected=expected, found=first_few(lacking))
    return subjects


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """Names of classes sorted, numbers by value."""
    numbers = all(name.isdecimal() and len(name) < 16 for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numbers else 0, name)))


def _splits(
    tree: ImageTree, folders: Sequence[str], labels: Mapping[str, str], label: Expression
) -> tuple[dict[str, Path], dict[str, str]]:
    """The folder of each split, and the split of each image that is in one."""
    if not label.has_split:
        with_images = {path.partition("/")[0] for path in labels if "/" in path}
        others = [name for name in folders if name in with_images and not split_called(name)]
        named = split_folders(tree.root, folders, others)
        if not named:
            return {"train": tree.root}, dict.fromkeys(labels, "train")
        by_folder = {name: split for split, name in named.items()}
        tops = {split: tree.root / name for split, name in named.items()}
        return tops, {path: by_folder[top] for path in labels if (top := path.partition("/")[0]) in by_folder}
    splits = {path: split_called(label.read_split(path)) or "" for path in labels}
    unknown = [path for path, split in splits.items() if not split]
    if unknown:
        raise BadInput("no split in the name", where=tree.root, expected=USUAL_NAMES, found=first_few(unknown))
    if "train" not in splits.values():
        raise BadInput("no image is named as train", where=tree.root, found=", ".join(sorted(set(splits.values()))))
    return {split: tree.root for split in ("train", "val", "test") if split in splits.values()}, splits
