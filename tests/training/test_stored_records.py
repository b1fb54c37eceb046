"""Runs on records in object storage: the weights of a run on a folder, whatever the cache and wherever they stop."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.errors import BadRecipe, Damaged
from imagenet_pipeline.evaluation.compare import examine
from imagenet_pipeline.record_builders import digits
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint
from imagenet_pipeline.training.journal import Journal
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run

pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits, train in 8 shards."""
    folder = tmp_path_factory.mktemp("sharded")
    build(digits.plan(folder), folder, BuildOptions(resize=0, workers=1, shards=8))
    return folder


@pytest.fixture
def stored(sharded: Path, tmp_path: Path) -> dict[str, Any]:
    """Overrides that read them by an address, through a cache of 3 shards."""
    largest = max(shard.bytes for shard in read_data_set(sharded).manifest.splits["train"].shards)
    return {
        "records": f"file://{sharded}", "loader.cache": str(tmp_path / "cache"), "loader.cache_gb": 3 * largest / 1e9,
        "loader.threads": 2,
    }  # fmt: skip


def go(recipe: Path, folder: Path, resume: str | None = None, **overrides: Any) -> str:
    """Digest of the weights it ends with."""
    train(open_run(recipe, overrides, folder, resume))
    return load_checkpoint(find_checkpoint(folder, "latest")).weights_digest


def window(folder: Path) -> Any:
    return Journal(folder).events()[0]["recipe"]["loader"]["window_shards"]


def test_a_run_on_a_store_is_that_on_a_folder(
    recipe: Path, sharded: Path, stored: dict[str, Any], tmp_path: Path, engine: Any
) -> None:
    short = {"epochs": 1}
    whole = go(recipe, tmp_path / "whole", records=str(sharded), **short)
    assert window(tmp_path / "whole") == 0
    assert go(recipe, tmp_path / "all", **{**stored, **short, "loader.cache_gb": 0.0}) == whole
    shutil.rmtree(tmp_path / "cache")
    in_windows = go(recipe, tmp_path / "small", **stored, **short)
    assert window(tmp_path / "small") == 1
    assert in_windows != whole
    local = go(recipe, tmp_path / "local", records=str(sharded), **{"loader.window_shards": 1}, **short)
    assert local == in_windows


def test_a_restart_inside_an_epoch_keeps_the_order_with_another_cache_and_on_a_folder(
    recipe: Path, sharded: Path, stored: dict[str, Any], tmp_path: Path, plain: Any, go_together: Callable[..., Any]
) -> None:
    plain(1)
    expected = go(recipe, tmp_path / "unbroken", epochs=2, **stored)
    run = tmp_path / "run"
    changes: list[dict[str, Any]] = [
        stored, {"loader.cache_gb": 0.0}, {"records": str(sharded)}, {"records": stored["records"]}
    ]  # fmt: skip
    for start, overrides in enumerate(changes):
        named = {key.replace(".", "__"): value for key, value in overrides.items()}
        asked = {0: 4 if start < 3 else 99}
        (end,) = go_together(1, recipe, run, "latest" if start else None, asked, epochs=2, **named)
        assert end.finished == (start == 3), end
    assert load_checkpoint(find_checkpoint(run, "latest")).weights_digest == expected
    assert load_recipe(run / "recipe.toml").loader.window_shards == 1


def test_a_run_on_a_store_is_evaluated_through_its_cache(
    recipe: Path, sharded: Path, stored: dict[str, Any], tmp_path: Path
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    go(recipe, run, epochs=1, **stored)
    local = examine([run], split="test", records=sharded)
    for removed in ("*.rec", "*"):  # what the bound took away; the machine that evaluates is another
        for path in cache.glob(removed):
            path.unlink() if path.is_file() else shutil.rmtree(path)
        examination = examine([run], ["best", "latest"], "test")
        assert examination.data.name == stored["records"]
        for found in examination.evaluations:
            assert (found.rank1_hits, found.loss) == (local.evaluations[0].rank1_hits, local.evaluations[0].loss)
        assert [path.name for path in cache.glob("test*.rec")]
    examine([run], split="train")
    shards = {shard.file: shard.bytes for shard in examination.data.manifest.shards}
    assert sum(shards[path.name] for path in cache.glob("*.rec")) <= 1e9 * stored["loader.cache_gb"]


def test_an_order_that_a_restart_cannot_keep_is_refused(
    recipe: Path, sharded: Path, stored: dict[str, Any], tmp_path: Path, engine: Any
) -> None:
    run = tmp_path / "run"
    go(recipe, run, epochs=1, records=str(sharded))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(BadRecipe, match=r"loader\.cache_gb: the cache is too small for the 8 shards that are shuffled"):
        go(recipe, run, "latest", epochs=2, **stored)
    with pytest.raises(BadRecipe, match=r"'loader\.window_shards' cannot change within a run; expected 0; found 2"):
        go(recipe, run, "latest", epochs=2, **{"loader.window_shards": 2})
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_ranks_share_a_cache_and_train_as_one(
    recipe: Path, stored: dict[str, Any], tmp_path: Path, plain: Any, go_together: Callable[..., list[Any]]
) -> None:
    plain(1)
    one = go(recipe, tmp_path / "one", epochs=2, **stored)
    overrides = {key.replace(".", "__"): value for key, value in stored.items()}
    ends = go_together(2, recipe, tmp_path / "two", epochs=2, **overrides)
    assert all(getattr(end, "finished", False) for end in ends), "; ".join(map(repr, ends))
    assert load_checkpoint(find_checkpoint(tmp_path / "two", "latest")).weights_digest == one
    ends = go_together(2, recipe, tmp_path / "other", epochs=1,
                       **{**overrides, "loader__window_shards": lambda rank: 1 + rank})  # fmt: skip
    assert any("recipe key 'loader.window_shards'" in str(end) for end in ends)


def test_a_run_that_cannot_read_its_records_leaves_nothing_half(
    recipe: Path, sharded: Path, stored: dict[str, Any], tmp_path: Path, engine: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(sharded, tmp_path / "store")
    last = max((tmp_path / "store").glob("train*.rec"))
    last.write_bytes(last.read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged, match="other bytes than were put here"):
        go(recipe, run, epochs=1, **{**stored, "records": f"file://{tmp_path / 'store'}"})
    assert go(recipe, run, "latest", epochs=1, **stored) == go(recipe, tmp_path / "unbroken", epochs=1, **stored)


@pytest.mark.parametrize("secret", ["http://me:hunter2@127.0.0.1:1/set", "http://127.0.0.1:1/set?tok=hunter2"])
def test_a_run_keeps_no_secret(recipe: Path, tmp_path: Path, secret: str) -> None:
    with pytest.raises(BadRecipe, match=r"^http://127.0.0.1:1/set: a run keeps its recipe.*credentials") as caught:
        open_run(recipe, {"records": secret}, tmp_path / "run")
    assert "hunter2" not in str(caught.value)
    assert not (tmp_path / "run").exists()
