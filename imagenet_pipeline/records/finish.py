"""The last step of a build: lists, class table, mean, rejects and, last of all, the manifest."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged
from imagenet_pipeline.records import lists
from imagenet_pipeline.records.manifest import REBUILD, Manifest, Shard, Split
from imagenet_pipeline.records.plan import Plan
from imagenet_pipeline.records.shard import ColourSums, ShardTask
from imagenet_pipeline.records.tasks import Task

MARKERS = "markers.txt"
"""The markers of all shards, kept beside a finished data set so that damage can be mended: SHA-256, then JSON."""
Marker = Mapping[str, Any]


def write_data_set(
    plan: Plan, out: Path, tasks: Sequence[ShardTask], options: Mapping[str, Any], versions: Mapping[str, str]
) -> None:
    """Write everything beside the records, from the markers of the finished shards; the manifest last."""
    by_name = {task.name: files.read_json(task.marker) for task in tasks}
    markers: dict[str, list[Marker]] = {split: [] for split in plan.splits}
    for task in tasks:
        markers[task.split].append(by_name[task.name])
    written = ["classes.json", "mean.json", "rejects.csv"]
    for split, images in plan.splits.items():
        rejected = {number for marker in markers[split] for number, _, _ in marker["rejects"]}
        kept = [number for number in range(len(images)) if number not in rejected]
        require_kept(plan, split, kept, out, tasks)
        paths = [images.paths[number] for number in kept]
        lists.write_list(out / f"{split}.lst", kept, images.labels[kept].tolist(), paths)
        written.append(f"{split}.lst")
    _keep_markers(out, by_name)
    plan.classes.write(out / "classes.json")
    files.write_json(out / "mean.json", statistics_of(markers.get("train") or [*chain(*markers.values())]))
    write_rejects(out, tasks)
    Manifest(
        plan=plan.digest,
        source={**plan.source, **plan.remarks},
        options=dict(options),
        versions=dict(versions),
        classes=len(plan.classes),
        class_table=plan.classes.digest,
        label_kind=plan.classes.label_kind,
        splits={split: _split(found) for split, found in markers.items()},
        files={name: files.sha256_of(out / name) for name in written},
    ).write(out)


def require_kept(plan: Plan, split: str, kept: Sequence[int], out: Path, tasks: Sequence[Task]) -> None:
    """Raise BadInput where no image of a split is kept, or none of a class to train on; the rejects are written."""
    labels = plan.splits[split].labels
    if not len(kept):
        raise BadInput(f"no image of {split} can be used", where=write_rejects(out, tasks))
    lost = np.setdiff1d(labels, labels[kept]) if labels.ndim == 1 and split == "train" else np.empty(0, np.int64)
    if len(lost):
        what = f"no training image of the class {plan.classes.ids[lost[0]]} can be used"
        raise BadInput(what, where=write_rejects(out, tasks), advice="mend them, or leave the class out")


def kept_markers(out: Path) -> dict[str, Marker]:
    """The markers of a finished data set's shards, by name. Raises Damaged where they are not as they were kept."""
    path = out / MARKERS
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise Damaged(f"cannot be read ({error.strerror})", where=path) from error
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise Damaged("has changed since it was written", where=path, advice=REBUILD)
    markers: dict[str, Marker] = json.loads(text)
    return markers


def _keep_markers(out: Path, markers: Mapping[str, Marker]) -> None:
    text = json.dumps(markers, sort_keys=True)
    files.write_whole(out / MARKERS, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def write_rejects(out: Path, tasks: Sequence[Task]) -> Path:
    """Write `rejects.csv` (split, path, reason) from the markers there are; returns its path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("split", "path", "reason"))
    writer.writerows(rejects(tasks))
    files.write_whole(out / "rejects.csv", text.getvalue())
    return out / "rejects.csv"


def rejects(tasks: Sequence[Task]) -> Iterator[tuple[str, str, str]]:
    """(split, path, reason) of every image rejected so far, from the markers there are."""
    # The putting of a shard has the shard's own marker.
    for marker, split in dict.fromkeys((task.marker, task.split) for task in tasks):
        if marker.exists():
            for _, path, reason in files.read_json(marker)["rejects"]:
                yield split, path, reason


def _split(markers: Sequence[Marker]) -> Split:
    actions: Counter[str] = Counter()
    for marker in markers:
        actions.update(marker["actions"])
    return Split(
        records=sum(marker["shard"]["records"] for marker in markers),
        rejected=sum(len(marker["rejects"]) for marker in markers),
        shards=[Shard.model_validate(marker["shard"]) for marker in markers],
        actions=dict(actions),
    )


def statistics_of(markers: Sequence[Marker]) -> dict[str, Any]:
    """Mean and standard deviation of R, G, B over all pixels, 0..255, from exact integer sums.

    Of a sample `images` says how many it has. Raises BadInput where none of those can be used.
    """
    colours = sum((ColourSums(**marker["colours"]) for marker in markers), ColourSums())
    sampled = sum(marker.get("sampled", 0) for marker in markers)
    pixels = colours.pixels
    if not pixels:
        raise BadInput("no image of the sample for mean and deviation can be used", advice="build without --no-mean")
    mean = {letter: total / pixels for letter, total in zip("RGB", colours.sums, strict=True)}
    deviation = {
        letter: sqrt(pixels * squares - total * total) / pixels
        for letter, total, squares in zip("RGB", colours.sums, colours.squares, strict=True)
    }
    return {"mean": mean, "std": deviation, "pixels": pixels, **({"images": sampled} if sampled else {})}
