"""Processes that train together (threads here): one result for any number of them, one writer, one end."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.engines import Totals
from imagenet_pipeline.errors import BadInput, BadRecipe, OutOfRoom, WorkerLost
from imagenet_pipeline.training import checkpoint, resume
from imagenet_pipeline.training.distributed import (
    agreed,
    reduced,
    require_agreement,
    require_even_shares,
    settle,
    together,
)
from imagenet_pipeline.training.journal import Journal

Together = Callable[..., list[Any]]
CLOCK = ("images_per_second", "wait_percent", "seconds")


def weights(run: Path, name: str = "epoch-0002") -> bytes:
    return (run / "checkpoints" / name / "weights.safetensors").read_bytes()


def rows(run: Path) -> list[dict[str, Any]]:
    """The journal's epochs without what depends on the clock."""
    events = Journal(run).events()
    return [{k: v for k, v in one.items() if k not in CLOCK} for one in events if one["event"] == "epoch"]


@pytest.fixture(scope="module")
def short(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of 9 steps."""
    path = tmp_path_factory.mktemp("recipe") / "short.toml"
    path.write_text(recipe.read_text().replace("epochs = 4", "epochs = 2"))
    return path


@pytest.fixture(scope="module")
def alone(short: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"folder": tmp_path_factory.mktemp("alone") / "run"}


@pytest.fixture
def lone_run(short: Path, alone: dict[str, Path], go_together: Together) -> Path:
    """The run of one rank; look, do not touch."""
    if not alone["folder"].exists():
        (outcome,) = go_together(1, short, alone["folder"])
        assert outcome.finished
    return alone["folder"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_ends_in_equal_bytes_and_counts(
    ranks: int, lone_run: Path, short: Path, tmp_path: Path, go_together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers = set()
    rename = os.replace

    def noted(*words: Any) -> None:
        writers.add(threading.current_thread().name)
        rename(*words)

    monkeypatch.setattr(os, "replace", noted)
    outcomes = go_together(ranks, short, tmp_path / "run")
    assert all(outcome.finished for outcome in outcomes), outcomes
    assert len(writers) == 1
    assert weights(tmp_path / "run") == weights(lone_run)
    assert rows(tmp_path / "run") == rows(lone_run)
    assert len({json.dumps({k: v for k, v in one.metrics.items() if k not in CLOCK}) for one in outcomes}) == 1
    events = Journal(tmp_path / "run").events()
    assert [one["event"] for one in events] == ["start", "epoch", "epoch", "end"]


@pytest.mark.parametrize(("questions", "step"), [(10, 9), (14, 12)])
def test_a_run_goes_on_with_another_number_of_ranks(
    questions: int, step: int, lone_run: Path, short: Path, tmp_path: Path, go_together: Together
) -> None:
    """Asked to stop on one rank alone, all stop at that step, or in the validation after it; three take over from two.

    An epoch asks after each of its 9 steps, after the 2 whole batches of its validation, and at its end.
    """
    stopped = go_together(2, short, tmp_path, asked={1: questions})
    assert [(outcome.step, outcome.finished) for outcome in stopped] == [(step, False)] * 2
    assert all(outcome.finished for outcome in go_together(3, short, tmp_path, "latest"))
    assert weights(tmp_path) == weights(lone_run)
    assert rows(tmp_path) == rows(lone_run)


def test_averages_sizes_and_frozen_layers_over_ranks(short: Path, tmp_path: Path, go_together: Together) -> None:
    keys = {
        "average_decay": 0.9,
        "network": "resnet18",
        "input__start_size": 21,
        "input__grow_epochs": (0, 1),
        "input__evaluation_size": 35,
        "transfer__frozen": {"stage1": 1},
        "checkpoint__every_steps": 4,
    }
    for ranks in (1, 2):
        outcomes = go_together(ranks, short, tmp_path / str(ranks), **keys)
        assert all(outcome.finished for outcome in outcomes), outcomes
    assert weights(tmp_path / "1") == weights(tmp_path / "2")
    assert rows(tmp_path / "1") == rows(tmp_path / "2")


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("seed", lambda rank: 7 * (rank == 1), "rank 1 of 3: recipe key 'seed' differs from that of rank 0"),
        ("average_decay", lambda rank: 0.5 * (rank == 0), "rank 1, 2 of 3: recipe key 'average_decay' differs from"),
        ("loader__threads", lambda rank: rank, None),
    ],
)
def test_ranks_that_disagree_on_the_recipe(
    key: str, value: Any, what: str | None, short: Path, tmp_path: Path, go_together: Together
) -> None:
    ends = go_together(3, short, tmp_path / "run", epochs=1, **{key: value})
    if what is None:
        assert all(end.finished for end in ends)
        return
    assert {type(end) for end in ends} == {BadRecipe}
    assert {str(end).startswith(what) for end in ends} == {True}, ends
    assert not (tmp_path / "run").exists()


def test_ranks_that_disagree_on_the_records(
    short: Path, tmp_path: Path, go_together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = resume.records_of
    changed = {"records": lambda rank: "other" if rank == 1 else load_recipe(short).records}
    monkeypatch.setattr(
        resume,
        "records_of",
        lambda recipe: replace(read(load_recipe(short)), digest=recipe.records),
    )
    ends = go_together(2, short, tmp_path / "run", **changed)
    assert {str(end).partition(";")[0] for end in ends} == {
        "rank 1 of 2: the records' content differs from that of rank 0"
    }


class Two:
    """Half of a group of two, whose other half holds what is given."""

    ranks = 2
    device_names = ("one",)

    def __init__(self, rank: int, *others: list[float]) -> None:
        self.rank, self._others = rank, list(others)

    def sum_over_ranks(self, numbers: Any) -> Any:
        return numbers + np.array(self._others.pop(0))


def test_flags_are_true_everywhere_once_they_are_somewhere() -> None:
    engine: Any = Two(0, [0, 1, 0], [0, 0, 0])
    assert agreed(engine, True, False, False) == (True, True, False)
    assert agreed(engine, False, False, True) == (False, False, True)


def test_totals_are_added_batch_by_batch() -> None:
    engine: Any = Two(1, [4, 1, 2, 0.5, 1.25])
    total = reduced(engine, Totals(6, 2, 5, np.array([1.0, 2.0])))
    assert (total.images, total.rank1_hits, total.rank5_hits) == (10, 3, 7)
    assert total.step_losses.tolist() == [1.5, 3.25]


def test_other_versions_of_the_program_are_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Two(1, [5.0, 0.0])
    with pytest.raises(BadRecipe, match="rank 1 of 2: the version of this program differs from that of rank 0"):
        require_agreement(engine, {"a": "b"})


@pytest.mark.parametrize(
    ("ranks", "keys", "message"),
    [
        (1, {}, None),
        (3, {}, None),
        (
            7,
            {},
            "batch_size does not divide by the 7 processes that train together; expected a multiple of 7; found 120",
        ),
        (40, {}, None),
        (40, {"augmentation.mixup": 0.2}, "in pairs of images that are mixed; expected a multiple of 80; found 120"),
        (4, {"accumulation": 7}, "the batch of a process, batch_size / 4, does not divide by accumulation; expected a"),
        (1, {"accumulation": 7}, "the batch does not divide by accumulation; expected a multiple of 7; found 120"),
        (4, {"accumulation": 15}, None),
    ],
)
def test_a_batch_that_does_not_divide(ranks: int, keys: dict[str, Any], message: str | None, recipe: Path) -> None:
    engine: Any = Two(0)
    engine.ranks = ranks
    if message is None:
        require_even_shares(load_recipe(recipe, keys), engine)
        return
    with pytest.raises(BadRecipe, match=message):
        require_even_shares(load_recipe(recipe, keys), engine)


def test_a_run_whose_batch_does_not_divide_is_not_begun(recipe: Path, tmp_path: Path, go_together: Together) -> None:
    ends = go_together(2, recipe, tmp_path / "run", batch_size=121)
    assert {str(end).partition(";")[0] for end in ends} == {
        "batch_size does not divide by the 2 processes that train together"
    }
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("call", [3, 12])
def test_a_full_disk_of_rank_0_ends_every_rank(
    call: int, short: Path, tmp_path: Path, go_together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the run is opened, and at its first checkpoint."""
    sync, calls = os.fsync, [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        first, second = go_together(2, short, tmp_path)
    assert isinstance(first, OutOfRoom)
    assert isinstance(second, WorkerLost)
    assert str(second) == "another process of this run has failed; its own message says why"
    again = go_together(2, short, tmp_path, "latest" if (tmp_path / "journal.jsonl").exists() else None)
    assert all(end.finished for end in again)


def test_an_error_of_one_rank_is_raised_there_and_ends_the_other() -> None:
    engine: Any = Two(0, [0.0])
    with pytest.raises(BadInput, match="mine"), together(engine):
        raise BadInput("mine")
    engine = Two(1, [1.0])
    with pytest.raises(WorkerLost, match="another process of this run has failed"), together(engine):
        pass


def test_a_lone_device_has_nothing_to_settle() -> None:
    engine: Any = Two(0)
    engine.ranks = 1
    settle(engine)
    engine.device_names = ("one", "two")
    with pytest.raises(AttributeError):
        settle(engine)


def test_the_checkpoint_to_go_on_from_must_be_the_same(
    short: Path, tmp_path: Path, go_together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where ranks of several machines do not see the same folder."""
    go_together(1, short, tmp_path)
    find = resume.find_checkpoint
    calls: dict[str, int] = {}

    def other(run: Path, which: str) -> Path:
        name = threading.current_thread().name
        calls[name] = calls.get(name, 0) + 1
        return find(run, "1" if len(calls) == 2 and name == list(calls)[1] else which)

    monkeypatch.setattr(resume, "find_checkpoint", other)
    ends = go_together(2, short, tmp_path, "latest", epochs=3)
    assert {str(end).partition(";")[0].partition(": ")[2] for end in ends} == {
        "the checkpoint to go on from differs from that of rank 0"
    }
    assert checkpoint.find_checkpoint(tmp_path, "latest").name == "epoch-0002"
