"""Mending a finished data set: what is damaged is found by digests, made again, and put back if its bytes are the same.

The markers of the shards, kept in `markers.txt`, hold what the lists and the mean are made from, so that whole shards
need not be read for it. A data set without them is mended too; it takes longer where a list or the mean is damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged, first_few
from imagenet_pipeline.records import image
from imagenet_pipeline.records.finish import MARKERS, Marker, kept_markers, rejects
from imagenet_pipeline.records.manifest import Manifest, Shard
from imagenet_pipeline.records.shard import ShardTask, changed_sources

Progress = Callable[[int, int], None]


def find_damage(out: Path, manifest: Manifest, progress: Progress | None = None) -> set[str]:
    """Names of the files of a data set that are missing or have other bytes than the manifest says.

    Reads every byte; `progress(done, total)` is called with counts of records.
    """
    damaged = {name for name, digest in manifest.files.items() if not _same(out / name, digest)}
    if not markers_whole(out):
        damaged.add(MARKERS)
    done, total = 0, sum(shard.records for shard in manifest.shards)
    for shard in manifest.shards:
        damaged |= {name for name, digest in _digests(shard).items() if not _same(out / name, digest)}
        done += shard.records
        if progress is not None:
            progress(done, total)
    return damaged


def shards_to_remake(out: Path, manifest: Manifest, damaged: set[str], tasks: Sequence[ShardTask]) -> list[ShardTask]:
    """Pick the tasks whose records or index are damaged.

    Where lists or the mean are, the markers of the others are laid out in the building folder; what has no marker is
    made again as well.
    """
    whole = {shard.file: not damaged.intersection(_digests(shard)) for shard in manifest.shards}
    wanted = [task for task in tasks if not whole[f"{task.name}.rec"]]
    if not needs_markers(manifest, damaged):
        return wanted
    markers = _markers(out)
    shards = {shard.file: shard.model_dump() for shard in manifest.shards}
    for task in tasks:
        if task not in wanted:
            marker = markers.get(task.name)
            if marker is not None and marker["shard"] == shards[f"{task.name}.rec"]:
                files.write_json(task.marker, marker)
            else:
                wanted.append(task)
    return wanted


def restore_markers(out: Path, tasks: Sequence[ShardTask]) -> None:
    """Lay the kept markers of whole shards out in the building folder, for a data set whose manifest is lost."""
    markers = _markers(out)
    for task in tasks:
        marker = markers.get(task.name, {})
        if marker.get("key") != task.key or task.marker.exists():
            continue
        digests = _digests(Shard.model_validate(marker["shard"]))
        if all(_same(out / name, digest) for name, digest in digests.items()):
            files.write_json(task.marker, marker)


def put_back(out: Path, remade: Path, manifest: Manifest, damaged: set[str], tasks: Sequence[ShardTask]) -> None:
    """Rename what was remade over what is damaged. Raises BadInput, with nothing renamed, where bytes differ."""
    digests = dict(manifest.files)
    for shard in manifest.shards:
        digests |= _digests(shard)
    for name in sorted(damaged - {MARKERS}):
        if not _same(remade / name, digests[name]):
            raise BadInput(
                "the shard made again from the photos has other bytes than when the data set was built",
                where=out / name,
                expected="the same photos and libraries",
                found=_difference(out, manifest, tasks),
                advice="bring those back, or remove the data set and build it again",
            )
    for name in sorted(damaged):
        files.rename(remade / name, out / name)
    if (remade / MARKERS).is_file() and not (out / MARKERS).exists():
        files.rename(remade / MARKERS, out / MARKERS)


def needs_markers(manifest: Manifest, damaged: set[str]) -> bool:
    """Tell whether mending takes the markers of whole shards too: lists and mean are made from them."""
    return not damaged.isdisjoint({MARKERS, *manifest.files})


def markers_whole(out: Path) -> bool:
    """Tell whether the kept markers are as they were written; a data set of an earlier version has none."""
    try:
        kept_markers(out)
    except Damaged:
        return not (out / MARKERS).exists()
    return True


def changed_since(out: Path, tasks: Sequence[ShardTask]) -> list[str]:
    """Files of photos whose size or time is not what it was when they were stored, as far as that was kept."""
    markers = _markers(out)
    # An archive may stand behind many shards.
    return [*dict.fromkeys(path for task in tasks for path in changed_sources(task, markers.get(task.name, {})))]


def _markers(out: Path) -> dict[str, Marker]:
    try:
        return kept_markers(out)
    except Damaged:
        return {}


def _difference(out: Path, manifest: Manifest, tasks: Sequence[ShardTask]) -> str:
    changed = changed_since(out, tasks)
    if changed:
        return f"changed photos: {first_few(changed)}"
    refused = [f"{path} ({reason})" for _, path, reason in rejects(tasks)]
    if len(refused) > manifest.rejected:
        return f"photos that cannot be used now: {first_few(refused)}"
    now = image.library_versions()
    other = [f"{name} {was}, now {now.get(name)}" for name, was in manifest.versions.items() if now.get(name) != was]
    return ", ".join(other) or "photos that look unchanged by size and time"


def _digests(shard: Shard) -> dict[str, str]:
    return {shard.file: shard.sha256, shard.index_file: shard.index_sha256}


def _same(path: Path, digest: str) -> bool:
    return path.is_file() and files.sha256_of(path) == digest
