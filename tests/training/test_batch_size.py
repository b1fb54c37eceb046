"""`batch_size = "auto"`: the search, what it counts as fitting, and a run that keeps what was found."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.config import Recipe, load_recipe
from imagenet_pipeline.errors import BadRecipe, OutOfRoom
from imagenet_pipeline.evaluation.evaluate import scoring_recipe
from imagenet_pipeline.processes import RankedProcess
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training import batch_size
from imagenet_pipeline.training.batch_size import Found, find_batch_size, largest, own_device
from imagenet_pipeline.training.data import records_of
from imagenet_pipeline.training.journal import Journal
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.lr_finder import find_rate
from imagenet_pipeline.training.resume import open_run
from imagenet_pipeline.training.schedule import highest_rate

TRAINED, REST = 1197, 300
MEGABYTE = 10**6


@given(st.integers(1, 10**7), st.integers(0, 10**7))
def test_the_largest_that_fits_is_found_to_within_an_eighth(most: int, capacity: int) -> None:
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= capacity

    found = largest(fits, most)
    wanted = min(most, capacity)
    assert found <= wanted <= found + found // batch_size.FINENESS
    assert (found == most) == (capacity >= most)
    assert all(1 <= count <= most for count in tried)
    assert len(tried) == len(set(tried)) <= 30


@pytest.mark.parametrize(
    ("devices", "gpus", "own"),
    [
        ("auto", 2, ["gpu:0", "gpu:1"]),
        ("auto", 0, ["cpu", "cpu"]),
        ("gpu:all", 2, ["gpu:0", "gpu:1"]),
        ("gpu", 2, ["gpu:0", "gpu:1"]),
        ("gpu:5,3", 8, ["gpu:5", "gpu:3"]),
        ("cpu:0,1", 0, ["cpu", "cpu"]),
    ],
)
def test_a_rank_tries_its_own_device(devices: str, gpus: int, own: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "gpus_seen", lambda _: gpus)
    ranks = [RankedProcess(rank, 2, rank, 2, launched=True) for rank in range(2)]
    assert [own_device(devices, rank) for rank in ranks] == own
    assert own_device(devices, RankedProcess()) == devices


@pytest.fixture
def tries(engine: Any, inline: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """`tries(capacity)`: the search is in this process, and steps of more images are out of memory; the batches tried.

    With `bytes_an_image` the process's peak grows by them instead, of `free_bytes`.
    """

    trained = engine.train_batch

    def feign(capacity: int = 10**9, bytes_an_image: int = 0, free_bytes: int = 10**15) -> list[int]:
        tried: list[int] = []

        @contextmanager
        def pool(workers: int) -> Iterator[Any]:
            yield inline

        def step(self: Any, images: Any, targets: Any, rate: float, seed: int, teacher: Any = None) -> None:
            if len(images) > capacity:
                raise OutOfRoom("out of memory")
            tried.append(len(images))
            if targets.ndim == 1:  # the plain engine knows no shares of classes
                trained(self, images, targets, rate, seed)

        monkeypatch.setattr(batch_size, "local_pool", pool)
        monkeypatch.setattr(engine, "train_batch", step)
        monkeypatch.setattr(batch_size, "available_memory_bytes", lambda: free_bytes)
        monkeypatch.setattr(batch_size, "_peak_bytes", lambda: max(tried, default=0) * bytes_an_image)
        return tried

    return feign


def search(recipe: Path, **keys: Any) -> Found:
    wanted = load_recipe(recipe, {"batch_size": "auto", **keys})
    return find_batch_size(wanted, records_of(wanted))


def test_the_batch_fits_with_a_margin_and_divides(recipe: Path, tries: Callable[..., list[int]]) -> None:
    tries(capacity=300)
    found = search(recipe)
    assert 300 * 7 / 8 * 16 / 17 - 16 <= found.images <= 300 * 16 / 17
    assert (found.images_a_device, found.limit) == (found.images, "memory")
    parts = search(recipe, accumulation=3, **{"augmentation.mixup": 0.2})
    assert parts.images % 6 == 0
    assert parts.images_a_device == parts.images // 3
    tries()
    assert search(recipe) == Found(TRAINED, TRAINED, "records")


def test_not_even_the_smallest_batch(recipe: Path, tries: Callable[..., list[int]]) -> None:
    tries(capacity=3)
    with pytest.raises(OutOfRoom, match=r"batch_size = 'auto': not even a batch of 4 images fits; lower input\.size"):
        search(recipe, accumulation=4)


def test_free_memory_is_the_bound_on_a_cpu(recipe: Path, tries: Callable[..., list[int]]) -> None:
    tried = tries(bytes_an_image=MEGABYTE, free_bytes=500 * MEGABYTE)
    found = search(recipe)
    assert 300 < found.images < 400  # a fifth is left free, a sixteenth is the margin, an eighth the fineness
    assert max(tried) <= 400


def test_slow_steps_are_not_tried_further_but_extrapolated(
    recipe: Path, tries: Callable[..., list[int]], engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "device_names", ("cpu",))
    monkeypatch.setattr(batch_size, "SECONDS_A_TRIAL", -1.0)
    tried = tries(bytes_an_image=MEGABYTE, free_bytes=500 * MEGABYTE)
    found = search(recipe).images
    assert 300 < found < 400
    # Two steps each: up to the first whose memory shows, and what was found with its margin.
    assert sorted(set(tried)) == [1, 2, 4, 8, 17, 34, 68, 136, found + found // 16]


def test_what_was_extrapolated_too_far_is_lowered(
    recipe: Path, tries: Callable[..., list[int]], engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "device_names", ("cpu",))
    monkeypatch.setattr(batch_size, "SECONDS_A_TRIAL", -1.0)
    tries(capacity=200, bytes_an_image=MEGABYTE, free_bytes=500 * MEGABYTE)
    assert 150 < search(recipe).images < 200


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in Journal(run).events() if event["event"] == kind]


def refuse(recipe: Recipe, data: DataSet) -> Found:
    raise AssertionError("a second search")


def test_a_run_says_and_keeps_what_was_found(
    recipe: Path,
    tries: Callable[..., list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries(capacity=128)
    auto = {"batch_size": "auto", "epochs": 1}
    with caplog.at_level(logging.INFO):
        run = open_run(recipe, auto, tmp_path / "run")
    run.resources.close()
    found = run.recipe.images_per_step
    assert run.steps_per_epoch == TRAINED // found
    said = f"batch_size = {found}: {found} images at a time on a device, limited by the memory; the learning rate stays"
    assert any(said in line for line in caplog.messages)
    (start,) = events(tmp_path / "run", "start")
    assert start["batch_size_found"] == {"images": found, "images_a_device": found, "limit": "memory"}
    assert start["recipe"]["batch_size"] == found
    assert load_recipe(tmp_path / "run" / "recipe.toml").batch_size == found

    monkeypatch.setattr(batch_size, "find_batch_size", refuse)
    again = open_run(recipe, auto, tmp_path / "run", "latest")  # nothing was saved: it begins again
    assert again.recipe.images_per_step == found
    train(again)
    resumed = open_run(recipe, {"epochs": 2}, tmp_path / "run", "latest")
    resumed.resources.close()
    assert resumed.recipe.images_per_step == found
    assert "batch_size" not in events(tmp_path / "run", "resume")[-1]["changes"]


def test_a_run_that_goes_on_keeps_its_batch_and_says_so(
    recipe: Path, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batch_size, "find_batch_size", refuse)
    train(open_run(recipe, {"batch_size": 300, "epochs": 1}, tmp_path / "run"))
    with caplog.at_level(logging.INFO):
        resumed = open_run(recipe, {"batch_size": "auto", "epochs": 2}, tmp_path / "run", "1")
    resumed.resources.close()
    assert resumed.recipe.images_per_step == 300
    assert "batch_size=auto: the run keeps its 300; only a new run looks" in caplog.text


def test_the_rate_follows_the_batch_where_the_recipe_says_of_which_it_is(
    recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = load_recipe(recipe, {"batch_size": "auto", "optimizer.reference_batch_size": 100})
    with caplog.at_level(logging.INFO):
        settled = Found(400, 400, "memory").settle(wanted)
    assert highest_rate(settled) == pytest.approx(0.2)
    assert "the learning rate, 0.05 for a batch of 100, becomes 0.2" in caplog.text


def test_a_batch_that_fits_but_has_no_room_for_repeats_is_refused(recipe: Path) -> None:
    wanted = load_recipe(recipe, {"batch_size": "auto", "loader.repeats": 5})
    assert Found(10, 10, "memory").settle(wanted).batch_size == 10
    with pytest.raises(BadRecipe, match=r"loader\.repeats.*at most half of batch_size, 8.*found 5"):
        Found(8, 8, "memory").settle(wanted)


def test_a_batch_of_all_images_is_warned_of(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    Found(300, 300, "records").settle(load_recipe(recipe, {"batch_size": "auto"}))
    (warning,) = [line for line in caplog.messages if line.startswith("warning: ")]
    assert "a single step" in warning
    assert warning.endswith("batch_size=30 makes ten steps of it")


def test_ranks_take_the_smallest_that_any_found(
    recipe: Path, go_together: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter((240, 120))
    monkeypatch.setattr(batch_size, "find_batch_size", lambda *_: Found(size := next(sizes), size // 2, "memory"))
    ends = go_together(2, recipe, tmp_path / "run", batch_size="auto", epochs=1)
    assert [end.step for end in ends] == [TRAINED // 120] * 2
    (start,) = events(tmp_path / "run", "start")
    assert start["batch_size_found"] == {"images": 120, "images_a_device": 60, "limit": "memory"}


def test_find_rate_looks_for_it_too_and_scoring_has_no_use_for_it(
    recipe: Path, tries: Callable[..., list[int]], drawn_run: Callable[..., Path]
) -> None:
    tried = tries(capacity=70)
    find_rate(load_recipe(recipe, {"batch_size": "auto"}), 1e-3, 1.0, 20, lambda *_: None)
    assert len(set(tried[-20:])) == 1
    assert 50 < tried[-1] < 70
    recipe_of_run = scoring_recipe(drawn_run("cat", "dog"), {"batch_size": "auto"}, "evaluate")
    with pytest.raises(BadRecipe, match=r"batch_size = 'auto': only the start of a training finds .* give a number"):
        recipe_of_run.images_per_step  # noqa: B018


def test_the_search_has_a_process_of_its_own_which_is_no_rank(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two ranks, whose DistributedDataParallel would wait for the other; Linux kills a process for its memory."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    wanted = load_recipe(recipe, {"batch_size": "auto", "devices": "cpu:0,1"})
    with batch_size._Trials(wanted.model_copy(update={"devices": "cpu"}), 2) as trials:
        assert trials.devices() == 1
        assert trials.fits(64)
        assert trials._pool is not None
        with pytest.raises(Exception, match="terminated abruptly"):
            trials._pool.submit(os.abort).result()
        assert not trials.fits(8)
        assert trials._pool is None
