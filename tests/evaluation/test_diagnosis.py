"""The diagnosis: which of the four parts is at fault follows from exact counts, and never from chance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import imagenet_pipeline as ip
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.diagnosis import Finding, Score, compared, diagnose, gap, of_history
from imagenet_pipeline.evaluation.stats import rate
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.reader import RecordSet


def scores(**percent: float) -> list[Score]:
    return [Score(split, rate(round(100 * value), 10_000), 1.0) for split, value in percent.items()]


def found(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings if finding.found]


@pytest.mark.parametrize(
    ("percent", "names"),
    [
        ({"train": 60, "train_val": 59, "val": 58.5, "test": 58}, ["bias"]),
        ({"train": 99.5, "train_val": 80, "val": 79.5, "test": 79}, ["variance"]),
        ({"train": 99.5, "train_val": 99, "val": 80, "test": 80}, ["mismatch"]),
        ({"train": 99.5, "train_val": 99, "val": 98, "test": 80}, ["over-fitting to validation"]),
        ({"train": 70, "train_val": 60, "val": 50, "test": 40}, ["bias", "variance", "mismatch", "over-fitting to validation"]),  # noqa: E501
        ({"train": 99.5, "train_val": 99, "val": 99, "test": 99}, []),
        ({"train": 99.5, "val": 80}, ["variance"]),
        ({"train": 50}, ["bias"]),
    ],
)  # fmt: skip
def test_each_part_is_told_by_its_own_gap(percent: dict[str, float], names: list[str]) -> None:
    findings = compared(scores(**percent), 100.0)
    assert found(findings) == names
    assert all(bool(finding.advice) == finding.found for finding in findings)


def test_a_target_within_reach_is_no_bias() -> None:
    assert found(compared(scores(train=60, val=59), 60.0)) == []
    assert "train_val" in compared(scores(train=99, val=59), 100.0)[1].evidence


def test_records_without_train_are_a_line(drawn_run: Callable[..., Path], photo_records: Path) -> None:
    run = drawn_run(*read_data_set(photo_records).classes.ids)
    with pytest.raises(BadRecipe, match=r"no split 'train'.*expected one of test"):
        diagnose(run, records=photo_records / "test.rec")


def test_a_gap_of_few_images_is_chance() -> None:
    assert not gap(rate(19, 20), rate(17, 20)).counts
    assert gap(rate(950, 1000), rate(850, 1000)).counts
    # Newcombe (1998), table II, method 10: 56/70 and 48/80 differ by 0.2 (0.0524 to 0.3339).
    low, high = gap(rate(56, 70), rate(48, 80)).interval
    assert (low, high) == pytest.approx((5.24, 33.39), abs=0.01)


@given(st.integers(1, 500), st.integers(1, 500), st.data())
def test_the_interval_holds_the_difference_and_turns_with_it(n: int, m: int, data: st.DataObject) -> None:
    first, second = rate(data.draw(st.integers(0, n)), n), rate(data.draw(st.integers(0, m)), m)
    there, back = gap(first, second), gap(second, first)
    assert there.interval[0] <= there.points <= there.interval[1]
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]))


def history(train: list[float], validation: list[float], wait: float = 1.0) -> list[dict[str, float]]:
    columns = zip(train, validation, strict=True)
    return [
        {"epoch": n, "train_loss": t, "validation_loss": v, "wait_percent": wait, "seconds": 2.0}
        for n, (t, v) in enumerate(columns, 1)
    ]


def test_the_history_says_when_a_run_turned() -> None:
    assert found(of_history(history([2, 1.5, 1.2, 1.0, 0.8], [2, 1.5, 1.3, 1.2, 1.1]))) == ["still learning"]
    assert found(of_history(history([2, 1.5, 1, 0.5, 0.2], [2, 1.5, 1.3, 1.6, 2.1]))) == [
        "still learning",
        "over-fitting by epochs",
    ]
    assert found(of_history(history([1, 1, 1, 1], [1, 1, 1, 1], wait=40))) == ["waiting for data"]
    assert of_history(history([2, 1], [2, 1])) == []


def test_train_val_is_cut_out_of_train_by_any_builder(tmp_path: Path) -> None:
    ip.build("digits", out=tmp_path / "digits", train_val_fraction=0.25, workers=1)
    data = read_data_set(tmp_path / "digits")
    assert data.counts == {"train": 898, "train_val": 299, "val": 300, "test": 300}
    with RecordSet.of(data, "train") as train, RecordSet.of(data, "train_val") as apart:
        images = {bytes(train.read(position).image) for position in range(len(train))}
        assert not images & {bytes(apart.read(position).image) for position in range(len(apart))}
        assert set(apart.first_labels()) == set(range(10))
    with pytest.raises(BadInput, match="train-val-fraction"):
        ip.build("digits", out=tmp_path / "other", train_val_fraction=1.5)
