"""What one batch becomes, against the engines' own losses and hits, and rows of several ranks put together."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from imagenet_pipeline.config import LossRecipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.engines.pytorch import losses as pytorch_losses
from imagenet_pipeline.evaluation.scoring import Outcomes, gathered, log_probabilities, losses_of, outcomes_of


def batch(images: int = 40, classes: int = 9, seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    return random.normal(0, 3, (images, classes)).round(1), random.integers(0, classes, images)


def outcomes(images: int = 40, classes: int = 9) -> Outcomes:
    logits, labels = batch(images, classes)
    return outcomes_of(np.arange(images) + 5, labels, logits, log_probabilities(logits), LossRecipe())


LOSSES = [
    (LossRecipe(), 9),
    (LossRecipe(kind="hinge", margin=2.5), 9),
    (LossRecipe(kind="focal", gamma=1.5), 9),
    (LossRecipe(kind="binary_cross_entropy", threshold=0.2), 2),
]


@pytest.mark.parametrize(("loss", "classes"), LOSSES)
@pytest.mark.parametrize("crops", [1, 2])
def test_losses_and_hits_are_the_engine_s(loss: LossRecipe, classes: int, crops: int) -> None:
    logits, labels = batch(40, classes)
    labels, logs = labels[: 40 // crops], log_probabilities(logits, crops)
    scores, truth = torch.from_numpy(logits if crops == 1 else logs), torch.from_numpy(labels)
    losses = pytorch_losses.losses_of(scores, truth, loss, training=False)
    marks = pytorch_losses.metrics_of(losses, scores, truth).numpy()
    found = outcomes_of(labels, labels, logits if crops == 1 else logs, logs, loss)
    np.testing.assert_allclose(found.losses, losses.numpy(), rtol=1e-12)
    assert [found.rank1_right.sum(), found.rank5_right.sum()] == marks[1:].tolist()


def test_ties_go_to_the_lower_class_and_confidence_is_the_first_one_s_probability() -> None:
    logits = np.log(np.array([[0.1, 0.3, 0.3, 0.1, 0.1, 0.1], [1e-9, 1 - 5e-9, 1e-9, 1e-9, 1e-9, 1e-9]]))
    labels = np.array([2, 1])
    found = outcomes_of(np.array([7, 8]), labels, logits, log_probabilities(logits), LossRecipe())
    assert found.top.tolist() == [[1, 2, 0, 3, 4], [1, 0, 2, 3, 4]]
    np.testing.assert_allclose(found.confidence, [0.3, 1 - 5e-9])
    assert (found.confidence <= 1).all()
    assert found.rank1_right.tolist() == [False, True]


def test_fewer_than_five_classes_have_fewer_guesses() -> None:
    found = outcomes(classes=3)
    assert found.top.shape == (40, 3)
    assert found.rank5_right.all()


class Summing:
    """The second of two ranks, when the first one's table is known."""

    ranks = 2

    def __init__(self, others: Any) -> None:
        self.others = others

    def sum_over_ranks(self, numbers: Any) -> Any:
        return numbers + self.others


def test_rows_of_two_ranks_are_those_of_one_bit_for_bit() -> None:
    whole = outcomes(images=41)
    parts = [(at, Outcomes(*(column[at : at + 6] for column in vars(whole).values()))) for at in range(0, 41, 6)]
    alone = cast("Engine", type("Alone", (), {"ranks": 1})())
    table = Summing(0.0)
    kept: list[Any] = []
    table.sum_over_ranks = lambda numbers: kept.append(numbers) or numbers  # type: ignore[method-assign,func-returns-value]
    gathered(cast("Engine", table), 41, 9, parts[::2])
    both = gathered(cast("Engine", Summing(kept[0])), 41, 9, parts[1::2])
    for found in (both, gathered(alone, 41, 9, parts)):
        for name, column in vars(whole).items():
            np.testing.assert_array_equal(getattr(found, name), column)
            assert getattr(found, name).dtype == column.dtype


def test_a_rank_without_records_adds_nothing() -> None:
    engine = cast("Engine", Summing(np.zeros(3 * 9)))
    assert len(gathered(engine, 3, 1000, [])) == 3


def test_hinge_of_log_probabilities_is_hinge_of_scores() -> None:
    logits, labels = batch()
    hinge = LossRecipe(kind="hinge")
    np.testing.assert_allclose(
        losses_of(log_probabilities(logits), labels, hinge), losses_of(logits, labels, hinge), rtol=1e-12
    )
