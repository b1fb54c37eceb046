"""Class weights and single outputs in an engine's steps, against the formulas of `engines/__init__.py` in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from imagenet_pipeline.config import LossRecipe, log_odds
from imagenet_pipeline.engines import Engine, is_installed
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.head import has_two_scores, with_classes, with_two_scores
from imagenet_pipeline.networks.layers import Dense, Flatten, Sequential, stack
from imagenet_pipeline.networks.shapes import describe, parameter_count

MakeEngine = Callable[..., Engine]
MakeBatch = Callable[..., tuple[Any, Any]]
ENGINES = [name for name in ("gluon", "pytorch") if is_installed(name)]
EXACT = {"precision": "float64", "momentum": 0.0, "weight_decay": 0.0}
WEIGHTS = (0.25, 1.0, 3.0, 0.0, 2.0, 0.5, 1.5)


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_count_in_a_step_and_its_loss_and_not_in_scoring(
    make_engine: MakeEngine, make_batch: MakeBatch, plain_network: Sequential, engine: str, accumulation: int
) -> None:
    images, labels = make_batch(8)
    keys = {"engine": engine, "class_weights": WEIGHTS, "accumulation": accumulation, **EXACT}
    made = make_engine(plain_network, **keys)
    p, own = softmax(made.logits(images)), np.array(WEIGHTS)[labels]
    losses = -np.log(p[np.arange(8), labels])
    bias = made.values()["classifier.bias"]
    made.train_batch(images, labels, 1.0, seed=0)
    assert made.totals().step_losses == pytest.approx([(own * losses).sum()], rel=1e-12)
    gradient = (own[:, None] * (p - np.eye(7)[labels])).sum(0) / 8
    np.testing.assert_allclose(bias - made.values()["classifier.bias"], gradient, rtol=1e-10, atol=1e-14)
    made.set_values(make_engine(plain_network, **keys).values())
    made.score_batch(images, labels)
    assert made.totals().step_losses == pytest.approx([losses.sum()], rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_of_a_single_output_is_that_of_logistic_regression(
    make_engine: MakeEngine, make_batch: MakeBatch, engine: str
) -> None:
    images, labels = make_batch(30, size=2)
    labels %= 2
    network = with_two_scores(stack(flatten=Flatten(), classifier=Dense(1)), threshold=0.3)
    loss = LossRecipe(kind="binary_cross_entropy", threshold=0.3)
    made = make_engine(network, size=2, engine=engine, loss=loss, **EXACT)
    features = ((images - np.array([120.0, 110.0, 100.0])) / [60.0, 61.0, 62.0]).transpose(0, 3, 1, 2).reshape(30, 12)
    fitted = LogisticRegression(C=1e6, tol=1e-12, max_iter=10_000).fit(features, labels)
    made.set_values({"classifier.weight": fitted.coef_, "classifier.bias": fitted.intercept_})
    scores = made.logits(images)
    np.testing.assert_allclose(scores[:, 1] + log_odds(0.3), fitted.decision_function(features), rtol=1e-9)
    np.testing.assert_array_equal(scores.argmax(1), fitted.predict_proba(features)[:, 1] > 0.3)
    made.train_batch(images, labels, 1.0, seed=0)
    error = fitted.predict_proba(features)[:, 1] - labels
    moved = fitted.coef_[0] - made.values()["classifier.weight"][0]
    np.testing.assert_allclose(moved, error @ features / 30, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "size"), [("lenet", 28), ("googlenet", 96), ("mlp:16,8?dropout=0.2", 28)])
def test_a_network_with_a_single_output_has_one_for_two_classes_and_again_one_for_each_of_more(
    name: str, size: int
) -> None:
    whole = catalog.with_threshold(name, 0.25)
    made, shape = catalog.build(whole, 2), (3, size, size)
    single = parameter_count(describe(catalog.build(name, 1), shape))
    assert parameter_count(describe(made, shape)) == single < parameter_count(describe(catalog.build(name, 2), shape))
    assert has_two_scores(made)
    assert catalog.is_custom(whole)
    assert catalog.title(whole).endswith(" (threshold 0.25)")
    assert catalog.build(catalog.with_threshold(whole, 0.25), 2) == made
    assert with_classes(made, shape, 5, name).items == catalog.build(name, 5).items, "as a new head has them"


def test_a_run_s_own_file_has_its_single_output_already(tmp_path: Any) -> None:
    file = tmp_path / "network.json"
    file.write_text(catalog.file_copy("lenet?threshold=0.9", 2))
    assert catalog.is_same(str(file), "lenet?threshold=0.9", 2)
    assert catalog.is_same(f"{file}?threshold=0.9", "lenet?threshold=0.9", 2)
    assert catalog.title(f"{file}?threshold=0.9") == "lenet (threshold 0.9)"
    assert not catalog.is_same(str(file), "lenet", 2)


def test_a_zoo_s_network_keeps_its_outputs() -> None:
    with pytest.raises(
        BadRecipe, match=r"binary_cross_entropy': the layers of a zoo's network are not known .*timm:x; "
    ):
        catalog.with_threshold("timm:x", 0.5)
