"""Temperature scaling against a search by hand in float64; ranks stay, and other weights do not take it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from imagenet_pipeline.config import LossRecipe, load_run_recipe, recipe_text
from imagenet_pipeline.errors import BadInput, Damaged
from imagenet_pipeline.evaluation.calibration import FILE, least_loss, mean_loss, temperature_of
from imagenet_pipeline.evaluation.compare import examine
from imagenet_pipeline.evaluation.evaluate import calibrate, evaluate
from imagenet_pipeline.evaluation.predict import open_classifier
from imagenet_pipeline.evaluation.results import as_json, findings_of
from imagenet_pipeline.evaluation.scoring import tempered
from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint


def drawn(temperature: float, images: int = 20_000) -> tuple[Any, Any]:
    """Logits that are too large by a factor, and labels drawn by the probabilities without it."""
    random = np.random.default_rng(int(10 * temperature))
    true = 2 * random.standard_normal((images, 5))
    labels = (true + random.gumbel(size=true.shape)).argmax(axis=1)
    return true * temperature, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_that_of_a_search_by_hand_and_the_true_one(temperature: float) -> None:
    logits, labels = drawn(temperature)
    found = least_loss(logits, labels)
    # Bisection of the derivative by b = 1 / T: the mean of the expected logits less those of the labels.
    low, high = 1e-2, 1e2
    for _ in range(80):
        middle = (low + high) / 2
        p = np.exp(log_softmax(middle * logits, axis=1))
        slope = ((p * logits).sum(axis=1) - logits[np.arange(len(labels)), labels]).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    assert found == pytest.approx(1 / low, rel=1e-5)
    assert found == pytest.approx(temperature, rel=0.03)
    wanted = -log_softmax(logits / found, axis=1)[np.arange(len(labels)), labels].mean()
    assert mean_loss(logits, labels, found) == pytest.approx(wanted, rel=1e-12)


def test_of_log_probabilities_it_is_that_of_logits() -> None:
    logits, labels = drawn(1.7, 500)
    logs = log_softmax(logits, axis=1)
    assert least_loss(logs, labels) == pytest.approx(least_loss(logits, labels), rel=1e-6)
    np.testing.assert_allclose(tempered(logs, 1.7), log_softmax(logits / 1.7, axis=1), rtol=1e-12)


def test_where_every_image_is_right_or_nothing_is_known_no_temperature_fits() -> None:
    sure = 10 * np.eye(4)
    with pytest.raises(BadInput, match="no temperature fits: every image is right"):
        least_loss(sure, np.arange(4))
    with pytest.raises(BadInput, match="no temperature fits: the network is worse than a guess"):
        least_loss(sure, np.roll(np.arange(4), 1))


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_a_calibrated_run_has_other_probabilities_and_the_same_ranks(
    make_run: Callable[..., Path], tmp_path: Path, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "run", engine=engine)
    before = examine([run], split="train")
    photo = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    plain = open_classifier(run).probabilities([photo])[0]
    fitted, folder = calibrate(run, split="train")
    after = examine([run], split="train")
    np.testing.assert_array_equal(after.outcomes.top, before.outcomes.top)
    assert before.result.loss == pytest.approx(fitted.loss_before, rel=1e-6)
    assert after.result.loss == pytest.approx(fitted.loss_after, rel=1e-6)
    assert after.result.loss < before.result.loss
    figures = [findings_of(found).figures.calibration.error for found in (before, after)]
    assert figures == pytest.approx([fitted.error_before, fitted.error_after], abs=1e-6)
    content = as_json(findings_of(after))
    assert (content["temperature"], content["fitted_here"]) == (fitted.temperature, True)
    assert after.notes == [f"Probabilities are those at {fitted.words}: these very images, so loss and calibration "
                           "error are those of the fit"]  # fmt: skip
    assert not evaluate(run, split="test").fitted_here
    with caplog.at_level(logging.INFO):
        calibrated = open_classifier(run).probabilities([photo])[0]
    assert f"probabilities are those at {fitted.words}" in caplog.text
    np.testing.assert_allclose(np.log(calibrated), log_softmax(np.log(plain) / fitted.temperature), rtol=1e-6)
    for crops in (2, 10):
        tens = examine([run], split="train", crops=crops)  # type: ignore[arg-type]
        (folder / FILE).rename(folder / "aside")
        np.testing.assert_array_equal(tens.outcomes.top, examine([run], split="train", crops=crops).outcomes.top)  # type: ignore[arg-type]
        (folder / "aside").rename(folder / FILE)


@pytest.mark.pytorch
def test_another_loss_stays_that_of_the_outputs_themselves(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", engine="pytorch")
    hinge = load_run_recipe(run).model_copy(update={"loss": LossRecipe(kind="hinge")})
    (run / "recipe.toml").write_text(recipe_text(hinge))
    before = evaluate(run)
    calibrate(run, split="train")
    after = evaluate(run)
    assert (after.loss, after.rank1_hits) == (before.loss, before.rank1_hits)
    assert after.temperature


@pytest.mark.pytorch
def test_a_temperature_of_other_weights_is_not_used_and_a_damaged_one_is_a_line(
    make_run: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "run", engine="pytorch")
    _, folder = calibrate(run, split="train")
    kept = json.loads((folder / FILE).read_text())
    checkpoint = load_checkpoint(find_checkpoint(run, "best"))
    assert temperature_of(checkpoint) is not None
    (folder / FILE).write_text(json.dumps(kept | {"weights": "0" * 64}))
    assert temperature_of(checkpoint) is None
    assert "is of other weights: it is not used" in caplog.text
    for damaged in ({}, [], kept | {"temperature": 0}, kept | {"temperature": "x"}):
        (folder / FILE).write_text(json.dumps(damaged))
        with pytest.raises(Damaged, match="not a temperature"):
            temperature_of(checkpoint)
