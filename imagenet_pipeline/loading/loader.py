"""The data loader: threads read, check and decode records and transform them into preallocated batches, ahead of use.

Decoding and resampling release Python's lock, so threads are enough and nothing is copied between processes.
What a batch holds follows from positions alone: neither threads nor batches ahead can change a byte. A record that
cannot be used is an error that says where it lies.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from imagenet_pipeline.config import Augmentation, Size, pair
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, OutOfRoom, PipelineError
from imagenet_pipeline.loading.augment import TrainingImages, evaluation_transform, in_epoch, require_fit
from imagenet_pipeline.loading.order import WHOLE, Share, balanced_order, epoch_order, repeated_order, window_order
from imagenet_pipeline.loading.transforms import Pixels
from imagenet_pipeline.processes import available_processors, this_process
from imagenet_pipeline.records.classes import LabelKind
from imagenet_pipeline.records.image import LazyImage, refuse_damaged
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.recordio import ImageRecord

# Images a thread takes at a time, at least and at most: many enough to hide the handing over. Both are even, so that
# both images of a pair to be mixed are in the same thread's hands.
_PIECE, _LARGE_PIECE = 8, 32

DEFAULT_AUGMENTATION = Augmentation()
"""Random-resized crop and flip."""
Empty = Callable[[tuple[int, ...], DTypeLike], NDArray[Any]]
"""Makes an array of a shape and type, not filled; `engines.Engine.host_array`, or NumPy's."""


@dataclass(frozen=True)
class Batch:
    """Images and labels for a step; the arrays are used again once the next batch is asked for."""

    images: Pixels
    """[n, height, width, channels], C-contiguous; [n * crops, ...] in evaluation, a record's crops together."""
    labels: NDArray[np.int64]
    """[n], the first label of each record; 0 where its labels are a vector."""
    records: NDArray[np.int64]
    """[n], the number each record carries."""
    first_position: int
    """Number of records of the epoch, or of the file, before this batch."""
    wait_seconds: float
    """Seconds that the consumer waited for it."""
    targets: NDArray[np.float32] | None = None
    """[n, classes], the share of each class where images are mixed, or the label vectors; None where `labels` say it
    all."""

    @property
    def training_targets(self) -> NDArray[np.int64] | NDArray[np.float32]:
        """Targets of a step: classes [n], or [n, classes] the label vectors, or of mixed images shares of classes."""
        return self.labels if self.targets is None else self.targets


class _Images(Protocol):
    """Turns stored images into rows of a batch."""

    def write(self, image: LazyImage, row: int) -> None:
        """Write an image to a row; what it needs of it is decoded here. Raises BadInput."""

    def finish(self) -> None:
        """Called once all rows are written."""


_Prepare = Callable[[range, "_Slot"], _Images]
"""Makes the above for consecutive positions of a batch and their part of its slot."""


class Loader:
    """Batches of images of `size`, RGB or with 1 of `channels` grey, out of `records`.

    batch_size: images a batch, over all ranks together.
    threads: decoding threads, 0 to decode in the calling thread; "auto" is a thread for each processor, shared among
        the processes of a launcher.
    prefetch: batches prepared ahead; with the batch in use they bound the memory.
    classes: labels must be below this; None takes any whole number from 0.
    share: this process's part of each batch; the ranks' shares together are the batch.
    empty: makes the arrays of the batches. window_shards: record files that are shuffled together, 0 for all.
    balanced: the class of every record, where each is to come as often in training; None takes every record once.
    repeats: times that a batch has each record in training. label_kind: of another than "class" a record has a vector
        of `classes` labels, which are the batch's targets.
    OpenCV's own threads are switched off for the whole process, since the loader has its own.
    """

    def __init__(
        self,
        records: Records,
        size: Size,
        batch_size: int,
        threads: int | Literal["auto"] = "auto",
        prefetch: int = 4,
        classes: int | None = None,
        share: Share = WHOLE,
        empty: Empty = np.empty,
        window_shards: int = 0,
        balanced: NDArray[Any] | None = None,
        label_kind: LabelKind = "class",
        channels: int = 3,
        repeats: int = 1,
    ) -> None:
        self.records = records
        self.size = size
        self.batch_size = batch_size
        # Processes that a launcher put on this machine share its processors.
        own = max(1, available_processors() // this_process().local_ranks)
        self.threads = own if threads == "auto" else threads
        self.prefetch = prefetch
        self.classes = classes
        self.share = share
        self.empty = empty
        self.window_shards = window_shards
        self.channels = channels
        self.balanced = balanced
        self.repeats = repeats
        self.label_kind = label_kind
        if min(*pair(size), batch_size) < 1 or min(self.threads, prefetch) < 0:
            what, found = "the loader's settings are out of range", f"{size}, {batch_size}, {self.threads}, {prefetch}"
            raise BadRecipe(what, expected="size and batch_size from 1, threads and prefetch from 0", found=found)
        cv2.setNumThreads(0)

    def steps(self) -> int:
        """Count the batches of an epoch of training. Raises BadInput when there is none."""
        count = len(self.records)
        if count < self.batch_size:
            raise BadInput(
                "the records do not fill a batch", where=self.records.name, expected=f"at least {self.batch_size}",
                found=count, advice="take a smaller batch_size",
            )  # fmt: skip
        return count // self.batch_size

    def training(
        self, seed: int, epoch: int, augmentation: Augmentation = DEFAULT_AUGMENTATION, start_step: int = 0
    ) -> Batches:
        """Start an epoch in random order, full batches only; `start_step` leaves out that many from its start.

        Raises BadInput when there are fewer records than a batch holds, BadRecipe for a step the epoch lacks, a
        batch that the ranks cannot share evenly, and mixing where the number of classes is not known.
        """
        augmentation = in_epoch(augmentation, epoch)
        require_fit(augmentation, self.batch_size, self.share.ranks, self.classes)
        steps = self.steps()
        if not 0 <= start_step <= steps:
            raise BadRecipe("the epoch has no such step", expected=f"0 to {steps}", found=start_step)
        cuts = self._cuts(start_step * self.batch_size, steps * self.batch_size)
        order = repeated_order(partial(self._order, seed), self.repeats, self.batch_size, epoch)

        def prepare(positions: range, slot: _Slot) -> _Images:
            labels = None if self.label_kind != "class" else slot.labels
            return TrainingImages(augmentation, seed, epoch, positions, slot.images, labels, slot.targets)

        return Batches(self, cuts, order, prepare, mixed=augmentation.mixes)

    def evaluation(
        self, crop_fraction: float = 0.875, crops: Literal[1, 2, 10] = 1, chosen: NDArray[np.int64] | None = None
    ) -> Batches:
        """Start a pass over every record, or those at the `chosen` positions, once over all ranks, in that order.

        The last batch may be shorter. A share may be shorter by an image than another rank's; where it is empty,
        there is no batch. Raises BadRecipe for a crop_fraction outside 0..1 or another number of crops.
        """
        if not 0 < crop_fraction <= 1 or crops not in (1, 2, 10):
            expected, found = "a crop_fraction above 0 and up to 1, and 1, 2 or 10 crops", f"{crop_fraction}, {crops}"
            raise BadRecipe("the evaluation's settings are out of range", expected=expected, found=found)
        order = epoch_order(len(self.records), 0, 0, shuffle=False) if chosen is None else chosen

        def prepare(_: range, slot: _Slot) -> _Images:
            return _EvaluationImages(slot.images.reshape(-1, crops, *slot.images.shape[1:]), crop_fraction)

        return Batches(self, self._cuts(0, len(order)), order, prepare, crops)

    def _order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        if self.balanced is not None:
            return balanced_order(self.balanced, seed, epoch)
        sizes = self.records.sizes if isinstance(self.records, RecordSet) else [len(self.records)]
        return window_order(sizes, self.window_shards, seed, epoch)

    def _cuts(self, start: int, stop: int) -> list[range]:
        whole = (range(first, min(first + self.batch_size, stop)) for first in range(start, stop, self.batch_size))
        return [share for share in map(self.share.of, whole) if share]


class Batches:
    """The batches of a pass, in order; a context manager, at whose end no thread is left.

    An error met by a thread is raised where its batch would have come, and ends the pass. Without `with`,
    threads end after the last batch, after an error, or at `close`.
    """

    def __init__(
        self,
        loader: Loader,
        cuts: list[range],
        order: NDArray[np.int64],
        prepare: _Prepare,
        crops: int = 1,
        mixed: bool = False,
    ) -> None:
        self._loader = loader
        self._records = loader.records
        self._order = order
        self._prepare = prepare
        self._crops = crops
        self._target_classes = self._loader.classes if mixed or self._loader.label_kind != "class" else None
        self._left = len(cuts)
        self._produced = self._produce(cuts)

    def __len__(self) -> int:
        """Number of batches still to come."""
        return self._left

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._produced)
        self._left -= 1
        return batch

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the pass and its threads; may be called again."""
        self._produced.close()

    def _produce(self, cuts: list[range]) -> Generator[Batch, None, None]:
        upcoming = iter(cuts)
        ahead = min(self._loader.prefetch if self._loader.threads else 0, len(cuts) - 1)
        pool = ThreadPoolExecutor(self._loader.threads, "loading") if self._loader.threads else _ThisThread()
        with ExitStack() as ending:
            ending.callback(pool.shutdown, wait=True, cancel_futures=True)
            if isinstance(self._records, RecordSet):  # its end, before the pool's, ends every waiting for a file
                positions = [self._order[cut.start : cut.stop] for cut in cuts] or [self._order[:0]]
                self._records = ending.enter_context(self._records.ahead(np.concatenate(positions)))
            resumed = time.perf_counter()
            slots = self._slots(ahead + 1, max(map(len, cuts), default=0))
            started = deque(self._start(pool, slot, cut) for slot, cut in zip(slots, upcoming, strict=False))
            while started:
                slot, cut, pieces = started.popleft()
                wait(pieces, return_when=FIRST_EXCEPTION)  # not for each: waking up takes the lock from a thread
                for piece in pieces:
                    piece.result()
                yield slot.batch(cut, time.perf_counter() - resumed)
                resumed = time.perf_counter()
                started.extend(self._start(pool, slot, cut) for cut in islice(upcoming, 1))

    def _start(self, pool: Executor, slot: _Slot, cut: range) -> tuple[_Slot, range, list[Future[None]]]:
        piece = _piece(len(cut), self._loader.threads)
        parts = [range(start, min(start + piece, len(cut))) for start in range(0, len(cut), piece)]
        pieces = [pool.submit(self._fill, slot.part(part), cut[part.start : part.stop]) for part in parts]
        return slot, cut, pieces

    def _fill(self, slot: _Slot, positions: range) -> None:
        images = self._prepare(positions, slot)
        labels, numbers = [], []
        for row, record in enumerate(self._order[positions.start : positions.stop].tolist()):
            image, label, number = read_sample(self._records, record, self._loader.classes, self._loader.label_kind)
            labels.append(label)
            numbers.append(number)
            try:
                images.write(image, row)
            except BadInput as error:  # an image under a checksum: the others are decoded when they are read
                raise _located(Damaged(error.what), self._records, record) from error
        slot.records[:] = numbers
        if self._loader.label_kind == "class" or slot.targets is None:
            slot.labels[:] = labels
        else:
            slot.labels[:], slot.targets[:] = 0, labels
        images.finish()

    def _slots(self, count: int, records: int) -> list[_Slot]:
        try:
            return [self._slot(records) for _ in range(count)]
        except MemoryError as error:
            raise OutOfRoom(
                f"not enough memory for {count} batches of {records * self._crops} images",
                advice="take a smaller batch_size or loader.prefetch",
            ) from error

    def _slot(self, records: int) -> _Slot:
        loader, classes = self._loader, self._target_classes
        return _Slot(
            images=loader.empty((records * self._crops, *pair(loader.size), loader.channels), np.uint8),
            labels=loader.empty((records,), np.int64),
            records=np.empty(records, np.int64),
            targets=None if classes is None else loader.empty((records, classes), np.float32),
            crops=self._crops,
        )


def _piece(images: int, threads: int) -> int:
    """Images of a batch for a thread at a time: few enough for each thread to have a piece of it."""
    even_share = images // max(1, threads) // 2 * 2
    return min(max(_PIECE, even_share), _LARGE_PIECE)


@dataclass(frozen=True)
class _Slot:
    """Preallocated arrays of a batch, filled again and again."""

    images: Pixels
    labels: NDArray[np.int64]
    records: NDArray[np.int64]
    targets: NDArray[np.float32] | None
    crops: int

    def part(self, records: range) -> _Slot:
        rows = slice(records.start, records.stop)
        images = self.images[records.start * self.crops : records.stop * self.crops]
        targets = None if self.targets is None else self.targets[rows]
        return _Slot(images, self.labels[rows], self.records[rows], targets, self.crops)

    def batch(self, cut: range, wait_seconds: float) -> Batch:
        part = self.part(range(len(cut)))
        return Batch(part.images, part.labels, part.records, cut.start, wait_seconds, part.targets)


@dataclass(frozen=True)
class _EvaluationImages:
    """Rows of `views` [n, crops, height, width, channels], each with the crops of an image."""

    views: Pixels
    crop_fraction: float

    def write(self, image: LazyImage, row: int) -> None:
        evaluation_transform(image, self.crop_fraction, self.views[row])

    def finish(self) -> None:
        pass


class _ThisThread(Executor):
    """Runs everything at once where it is asked for."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call(*arguments, **named))
        return future


_CLASS_LIMIT = 2**24  # beyond it float32 labels are no longer exact


class Records(Protocol):
    """The part of a record set that the loader needs; `read` is called from several threads at once."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, position: int) -> ImageRecord: ...

    def location(self, position: int) -> tuple[Path, int, int]: ...


class Sample(NamedTuple):
    """A record: its image, decoded when it is looked at, its class or label vector, and the number it carries."""

    image: LazyImage
    label: int | tuple[float, ...]
    number: int


def read_sample(records: Records, position: int, classes: int | None, label_kind: LabelKind = "class") -> Sample:
    """Read and check a record; an image without a checksum is decoded here, and checked with that.

    Raises BadInput for a label that is no whole number from 0 to `classes` - 1 (of another `label_kind` for labels that
    are not so many, or not of that kind), for a number beyond 63 bits, and for an image that cannot be decoded (Damaged
    where its checksum holds) or, without a checksum, has lost part of its picture; what the record set raises passes.
    """
    record = records.read(position)
    try:
        label = _label(record, classes) if label_kind == "class" else _vector(record, classes, label_kind)
        return Sample(_image(record), label, _number(record))
    except PipelineError as error:
        raise _located(error, records, position) from error


def _located(error: PipelineError, records: Records, position: int) -> PipelineError:
    file, _, offset = records.location(position)
    return error.replaced(where=f"{file}, record {position}, offset {offset}", advice=None)


def _image(record: ImageRecord) -> LazyImage:
    try:
        # Under a checksum, damaged images were stored by a build asked to keep them.
        return LazyImage(record.content, None if record.checked else refuse_damaged)
    except PipelineError as error:
        # An image whose checksum holds is as it was built: the records are at fault.
        raise (Damaged if record.checked else BadInput)(error.what) from error


def _number(record: ImageRecord) -> int:
    if record.number >= 2**63:
        raise BadInput("the record number is too large", expected="less than 2**63", found=record.number)
    return record.number


def _label(record: ImageRecord, classes: int | None) -> int:
    first = record.labels[0] if record.labels else None
    if first is None or not first.is_integer() or not 0 <= first < (classes or _CLASS_LIMIT):
        raise BadInput(
            "the label is not a class",
            expected="a whole number from 0" + ("" if classes is None else f" to {classes - 1}"),
            found="none" if first is None else f"{first:g}",
        )
    return int(first)


def _vector(record: ImageRecord, classes: int | None, label_kind: LabelKind) -> tuple[float, ...]:
    labels, are_numbers = record.labels, label_kind == "number"
    if len(labels) != classes or not (all(map(math.isfinite, labels)) if are_numbers else {*labels} <= {0.0, 1.0}):
        raise BadInput(
            "the labels are not what the class table says",
            expected=f"{classes} {'numbers' if are_numbers else 'labels, each 0 or 1'}",
            found=f"{len(labels)}: {' '.join(f'{label:g}' for label in labels[:8])}",
        )
    return labels
