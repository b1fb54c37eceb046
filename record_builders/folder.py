"""A folder of class sub-folders, with or without `train`, `val` and `test` above them, into a plan."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from imagenet_pipeline.errors import BadInput, first_few, printable
from imagenet_pipeline.records.class_names import names_of
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image_files import READ_ENDINGS, REPEATED_LINKS, ImageTree
from imagenet_pipeline.records.plan import Images, Plan

from .cutting import ONE_EACH, Share, cut_shares
from .split_folders import USUAL_NAMES, split_called, split_folders

DEFAULT_FRACTION = 0.1

log = logging.getLogger("imagenet_pipeline")


@dataclass(frozen=True)
class Layout:
    """The layout of a folder of photos: `tops` has the folder of each split, or of train alone the root itself."""

    tree: ImageTree
    tops: Mapping[str, Path]
    ids: tuple[str, ...]

    @property
    def divided(self) -> bool:
        """True where the splits have folders."""
        return self.tops["train"] != self.tree.root


def plan(
    root: Annotated[Path, "One sub-folder a class; or train/ val/ test/ of such folders."],
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    seed: int = 42,
    classes: Path | None = None,
    follow: Annotated[
        bool, "--follow/--no-follow", "Follow symbolic links; else none that leaves ROOT, and each is named."
    ] = True,
    leave_out: Annotated[Sequence[str], "A folder in ROOT not to look at; may be repeated."] = (),
) -> Plan:
    """Build from folders of photos, one sub-folder a class; cuts keep the share of every class.

    The folders of the splits have any usual name, in any case: train (training), val (valid, validation, dev), test
    (testing, evaluation). The fractions count where there is none for val or test [default: 0.1 without ROOT/train,
    else none]. Of fewer than ten images a class the default is one a class. What is not read is named.

    --classes names the folders, in any order: lines of the folder, a tab, the name, or "n01440764 tench"; or JSON,
    {folder: name}, {number: [folder, name]} and the like. A file of as many names, and no folder among them, names
    the sorted folders in turn.

    \b
    Examples:
      imagenet-pipeline build folder --root photos --out output/photos
      imagenet-pipeline build folder --root photos --out s3://bucket/photos
      imagenet-pipeline build folder --root photos --leave-out unsorted --classes names.txt --out output/photos

    Raises BadInput where a class is empty, has no name in `classes`, or is in val or test but not in train; where
    classes look like splits; where there is a single class; where an image is in two classes or splits.
    """
    layout = find_layout(root, follow, leave_out)
    root, ids = layout.tree.root, layout.ids
    fractions = {"val": val_fraction, "test": test_fraction}
    for split, top in layout.tops.items():
        if fractions.get(split):
            raise BadInput(f"the {split} folder exists: no {split} split is cut out of train", where=top)
    wanted = {split: fraction for split, fraction in fractions.items() if split not in layout.tops}
    splits = _images(layout)
    usual = 0.0 if layout.divided else _usual_share(splits["train"], ids)
    shares = {split: usual if fraction is None else fraction for split, fraction in wanted.items()}
    few = [split for split, share in shares.items() if share == ONE_EACH]
    if few:
        log.info("%s: fewer than ten images a class: one of each is cut out for %s", root, " and ".join(few))
    return Plan(
        root=root,
        splits={**splits, **cut_shares(splits["train"], shares, seed)},
        classes=ClassTable("folder", ids, names_of(ids, classes) if classes else ids),
        source={"builder": "folder", "seed": seed, "fractions": shares},
        follow_links=follow,
        walked=True,
    )


def find_layout(root: Path, follow: bool = True, leave_out: Sequence[str] = ()) -> Layout:
    """The splits and classes of a folder, by the names of its folders alone. Raises BadInput as `plan` does."""
    root = Path(root)
    if not os.path.isdir(root):
        raise BadInput("no such folder", where=root)
    tree = ImageTree(root, follow)
    names = _names(tree, root)
    absent = sorted(set(leave_out) - set(names))
    if absent:
        raise BadInput("the folder to leave out does not exist", where=root / absent[0])
    for name in leave_out:
        tree.leave_out("folders, as asked for", root / name)
    names = [name for name in names if name not in leave_out]
    others = [name for name in names if not split_called(name)] if any(map(split_called, names)) else []
    found = split_folders(root, names, [name for name in others if tree.images(root / name)])
    for name in others:
        tree.leave_out("folders without images", root / name)
    tops = {split: root / name for split, name in found.items()} or {"train": root}
    if any(split != name for split, name in found.items()):
        taken = ", ".join(f"{name!r} is {split}" for split, name in found.items())
        log.info("%s", printable(f"{root}: {taken}"))
    return Layout(tree, tops, tuple(_class_folders(tree, tops["train"]) if found else _several(tree, root, names)))


def _usual_share(train: Images, ids: Sequence[str]) -> Share:
    return DEFAULT_FRACTION if round(len(train) * DEFAULT_FRACTION) >= len(ids) else ONE_EACH


def _names(tree: ImageTree, folder: Path) -> list[str]:
    """The folders in a folder; images beside them are noted."""
    contents = tree.look(folder)
    for image in contents.images:
        tree.leave_out("images in no class folder", image)
    return [path.name for path in contents.folders]


def _class_folders(tree: ImageTree, folder: Path) -> list[str]:
    return _several(tree, folder, _names(tree, folder))


def _several(tree: ImageTree, folder: Path, names: list[str]) -> list[str]:
    """The names, of two classes or more. Raises BadInput saying where the classes may be."""
    if len(names) > 1:
        return names
    if not names:
        raise _no_folders(tree, folder)
    inner, within = folder / names[0], tree.look(folder / names[0])
    while len(within.folders) == 1 and not within.images:
        inner, within = within.folders[0], tree.look(within.folders[0])
    deeper = [path.name for path in within.folders]
    if not deeper:
        advice = f"put the images of every other class into a folder beside {names[0]!r}"
        raise BadInput(
            "the folder has a single class",
            where=folder,
            found=names[0],
            expected="two or more class folders",
            advice=advice,
        )
    advice = f"say --root {inner}" if folder == tree.root else f"move what is in {inner} to {folder}"
    found = f"{names[0]}, and in {inner}: {first_few(deeper)}"
    raise BadInput(
        "the folder has a single class", where=folder, expected="two or more class folders", found=found, advice=advice
    )


def _no_folders(tree: ImageTree, folder: Path) -> BadInput:
    advice = "put the images of each class into a folder of its own, or give a list with labels to `build list`"
    if folder != tree.root:
        advice += f"; --leave-out {folder.name!r} does without it"
    return BadInput(
        "the folder has no class folders",
        where=folder,
        expected="a sub-folder of images for each class",
        found=tree.left_out_below(folder),
        advice=advice,
    )


def _images(layout: Layout) -> dict[str, Images]:
    """The images of the splits that have folders, those that must have an image of each class looked at first."""
    tree = layout.tree
    found: dict[tuple[str, str], list[str]] = {}
    for split, top in layout.tops.items():
        names = layout.ids if split == "train" else _names(tree, top)
        if not names:
            raise _no_folders(tree, top)
        for name in sorted(names):
            if name not in layout.ids:
                raise BadInput("the class is not in train", where=top / name)
            found[split, name] = _of_class(tree, top / name)
            if split == "train" and not found[split, name]:
                raise _empty_class(tree, top / name)
    _drop_repeats(tree, found)
    tree.say()
    return {split: _as_images(layout, split, found) for split in layout.tops}


def _of_class(tree: ImageTree, folder: Path) -> list[str]:
    """The images of a class, relative to the root."""
    images = [path.relative_to(tree.root).as_posix() for path in tree.images(folder)]
    depth = len(folder.relative_to(tree.root).parts)
    inner = sorted({image.split("/", depth + 1)[depth] for image in images if image.count("/") > depth})
    if len({split for name in inner if (split := split_called(name))}) > 1:
        raise BadInput(
            "the class folder holds splits",
            where=folder,
            expected=f"{USUAL_NAMES} above the classes",
            found=first_few(inner),
        )
    return images


def _drop_repeats(tree: ImageTree, found: Mapping[tuple[str, str], list[str]]) -> None:
    """Take an image that links lead to again once. Raises BadInput where it is in two classes or splits."""
    if not tree.linked:
        return
    rows = [(tree.root / image, key) for key, images in found.items() for image in images]
    first: dict[str, tuple[Path, tuple[str, str]]] = {}
    repeated: set[str] = set()
    # What is known by its own path comes first.
    for path, key in sorted(rows, key=lambda row: row[0] in tree.linked):
        known, known_key = first.setdefault(tree.real_path(path), (path, key))
        if known_key != key:
            what = f"the same image is in two {'classes' if known_key[0] == key[0] else 'splits'}"
            raise BadInput(what, where=tree.root, found=f"{known} and {path}, links to one file", advice="keep either")
        if known is not path:
            tree.leave_out(REPEATED_LINKS, path)
            repeated.add(path.relative_to(tree.root).as_posix())
    for images in found.values():
        images[:] = [image for image in images if image not in repeated]


def _as_images(layout: Layout, split: str, found: Mapping[tuple[str, str], list[str]]) -> Images:
    paths: list[str] = []
    labels: list[int] = []
    for label, class_id in enumerate(layout.ids):
        images = found.get((split, class_id), [])
        paths.extend(images)
        labels.extend([label] * len(images))
    return Images(paths, np.array(labels, np.int64))


def _empty_class(tree: ImageTree, folder: Path) -> BadInput:
    return BadInput(
        f"class folder {folder.name} holds no images",
        where=folder.parent,
        expected="files ending in " + " ".join(READ_ENDINGS),
        found=tree.left_out_below(folder),
        advice="add images, or remove the folder",
    )
