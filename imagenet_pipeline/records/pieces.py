"""Shards cut into pieces, so that every core works on a data set of any size, and joined when all pieces are there.

A record's frame is the same wherever in its file it lies: a shard is its pieces one after the other, its index theirs
with the offsets moved. So the bytes do not depend on where it is cut. Pieces are in the building folder, each with a
marker like a shard's, and go when their shard is committed: the room for a shard is taken twice while it is joined.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from imagenet_pipeline import files
from imagenet_pipeline.records.shard import ColourSums, Contents, ShardTask, commit, is_finished
from imagenet_pipeline.records.tasks import Task, require_wanted

PIECE_IMAGES = 64
"""Photos of a piece: a quarter of a second of work, so that workers that began together end together."""
_BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class Join(Task):
    """The pieces of a shard, by their names, made that shard in `folder`."""

    folder: Path
    pieces: Sequence[str]

    @property
    def rejected(self) -> int:
        """None: they are counted with its pieces."""
        return 0

    def make(self) -> int:
        """Join the pieces, commit the shard and remove them; rejects nothing."""
        # A cluster gives a task again where the worker that had done it was lost: the pieces may be gone then.
        if not self.marker.exists():
            self._join()
        for name in self.pieces:
            for ending in (".rec", ".idx", ".json", ".progress"):
                (self.building / f"{name}{ending}").unlink(missing_ok=True)
        return 0

    def _join(self) -> None:
        record_file = self.folder / f"{self.name}.rec"
        contents = Contents(np.empty((0, 2), np.int64))
        digest = hashlib.sha256()
        with files.whole_file(record_file) as stream:
            for name in self.pieces:
                with files.open_regular(self.building / f"{name}.rec") as piece:
                    _add_piece(contents, stream.tell(), self.building / name)
                    _copy(piece, stream, digest)
            require_wanted(self)
        commit(self, record_file, contents, digest.hexdigest())


class Steps(NamedTuple):
    """A shard, the tasks that make it, in order, and those of them that are not finished."""

    shard: ShardTask
    tasks: list[Task]
    pending: list[Task]


def steps_of(shard: ShardTask) -> Steps:
    """The steps of a shard, as things stand on the disk."""
    if is_finished(shard):
        return Steps(shard, [shard], [])
    pieces = pieces_of(shard)
    if len(pieces) == 1:
        return Steps(shard, [shard], [shard])
    # From here on a marker there says that the shard was joined; those of what does not count any more go.
    shard.marker.unlink(missing_ok=True)
    pending = [piece for piece in pieces if not _is_whole(piece)]
    for piece in pending:
        piece.marker.unlink(missing_ok=True)
    names = [piece.name for piece in pieces]
    join = Join(shard.key, shard.name, shard.split, shard.building, shard.folder, names, after=frozenset(names))
    return Steps(shard, [*pieces, join], [*pending, join])


def pieces_of(shard: ShardTask) -> list[ShardTask]:
    """Cut a shard by the numbers of its photos; a small one, or one whose photos are copied undecoded, stays whole."""
    copied = shard.pass_through and shard.mean_every > 1
    count = 1 if copied else math.ceil(shard.images / PIECE_IMAGES)
    if count == 1:
        return [shard]
    return [_piece(shard, *edges) for edges in pairwise(shard.images * i // count for i in range(count + 1))]


def _piece(shard: ShardTask, start: int, end: int) -> ShardTask:
    first = shard.first_number + start
    return replace(
        shard,
        # The numbers, so that a piece that was cut elsewhere is another.
        name=f"{shard.name}.{first}-{shard.first_number + end}",
        folder=shard.building,
        first_number=first,
        paths=shard.paths[start:end],
        labels=shard.labels[start:end],
        spans=None if shard.spans is None else shard.spans[start:end],
        is_piece=True,
    )


def _is_whole(piece: ShardTask) -> bool:
    """Tell whether a piece is finished, and has its bytes still: they were never synced."""
    if not is_finished(piece):
        return False
    found = files.read_json(piece.marker)["shard"]
    paths = {
        piece.folder / f"{piece.name}.rec": found["sha256"],
        piece.folder / f"{piece.name}.idx": found["index_sha256"],
    }
    return all(files.sha256_of(path) == digest for path, digest in paths.items())


def _add_piece(contents: Contents, offset: int, piece: Path) -> None:
    """Add what the index and the marker of a piece say, whose records begin at `offset`, to the contents of a shard."""
    marker: dict[str, Any] = files.read_json(piece.with_name(f"{piece.name}.json"))
    for line in piece.with_name(f"{piece.name}.idx").read_text().splitlines():
        number, _, start = line.partition("\t")
        contents.entries.append((int(number), offset + int(start)))
    contents.rejects += marker["rejects"]
    contents.actions.update(marker["actions"])
    contents.colours += ColourSums(**marker["colours"])
    contents.sampled += marker.get("sampled", 0)
    photos = np.frombuffer(base64.b64decode(marker["photos"]), np.int64).reshape(-1, 2)
    contents.photos = np.concatenate([contents.photos, photos])


def _copy(source: BinaryIO, target: BinaryIO, digest: Any) -> None:
    while block := source.read(_BLOCK_BYTES):
        digest.update(block)
        target.write(block)
