"""An archive as the root of any builder: its names are laid out as a folder to plan from, its photos read in place.

Photos are laid out empty, whatever else there is as it is; that folder goes as soon as there is a plan, whose images
are spans of the archive then. So a plan of an archive has the digest of the folder's that it unpacks to, and gives the
same data set.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, PipelineError, first_few
from imagenet_pipeline.records.archives import Archive, MemberSpan, is_archive, open_archive
from imagenet_pipeline.records.image_files import IMAGE_ENDINGS
from imagenet_pipeline.records.plan import Images, Plan

_MISSING = (0, -1, 0, 0)


def planned(
    builder: Callable[..., Plan], options: Mapping[str, Any], place: Path, where: str, looks_into_photos: bool = False
) -> Plan:
    """Have a builder make its plan with these options; of a `root` that is an archive, from what it would unpack to.

    A root may be a folder in an archive, "photos.zip/train"; an archive of a single folder is that folder, or else the
    folder above it, which a table's paths may count from. `place` is the folder of the data set. For a builder that
    `looks_into_photos` they are unpacked while it plans. Raises BadInput as `open_archive`, and as the builder does,
    the archive named in place of the folder; BadRecipe, with `where`, for a builder that returns no plan.
    """
    root = options.get("root")
    root = Path(root) if isinstance(root, str | os.PathLike) else Path()
    path = _archive_of(root)
    if path is None:
        return _plan_by(builder, options, where)
    archive, place = open_archive(path), place.absolute()
    files.remove_left_parts([place])
    with files.part_folder(place) as part:
        folder = part / path.name
        _lay_out(archive, folder, looks_into_photos)
        tops = _tops(archive, root.relative_to(path).as_posix())
        try:
            plan = _plan_of_first(builder, [{**options, "root": folder / top} for top in tops], where)
        except PipelineError as error:
            raise _about(error, str(folder), str(path)) from error
        below = Path(os.path.relpath(os.path.realpath(plan.root), os.path.realpath(folder)))
        # A builder that writes photos of its own has them elsewhere.
        return plan if os.pardir in below.parts else _in_place(plan, archive, below.as_posix())


def _lay_out(archive: Archive, folder: Path, with_photos: bool) -> None:
    photos = [] if with_photos else [name for name in archive.members if name.lower().endswith(IMAGE_ENDINGS)]
    with files.explaining(folder):
        folder.mkdir()
        for name in sorted(archive.folders):
            os.makedirs(folder / name, exist_ok=True)
        for name in photos:
            # Not by pathlib, which takes twice the time.
            os.close(os.open(f"{folder}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    others = archive.members.keys() - set(photos)
    if others:
        archive.extract(others, folder)


def _plan_of_first(builder: Callable[..., Plan], alternatives: Sequence[Mapping[str, Any]], where: str) -> Plan:
    """The plan of the first options that make one. Raises as with the very first where none do."""
    first, *others = alternatives
    try:
        return _plan_by(builder, first, where)
    except BadInput:
        for options in others:
            with contextlib.suppress(PipelineError):
                return _plan_by(builder, options, where)
        raise


def _plan_by(builder: Callable[..., Plan], options: Mapping[str, Any], where: str) -> Plan:
    plan = builder(**options)
    if not isinstance(plan, Plan):
        what, expected = "the builder does not return a plan", "a records.plan.Plan"
        raise BadRecipe(what, where=where, expected=expected, found=type(plan).__name__)
    return plan


def _archive_of(root: Path) -> Path | None:
    """The archive that a root is, or lies in; None for any other."""
    if is_archive(root):
        return root
    return next((above for above in root.parents if above.is_file() and is_archive(above)), None)


def _tops(archive: Archive, inner: str) -> list[str]:
    """The folders in an archive to plan from, the likeliest first: that asked for, or that which holds all the rest."""
    if inner != ".":
        if inner not in archive.folders:
            found = first_few(sorted(name for name in archive.folders if "/" not in name))
            raise BadInput("no such folder in the archive", where=archive.path / inner, found=found)
        return [inner]
    tops = {name.partition("/")[0] for name in (*archive.members, *archive.folders)}
    only = next(iter(tops))
    return [only, ""] if len(tops) == 1 and only in archive.folders else [""]


def _in_place(plan: Plan, archive: Archive, below: str) -> Plan:
    """The plan with each image as a span of the archive; `below` is the folder in it that the builder planned from."""
    if plan.unpack:
        raise BadInput("files of this kind are not read inside of an archive", where=archive.path, advice="unpack it")
    width = max(len(span) for span in archive.members.values())

    def span_of(path: str, inner: MemberSpan | None) -> MemberSpan:
        member = path.partition("/")[0] if inner is not None else path
        name = os.path.normpath(f"{below}/{member}")
        span = archive.members.get(name, archive.members.get(member, _MISSING[:width]))
        return span if inner is None else _within(span, inner, archive.path / name)

    splits = {}
    for split, images in plan.splits.items():
        inner = [None] * len(images) if images.spans is None else images.spans.tolist()
        spans = [span_of(path, span) for path, span in zip(images.paths, inner, strict=True)]
        splits[split] = Images(images.paths, images.labels, np.array(spans, np.int64).reshape(-1, width))
    unpack = {archive.path.name: archive.unpack} if archive.unpacked_bytes else {}
    root = archive.path.absolute().parent
    return replace(plan, root=root, splits=splits, folders=(), walked=False, archive=archive.path.name, unpack=unpack)


def _within(span: MemberSpan, inner: MemberSpan, where: Path) -> MemberSpan:
    """The span of what lies in a member that is itself an archive."""
    if len(span) > 2 and span[2]:
        raise BadInput("an archive inside of one is compressed", where=where, advice="unpack the outer one")
    # What is in it has no checksum of its own that is known here.
    return (span[0] + inner[0], inner[1], 0, -1)[: len(span)]


def _about(error: PipelineError, folder: str, archive: str) -> PipelineError:
    """The error with the archive's path in place of the folder's."""

    def said(words: object) -> Any:
        return None if words is None else str(words).replace(folder, archive)

    fields = {name: said(getattr(error, name)) for name in ("where", "expected", "found", "advice")}
    return type(error)(said(error.what), **fields)
