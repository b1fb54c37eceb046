"""One pass over a split: what becomes of every record, for one network or several on the same records."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import numpy as np

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Array, Engine
from imagenet_pipeline.evaluation.outcomes import Outcomes, Whole, gathered, outcomes_of
from imagenet_pipeline.evaluation.probabilities import log_probabilities
from imagenet_pipeline.loading.loader import Batch, Loader
from imagenet_pipeline.loading.order import Share
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.records.reader import RecordSet

Crops = Literal[1, 2, 10]
View = tuple[int, float]
"""How a network sees an image: side in pixels, share of the shorter edge."""


@dataclass(frozen=True)
class Member:
    """A network that is scored."""

    engine: Engine
    view: View
    loss_kind: str


@dataclass(frozen=True)
class Source:
    """A split of a data set, and `relabel`: the network's class of each of its; `recipe` says how it is read."""

    data: DataSet
    split: str
    relabel: Whole
    recipe: Recipe


def score_split(source: Source, crops: Crops, members: Sequence[Member], classes: int) -> list[Outcomes]:
    """The outcomes of each member; and before them, of several, those of the mean of their probabilities.

    Every record is scored once over all ranks, whatever the batch size. Memory does not grow with the number of
    classes. Collective.
    """
    engine, view = members[0].engine, members[0].view
    parts: list[list[tuple[int, Outcomes]]] = [[] for _ in range(1 + len(members))]
    for batches in _shown(source, engine, crops, {member.view for member in members}):
        at, numbers = batches[view].first_position, batches[view].records
        labels, logs = source.relabel[batches[view].labels], []
        for member, own in zip(members, parts[1:], strict=True):
            logits = _finite(member.engine.logits(batches[member.view].images))
            with np.errstate(invalid="ignore"):
                logs.append(log_probabilities(logits, crops))
            # Of one crop by the scores themselves: what rounds to the same probability is not a tie.
            ranked = logits if crops == 1 else logs[-1]
            own.append((at, outcomes_of(numbers, labels, ranked, logs[-1], member.loss_kind)))
        if len(members) > 1:
            mean = np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))
            parts[0].append((at, outcomes_of(numbers, labels, mean, mean, "cross_entropy")))
    count = source.data.counts[source.split]
    return [gathered(engine, count, classes, own) for own in parts[len(members) == 1 :]]


def _finite(logits: Array) -> Array:
    """The logits, or NaN for them all: infinities would pass unseen where they are no image's own."""
    return logits if np.isfinite(logits).all() else np.full_like(logits, np.nan)


def _shown(source: Source, engine: Engine, crops: Crops, views: Collection[View]) -> Iterator[dict[View, Batch]]:
    """The same records batch by batch as every view has them, with a progress bar."""
    recipe = source.recipe
    with ExitStack() as stack, Bar(source.split, "batches", engine.rank == 0) as bar:
        passes = {}
        for size, crop_fraction in views:
            records = stack.enter_context(RecordSet.open(source.data.folder, source.split))
            loader = Loader(
                records,
                size,
                max(1, recipe.batch_size // crops),
                threads=recipe.loader.threads,
                prefetch=recipe.loader.prefetch,
                classes=len(source.relabel),
                share=Share(engine.rank, engine.ranks),
            )
            passes[size, crop_fraction] = stack.enter_context(loader.evaluation(crop_fraction, crops))
        total = min(map(len, passes.values()))
        for done in range(1, total + 1):
            yield {view: next(batches) for view, batches in passes.items()}
            bar.show(done, total)
