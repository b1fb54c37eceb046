"""An archive as the root of any builder: its names are laid out as a folder to plan from, its photos read in place.

Photos are laid out empty, whatever else there is as it is; that folder goes as soon as there is a plan, whose images
are spans of the archive then. So a plan of an archive has the digest of the folder's that it unpacks to, and gives the
same data set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, PipelineError
from imagenet_pipeline.records.archives import Archive, MemberSpan, is_archive, open_archive
from imagenet_pipeline.records.image_files import IMAGE_ENDINGS
from imagenet_pipeline.records.plan import Images, Plan

from .split_folders import split_called

_MISSING = (0, -1, 0, 0)


def planned(
    builder: Callable[..., Plan], options: Mapping[str, Any], place: Path, looks_into_photos: bool = False
) -> Plan:
    """Have a builder make its plan with these options; of a `root` that is an archive, from what it would unpack to.

    `place` is the folder of the data set. An archive of a single folder is that folder, unless its name is that of a
    split. For a builder that `looks_into_photos` they are unpacked while it plans. Raises BadInput as `open_archive`,
    and as the builder does, the archive named in place of the folder.
    """
    root = options.get("root")
    if not isinstance(root, str | os.PathLike) or not is_archive(path := Path(root)):
        return builder(**options)
    archive, place = open_archive(path), place.absolute()
    files.remove_left_parts([place])
    with files.part_folder(place) as part:
        folder = part / path.name
        _lay_out(archive, folder, looks_into_photos)
        top = _top(archive)
        try:
            plan = builder(**{**options, "root": folder / top})
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
            (folder / name).touch(exist_ok=False)
    others = archive.members.keys() - set(photos)
    if others:
        archive.extract(others, folder)


def _top(archive: Archive) -> str:
    """The folder in an archive that holds all the rest, above any of a split; "" for the archive's top."""
    leaves = archive.folders - {os.path.dirname(name) for name in archive.folders}
    common = os.path.commonpath([*leaves, *map(os.path.dirname, archive.members)])
    return "/".join(takewhile(lambda part: not split_called(part), common.split("/")))


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
