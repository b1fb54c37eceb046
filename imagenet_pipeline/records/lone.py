"""A record file by itself as a data set to be read: to evaluate on, for features and for pictures.

It does not say what its labels mean, and its mean and std are not known: a class is called by its label. Whatever split
is asked for, it is the file.
"""

from __future__ import annotations

import logging
import shlex
from functools import lru_cache
from math import nan
from pathlib import Path

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, printable
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.classes import NUMBERED, ClassTable
from imagenet_pipeline.records.foreign import RecordFile, scan, state_of
from imagenet_pipeline.records.manifest import DataSet, Manifest, Split, is_remote, read_data_set
from imagenet_pipeline.records.reader import Index

LONE_SPLIT = "test"
"""The split that a lone file is where none is asked for."""

log = logging.getLogger("imagenet_pipeline")


def read_records(path: Path | str, cache: str = "", cache_gb: float = 0) -> DataSet:
    """Read a data set, as `read_data_set` does, or a record file of any program, to be read and not to train on.

    Raises as `read_data_set`, and BadInput for a file that is no whole record file of images with a class each.
    """
    if not is_remote(path) and Path(path).is_file():
        return _read_file(Path(path), state_of(Path(path)))
    return read_data_set(path, cache, cache_gb)


@lru_cache(maxsize=2)
def _read_file(path: Path, _: tuple[int, int]) -> DataSet:
    with Bar(f"headers of {path.name}", "bytes") as bar:
        found = scan(path, progress=bar.show)
    _require_whole(found)
    if found.without_image:
        log.info("%s", printable(f"{path}: records without an image: {found.without_image:,}, left out"))
    labels, classes = np.unique(found.labels, return_inverse=True)
    names = tuple(map(str, labels.tolist()))
    table, digest = ClassTable(NUMBERED, names, names), files.sha256_of(path)
    split = Split(records=len(found), rejected=0, shards=[], actions={})
    manifest = Manifest(
        plan=digest,
        source={"file": path.name},
        options={},
        versions={},
        classes=len(table),
        class_table=table.digest,
        splits={LONE_SPLIT: split},
        files={},
        labels=labels.tolist(),
    )
    samples = Index(found.positions, found.starts, found.ends, classes.astype(np.int64))
    return DataSet(path, manifest, table, (nan, nan, nan), (nan, nan, nan), digest, samples)


def _require_whole(found: RecordFile) -> None:
    if found.damage:
        first = found.damage[0]
        raise BadInput(
            f"{first.reason} ({len(found.damage):,} such places)",
            where=f"{found.path}, record {first.position}, offset {first.offset}",
            advice=f"a data set of the others: imagenet-pipeline build records --test {shlex.quote(str(found.path))} "
            f"--max-rejects {len(found.damage)} --out DIR",
        )
