"""Pictures that come as bare pixels, thousands to a file: found, and packed as PNGs that are read in place.

Their PNGs, without loss, are the members of a tar beside the records: a file each would take ten times the room and the
time. Its first member says by a digest which pixels it is of.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import re
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, first_few
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records import image
from imagenet_pipeline.records.archives import ENDINGS
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.plan import Images, Plan
from imagenet_pipeline.records.tar import Member, members

from .cutting import cut_shares, shares_of, usual_share

FOLDER = "pictures"
LIMIT_BYTES = 2**32
"""The most that a packed file may hold: EMNIST's largest has 5.5e8."""
_SOURCE, _MEMBER = "source.json", "{}/{:06d}.png"
_DEPTHS = ("*", "*/*", "*/*/*")
_BLOCK_BYTES = 2**20

log = logging.getLogger("imagenet_pipeline")

Cut = tuple[float | None, int | None]
"""The size of a split that is cut out, as a share or as a number of images, where either is given."""


@dataclass(frozen=True)
class Pictures:
    """Pictures, uint8 grey [n, height, width] or RGB [n, height, width, 3], and the class of each [n]."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Sources:
    """Files in a folder, by their names without .gz: where below `root` each is."""

    root: Path
    places: Mapping[str, str]

    def where(self, name: str) -> Path:
        """The path of a file, for messages."""
        return self.root / self.places[name]

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """The contents of files, unpacked. Raises BadInput for one that cannot be read."""
        return {name: self._unpacked(self.places[name]) for name in names}

    def _unpacked(self, place: str) -> bytes:
        path = self.root / place
        content = files.read_regular(path)
        if not place.endswith(".gz"):
            return content
        unpacked = io.BytesIO()
        try:
            with gzip.open(io.BytesIO(content)) as stream:
                while block := stream.read(_BLOCK_BYTES):
                    unpacked.write(block)
                    if unpacked.tell() > LIMIT_BYTES:
                        raise BadInput("the file holds too much", where=path, expected=f"<= {LIMIT_BYTES:,} bytes")
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(f"the file is cut or damaged ({error})", where=path) from error
        return unpacked.getvalue()


def find_sources(root: Path, pattern: re.Pattern[str], expected: str) -> Sources:
    """Find the files whose names `pattern` matches, .gz left out, in a folder or two below it.

    Of a file and its .gz the file is taken. Raises BadInput where there is none, or two of a name.
    """
    root = Path(root)
    if not root.is_dir():
        raise BadInput("no such folder", where=root)
    places: dict[str, str] = {}
    for path in sorted(path for depth in _DEPTHS for path in root.glob(depth) if path.is_file()):
        name, place = path.name.removesuffix(".gz"), path.relative_to(root).as_posix()
        if not pattern.fullmatch(name):
            continue
        known = places.get(name)
        if known and known.endswith(".gz") == place.endswith(".gz"):
            found = f"{known} and {place}"
            raise BadInput(f"two files are called {name}", where=root, found=found, advice="name the folder of either")
        if known is None or known.endswith(".gz"):
            places[name] = place
    if not places:
        beside = sorted(root.glob("*"))
        packed = [path for path in beside if path.name.lower().endswith(ENDINGS)]
        advice = f"say --root {packed[0]}" if packed else None
        found = first_few([path.name for path in beside])
        raise BadInput("no files of this data set", where=root, expected=expected, found=found, advice=advice)
    return Sources(root, places)


def plan_pictures(
    builder: str, parts: Mapping[str, Pictures], classes: ClassTable, out: Path, cuts: Mapping[str, Cut], seed: int
) -> Plan:
    """Pack the pictures of `train`, and of `test` where it has its own, into `out` and plan them.

    `cuts` has the splits to cut out of train, by default a tenth each. Raises BadInput where they cannot be, before
    anything is written.
    """
    asked = {split: cut for split, cut in cuts.items() if split not in parts}
    for split in parts:
        if cuts.get(split, (None, None)) != (None, None):
            raise BadInput(f"the {split} pictures have a file of their own: none are cut out of train", where=builder)
    labels = np.concatenate([part.labels for part in parts.values()])
    if len(np.unique(labels)) < 2:
        raise BadInput("all pictures have one label", where=builder, expected="two or more classes")
    folder = Path(out) / FOLDER
    images = _numbered(parts, f"{builder}.tar")
    train = images.pop("train")
    shares = shares_of(len(train), asked, usual_share(len(train), len(classes)))
    splits = {**cut_shares(train, shares, seed), **images}
    spans = _packed(parts, folder / f"{builder}.tar")
    return Plan(
        root=folder,
        splits={name: replace(chosen, spans=spans[chosen.spans].reshape(-1, 2)) for name, chosen in splits.items()},
        classes=classes,
        source={"builder": builder, "seed": seed, "fractions": shares},
    )


def _numbered(parts: Mapping[str, Pictures], tar_name: str) -> dict[str, Images]:
    """The pictures as images in the tar, with their numbers in it in place of spans."""
    images, first = {}, 0
    for name, part in parts.items():
        paths = [f"{tar_name}/{_MEMBER.format(name, number)}" for number in range(len(part.labels))]
        images[name] = Images(paths, part.labels, np.arange(first, first + len(paths)))
        first += len(paths)
    return images


def _packed(parts: Mapping[str, Pictures], tar_file: Path) -> NDArray[np.int64]:
    """The spans [n, 2] of the pictures in the tar, which is written unless it is there whole.

    Raises BadInput where it is of others.
    """
    digest = hashlib.sha256()
    for name, part in parts.items():
        digest.update(f"{name} {part.pixels.shape}\0".encode())
        digest.update(np.ascontiguousarray(part.pixels).data)
    source = files.json_bytes({"pixels_sha256": digest.hexdigest()})
    total = sum(len(part.labels) for part in parts.values())
    stored = _stored(source, tar_file) if tar_file.exists() else []
    if len(stored) != total:
        files.remove_left_parts([tar_file])
        _write(parts, source, tar_file)
        stored = _stored(source, tar_file)
    return np.array([member.span for member in stored], np.int64)


def _stored(source: bytes, tar_file: Path) -> list[Member]:
    """The pictures in a tar; none where it is cut or damaged. Raises BadInput for those of another source."""
    with files.regular_file(tar_file) as (stream, size_bytes):
        read_at = partial(files.read_at, stream.fileno())
        try:
            first, *pictures = members(read_at, (0, size_bytes), tar_file)
        except (BadInput, ValueError):  # ValueError: it has no members
            log.warning("%s: cut or damaged: the pictures are packed again", tar_file)
            return []
        if first.name != _SOURCE or read_at(first.span[1], first.span[0]) != source:
            raise BadInput("the file holds pictures of another source", where=tar_file, advice="choose another --out")
    return pictures


def _write(parts: Mapping[str, Pictures], source: bytes, tar_file: Path) -> None:
    total, done = sum(len(part.labels) for part in parts.values()), 0
    with (
        files.whole_file(tar_file) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        Bar("pictures", "images") as bar,
    ):
        _add(tar, _SOURCE, source)
        for name, part in parts.items():
            for number, pixels in enumerate(part.pixels):
                _add(tar, _MEMBER.format(name, number), image.encode_png(np.ascontiguousarray(pixels)))
                done += 1
                bar.show(done, total)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
