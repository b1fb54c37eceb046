"""A folder of class sub-folders, with or without `train`, `val` and `test` above them, into a plan."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from imagenet_pipeline.errors import BadInput, first_few, printable
from imagenet_pipeline.records.class_names import names_of
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image_files import READ_ENDINGS, REPEATED_LINKS, ImageTree
from imagenet_pipeline.records.plan import Images, Plan

from .cutting import ONE_EACH, USUAL_FRACTION, Share, cut_shares, cut_subjects, shuffled, usual_share
from .named_files import Expression, Found, found_by_name, in_order, subjects_of
from .split_folders import USUAL_NAMES, split_called, split_folders

_UNSORTED = "images in no class folder"

log = logging.getLogger("imagenet_pipeline")


@dataclass(frozen=True)
class Layout:
    """The layout of a folder of photos: `tops` has the folder of each split, or of train alone the root itself."""

    tree: ImageTree
    tops: Mapping[str, Path]
    ids: tuple[str, ...]

    @property
    def divided(self) -> bool:
        """True where the splits have folders, or are named."""
        return len(self.tops) > 1 or self.tops["train"] != self.tree.root


def plan(
    root: Annotated[Path, "One sub-folder a class; or train/ val/ test/ of such folders; or as --label-from says."],
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    seed: int = 42,
    classes: Path | None = None,
    follow: Annotated[
        bool, "--follow/--no-follow", "Follow symbolic links; else none that leaves ROOT, and each is named."
    ] = True,
    leave_out: Annotated[Sequence[str], "A folder in ROOT not to look at; may be repeated."] = (),
    label_from: Annotated[str | None, "Expression whose group in a file's name is the class, as '^(cat|dog)'."] = None,
    subject_from: Annotated[str | None, "Expression whose group is who is shown: nobody is in two splits."] = None,
) -> Plan:
    """Build from folders of photos, one sub-folder a class; cuts keep the share of every class.

    The folders of the splits have any usual name, in any case: train (training), val (valid, validation, dev), test
    (testing, evaluation). The fractions count where there is none for val or test [default: 0.1 without ROOT/train,
    else none]. Of fewer than ten images a class the default is one a class. What is not read is named.

    --classes names the folders, in any order: lines of the folder, a tab, the name, or "n01440764 tench"; or JSON,
    {folder: name}, {number: [folder, name]} and the like. A file of as many names, and no folder among them, names
    the sorted folders in turn.

    --label-from reads classes off the names of files anywhere below ROOT, which is searched for a regular expression
    (in the path, where it has a "/"): its group, or that called label, is the class. A group called split says train,
    val or test. Files of other names are left out, and named. --subject-from reads off who is shown: val and test are
    cut by subject [default: a tenth each].

    \b
    Examples:
      imagenet-pipeline build folder --root photos --out output/photos
      imagenet-pipeline build folder --root photos --out s3://bucket/photos
      imagenet-pipeline build folder --root photos --leave-out unsorted --classes names.txt --out output/photos
      imagenet-pipeline build folder --root train --label-from '^(cat|dog)\\.' --out output/pets
      imagenet-pipeline build folder --root jaffe --label-from '^[A-Z]{2}\\.([A-Z]{2})' --subject-from '^([A-Z]{2})' \\
        --out output/jaffe

    Raises BadInput where a class is empty, has no name in `classes`, or is in val or test but not in train; where
    classes look like splits; where there is a single class; where an image is in two classes or splits, or a subject in
    two splits.
    """
    if label_from is None:
        layout = find_layout(root, follow, leave_out)
        found = _images(layout)
    else:
        layout, found = _named(root, follow, leave_out, Expression(label_from, "label"))
    root, ids = layout.tree.root, layout.ids
    _drop_repeats(layout.tree, found)
    layout.tree.say()
    splits = {split: _as_images(layout, split, found) for split in layout.tops}
    source: dict[str, Any] = {"builder": "folder", "seed": seed}
    fractions = {"val": val_fraction, "test": test_fraction}
    subjects = {} if subject_from is None else _subjects(splits, Expression(subject_from, "subject"), root)
    splits |= _cut(layout, splits["train"], fractions, subjects, source)
    return Plan(
        root=root,
        splits=splits,
        classes=ClassTable("folder", ids, names_of(ids, classes) if classes else ids),
        source=source,
        follow_links=follow,
        walked=True,
        subjects=subjects,
    )


def _subjects(splits: Mapping[str, Images], expression: Expression, root: Path) -> dict[str, str]:
    """The subject of each image of all splits, by its path."""
    paths = [path for images in splits.values() for path in images.paths]
    return dict(zip(paths, subjects_of(paths, expression, root), strict=True))


def _cut(
    layout: Layout,
    train: Images,
    fractions: Mapping[str, float | None],
    subjects: Mapping[str, str],
    source: dict[str, Any],
) -> dict[str, Images]:
    """Cut the splits that have no folder out of train, which is shuffled; the shares are noted in `source`."""
    for split, top in layout.tops.items():
        if fractions.get(split):
            raise BadInput(f"the {split} folder exists: no {split} split is cut out of train", where=top)
    wanted = {split: fraction for split, fraction in fractions.items() if split not in layout.tops}
    root, seed = layout.tree.root, source["seed"]
    if subjects:
        source |= {"fractions": _shares(wanted, 0.0 if layout.divided else USUAL_FRACTION), "subjects": True}
        cut = cut_subjects(train, [subjects[path] for path in train.paths], source["fractions"], seed, layout.ids)
        return {**cut, "train": shuffled(cut["train"], seed)}
    usual = 0.0 if layout.divided else usual_share(len(train), len(layout.ids))
    source["fractions"] = shares = _shares(wanted, usual)
    few = [split for split, share in shares.items() if share == ONE_EACH]
    if few:
        log.info("%s: fewer than ten images a class: one of each is cut out for %s", root, " and ".join(few))
    return cut_shares(train, shares, seed)


def _shares(wanted: Mapping[str, float | None], usual: Share) -> dict[str, Share]:
    return {split: usual if fraction is None else fraction for split, fraction in wanted.items()}


def _named(root: Path, follow: bool, leave_out: Sequence[str], label: Expression) -> tuple[Layout, Found]:
    """The layout of a folder whose classes stand in the names of files, and the images."""
    tree, names = _opened(root, follow, leave_out)
    tops, found = found_by_name(tree, names, leave_out, label)
    ids = in_order({class_id for split, class_id in found if split == "train"})
    for split, class_id in found:
        if class_id not in ids:
            what = f"the class {class_id} is in {split}, but not in train"
            raise BadInput(what, where=tree.root, found=first_few(found[split, class_id]))
    return Layout(tree, tops, ids), found


def find_layout(root: Path, follow: bool = True, leave_out: Sequence[str] = ()) -> Layout:
    """The splits and classes of a folder, by the names of its folders alone. Raises BadInput as `plan` does."""
    tree, names = _opened(root, follow, leave_out)
    root = tree.root
    for image in tree.look(root).images:
        tree.leave_out(_UNSORTED, image)
    others = [name for name in names if not split_called(name)] if any(map(split_called, names)) else []
    found = split_folders(root, names, [name for name in others if tree.images(root / name)])
    for name in others:
        tree.leave_out("folders without images", root / name)
    tops = {split: root / name for split, name in found.items()} or {"train": root}
    if any(split != name for split, name in found.items()):
        taken = ", ".join(f"{name!r} is {split}" for split, name in found.items())
        log.info("%s", printable(f"{root}: {taken}"))
    return Layout(tree, tops, tuple(_class_folders(tree, tops["train"]) if found else _several(tree, root, names)))


def _opened(root: Path, follow: bool, leave_out: Sequence[str]) -> tuple[ImageTree, list[str]]:
    """A folder to look through, and the folders in it but for those to be left out."""
    root = Path(root)
    if not os.path.isdir(root):
        raise BadInput("no such folder", where=root)
    tree = ImageTree(root, follow)
    names = [path.name for path in tree.look(root).folders]
    absent = sorted(set(leave_out) - set(names))
    if absent:
        raise BadInput("the folder to leave out does not exist", where=root / absent[0])
    for name in leave_out:
        tree.leave_out("folders, as asked for", root / name)
    return tree, [name for name in names if name not in leave_out]


def _names(tree: ImageTree, folder: Path) -> list[str]:
    """The folders in a folder; images beside them are noted."""
    contents = tree.look(folder)
    for image in contents.images:
        tree.leave_out(_UNSORTED, image)
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
    advice = (
        "put the images of each class into a folder of its own, read classes off names as cat.0.jpg with --label-from "
        "'^([a-z]+)', or give a table with labels to `build csv`, a list to `build list`"
    )
    if folder != tree.root:
        advice += f"; --leave-out {folder.name!r} does without it"
    return BadInput(
        "the folder has no class folders",
        where=folder,
        expected="a sub-folder of images for each class",
        found=tree.left_out_below(folder),
        advice=advice,
    )


def _images(layout: Layout) -> Found:
    """The images of the splits that have folders, those that must have an image of each class looked at first."""
    tree = layout.tree
    found: Found = {}
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
    return found


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


def _drop_repeats(tree: ImageTree, found: Found) -> None:
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


def _as_images(layout: Layout, split: str, found: Found) -> Images:
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
