"""A data set made straight into object storage: each shard is put when it is finished, the manifest last of all.

It is made in a working folder of this machine, which holds no more than the shards in work, and goes when all is put.
There is no data set at the address before its manifest is; until then an object says which build is under way.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, first_few
from imagenet_pipeline.processes import available_processors
from imagenet_pipeline.records import finish, image
from imagenet_pipeline.records.adopt import adopt, stored_options
from imagenet_pipeline.records.build import (
    BuildOptions,
    BuildSummary,
    build,
    claim_key,
    claimed,
    digest_of,
    make_shards,
    manifest_there,
    shard_key,
    shard_tasks,
    summarise,
    unpack,
)
from imagenet_pipeline.records.foreign import RecordsPlan
from imagenet_pipeline.records.manifest import BUILDING, MANIFEST, Manifest, Shard
from imagenet_pipeline.records.pieces import Steps, steps_of
from imagenet_pipeline.records.plan import Plan, require_apart
from imagenet_pipeline.records.shard import ShardTask, is_finished
from imagenet_pipeline.records.tasks import Progress, Task
from imagenet_pipeline.storage import Storage, cache_folder, is_remote

BUILDING_OBJECT = f"{BUILDING}/build.json"
"""The object that says, until there is a manifest, which build is under way at an address."""
PUT = ".put"
"""Folder in a working folder: of each file that was put, and is there whole, its SHA-256."""
MANIFEST_LIMIT_BYTES = 2**28

log = logging.getLogger("imagenet_pipeline")


@dataclass(frozen=True)
class PutTask(Task):
    """The putting of a finished shard, which takes it from this machine."""

    folder: Path
    shard: str
    storage: Storage

    @property
    def marker(self) -> Path:
        """The marker of the shard."""
        return self.building / f"{self.shard}.json"

    @property
    def rejected(self) -> int:
        """None: they are counted when the shard is made."""
        return 0

    def make(self) -> int:
        """Put the shard with its index, and remove it from this machine; rejects nothing."""
        shard = _shard(self)
        for name, digest in ((shard.index_file, shard.index_sha256), (shard.file, shard.sha256)):
            _put(self.storage, self.folder, name, digest)
            (self.folder / name).unlink()
        return 0


def store(
    plan: Plan,
    out: str | os.PathLike[str],
    options: BuildOptions,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> BuildSummary:
    """Make the data set of `plan` in the folder, or at the address, `out`. Raises as `build` and `build_remote`."""
    if is_remote(out):
        return build_remote(plan, Storage(out), options, progress, executor)
    if isinstance(plan, RecordsPlan):
        return adopt(plan, Path(out), options, progress, executor)
    return build(plan, Path(out), options, progress, executor)


def working_folder(out: str | os.PathLike[str]) -> Path:
    """The folder of this machine in which a data set is made: `out`, or for an address one in the cache folder.

    Raises BadInput and BadRecipe where the store of an address does not answer or lets nobody in.
    """
    if not is_remote(out):
        return Path(out)
    storage = Storage(out)
    if storage.scheme in ("http", "https"):
        raise BadRecipe("a web server is read from, not written to", where=storage, expected="s3://, gs:// or a folder")
    if not storage.exists(MANIFEST):
        _require_no_data_set_above(storage)
    name = str(storage).rpartition("/")[2]
    return cache_folder() / "builds" / f"{name}-{hashlib.sha256(storage.url.encode()).hexdigest()[:12]}"


def build_remote(
    plan: Plan,
    storage: Storage,
    options: BuildOptions,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> BuildSummary:
    """Make the data set of `plan` at an address, or finish a build that was begun there; as `build.build` otherwise.

    Where it is there already nothing is done; where objects of it are missing or cut it is made again. Raises BadInput
    where another data set is there, or another build under way.
    """
    work = working_folder(storage.url)
    stored = stored_options(options) if isinstance(plan, RecordsPlan) else options.stored
    summary = _summary_there(plan, storage, stored, work)
    if summary is None:
        with files.explaining(work):
            work.mkdir(parents=True, exist_ok=True)
            _claim(plan, storage, stored, work)
            if isinstance(plan, RecordsPlan):
                adopt(plan, work, options, progress, executor)
            else:
                _make(plan, storage, work, options, progress, executor)
            summary = summarise(work, already_built=False)
            _put_rest(storage, work)
    shutil.rmtree(work, ignore_errors=True)
    return replace(summary, folder=str(storage))


def _summary_there(plan: Plan, storage: Storage, stored: Mapping[str, Any], work: Path) -> BuildSummary | None:
    """The summary of the data set at an address; None where there is none, or not all of it.

    Raises BadInput where it is another, and removes the working folder, which is then of no use.
    """
    if not storage.exists(MANIFEST):
        return None
    content = storage.read(MANIFEST, MANIFEST_LIMIT_BYTES)
    with tempfile.TemporaryDirectory(prefix="imagenet_pipeline_") as folder:
        files.write_whole(Path(folder) / MANIFEST, content)
        try:
            manifest = manifest_there(plan, Path(folder), stored)
        except BadInput as error:
            what = error.what.replace("the folder holds", "the address holds")
            shutil.rmtree(work, ignore_errors=True)  # of a build that is done, or of this call
            raise BadInput(what, where=storage, advice="choose another address, or remove what is there") from error
        lacking = [] if manifest is None else _lacking(storage, manifest)
        if manifest is not None and not lacking:
            return summarise(Path(folder), already_built=True)
    if lacking:
        log.warning("%s: missing or cut: %s; the data set is made again", storage, first_few(lacking))
    storage.remove(MANIFEST)
    return None


def _require_no_data_set_above(storage: Storage) -> None:
    """Raise BadInput where the address lies in a data set, as far as its user may look there."""
    found: list[Storage] = []
    with contextlib.suppress(BadInput, BadRecipe):  # BadRecipe: above a bucket is nothing
        above = Storage(storage.url.rpartition("/")[0])
        found = [above] if above.exists(MANIFEST) else []
    if found:
        raise BadInput("lies in a data set", where=storage, advice=f"choose another address than below {found[0]}")


def _claim(plan: Plan, storage: Storage, stored: Mapping[str, Any], work: Path) -> None:
    """Say at the address which build is under way, and that it has this working folder. Raises BadInput for another."""
    decisive = {name: value for name, value in stored.items() if name != "keep_damaged"}
    key = files.json_bytes(digest_of([plan.digest, decisive, image.library_versions()]))
    note, is_begun = work / PUT / "build.json", storage.exists(BUILDING_OBJECT)
    if is_begun and storage.read(BUILDING_OBJECT, 2**12) != key:
        if not note.exists():  # what is here is of this call alone, as the photos that a builder unpacked
            shutil.rmtree(work, ignore_errors=True)
        raise BadInput(
            "an unfinished build of another plan, other options or library versions is there",
            where=storage,
            advice=f"run that build again to finish it, or remove {BUILDING_OBJECT} there",
        )
    files.write_whole(note, key)
    if not is_begun:
        storage.upload(note, BUILDING_OBJECT)


def _make(
    plan: Plan,
    storage: Storage,
    work: Path,
    options: BuildOptions,
    progress: Progress | None,
    executor: Executor | None,
) -> None:
    """Make and put every shard that is not there yet; what else a data set has is written into the working folder."""
    require_apart(plan, work)
    versions = image.library_versions()
    key = shard_key(plan, options, versions)
    with claimed(work, claim_key(plan, options, versions)) as building:
        shards = shard_tasks(plan, work, building, options, key)
        sizes = storage.list()
        steps = [_steps(shard, storage, sizes) for shard in shards]
        unpack(plan, building, steps)
        make_shards(work, options, steps, progress, executor, options.workers or available_processors())
        finish.write_data_set(plan, work, shards, options.stored, versions)


def _steps(shard: ShardTask, storage: Storage, sizes: Mapping[str, int]) -> Steps:
    """The tasks that make and put a shard, unless it is there, whole, from the photos as they are.

    `sizes` are those of the objects that are there.
    """
    note = shard.folder / PUT / f"{shard.name}.rec"
    if is_finished(shard, sizes.get) and note.is_file() and note.read_text() == _shard(shard).sha256:
        return Steps(shard, [shard], [])
    _, tasks, pending = steps_of(shard)
    common = (shard.key, f"{shard.name}.put", shard.split, shard.building, shard.folder, shard.name, storage)
    put = PutTask(*common, after=frozenset([shard.name]))
    return Steps(shard, [*tasks, put], [*pending, put])


def _shard(task: Task) -> Shard:
    return Shard.model_validate(files.read_json(task.marker)["shard"])


def _put(storage: Storage, work: Path, name: str, sha256: str) -> None:
    """Put a file of the working folder, unless these very bytes were put before and are there."""
    note = work / PUT / name
    if not (note.is_file() and note.read_text() == sha256 and storage.size(name) == (work / name).stat().st_size):
        storage.upload(work / name, name)
        files.write_whole(note, sha256)


def _put_rest(storage: Storage, work: Path) -> None:
    """Put what is not there yet of a finished data set, and when all is, the manifest."""
    manifest = Manifest.read(work)
    digests = dict(manifest.files)
    for shard in manifest.shards:
        digests |= {shard.file: shard.sha256, shard.index_file: shard.index_sha256}
    if (work / finish.MARKERS).is_file():
        digests[finish.MARKERS] = files.sha256_of(work / finish.MARKERS)
    for name, digest in digests.items():
        if (work / name).exists():  # the shards of a plan are put already
            _put(storage, work, name, digest)
    if lacking := _lacking(storage, manifest):
        advice = "run the same build again"
        raise Damaged(f"objects are missing or cut: {first_few(lacking)}", where=storage, advice=advice)
    storage.upload(work / MANIFEST, MANIFEST)
    storage.remove(BUILDING_OBJECT)


def _lacking(storage: Storage, manifest: Manifest) -> list[str]:
    """Names of the objects of a data set that are not there, or of record files with another size."""
    sizes = storage.list()
    cut = [shard.file for shard in manifest.shards if sizes.get(shard.file) != shard.bytes]
    beside = [*manifest.files, *(shard.index_file for shard in manifest.shards)]
    return cut + [name for name in beside if name not in sizes]
