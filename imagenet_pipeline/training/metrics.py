"""Rank-1, rank-5 and loss, counted exactly: every record once, whatever the batch size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline.engines import NO_TOTALS, Engine, Totals
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.loading.loader import Batch, Batches
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.training.distributed import reduced


def score(engine: Engine, batches: Iterable[Batch]) -> Totals:
    """Score every batch and add up, over all ranks. Raises BadInput when there are no records to score. Collective."""
    engine.totals()
    for batch in batches:
        engine.score_batch(batch.images, batch.training_targets)
    own = NO_TOTALS + engine.totals()
    # Ranks may have had different numbers of batches.
    loss, figures = np.array([own.step_losses.sum()]), own.step_figures.sum(axis=0, keepdims=True)
    totals = reduced(engine, replace(own, step_losses=loss, step_figures=figures))
    if totals.images == 0:
        raise BadInput("there are no records to score", expected="at least one record")
    return totals


def watched(batches: Batches, label: str, shown: bool = True) -> Iterator[Batch]:
    """The batches, with a progress bar where it is to be shown."""
    total = len(batches)
    with Bar(label, "batches", shown) as bar:
        for done, batch in enumerate(batches, 1):
            yield batch
            bar.show(done, total)


def chance_percent(classes: int) -> float:
    """The rank-1 that guessing would have, every class as often."""
    return 100.0 / classes


NAMES = {"rank1": "rank-1", "rank5": "rank-5", "accuracy": "right", "exact": "all right", "mae": "MAE", "rmse": "RMSE"}
"""Figures beside the loss, as people are told them."""
ERRORS = ("mae", "rmse")
"""Figures that are no percent, and are better the lower."""


def said(figure: str, value: float, digits: int = 2) -> str:
    """A figure in words, as "rank-1 75.00 %"."""
    return f"{NAMES[figure]} {value:.4g}" if figure in ERRORS else f"{NAMES[figure]} {value:.{digits}f} %"


def says_rank5(classes: int) -> bool:
    """Tell whether rank-5 means anything: among five classes or fewer it is always 100 %."""
    return classes > 5


def top_classes(scores: npt.NDArray[np.floating[Any]], k: int = 5) -> npt.NDArray[np.int64]:
    """The k best classes of each row of `scores` [n, classes], best first; ties go to the lower class."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int64)


def rank_hits(top: npt.NDArray[np.integer[Any]], labels: npt.NDArray[np.integer[Any]]) -> tuple[int, int]:
    """Count the labels [n] that stand first, and among the first five, in `top` [n, k >= 5], best class first."""
    if top.ndim != 2 or len(top) != len(labels):
        raise BadInput("predictions and labels differ in length", expected=len(labels), found=top.shape)
    hits = top[:, :5] == np.asarray(labels)[:, None]
    return int(hits[:, 0].sum()), int(hits.any(axis=1).sum())
