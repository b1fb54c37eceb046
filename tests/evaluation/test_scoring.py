"""Every record once: against the count that training makes on the device, whatever the batch size and the crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import LossRecipe
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.evaluation.evaluate import Crops, candidate_of, evaluate, open_checkpoint, score_candidates
from imagenet_pipeline.evaluation.scoring import Member, RelabelledSplit, one_behind, score_split
from imagenet_pipeline.loading.augment import evaluation_transform
from imagenet_pipeline.loading.loader import Loader, read_sample
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.checkpoint import State, load_checkpoint, save_checkpoint
from imagenet_pipeline.training.engine_setup import build_engine
from imagenet_pipeline.training.metrics import score

COUNT = 30
"""Of the training split, which has the most."""
BATCH_SIZES = (1, 7, 128, COUNT - 1, COUNT, COUNT + 1)


@pytest.mark.parametrize("name", ["gluon", "pytorch"])
def test_counts_are_those_of_training_s_validation_for_every_batch_size(
    name: str, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", engine=name)
    recipe, checkpoint = open_checkpoint(run, "best", {})
    engine = build_engine(recipe, checkpoint.state, checkpoint.weights)
    candidate = candidate_of(run, (recipe, checkpoint), "train", None)
    found = []
    for size in BATCH_SIZES:
        with (
            RecordSet.open(candidate.data.folder, "train") as records,
            Loader(records, 28, size).evaluation() as batches,
        ):
            totals = score(engine, batches)
        resized = replace(candidate, recipe=recipe.model_copy(update={"batch_size": size}))
        scores = score_candidates([resized], "train", 1)
        (figure,), (outcomes,) = scores.evaluations, scores.outcomes
        counts = figure.images, figure.rank1_hits, figure.rank5_hits
        assert counts == (totals.images, totals.rank1_hits, totals.rank5_hits)
        assert (figure.rank1, figure.rank5) == (totals.rank1, totals.rank5)
        assert figure.loss == pytest.approx(totals.loss, rel=1e-12)
        found.append(outcomes)
    assert 0 < found[0].rank1_right.sum() < found[0].rank5_right.sum() < COUNT
    for one in found:
        assert sorted(one.numbers.tolist()) == list(range(COUNT))
        np.testing.assert_array_equal(one.top, found[0].top)
        np.testing.assert_allclose(one.losses, found[0].losses, rtol=1e-12)


def one_by_one(run: Path, crops: int) -> tuple[Any, Any]:
    """Probabilities of every test image, each crop of it alone through the network and their mean; and labels."""
    recipe, checkpoint = open_checkpoint(run, "best", {})
    state = checkpoint.state
    engine = build_engine(recipe, state, checkpoint.weights)
    rows, labels = [], []
    with RecordSet.open(Path(recipe.records), "test") as records:
        for position in range(len(records)):
            sample = read_sample(records, position, None)
            views = np.empty((crops, state.input_size, state.input_size, 3), np.uint8)
            evaluation_transform(sample.image, state.crop_fraction, views)
            each = []
            for view in views:
                scores = np.exp(engine.logits(view[None]).astype(np.float64)[0])
                each.append(scores / scores.sum())
            rows.append(np.mean(each, axis=0))
            labels.append(sample.label)
    return np.array(rows), np.array(labels)


@pytest.mark.parametrize("crops", [1, 2, 10])
@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_ten_crops_are_the_mean_over_the_crops_computed_one_by_one(
    make_run: Callable[..., Path], tmp_path: Path, crops: Crops, engine: str
) -> None:
    run = make_run(tmp_path / "run", engine=engine)
    candidate = candidate_of(run, open_checkpoint(run, "best", {}), "test", None)
    (outcomes,) = score_candidates([candidate], "test", crops).outcomes
    mean, labels = one_by_one(run, crops)
    assert outcomes.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(outcomes.confidence, mean.max(axis=1), rtol=1e-9)
    np.testing.assert_allclose(outcomes.losses, -np.log(mean[np.arange(12), labels]), rtol=1e-9)
    np.testing.assert_array_equal(outcomes.top, np.argsort(-mean, axis=1)[:, :5])


def test_scores_of_one_crop_that_round_to_the_same_probability_are_no_tie(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = candidate_of(tmp_path / "run", open_checkpoint(make_run(tmp_path / "run"), "best", {}), "test", None)
    engine, classes = candidate.engine(), len(candidate.numbering.table)
    rising = np.arange(classes, dtype=np.float32) * np.float32(1e-30)
    monkeypatch.setattr(engine, "issue_logits", lambda images: lambda: np.tile(rising, (len(images), 1)))
    source = RelabelledSplit(candidate.data, "test", candidate.numbering.relabel, candidate.recipe)
    (outcomes,) = score_split(source, 1, [Member(engine, (28, 0.875), LossRecipe())], classes)
    assert outcomes.top[:, 0].tolist() == [classes - 1] * len(outcomes)


class Watched:
    """An engine that lists what is asked of it; what it gives for a batch shows when it is read."""

    rank, ranks = 0, 1

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.calls: list[str] = []
        self.arrays: list[Any] = []

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        self.arrays.append(np.empty(shape, dtype))
        return self.arrays[-1]

    def issue_logits(self, images: Any) -> Callable[[], Any]:
        number = sum(call.startswith("issue") for call in self.calls)
        self.calls.append(f"issue {number}")
        assert any(np.shares_memory(images, array) for array in self.arrays)
        logits = self.engine.logits(images)

        def read() -> Any:
            self.calls.append(f"read {number}")
            return logits

        return read


def test_an_engine_has_the_next_batch_before_its_logits_of_this_are_read(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    candidate = candidate_of(tmp_path / "run", open_checkpoint(make_run(tmp_path / "run"), "best", {}), "test", None)
    engine, classes = candidate.engine(), len(candidate.numbering.table)
    recipe = candidate.recipe.model_copy(
        update={"batch_size": 5, "loader": candidate.recipe.loader.model_copy(update={"prefetch": 1})}
    )
    source = RelabelledSplit(candidate.data, "test", candidate.numbering.relabel, recipe)
    watched: Any = Watched(engine)
    found, alone = (
        score_split(source, 1, [Member(each, (28, 0.875), LossRecipe())], classes)[0] for each in (watched, engine)
    )
    assert watched.calls == ["issue 0", "issue 1", "read 0", "issue 2", "read 1", "read 2"]
    assert found.numbers.tolist() == alone.numbers.tolist() == list(range(12))
    np.testing.assert_array_equal(found.labels, alone.labels)
    np.testing.assert_array_equal(found.losses, alone.losses)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_items_come_one_behind(count: int) -> None:
    made: list[int] = []
    items = (made.append(number) or number for number in range(count))
    for number in one_behind(items):
        assert len(made) == min(number + 2, count)
    assert made == list(range(count))


def test_hinge_is_the_run_s_own_loss(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(text.replace('kind = "cross_entropy"', 'kind = "hinge"'))
    recipe, checkpoint = open_checkpoint(run, "best", {})
    engine = build_engine(recipe, checkpoint.state, checkpoint.weights)
    with RecordSet.open(Path(recipe.records), "test") as records, Loader(records, 28, 5).evaluation() as batches:
        totals = score(engine, batches)
    figure = evaluate(run)
    assert (figure.loss_kind, figure.rank1_hits) == ("hinge", totals.rank1_hits)
    assert figure.loss == pytest.approx(totals.loss, rel=1e-12)


def test_an_output_that_is_not_finite_is_no_figure(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    old = load_checkpoint(run / "checkpoints" / "epoch-0001")
    state = State(**{**vars(old.state), "epoch": 2, "metrics": {"validation_rank1": 99.0}})
    save_checkpoint(run, state, {name: np.full(value.shape, 1e200) for name, value in old.weights.items()}, {})
    with pytest.raises(BadInput, match="epoch-0002: the network's output is not finite; take another checkpoint"):
        evaluate(run)


@pytest.mark.parametrize("crops", [1, 10])
def test_the_pass_keeps_72_bytes_of_a_record(crops: Crops, make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    candidate = candidate_of(run, open_checkpoint(run, "best", {}), "train", None)
    (outcomes,) = score_candidates([candidate], "train", crops).outcomes
    # A view keeps all that it is a view of.
    kept = {
        id(whole): whole
        for column in vars(outcomes).values()
        for whole in [column if column.base is None else column.base]
    }
    assert sum(whole.nbytes for whole in kept.values()) == 72 * len(outcomes)
