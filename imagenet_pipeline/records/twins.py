"""Photos of a data set that are there twice, or nearly: within a split, and in two splits.

What was found is kept beside the records, `duplicates.json`, for the reports of evaluations; it is of these very
records, by the digest of their manifest.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe, Damaged
from imagenet_pipeline.processes import available_processors
from imagenet_pipeline.records.image import calm
from imagenet_pipeline.records.lists import photos_of
from imagenet_pipeline.records.manifest import DataSet, ForeignShard, Shard, is_remote, read_data_set
from imagenet_pipeline.records.perceptual_hash import DISTANCE, Hashes, near_pairs, perceptual_hash, require_distance
from imagenet_pipeline.records.reader import Numbers, RecordSet, shard_index

FILE = "duplicates.json"
Progress = Callable[[int, int], None]
_FEW = 2000
"""Fewer pictures are hashed sooner than worker processes are started."""


@dataclass(frozen=True)
class Twin:
    """A record that has a near duplicate: its position in its split, its number, the photo's path and its class.

    Of label vectors, and of records whose photos nobody named, class and photo are empty.
    """

    split: str
    record: int
    number: int
    photo: str
    class_id: str


@dataclass(frozen=True)
class Pair:
    """Two records of nearly the same picture, and the bits in which their hashes differ."""

    first: Twin
    second: Twin
    distance: int
    same_labels: bool


@dataclass(frozen=True)
class Duplicates:
    """Near duplicates of a data set, at most `distance` bits of 64 apart.

    `within` and `between` count pairs, in a split or "train-test"; `in_train` counts, for each other split, its
    records whose picture is in train too.
    """

    path: str
    records: str
    distance: int
    pictures: int
    unreadable: int
    within: dict[str, int]
    between: dict[str, int]
    in_train: dict[str, int]
    different_labels: int
    pairs: list[Pair]


@dataclass(frozen=True)
class _Hashed:
    """Hashes of the pictures of all splits in their order; `readable` is False where there is none."""

    hashes: Hashes
    readable: npt.NDArray[np.bool_]
    numbers: Numbers
    labels: npt.NDArray[np.int64]


def find_duplicates(
    folder: Path, distance: int | None = None, progress: Progress | None = None, workers: int | None = None
) -> Duplicates:
    """Find the near duplicates of a data set on this machine, and keep what was found beside its records.

    Raises as `require_searchable`; BadInput where half a million pairs are alike; Damaged for a record that is.
    """
    data = require_searchable(folder, distance)
    distance = DISTANCE if distance is None else distance
    hashed = _hashed(data, progress, workers)
    places = np.flatnonzero(hashed.readable)
    first, second, bits = near_pairs(hashed.hashes[places], distance)
    found = _duplicates(data, hashed, np.stack([places[first], places[second]]), bits.tolist(), distance)
    files.write_json(data.folder / FILE, asdict(found))
    return found


def require_searchable(folder: Path, distance: int | None = None) -> DataSet:
    """A data set on this machine, to look for near duplicates in. Raises BadInput where there is none.

    Raises BadRecipe without ImageHash, for a distance that is none, and for records in object storage.
    """
    require_distance(DISTANCE if distance is None else distance)
    if is_remote(folder):
        what, advice = "near duplicates are looked for in records on this machine alone", "copy the data set here"
        raise BadRecipe(what, where=folder, advice=advice)
    return read_data_set(folder)


def _hashed(data: DataSet, progress: Progress | None, workers: int | None) -> _Hashed:
    shards, total = data.manifest.shards, sum(data.counts.values())
    for shard in shards:
        shard.require_size(data.folder)
    parts, done = [], 0
    of_classes = data.classes.label_kind == "class"
    from imagenet_pipeline.records.verify import over_shards  # which reports, that import this file, have no use for

    work = partial(_hash_shard, data.folder, of_classes)
    workers = min(workers or (available_processors() if total > _FEW else 1), len(shards))
    for part in over_shards(work, shards, workers, data.folder) if workers > 1 else map(work, shards):
        parts.append(part)
        done += len(part.hashes)
        if progress:
            progress(done, total)
    columns = ("hashes", "readable", "numbers", "labels")
    return _Hashed(*(np.concatenate([getattr(part, column) for part in parts]) for column in columns))


def _hash_shard(folder: Path, of_classes: bool, shard: Shard | ForeignShard) -> _Hashed:
    calm()
    own, path = not isinstance(shard, ForeignShard), folder / shard.file
    with RecordSet(str(path), [path], own, own, [shard_index(folder, shard)]) as records:
        read = (records.read(position) for position in range(len(records)))
        rows = [(perceptual_hash(record.image), record.number, _label(record.labels, of_classes)) for record in read]
    hashes, numbers, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return _Hashed(
        np.array([found or 0 for found in hashes], np.uint64),
        np.array([found is not None for found in hashes], bool),
        np.array(numbers, np.int64),
        np.array(labels, np.int64),
    )


def _label(labels: tuple[float, ...], is_class: bool) -> int:
    """A class, or of other labels a number that stands for them."""
    return int(labels[0]) if is_class else zlib.crc32(np.array(labels, np.float32).tobytes())


def _duplicates(
    data: DataSet, hashed: _Hashed, pairs: npt.NDArray[np.int64], bits: list[int], distance: int
) -> Duplicates:
    """Name the pairs [2, n] of places among all splits' records."""
    splits = [split for split, count in data.counts.items() if count]
    edges = np.cumsum([0, *(data.counts[split] for split in splits)])
    split_of = np.searchsorted(edges[1:], pairs, side="right")
    twins = dict(_twins(data, hashed, np.unique(pairs), splits, edges))
    same = (hashed.labels[pairs[0]] == hashed.labels[pairs[1]]).tolist()
    counts = Counter(zip(*split_of.tolist(), strict=True))
    train = splits.index("train") if "train" in splits else -1
    return Duplicates(
        path=data.name,
        records=data.digest,
        distance=distance,
        pictures=int(hashed.readable.sum()),
        unreadable=int((~hashed.readable).sum()),
        within={split: counts[number, number] for number, split in enumerate(splits)},
        between={f"{splits[a]}-{splits[b]}": counts[a, b] for a, b in combinations(range(len(splits)), 2)},
        in_train={
            split: len(np.unique(pairs[1][(split_of[0] == train) & (split_of[1] == number)]))
            for number, split in enumerate(splits)
            if train >= 0 and number != train
        },
        different_labels=same.count(False),
        pairs=[
            Pair(twins[a], twins[b], apart, alike)
            for a, b, apart, alike in zip(*pairs.tolist(), bits, same, strict=True)
        ],
    )


def _twins(
    data: DataSet, hashed: _Hashed, places: Numbers, splits: list[str], edges: Numbers
) -> Iterator[tuple[int, Twin]]:
    """Yield each place among all records with the record that it is."""
    named = data.classes.label_kind == "class"
    for number, split in enumerate(splits):
        own = places[(places >= edges[number]) & (places < edges[number + 1])].tolist()
        wanted = set(hashed.numbers[own].tolist())
        photos = {index: photo for index, photo, _ in photos_of(data, split) if index in wanted} if own else {}
        for place in own:
            record_number = int(hashed.numbers[place])
            class_id = data.classes.ids[int(hashed.labels[place])] if named else ""
            record = place - int(edges[number])
            yield place, Twin(split, record, record_number, photos.get(record_number, ""), class_id)


def kept_duplicates(data: DataSet) -> dict[str, Any] | None:
    """The near duplicates kept beside a data set, as JSON; None where nobody looked for them, or in other records.

    Raises Damaged where they are not as they were written.
    """
    path = data.folder / FILE
    if data.samples is not None or data.cache is not None or not path.is_file():
        return None
    kept = files.read_json(path)
    if not isinstance(kept, dict) or "records" not in kept:
        raise Damaged("not the near duplicates of a data set", where=path, advice=_AGAIN)
    return kept if kept["records"] == data.digest else None


def records_in_train(data: DataSet, split: str) -> tuple[int, Numbers] | None:
    """The distance that was looked in, and the positions of a split's records whose picture is in train, too.

    None where nobody looked. Raises as `kept_duplicates`.
    """
    kept = kept_duplicates(data)
    if kept is None or split == "train":
        return None
    try:
        found = {
            int(pair["second"]["record"])
            for pair in kept["pairs"]
            if (pair["first"]["split"], pair["second"]["split"]) == ("train", split)
        }
        positions = np.array(sorted(found), np.int64)
        if len(positions) and not 0 <= positions[0] <= positions[-1] < data.count(split):
            raise ValueError(f"record {positions[-1]} of {data.count(split)}")
        return int(kept["distance"]), positions
    except (TypeError, KeyError, ValueError) as error:
        raise Damaged(f"cannot be read ({error})", where=data.folder / FILE, advice=_AGAIN) from error


_AGAIN = "look again: imagenet-pipeline verify DIR --duplicates"
