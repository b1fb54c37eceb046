"""Several runs scored as one: the mean of their probabilities, record by record."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.engines import Engine, Totals
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.evaluate import Crops, Evaluation, Subject, open_checkpoint, records_to_score
from imagenet_pipeline.evaluation.probabilities import Logs, log_probabilities
from imagenet_pipeline.loading.batches import Batch, Loader
from imagenet_pipeline.loading.order import Share
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import State
from imagenet_pipeline.training.metrics import rank_hits, top_classes
from imagenet_pipeline.training.ranks import reduced, require_agreement
from imagenet_pipeline.training.records import IMPORTED, NUMBERED

View = tuple[int, float]
"""How a member sees an image: side in pixels, share of the shorter edge."""


@dataclass(frozen=True)
class Ensemble:
    """The figures of all members together, ranks in percent, the loss cross-entropy in nats; and each one's own."""

    split: str
    images: int
    rank1: float
    rank5: float
    loss: float
    rank1_hits: int
    rank5_hits: int
    crops: int
    classes: int
    process: int
    processes: int
    images_per_second: float
    data_digest: str
    members: list[Evaluation]


def evaluate_together(
    runs: Sequence[Path],
    which: str = "best",
    split: str = "test",
    crops: Crops = 1,
    records: Path | None = None,
    overrides: dict[str, object] | None = None,
) -> Ensemble:
    """Score checkpoint `which` of every run on one pass over a split of the first one's records, or of `records`.

    Networks, engines and input sizes may differ. Every member's loss is the cross-entropy of its probabilities.
    Raises BadInput naming two runs whose class tables differ, and otherwise as `evaluate` does.
    """
    opened = [open_checkpoint(run, which, overrides or {}) for run in runs]
    _require_one_table(runs, [checkpoint.state for _, checkpoint in opened])
    recipe = opened[0][0]
    tables = [records_to_score(recipe, checkpoint.state, split, records) for _, checkpoint in opened]
    subjects = [Subject(run, *one, data) for run, one, data in zip(runs, opened, tables, strict=True)]
    engines = [subject.engine() for subject in subjects]
    _require_one_group(subjects, engines, split, crops)
    started = time.monotonic()
    tallies = _tallies(subjects, engines, split, crops)
    seconds = time.monotonic() - started
    whole, *own = [tally.totals(engines[0]) for tally in tallies]
    members = [
        replace(subject.evaluation(engine, totals, split, crops, seconds), loss_kind="cross_entropy")
        for subject, engine, totals in zip(subjects, engines, own, strict=True)
    ]
    return Ensemble(
        split, whole.images, whole.rank1, whole.rank5, whole.loss, whole.rank1_hits, whole.rank5_hits, crops,
        members[0].classes, engines[0].rank, engines[0].ranks, members[0].images_per_second, tables[0].digest, members,
    )  # fmt: skip


@dataclass
class _Tally:
    """Counts of one member, or of all together."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    """Images, rank-1 hits, rank-5 hits."""
    loss: float = 0.0

    def add(self, logs: Logs, labels: npt.NDArray[np.int64]) -> None:
        self.counts += (len(labels), *rank_hits(top_classes(logs), labels))
        self.loss -= float(logs[np.arange(len(labels)), labels].sum())

    def totals(self, engine: Engine) -> Totals:
        """Over all processes."""
        images, rank1_hits, rank5_hits = map(int, self.counts)
        return reduced(engine, Totals(images, rank1_hits, rank5_hits, np.array([self.loss])))


def _require_one_table(runs: Sequence[Path], states: Sequence[State]) -> None:
    """Raise BadInput where two runs number their classes differently; what an import left unnamed fits any."""
    named = [
        (run, state.class_table)
        for run, state in zip(runs, states, strict=True)
        if (state.data_digest, state.class_order) != (IMPORTED, NUMBERED)
    ]
    for run, table in named[1:]:
        first, wanted = named[0]
        if table.ids != wanted.ids:
            label = next((n for n, ids in enumerate(zip(wanted.ids, table.ids, strict=False)) if len({*ids}) > 1), None)
            raise BadInput(
                f"the class tables of {first} and {run} differ",
                expected=f"{len(wanted)} classes" if label is None else f"label {label} = {wanted.ids[label]}",
                found=len(table) if label is None else table.ids[label],
                advice="an ensemble needs runs that tell the same classes apart",
            )


def _require_one_group(subjects: Sequence[Subject], engines: Sequence[Engine], split: str, crops: int) -> None:
    places = {(engine.rank, engine.ranks) for engine in engines}
    if len(places) > 1:
        advice = "score runs of both engines in one process, or give engine=pytorch"
        raise BadRecipe("the engines of these runs share their processes differently", advice=advice)
    facts = {f"run {number}": subject.checkpoint.weights_digest for number, subject in enumerate(subjects, 1)}
    require_agreement(engines[0], {**facts, "records": subjects[0].data.digest, "split": f"{split}, {crops} crops"})


def _tallies(subjects: Sequence[Subject], engines: Sequence[Engine], split: str, crops: Crops) -> list[_Tally]:
    """The tally of all together, then each member's."""
    together, own = _Tally(), [_Tally() for _ in subjects]
    states = [subject.checkpoint.state for subject in subjects]
    views: list[View] = [(state.input_size, state.crop_fraction) for state in states]
    for batches in _shown(subjects[0], engines[0], split, crops, set(views)):
        logs = []
        for engine, view, tally in zip(engines, views, own, strict=True):
            logs.append(log_probabilities(engine.logits(batches[view].images), crops))
            tally.add(logs[-1], batches[view].labels)
        together.add(np.logaddexp.reduce(logs, axis=0) - np.log(len(logs)), batches[views[0]].labels)
    return [together, *own]


def _shown(
    first: Subject, engine: Engine, split: str, crops: Crops, views: Collection[View]
) -> Iterator[dict[View, Batch]]:
    """The same records batch by batch as every view has them, with a progress bar."""
    recipe = first.recipe
    with ExitStack() as stack, Bar(split, "batches", engine.rank == 0) as bar:
        passes = {}
        for view in views:
            records = stack.enter_context(RecordSet.open(first.data.folder, split))
            loader = Loader(
                records,
                view[0],
                max(1, recipe.batch_size // crops),
                threads=recipe.loader.threads,
                prefetch=recipe.loader.prefetch,
                classes=len(first.data.classes),
                share=Share(engine.rank, engine.ranks),
            )
            passes[view] = stack.enter_context(loader.evaluation(view[1], crops))
        total = min(map(len, passes.values()))
        for done in range(1, total + 1):
            yield {view: next(batches) for view, batches in passes.items()}
            bar.show(done, total)
