"""When a run ends before its last epoch: a pure function of its history."""

from __future__ import annotations

from collections.abc import Sequence

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.training.journal import Event


def gives_up(recipe: Recipe, rows: Sequence[Event]) -> bool:
    """Whether `stopping.patience_epochs` of the history in a row brought no better validation rank-1 (never for 0)."""
    patience = recipe.stopping.patience_epochs
    if not (patience and rows):
        return False
    scores = [row["validation_rank1"] for row in rows]
    return len(scores) - 1 - scores.index(max(scores)) >= patience
