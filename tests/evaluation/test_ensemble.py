"""Several runs scored as one, against the mean of their probabilities worked out in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.ensemble import evaluate_together
from imagenet_pipeline.evaluation.evaluate import Crops, evaluate, open_checkpoint
from imagenet_pipeline.evaluation.report import write_report
from imagenet_pipeline.loading.batches import Loader
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.training.building import build_engine


@pytest.fixture(scope="session")
def three_runs(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of two networks, both engines and three views."""
    place = tmp_path_factory.mktemp("runs")
    return [
        make_run(place / "one"),
        make_run(place / "two", engine="gluon", seed=2, crop_fraction=1.0),
        make_run(place / "three", network="shallownet", size=32, seed=3),
    ]


def probabilities(run: Path, crops: Crops) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], list[int]]:
    """Of every test image, the plain way, with its label."""
    recipe, checkpoint = open_checkpoint(run, "best", {})
    state, engine = checkpoint.state, build_engine(recipe, checkpoint.state, checkpoint.weights)
    rows, labels = [], []
    with RecordSet.open(Path(recipe.records), "test") as records:
        loader = Loader(records, state.input_size, 1, threads=0)
        with loader.evaluation(state.crop_fraction, crops) as batches:
            for batch in batches:
                scores = np.exp(engine.logits(batch.images))
                rows.append((scores / scores.sum(1, keepdims=True)).mean(0))
                labels.append(int(batch.labels[0]))
    return np.array(rows), labels


@pytest.mark.parametrize("crops", [1, 2])
def test_an_ensemble_scores_the_mean_of_its_members_probabilities(three_runs: list[Path], crops: Crops) -> None:
    result = evaluate_together(three_runs, crops=crops)
    mean, labels = sum(probabilities(run, crops)[0] for run in three_runs) / 3, probabilities(three_runs[0], crops)[1]
    ranked = np.argsort(-mean, axis=1)
    assert (result.images, result.split, result.classes) == (12, "test", 6)
    assert result.rank1_hits == sum(int(row[0] == label) for row, label in zip(ranked, labels, strict=True))
    assert result.rank5_hits == sum(label in row[:5] for row, label in zip(ranked, labels, strict=True))
    assert result.rank1 == pytest.approx(100 * result.rank1_hits / 12)
    np.testing.assert_allclose(result.loss, -np.log(mean[np.arange(12), labels]).mean(), rtol=1e-9)


def test_each_member_s_own_figures_are_those_of_its_own_evaluation(three_runs: list[Path]) -> None:
    for member, run in zip(evaluate_together(three_runs).members, three_runs, strict=True):
        alone = evaluate(run)
        assert (member.rank1_hits, member.rank5_hits, member.images) == (alone.rank1_hits, alone.rank5_hits, 12)
        np.testing.assert_allclose(member.loss, alone.loss, rtol=1e-9)
        assert (member.engine, member.weights_digest) == (alone.engine, alone.weights_digest)


def test_a_run_twice_scores_as_it_does_once(three_runs: list[Path]) -> None:
    result, alone = evaluate_together([three_runs[0]] * 2), evaluate(three_runs[0])
    assert (result.rank1_hits, result.rank5_hits) == (alone.rank1_hits, alone.rank5_hits)
    np.testing.assert_allclose(result.loss, alone.loss, rtol=1e-9)


def test_the_page_has_every_member(three_runs: list[Path], tmp_path: Path) -> None:
    result = evaluate_together(three_runs)
    page = write_report(result, tmp_path / "page.html").read_text()
    assert "3 runs together on 12 test images" in page
    assert all(f"of {run}</h2>" in page for run in three_runs)
    assert f"alone: rank-1 {result.members[1].rank1:.2f} %" in page


def test_other_classes_are_an_error_that_names_both_runs(
    make_run: Callable[..., Path], three_runs: list[Path], tmp_path: Path
) -> None:
    more = make_run(tmp_path / "more", classes=tuple(f"class{number}" for number in range(7)))
    with pytest.raises(BadInput, match=r"one and .*more differ; expected 6 classes; found 7; an ensemble"):
        evaluate_together([three_runs[0], more])
    turned = make_run(tmp_path / "turned", classes=tuple(f"class{number}" for number in (1, 0, 2, 3, 4, 5)))
    with pytest.raises(BadInput) as caught:
        evaluate_together([three_runs[0], turned])
    assert str(caught.value) == (
        f"the class tables of {three_runs[0]} and {turned} differ; expected label 0 = class0; found class1; an "
        "ensemble needs runs that tell the same classes apart"
    )


def test_a_split_that_is_not_there_and_a_key_of_training_are_refused(three_runs: list[Path]) -> None:
    with pytest.raises(BadInput, match="no split 'all'; expected one of train, val, test"):
        evaluate_together(three_runs, split="all")
    with pytest.raises(BadRecipe, match="'epochs' does not apply"):
        evaluate_together(three_runs, overrides={"epochs": 3})
