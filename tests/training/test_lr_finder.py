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
from imagenet_pipeline.training.lr_finder import (
    SMOOTHING,
    TOO_HIGH,
    RateCurve,
    capped,
    curve_of,
    find_rate,
    mean_so_far,
    shown_losses,
    straight_lines,
)


def unseen(done: int, total: int, state: str) -> None:
    pass


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40))
def test_the_mean_so_far_weighs_the_latest_most(losses: list[float]) -> None:
    values = np.array(losses)
    means = [np.average(values[: n + 1], weights=SMOOTHING ** np.arange(n, -1, -1)) for n in range(len(values))]
    np.testing.assert_allclose(mean_so_far(values), means, rtol=1e-9, atol=1e-12)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.integers(1, 12))
def test_the_lines_are_those_of_weighted_least_squares(losses: list[float], reach: int) -> None:
    values, steps = np.array(losses), np.arange(len(losses))
    heights, slopes = straight_lines(values, reach)
    for step in steps:
        distance = steps - step
        weights = np.sqrt(np.maximum(0, 1 - (distance / (reach + 1)) ** 2))
        table = np.column_stack([np.ones(len(losses)), distance]) * weights[:, None]
        expected = np.linalg.lstsq(table, values * weights, rcond=None)[0]
        assert (heights[step], slopes[step]) == pytest.approx(tuple(expected), abs=1e-9)


@given(st.floats(0, 9), st.floats(-1, 1), st.integers(2, 40), st.integers(1, 12))
def test_a_straight_fall_is_followed_without_lag_to_either_end(
    height: float, slope: float, steps: int, reach: int
) -> None:
    losses = height + slope * np.arange(steps)
    heights, slopes = straight_lines(losses, reach)
    np.testing.assert_allclose(heights, losses, atol=1e-9)
    np.testing.assert_allclose(slopes, slope, atol=1e-9)


def falling(place: float, width: float, room: float, noise: float = 0.0, seed: int = 0) -> RateCurve:
    """A loss that falls fastest at the rate `place`, by a sigmoid of `width` decades, and explodes `room` later."""
    rates = np.geomspace(1e-6, 10, 100)
    position = np.log10(rates / place)
    losses = 2.3 - 1.8 / (1 + np.exp(-position / width)) + 0.3 * np.exp(6 * (position - room))
    losses *= 1 + noise * np.random.default_rng(seed).standard_normal(100)
    means = mean_so_far(losses)
    ended = np.flatnonzero(means > TOO_HIGH * np.minimum.accumulate(means))
    count = ended[0] + 1 if len(ended) else 100
    return curve_of(rates[:count], losses[:count], 100, 1.0, "as asked")


PLACES = st.floats(-5.2, 0.2).map(lambda power: 10**power)


@given(PLACES, st.floats(0.1, 0.3), st.floats(0.6, 2.0))
def test_the_suggestion_is_where_the_loss_falls_fastest(place: float, width: float, room: float) -> None:
    curve = falling(place, width, room)
    assert curve.suggestion is not None
    assert abs(np.log10(curve.suggestion / place)) < 0.25
    assert curve.suggestion < curve.rates[curve.smoothed.argmin()]


@given(PLACES, st.floats(0.1, 0.3), st.floats(0.6, 2.0), st.integers(0, 99))
def test_noise_moves_it_little(place: float, width: float, room: float, seed: int) -> None:
    curve = falling(place, width, room, 0.05, seed)
    assert curve.suggestion is not None
    assert abs(np.log10(curve.suggestion / place)) < 0.45
    assert curve.suggestion < curve.rates[curve.smoothed.argmin()]


@pytest.mark.parametrize("place", [1e-3, 3.2e-3, 1e-2])
def test_it_is_not_the_lowest_loss(place: float) -> None:
    curve = falling(place, 0.3, 0.8)
    lowest, smoothed_lowest = curve.rates[curve.losses.argmin()], curve.rates[curve.smoothed.argmin()]
    assert curve.suggestion == pytest.approx(place, rel=0.3)
    assert abs(np.log10(smoothed_lowest / lowest)) < 0.25


def test_an_explosion_does_not_reach_back() -> None:
    mild = falling(1e-2, 0.3, 1.0)
    wild = mild.losses.copy()
    wild[-1] = 1e6
    assert curve_of(mild.rates, wild, 100, 1.0, "").suggestion == mild.suggestion
    assert capped(wild, 10).max() == wild[:10].max()


def test_the_picture_shows_the_fall_and_not_the_explosion() -> None:
    curve = falling(1e-2, 0.3, 1.0, noise=0.1)
    losses = curve.losses.copy()
    losses[20] = 50.0  # one odd batch
    low, high = shown_losses(curve_of(curve.rates, losses, 100, 1.0, ""))
    last = int(curve.smoothed.argmin())
    assert low < losses.min()
    assert curve.smoothed.max() < high < 4 < losses.max()
    assert np.mean((losses[:last] > low) & (losses[:last] < high)) > 0.9


@pytest.mark.parametrize("losses", [[1.0, 2, 3, 4, 5, 6, 7, 8], [5.0] * 30, [3.0]])
def test_where_it_never_falls_there_is_no_suggestion(losses: list[float]) -> None:
    rates = np.geomspace(1e-3, 1, len(losses))
    assert curve_of(rates, np.array(losses), 20, 1.0, "").suggestion is None


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_it_finds_a_rate_that_trains(engine: str, recipe: Path) -> None:
    shown: list[tuple[int, int]] = []
    curve = find_rate(
        load_recipe(recipe, {"engine": engine, "optimizer.reference_batch_size": 60}), 1e-4, 100, 40,
        lambda done, total, state: shown.append((done, total)),
    )  # fmt: skip
    assert curve.suggestion is not None
    assert 1e-4 < curve.suggestion < curve.rates[curve.smoothed.argmin()] < 0.1
    assert curve.key_value == pytest.approx(curve.suggestion / 2)
    assert 10 < len(curve.losses) < 40
    assert "the loss" in curve.ended
    np.testing.assert_allclose(curve.rates, np.geomspace(1e-4, 100, 40)[: len(curve.losses)])
    np.testing.assert_allclose(curve.smoothed, straight_lines(capped(curve.losses, 4), 4)[0])
    assert curve.losses[0] == pytest.approx(np.log(10), rel=0.5)
    assert shown == [(step, 40) for step in range(1, len(shown) + 1)]


def test_rates_too_low_to_explode_are_tried_to_the_last(recipe: Path) -> None:
    curve = find_rate(load_recipe(recipe), 1e-5, 1e-2, 20, unseen)
    assert len(curve.losses) == 20
    assert curve.ended == "the highest rate, 0.01"


@pytest.mark.parametrize(
    ("lowest", "highest", "steps", "message"),
    [
        (0.1, 0.1, 50, "--to: not a range of learning rates; expected two rates above 0 that grow; found 0.1, 0.1"),
        (-1, 1, 50, "--from and --to"),
        (1, float("nan"), 50, "--from and --to"),
        (1e-3, 1, 19, "--steps: too few steps; expected at least 20; found 19"),
    ],
)
def test_a_range_without_rates_is_refused(
    recipe: Path, lowest: float, highest: float, steps: int, message: str
) -> None:
    with pytest.raises(BadRecipe, match=message):
        find_rate(load_recipe(recipe), lowest, highest, steps, unseen)


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(["find-rate", *map(str, words)])
    return int(end.value.code or 0), capsys.readouterr().out


def test_the_verb_draws_and_answers_and_leaves_no_run(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    common = (recipe, "--steps", 20, "--from", 1e-3, "--to", 0.1)
    code, text = answer(capsys, *common, "--out", "rates.png")
    assert code == 0
    assert "suggestion: optimizer.learning_rate=" in text
    assert "warning: 20 steps are few" in caplog.text
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
