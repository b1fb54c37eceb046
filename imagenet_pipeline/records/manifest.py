"""The manifest of a finished data set: what was built, from what, and the digest of every file."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged
from imagenet_pipeline.records.classes import ClassTable, LabelKind
from imagenet_pipeline.records.plan import SPLITS

if TYPE_CHECKING:
    from imagenet_pipeline.records.cache import ShardCache
    from imagenet_pipeline.records.reader import Index

MANIFEST = "manifest.json"
BUILDING = ".building"
REBUILD = "give the build command of this data set again: it remakes what is damaged, to the same bytes"
PUT_AGAIN = "remove that object if it is there, then give the build command of this data set again, which puts it anew"
"""Advice about an object of other bytes: a build at an address looks at names and sizes alone."""

Count = Annotated[int, Field(ge=0)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=255)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(_Frozen):
    """One record file with its index."""

    file: FileName
    records: Count
    bytes: Count
    sha256: Sha256
    index_sha256: Sha256

    @property
    def index_file(self) -> str:
        """Name of the `.idx` beside it."""
        return self.file.removesuffix(".rec") + ".idx"

    def require_size(self, folder: Path) -> None:
        """Raise Damaged unless the record file is in `folder` with all its bytes, BadInput for a Git LFS pointer."""
        path = folder / self.file
        found = path.stat().st_size if path.is_file() else "nothing"
        if found != self.bytes:
            files.require_fetched(path)
            raise Damaged(
                "the record file is missing or cut",
                where=path,
                expected=f"{self.bytes} bytes",
                found=found,
                advice=REBUILD,
            )


class ForeignShard(Shard):
    """A record file of another program, kept as it is; a list of ours says which of its records are samples."""

    foreign: Literal[True]

    @property
    def index_file(self) -> str:
        """Name of the list of samples beside it."""
        return f"{self.file}.samples"


class Split(_Frozen):
    """The shards of a split in order; `actions` counts what was done to its images."""

    records: Count
    rejected: Count
    shards: list[Shard | ForeignShard]
    actions: dict[str, Count]


class Manifest(_Frozen):
    """`manifest.json`. `files` has the SHA-256 of every other file, `plan` that of the rows built from.

    `labels`, of record files of another program alone: class i has the label `labels[i]` in their bytes.
    `label_kind` is that of the class table; there only where it is not "class", so that a version that knows of nothing
    else refuses the data set.
    """

    format: Literal["imagenet-pipeline records 1"] = "imagenet-pipeline records 1"
    plan: Sha256
    source: dict[str, Any]
    options: dict[str, Any]
    versions: dict[str, str]
    classes: Count
    class_table: Sha256
    splits: dict[str, Split]
    files: dict[FileName, Sha256]
    labels: list[int] | None = None
    label_kind: LabelKind = "class"

    @property
    def shards(self) -> list[Shard | ForeignShard]:
        """The shards of all splits, in order."""
        return [shard for split in self.splits.values() for shard in split.shards]

    @property
    def rejected(self) -> int:
        """Images of all splits that could not be used."""
        return sum(split.rejected for split in self.splits.values())

    def write(self, folder: Path) -> None:
        """Write `manifest.json` with a digest of itself, so that no byte of it can change unnoticed."""
        left_out = {"labels"} if self.labels is None else set()
        body = self.model_dump(
            mode="json", exclude=left_out | ({"label_kind"} if self.label_kind == "class" else set())
        )
        files.write_json(folder / MANIFEST, {**body, "digest": _digest(body)})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check `manifest.json`. Raises BadInput where there is none, Damaged if it is not whole."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise no_data_set(folder, (Path(folder) / BUILDING).is_dir())
        return cls.parsed(files.read_json(path), path)

    @classmethod
    def parsed(cls, body: Any, path: object) -> Manifest:
        """Check what was read at `path`. Raises Damaged if it is not whole."""
        if not isinstance(body, dict) or body.pop("digest", None) != _digest(body):
            raise Damaged("the manifest has changed since it was written", where=path, advice=REBUILD)
        try:
            manifest = cls.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise Damaged(f"the manifest is not understood: {key}: {first['msg']}", where=path) from error
        splits = {name: manifest.splits[name] for name in SPLITS if name in manifest.splits}
        return manifest.model_copy(update={"splits": splits})


@dataclass(frozen=True)
class DataSet:
    """A finished data set. `mean` and `std` are those of R, G, B over all training pixels, 0..255.

    `samples` are those of a lone record file, whose path is then `folder` (`records/lone.py`): it is a data set to be
    read alone, and its `mean` and `std` are not known (NaN). Those of a sample are of `mean_images`. Of a data set in
    object storage `folder` is its `cache`'s.
    """

    folder: Path
    manifest: Manifest
    classes: ClassTable
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: str
    samples: Index | None = None
    cache: ShardCache | None = None
    mean_images: int | None = None

    @property
    def name(self) -> str:
        """The folder, or the address in object storage."""
        return str(self.folder if self.cache is None else self.cache.storage)

    @property
    def counts(self) -> dict[str, int]:
        """Records per split."""
        return {name: split.records for name, split in self.manifest.splits.items()}

    def count(self, split: str) -> int:
        """Count the records of a split, 0 where there is none; a lone file is whatever split is asked for."""
        return self.counts.get(split, 0) if self.samples is None else len(self.samples)


def read_data_set(folder: Path | str, cache: str = "", cache_gb: float = 0) -> DataSet:
    """Read a data set's small files and check them against the manifest (`verify` checks the records).

    `folder` may be an address in object storage, whose shards then go through the folder `cache`, of `cache_gb` at
    most. Raises BadInput where there is no finished data set, as with a lone record file; Damaged where a file is not
    as it was written.
    """
    if is_remote(folder):
        from imagenet_pipeline.records.stored import open_data_set

        return open_data_set(str(folder), cache, cache_gb)
    folder = Path(folder)
    if folder.is_file():
        raise _lone_file(folder)
    manifest = Manifest.read(folder)
    for name in ("classes.json", "mean.json"):
        path = folder / name
        if not path.is_file() or files.sha256_of(path) != manifest.files.get(name):
            raise Damaged("the file is missing or has changed since it was written", where=path, advice=REBUILD)
    statistics = files.read_json(folder / "mean.json")
    mean, std = (tuple(float(statistics[key][c]) for c in "RGB") for key in ("mean", "std"))
    return DataSet(
        folder=folder,
        manifest=manifest,
        classes=ClassTable.read(folder / "classes.json"),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        digest=files.sha256_of(folder / MANIFEST),
        mean_images=statistics.get("images"),
    )


def is_remote(folder: Path | str) -> bool:
    """Tell the address of a data set in object storage, "s3://bucket/imagenet", from a path of this machine."""
    if ":" not in str(folder):
        return False
    from imagenet_pipeline import storage  # not on the way of records that are here

    return storage.is_remote(folder)


def is_data_set(path: Path | str) -> bool:
    """Tell what may be a data set, a folder or an address, from a file."""
    return is_remote(path) or os.path.isdir(path)


def no_split(folder: object, split: str | None, there: Collection[str]) -> BadRecipe:
    """The error for a split that a data set does not have, or has no records of."""
    return BadRecipe(f"no split {split!r}", where=folder, expected=f"one of {', '.join(there)}")


def _lone_file(path: Path) -> BadInput:
    """The error for a file in place of a data set: mean, std and the classes of training are nowhere in it."""
    if path.suffix != ".rec":
        return BadInput("a file, not a data set", where=path, expected=f"a folder with {MANIFEST}, made by `build`")
    return BadInput(
        "a record file by itself says neither mean and std nor what its labels mean",
        where=path,
        advice=f"make a data set of it, which takes no room where it can be linked: imagenet-pipeline build records "
        f"--train {shlex.quote(str(path))} --out {shlex.quote(str(path.with_suffix('')) + '-data')}",
    )


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def no_data_set(place: object, is_begun: bool) -> BadInput:
    """The error for a folder or an address without a manifest, where a build may have begun."""
    if is_begun:
        return BadInput("the build here is not finished", where=place, advice="run the same build again")
    return BadInput("no data set here", where=place, expected=f"a folder with {MANIFEST}, made by `build`")
