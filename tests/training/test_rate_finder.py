"""The learning-rate finder: its smoothing and its rule by hand, and both engines on real records."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagenet_pipeline.cli import main
from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.training.rate_finder import SMOOTHING, find_rate, smoothed, steepest


def unseen(done: int, total: int, state: str) -> None:
    pass


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40))
def test_the_smoothed_loss_is_a_weighted_mean_of_those_so_far(losses: list[float]) -> None:
    values = np.array(losses)
    means = [np.average(values[: n + 1], weights=SMOOTHING ** np.arange(n, -1, -1)) for n in range(len(values))]
    np.testing.assert_allclose(smoothed(values), means, rtol=1e-9, atol=1e-12)


def test_the_suggestion_is_where_the_loss_falls_fastest_over_the_logarithm_of_the_rate() -> None:
    rates = np.geomspace(1e-6, 10, 141)
    position = np.log10(rates)
    losses = 2 - 1 / (1 + np.exp(-4 * (position + 2))) + 5 * np.exp(6 * position)
    assert steepest(rates, losses, 10) == pytest.approx(1e-2, rel=0.05)


def test_what_comes_first_or_after_the_lowest_loss_is_not_suggested() -> None:
    rates = np.geomspace(1e-3, 1, 7)
    assert steepest(rates, np.array([9.0, 2.0, 1.6, 1.5, 1.4, 0.9, 5.0]), 1) == pytest.approx(rates[5])
    assert steepest(rates, np.array([9.0, 2.0, 1.0, 0.9, 0.8, 0.7, 5.0]), 1) == pytest.approx(rates[2])
    assert steepest(rates, np.array([1.0, 2, 3, 4, 5, 6, 7]), 2) is None
    assert steepest(rates, np.array([9.0, 1, 3, 4, 5, 6, 7]), 2) is None


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_it_finds_a_rate_that_trains(engine: str, recipe: Path) -> None:
    shown: list[tuple[int, int]] = []
    curve = find_rate(
        load_recipe(recipe, {"engine": engine, "optimizer.reference_batch_size": 60}), 1e-4, 100, 40,
        lambda done, total, state: shown.append((done, total)),
    )  # fmt: skip
    assert curve.suggestion is not None
    assert 0.002 < curve.suggestion < 0.5
    assert curve.key_value == pytest.approx(curve.suggestion / 2)
    assert 10 < len(curve.losses) < 40
    assert "the loss" in curve.ended
    np.testing.assert_allclose(curve.rates, np.geomspace(1e-4, 100, 40)[: len(curve.losses)])
    np.testing.assert_allclose(curve.smoothed, smoothed(curve.losses))
    assert curve.losses[0] == pytest.approx(np.log(10), rel=0.5)
    assert shown == [(step, 40) for step in range(1, len(shown) + 1)]


def test_rates_too_low_to_explode_are_tried_to_the_last(recipe: Path) -> None:
    curve = find_rate(load_recipe(recipe), 1e-5, 1e-2, 20, unseen)
    assert len(curve.losses) == 20
    assert curve.ended == "the highest rate, 0.01"


@pytest.mark.parametrize(
    ("lowest", "highest", "steps", "message"),
    [
        (0.1, 0.1, 50, "--from and --to: .*two rates above 0 that grow; found 0.1, 0.1"),
        (-1, 1, 50, "--from and --to"),
        (1, float("nan"), 50, "--from and --to"),
        (1e-3, 1, 19, "--steps; expected at least 20; found 19"),
    ],
)
def test_a_range_without_rates_is_refused(
    recipe: Path, lowest: float, highest: float, steps: int, message: str
) -> None:
    with pytest.raises(BadRecipe, match=message.replace(": .*", "; expected ")):
        find_rate(load_recipe(recipe), lowest, highest, steps, unseen)


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(["find-rate", *map(str, words)])
    return int(end.value.code or 0), capsys.readouterr().out


def test_the_verb_draws_and_answers_and_leaves_no_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = (recipe, "--steps", 20, "--from", 1e-3, "--to", 0.1)
    code, text = answer(capsys, *common, "--out", "rates.png")
    assert code == 0
    assert "suggestion: optimizer.learning_rate=" in text
    assert Image.open(io.BytesIO((tmp_path / "rates.png").read_bytes())).format == "PNG"
    assert os.listdir(tmp_path) == ["rates.png"]
    code, text = answer(capsys, *common, "--json")
    found: dict[str, Any] = json.loads(text)
    assert found["key_value"] == found["suggestion"]
    assert len(found["losses"]) == 20


def test_a_loss_that_never_falls_is_told(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = answer(capsys, recipe, "--steps", 20, "--from", 30, "--to", 1e5)
    assert code == 1
    assert "never fell" in text


def test_another_kind_of_picture_is_refused_before_the_work(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, recipe, "--out", "rates.jpg")[0] == 2
