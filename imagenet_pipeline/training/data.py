"""Data of a run: its records, their loader, progressive resizing, and endless batches for benchmarks.

Training images are small and cheap at first and grow to the recipe's size (as in FFCV's recipes).
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imagenet_pipeline.config import InputRecipe, LossRecipe, Recipe, Size, pair
from imagenet_pipeline.engines import FIGURES, Normalisation
from imagenet_pipeline.errors import BadInput, BadRecipe, counted
from imagenet_pipeline.loading.augment import RGB
from imagenet_pipeline.loading.loader import Batch, Empty, Loader
from imagenet_pipeline.loading.order import WHOLE, Share
from imagenet_pipeline.loading.transforms import GREY, Pixels, grey_into
from imagenet_pipeline.networks.catalog import Network
from imagenet_pipeline.records.classes import NUMBERED as NUMBERED
from imagenet_pipeline.records.classes import LabelKind, require_same
from imagenet_pipeline.records.image import decode_rgb
from imagenet_pipeline.records.manifest import DataSet, is_remote, read_data_set
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import State
from imagenet_pipeline.training.metrics import says_rank5

log = logging.getLogger("imagenet_pipeline")

Labels = NDArray[np.int64]
IMPORTED = ""
"""Data digest of a network that was imported without records: any of its classes will do."""


def records_of(recipe: Recipe) -> DataSet:
    """Read the data set of a recipe. Raises BadRecipe where it names none, as that of an import without records."""
    if not recipe.records:
        raise BadRecipe("the recipe names no records", advice="give train records=DIR, or evaluate --records DIR")
    return read_data_set(recipe.records, recipe.loader.cache, recipe.loader.cache_gb)


def require_no_secret(recipe: Recipe) -> None:
    """Raise BadRecipe where the address of a recipe's records has in it what no run may keep, as a password."""
    if is_remote(recipe.records):
        from imagenet_pipeline.storage import Storage  # not on the way of records that are here

        Storage(recipe.records).require_no_secret()


def records_to_read(recipe: Recipe, others: Path | None = None) -> DataSet:
    """Read the data set in `others`, or else a recipe's own, to score on; a lone record file will do."""
    # Not on the way of training, which needs a data set that was built.
    from imagenet_pipeline.records.lone import read_records

    if not others and not recipe.records:
        return records_of(recipe)
    return read_records(others or recipe.records, recipe.loader.cache if not others else "", recipe.loader.cache_gb)


def with_window(recipe: Recipe, data: DataSet) -> Recipe:
    """Settle "auto": the number of shards that are shuffled together, as `loader.window_shards` describes.

    Raises BadRecipe where a cache cannot hold them, OutOfRoom where its disk cannot.
    """
    wanted, split = recipe.loader.window_shards, data.manifest.splits.get("train")
    if data.cache is not None and split is not None:
        wanted = data.cache.window_shards(split.shards, wanted)
        if wanted and recipe.loader.order == "balanced":
            what, advice = (
                "a balanced order reads from all shards at a time",
                "give loader.cache_gb room for all of them",
            )
            raise BadRecipe(what, where="loader.order", found=f"room for {counted(2 * wanted, 'shard')}", advice=advice)
    return with_window_shards(recipe, 0 if wanted == "auto" else wanted)


def with_window_shards(recipe: Recipe, window_shards: int | Literal["auto"]) -> Recipe:
    """Copy the recipe with this `loader.window_shards`."""
    return recipe.model_copy(update={"loader": recipe.loader.model_copy(update={"window_shards": window_shards})})


def steps_per_epoch(recipe: Recipe, data: DataSet) -> int:
    """Count the whole batches in the training records. Raises BadRecipe where there is none."""
    images = data.counts.get("train", 0)
    if images < recipe.images_per_step:
        raise BadRecipe(
            "batch_size exceeds the training records", where=data.name, expected=f"at most {images}",
            found=recipe.images_per_step,
        )  # fmt: skip
    return images // recipe.images_per_step


def loader_of(
    recipe: Recipe,
    records: RecordSet,
    size: Size,
    classes: int,
    share: Share = WHOLE,
    crops: int = 1,
    empty: Empty = np.empty,
    balanced: Labels | None = None,
    label_kind: LabelKind = "class",
    channels: int | None = None,
) -> Loader:
    """Build the loader of a recipe's batches, images of `size` pixels; of several processes, of its own share.

    Images are RGB, or grey where `channels` (by default the recipe's) is 1. Several `crops` of an image count as images
    of the batch. `empty` is the `host_array` of the engine to be fed, `balanced` what `balanced_labels` gives.
    """
    return Loader(
        records,
        size,
        max(1, recipe.images_per_step // crops),
        threads=recipe.loader.threads,
        prefetch=recipe.loader.prefetch,
        classes=classes,
        share=share,
        empty=empty,
        window_shards=0 if recipe.loader.window_shards == "auto" else recipe.loader.window_shards,
        channels=channels or recipe.input.channels,
        balanced=balanced,
        label_kind=label_kind,
        repeats=recipe.loader.repeats,
    )


GREY_IMAGES = 512
"""Training images, about, whose grey is looked at for its deviation."""


def input_statistics(data: DataSet, channels: int) -> tuple[Normalisation, str]:
    """Mean and std of a network's input over the training images, and where they are from.

    Of grey: the mean is that of `data`, since grey is linear in R, G and B; the deviation is not, and is that of
    GREY_IMAGES images evenly spread (of the first shard, where they come from object storage), or of `data` where all
    images are grey.
    """
    origin = f"{data.name}/mean.json"
    if channels == RGB:
        return (data.mean, data.std), origin
    mean = float(np.dot(data.mean, GREY))
    if len({*data.mean}) == len({*data.std}) == 1:
        return ((mean,), (data.std[0],)), origin
    counts = np.zeros(256, np.int64)
    with RecordSet.of(data, "train") as records:
        images = len(records) if data.cache is None else records.sizes[0]
        for position in range(0, images, max(1, images // GREY_IMAGES)):
            pixels = _pixels_of(records, position)
            grey = np.empty((*pixels.shape[:2], 1), np.uint8)
            grey_into(pixels, grey)
            counts += np.bincount(grey.ravel(), minlength=256)
    levels, share = np.arange(256), counts / counts.sum()
    std = float(np.sqrt(share @ levels**2 - (share @ levels) ** 2)) or 1.0
    return ((mean,), (std,)), f"{origin}, and the grey of training images"


def _pixels_of(records: RecordSet, position: int) -> Pixels:
    try:
        return decode_rgb(records.read(position).content)
    except BadInput as error:
        raise error.replaced(where=f"{records.name}, record {position}") from error


def balanced_labels(recipe: Recipe, data: DataSet, records: RecordSet) -> Labels | None:
    """The class of every training record, where the recipe has all classes come as often; None where it has not."""
    return training_labels(data, records) if recipe.loader.order == "balanced" else None


def training_labels(data: DataSet, records: RecordSet) -> Labels:
    """The class of every training record [records], by the data set's list; of 1.28 million 1 s."""
    # Not on the way of a run that takes the records as they are.
    from imagenet_pipeline.records.inspect import labels_of

    return labels_of(records, data, "train").astype(np.int64)


def class_weights_of(loss: LossRecipe, data: DataSet) -> tuple[float, ...]:
    """The weight of each class that a recipe's loss means, none where all weigh the same; `engines/__init__.py`.

    A class without training images weighs 0 where it is "balanced". Raises BadRecipe for a list of another length.
    """
    if loss.class_weights == "none":
        return ()
    classes = len(data.classes)
    if isinstance(loss.class_weights, tuple):
        if len(loss.class_weights) != classes:
            what, found = "recipe key 'loss.class_weights' must have a number for each class", len(loss.class_weights)
            raise BadRecipe(what, where=data.name, expected=classes, found=found)
        return loss.class_weights
    with RecordSet.of(data, "train") as records:
        images = np.bincount(training_labels(data, records), minlength=classes)
    return tuple((images.sum() / (np.count_nonzero(images) * np.maximum(images, 1)) * (images > 0)).tolist())


def require_validation(recipe: Recipe, data: DataSet) -> None:
    """Raise BadRecipe where the recipe goes by validation scores and `data` has no split to validate on.

    And where it goes by a figure that says nothing of so few classes.
    """
    schedule, stopping = recipe.schedule, recipe.stopping
    on_validation = stopping.followed.startswith("validation")
    keys = {
        "schedule.kind": schedule.kind == "plateau" and schedule.figure.startswith("validation"),
        "stopping.patience_epochs": on_validation and stopping.patience_epochs,
        "stopping.restore_best": on_validation and stopping.restore_best,
        "stopping.figure": on_validation and stopping.figure != "auto",
    }
    for key, goes_by_scores in keys.items():
        if goes_by_scores and not data.counts.get("val"):
            raise BadRecipe(
                f"recipe key {key!r} needs the split val, which these records lack",
                where=data.name,
                found=", ".join(data.counts),
                advice=f"leave {key} as it is by default, or build the records with a split val",
            )
    for key, figure in (("schedule.figure", schedule.figure), ("stopping.figure", stopping.figure)):
        _require_counted(key, figure, data)
        if figure.endswith("rank5") and not says_rank5(len(data.classes)):
            what = f"recipe key {key!r}: rank-5 among {counted(len(data.classes), 'class')} is always 100 %"
            instead = f"{key}={figure.replace('rank5', 'rank1')}"
            raise BadRecipe(what, where=data.name, found=figure, advice=instead)


def _require_counted(key: str, figure: str, data: DataSet) -> None:
    """Raise BadRecipe for a figure that is of labels of another kind than `data` has."""
    there = ("loss", *FIGURES[data.classes.label_kind])
    if figure != "auto" and figure.partition("_")[2] not in there:
        expected = " or ".join(f"validation_{name}" for name in there)
        what = f"recipe key {key!r}: there is no such figure of these records"
        raise BadRecipe(what, where=data.name, expected=expected, found=figure)


LOSSES: dict[LabelKind, tuple[str, ...]] = {
    "class": ("cross_entropy", "binary_cross_entropy", "focal", "hinge"),
    "classes": ("binary_cross_entropy",),
    "number": ("mae", "mse", "huber"),
}
"""The kinds of loss that fit the labels of records."""


def require_fitting_loss(recipe: Recipe, data: DataSet) -> None:
    """Raise BadRecipe for a loss, or a key of it, that is not for labels of the kind that `data` has, or so many."""
    kind, fitting, loss = data.classes.label_kind, LOSSES[data.classes.label_kind], recipe.loss
    if kind == "class" and loss.kind == "binary_cross_entropy" and len(data.classes) != 2:
        what = "recipe key 'loss.kind': binary_cross_entropy of one class a record tells two classes apart"
        raise BadRecipe(what, where=data.name, found=len(data.classes), advice="loss.kind=cross_entropy")
    if kind != "class" and recipe.loader.order == "balanced":
        raise BadRecipe(
            "a balanced order is of records with one class each", where=data.name, advice="loader.order=shuffled"
        )
    for key in ("label_smoothing", "threshold", "class_weights") if kind == "classes" else ():
        if getattr(loss, key) != type(loss).model_fields[key].default:
            raise BadRecipe(f"recipe key 'loss.{key}' is for records with one class each", where=data.name)
    if loss.kind in fitting:
        return
    has = {"class": "one class a record", "classes": "any number of classes a record", "number": "numbers for labels"}
    raise BadRecipe(
        f"recipe key 'loss.kind': {recipe.loss.kind} does not fit these records, which have {has[kind]}",
        where=data.name,
        expected=" or ".join(fitting),
        advice=f"loss.kind={fitting[0]}",
    )


def require_its_classes(state: State, data: DataSet) -> None:
    """Raise BadInput unless `data` numbers a network's classes as the network does.

    Classes that nobody named when it was imported are taken to be those of `data`, where there are as many.
    """
    unnamed = state.data_digest == IMPORTED and state.class_order == NUMBERED
    if not unnamed or len(state.classes) != len(data.classes):
        require_same(state.class_table, data.classes, where=data.name)
    elif state.classes != data.classes.ids:
        log.info(
            "the network was imported without the names of its %d classes: they are taken to be those of %s, in "
            "its order (%s); nothing here can check their order",
            len(state.classes), data.name, data.classes.order,
        )  # fmt: skip


MULTIPLE = 32
"""Pixels that networks divide their input by: sizes between the first and the last are multiples of it."""


def training_size(recipe: InputRecipe, epoch: int) -> Size:
    """Compute the size of the training images in an epoch, counted from 0, pixels.

    `start_size` up to epoch grow_epochs[0], `size` from grow_epochs[1] on, in a straight line in between.
    """
    first, last = recipe.grow_epochs
    if not recipe.start_size or epoch >= last:
        return recipe.trained_size
    if epoch <= first:
        return recipe.start_size
    exact = recipe.start_size + (recipe.size - recipe.start_size) * (epoch - first) / (last - first)
    return min(max(MULTIPLE * round(exact / MULTIPLE), recipe.start_size), recipe.size)


def require_sizes(recipe: Recipe, network: Network) -> None:
    """Raise BadRecipe where the recipe has several sizes of input and the network's parameters depend on it."""
    sizes = {"input.start_size": recipe.input.start_size, "input.evaluation_size": recipe.input.evaluation_size}
    channels, own = recipe.input.channels, recipe.input.trained_size
    for key, size in sizes.items():
        if size and network.shapes((channels, size, size)) != network.shapes((channels, *pair(own))):
            raise BadRecipe(
                f"recipe key {key!r}: the dense layers of {recipe.whole_network[:80]} fix its input",
                expected=f"input.size, {recipe.input.size}",
                found=size,
                advice=f"leave {key} out, or take a network that ends in global average pooling",
            )


def endless_batches(
    recipe: Recipe,
    data: DataSet,
    records: RecordSet,
    share: Share = WHOLE,
    empty: Empty = np.empty,
    first_epoch: int = 0,
) -> Generator[Batch, None, None]:
    """The batches of a run's epochs in order, without end; of several processes, its share. It is to be closed.

    A batch is valid until the next is asked for. Raises BadRecipe for a batch larger than the records.
    """
    steps_per_epoch(recipe, data)
    recipe = with_window(recipe, data)
    balanced = balanced_labels(recipe, data, records)
    for epoch in count(first_epoch):
        size = training_size(recipe.input, epoch)
        loader = loader_of(
            recipe, records, size, len(data.classes), share,
            empty=empty, balanced=balanced, label_kind=data.classes.label_kind,
        )  # fmt: skip
        with loader.training(recipe.seed, epoch, recipe.augmentation) as batches:
            yield from batches
