"""Pieces of shards: the same bytes wherever shards are cut, and what is finished of them is not made again."""

from __future__ import annotations

import csv
import shutil
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records import pieces, shard
from imagenet_pipeline.records.build import BuildOptions, build, shard_tasks
from imagenet_pipeline.records.pieces import Join, pieces_of, steps_of
from imagenet_pipeline.records.plan import Plan
from imagenet_pipeline.records.tasks import Task, run_tasks

OPTIONS = BuildOptions(resize=32, shards=2, workers=1)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of three photos at most: shards of nine train photos have three, those of six two."""
    monkeypatch.setattr(pieces, "PIECE_IMAGES", 3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def own_photos(plan: Plan, folder: Path) -> Plan:
    return replace(plan, root=Path(shutil.copytree(plan.root, folder / "photos")))


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(size=st.integers(1, 20), workers=st.integers(1, 4), shards=st.sampled_from([1, 2, 5]))
def test_the_bytes_depend_neither_on_the_size_of_pieces_nor_on_workers(
    size: int, workers: int, shards: int, small_plan: Plan, tmp_path_factory: pytest.TempPathFactory, inline: Executor
) -> None:
    place = tmp_path_factory.mktemp("pieces")
    options = replace(OPTIONS, shards=shards, workers=workers)
    build(small_plan, place / "whole", options, executor=inline)
    calls: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(workers) as threads:
        patch.setattr(pieces, "PIECE_IMAGES", size)
        build(small_plan, place / "cut", options, lambda *call: calls.append(call), threads)
    assert contents(place / "cut") == contents(place / "whole")
    assert calls[-1] == (30, 30)
    assert calls == sorted(calls)


def test_worker_processes_share_a_shard(small_plan: Plan, data_set: Path, tmp_path: Path, small_pieces: None) -> None:
    build(small_plan, tmp_path, replace(OPTIONS, workers=2))
    assert contents(tmp_path) == contents(data_set)


@pytest.mark.parametrize("last", ["train-00000-of-00002.3-6", "train-00000-of-00002", "val"])
def test_finished_pieces_of_a_killed_build_are_not_made_again(
    last: str,
    small_plan: Plan,
    data_set: Path,
    tmp_path: Path,
    inline: Executor,
    small_pieces: None,
    made: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed when a piece, or a shard, is written and not yet marked."""

    def killed(task: Task, *rest: Any, **options: Any) -> None:
        if task.name == last:
            raise KeyboardInterrupt
        commit(task, *rest, **options)

    commit = shard.commit
    with monkeypatch.context() as patch:
        patch.setattr(shard, "commit", killed)
        patch.setattr(pieces, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            build(small_plan, tmp_path, OPTIONS, executor=inline)
    before = len(made)
    build(small_plan, tmp_path, OPTIONS, executor=inline)
    again = [name for name in made[before:] if name in made[:before]]
    assert again == ([last] if last in made[:before] else [])
    assert contents(tmp_path) == contents(data_set)


@pytest.mark.parametrize("ending", [".rec", ".idx"])
def test_a_piece_that_lost_bytes_with_the_power_is_made_again(
    ending: str, small_plan: Plan, data_set: Path, tmp_path: Path, inline: Executor, small_pieces: None
) -> None:
    def stop(done: int, _: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(small_plan, tmp_path, OPTIONS, stop, inline)
    piece = tmp_path / ".building" / f"train-00000-of-00002.3-6{ending}"
    piece.write_bytes(bytes(piece.stat().st_size))
    build(small_plan, tmp_path, OPTIONS, executor=inline)
    assert contents(tmp_path) == contents(data_set)


def test_rejects_stop_the_build_within_a_shard_and_are_listed_in_order(
    small_plan: Plan, tmp_path: Path, inline: Executor, small_pieces: None, made: list[str]
) -> None:
    plan = own_photos(small_plan, tmp_path)
    for name in ("2.jpg", "7.jpg", "11.jpg"):
        (plan.root / name).write_bytes(b"none")
    with pytest.raises(BadInput, match=r"at most 1; found 2 so far, first 2\.jpg"):
        build(plan, tmp_path / "out", replace(OPTIONS, max_rejects=1), executor=inline)
    assert made == [f"train-00000-of-00002.{start}-{start + 3}" for start in (0, 3, 6)]
    options = replace(OPTIONS, max_rejects=3)
    assert build(plan, tmp_path / "out", options, executor=inline).rejected["train"] == 3
    rows = list(csv.reader((tmp_path / "out" / "rejects.csv").read_text().splitlines()))
    assert [row[1] for row in rows[1:]] == ["2.jpg", "7.jpg", "11.jpg"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_IMAGES", 100)
        build(plan, tmp_path / "whole", options, executor=inline)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_damaged_shard_is_remade_from_pieces(
    small_plan: Plan, data_set: Path, tmp_path: Path, inline: Executor, small_pieces: None, made: list[str]
) -> None:
    out = Path(shutil.copytree(data_set, tmp_path / "set"))
    (out / "val.rec").write_bytes(b"damaged")
    assert build(small_plan, out, OPTIONS, executor=inline).remade == ["val.rec"]
    assert made == ["val.0-3", "val.3-6"]
    assert contents(out) == contents(data_set)


def test_pieces_go_when_their_shard_is_joined_and_joining_twice_is_no_fault(
    small_plan: Plan, tmp_path: Path, small_pieces: None
) -> None:
    building = tmp_path / ".building"
    _, tasks, pending = steps_of(shard_tasks(small_plan, tmp_path, building, OPTIONS, "key")[0])
    assert [*tasks] == pending
    *cut, join = tasks
    assert isinstance(join, Join)
    assert [piece.make() for piece in cut] == [0, 0, 0]
    assert len(list(building.glob("*.rec"))) == 3
    for _ in range(2):
        assert join.make() == 0
        assert [path.name for path in building.iterdir()] == ["train-00000-of-00002.json"]
    _, tasks, pending = steps_of(shard_tasks(small_plan, tmp_path, building, OPTIONS, "key")[0])
    assert (len(tasks), pending) == (1, [])


def test_shards_that_are_copied_are_not_cut(small_plan: Plan, tmp_path: Path, small_pieces: None) -> None:
    whole = shard_tasks(small_plan, tmp_path, tmp_path, OPTIONS, "key")[0]
    assert len(pieces_of(whole)) == 3
    copied = replace(whole, pass_through=True, mean_every=5)
    assert pieces_of(copied) == [copied]


def test_tasks_begin_in_order_but_for_those_that_wait() -> None:
    begun: list[str] = []
    futures: dict[str, Future[int]] = {}

    class Slow(Executor):
        def submit(self, make: Any, /, task: Task) -> Future[int]:  # type: ignore[override]
            begun.append(task.name)
            futures[task.name] = Future()
            if task.name in "bdk":  # these end, with all before
                for future in futures.values():
                    if not future.done():
                        future.set_result(0)
            return futures[task.name]

    after = {"j": frozenset("ab"), "k": frozenset("j")}
    tasks = [Task("", name, "train", Path(), after=after.get(name, frozenset())) for name in "abjkcd"]
    assert run_tasks(lambda task: 0, tasks, tasks, (Slow(), lambda: 3), 0, None) == 0
    assert begun[:3] == ["a", "b", "c"]
    assert begun.index("j") < begun.index("k")
    assert sorted(begun) == sorted("abjkcd")
