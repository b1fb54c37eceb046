"""A data set in object storage: its small files are fetched and checked at once, its shards come through a cache.

The cache's folder holds, beside the shards (`records/cache.py`),

    cache.json                   whose cache it is: the address and the digest of its manifest
    manifest.json, ...           the small files, as in the data set
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged, OutOfRoom
from imagenet_pipeline.records.cache import LOCKS, ShardCache
from imagenet_pipeline.records.manifest import (
    BUILDING,
    MANIFEST,
    PUT_AGAIN,
    REBUILD,
    DataSet,
    Manifest,
    no_data_set,
    read_data_set,
)
from imagenet_pipeline.storage import DOWNLOADS, Storage, cache_folder

MARKER = "cache.json"
LARGEST_BYTES = 2**31
"""Limit of a small file, which is held in memory."""
FETCHED_TOGETHER = 8


def open_data_set(address: str, folder: str = "", limit_gb: float = 0) -> DataSet:
    """Fetch the small files of a data set into its cache, `folder` or one in the user's cache folder.

    Raises as `Storage`, BadInput where there is no data set or `folder` is something else than its cache, and Damaged
    where the objects are not those of the manifest.
    """
    storage = Storage(address)
    content = _read_manifest(storage)
    manifest = Manifest.parsed(_json(content), f"{storage}/{MANIFEST}")
    _require_sizes(storage, manifest)
    digest = hashlib.sha256(content).hexdigest()
    place = Path(folder).absolute() if folder else cache_folder() / "records" / digest[:32]
    cache = ShardCache(storage, place, manifest.shards, round(limit_gb * 1e9) or None)
    with ExitStack() as resources:
        with _naming_key():
            _require_own(place, digest)
            resources.enter_context(cache.lock("small files"))
            _require_own(place, digest)
            files.write_json(place / MARKER, {"address": str(storage), "manifest_sha256": digest})
        wanted = {**manifest.files, **{shard.index_file: shard.index_sha256 for shard in manifest.shards}}
        with ThreadPoolExecutor(FETCHED_TOGETHER, "fetching") as pool:
            list(pool.map(lambda entry: _fetch_small(storage, place / entry[0], entry[1]), wanted.items()))
        if not _holds(place / MANIFEST, digest):
            files.write_whole(place / MANIFEST, content)
    return replace(read_data_set(place), cache=cache)


@contextlib.contextmanager
def _naming_key() -> Iterator[None]:
    """Name the recipe's key in the error of a cache that cannot be written."""
    try:
        yield
    except (BadInput, OutOfRoom) as error:
        raise error.replaced(advice=error.advice or "loader.cache=FOLDER moves the cache of records") from error


def _read_manifest(storage: Storage) -> bytes:
    if not storage.exists(MANIFEST):
        if str(storage).endswith(".rec"):
            raise BadInput(
                "a lone record file is read from this machine alone",
                where=storage,
                expected="the address of a data set",
                advice="copy it here, or build a data set of it: build records",
            )
        raise no_data_set(storage, storage.scheme not in ("http", "https") and bool(storage.list(BUILDING)))
    return storage.read(MANIFEST, LARGEST_BYTES)


def _json(content: bytes) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(content)
    return None


def _require_sizes(storage: Storage, manifest: Manifest) -> None:
    """Raise Damaged where a shard is missing or of another size, as far as the store lists what it has."""
    if storage.scheme in ("http", "https"):
        return
    try:
        sizes = storage.list()
    except BadInput:  # a store may let us read what it does not let us list
        return
    for shard in manifest.shards:
        if sizes.get(shard.file) != shard.bytes:
            raise Damaged(
                "the record file is missing or of another size than the manifest says",
                where=f"{storage}/{shard.file}",
                expected=f"{shard.bytes:,} bytes",
                found=f"{sizes[shard.file]:,}" if shard.file in sizes else "nothing",
                advice=REBUILD,
            )


def _require_own(folder: Path, digest: str) -> None:
    """Raise BadInput unless `folder` is empty, not there yet, or the cache of the data set with this manifest."""
    if (folder / MARKER).is_file():
        marker = files.read_json(folder / MARKER)
        if marker.get("manifest_sha256") != digest:
            advice = "choose another loader.cache, or remove this one"
            raise BadInput("the cache of another data set", where=folder, found=marker.get("address"), advice=advice)
        return
    with files.explaining(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A start that was cut short leaves locks and parts; a disk of its own has lost+found.
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {LOCKS, "lost+found"}
    if names and not (folder / MARKER).is_file():  # another process may have made it just now
        expected = f"an empty folder, or one with {MARKER}"
        advice = "choose another loader.cache"
        raise BadInput("not a cache of records", where=folder, expected=expected, advice=advice)


def _fetch_small(storage: Storage, path: Path, digest: str) -> None:
    if _holds(path, digest):
        return
    for _ in range(DOWNLOADS):
        content = storage.read(path.name, LARGEST_BYTES)
        if hashlib.sha256(content).hexdigest() == digest:
            files.write_whole(path, content)
            return
    raise Damaged("other bytes than the manifest says", where=f"{storage}/{path.name}", advice=PUT_AGAIN)


def _holds(path: Path, digest: str) -> bool:
    return path.is_file() and files.sha256_of(path) == digest
