"""Workers of MXNet's distributed KVStore on this machine: they train as one, count exactly, and end with each other.

IMAGENET_PIPELINE_LONG=1 tries three workers with two servers, and scores with one, too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.evaluation.evaluate import evaluate
from imagenet_pipeline.record_builders import digits
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.lr_finder import find_rate
from imagenet_pipeline.training.resume import open_run

pytestmark = pytest.mark.gluon

HARNESS = Path(__file__).with_name("cluster_harness.py")
LONG = os.environ.get("IMAGENET_PIPELINE_LONG") == "1"
CLUSTERS = [(2, 1), (1, 1), (3, 2)] if LONG else [(2, 1)]
"""(workers, servers)."""
RECIPE = """
network = "lenet"
records = "{records}"
epochs = 1
batch_size = 120
devices = "cpu"
precision = "float64"
input.size = 28
augmentation = {{ crop = "random", pad = 2, flip = 0 }}
optimizer.learning_rate = 0.05
loader.threads = 0
"""

spec = importlib.util.spec_from_file_location("cluster_harness", HARNESS)
assert spec is not None
assert spec.loader is not None
harness = importlib.util.module_from_spec(spec)
spec.loader.exec_module(harness)


@dataclass
class Cluster:
    """What each worker left in `folder`, by rank."""

    workers: int
    folder: Path
    found: list[Any]
    told: list[Any]


def run_cluster(port: int, workers: int, servers: int, *words: object) -> tuple[list[int], list[str], float]:
    """Exit codes and stderr of the scheduler, the servers, the workers; seconds from the first end to the last."""
    counts = {"DMLC_NUM_WORKER": str(workers), "DMLC_NUM_SERVER": str(servers), "IMAGENET_PIPELINE_JOIN_SECONDS": "90"}
    root = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(port), "DMLC_NODE_HOST": "127.0.0.1"}
    repository = str(HARNESS.parents[3])
    environment = {**os.environ, **counts, **root, "OMP_NUM_THREADS": "1", "PYTHONPATH": repository}
    processes = [
        subprocess.Popen(
            [sys.executable, str(HARNESS), *map(str, words)],
            env=environment | {"DMLC_ROLE": role},
            stderr=subprocess.PIPE,
            text=True,
        )
        for role in ("scheduler", *["server"] * servers, *["worker"] * workers)
    ]
    try:
        until = time.monotonic() + 500
        while all(process.poll() is None for process in processes) and time.monotonic() < until:
            time.sleep(0.05)
        began = time.monotonic()
        lines = [process.communicate(timeout=150)[1] for process in processes]
        return [process.returncode for process in processes], lines, time.monotonic() - began
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    build(digits.plan(folder), folder, BuildOptions(resize=0, workers=1))
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(records=folder))
    return path


@pytest.fixture(scope="module", params=CLUSTERS, ids=lambda sizes: f"{sizes[0]} workers, {sizes[1]} servers")
def cluster(
    request: pytest.FixtureRequest, recipe: Path, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Cluster:
    """A cluster that did all of `cluster_harness.work`."""
    (workers, servers), folder = request.param, tmp_path_factory.mktemp("cluster")
    codes, lines, _ = run_cluster(free_port(), workers, servers, recipe, folder)
    assert codes == [0] * (1 + servers + workers), "".join(lines)
    told = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(workers)]
    return Cluster(workers, folder, [dict(np.load(folder / f"{rank}.npz")) for rank in range(workers)], told)


def test_the_ranks_are_those_from_0(cluster: Cluster) -> None:
    assert [told["ranks"] for told in cluster.told] == [cluster.workers] * cluster.workers
    assert [told["leads"] for told in cluster.told] == [True] + [False] * (cluster.workers - 1)


def test_sums_are_those_of_float64_in_the_order_of_the_ranks(cluster: Cluster) -> None:
    wanted = reduce(np.add, [harness.numbers_of(rank) for rank in range(cluster.workers)])
    for found in cluster.found:
        assert found["sums"].tobytes() == wanted.tobytes()
        assert found["no sums"].shape == (0,)


def test_all_workers_hold_the_same_to_the_last_bit(cluster: Cluster) -> None:
    first = cluster.found[0]
    for other in cluster.found[1:]:
        assert {key: value.tobytes() for key, value in other.items()} == {
            key: value.tobytes() for key, value in first.items()
        }


@pytest.mark.parametrize("case", [case for case in harness.CASES if case != "batch normalisation"])
def test_workers_train_as_one_where_nothing_is_normalised_by_batch(cluster: Cluster, case: str) -> None:
    network, _, precision = harness.CASES[case]
    alone = harness.stepped(harness.engine_of(network, "cpu", precision))
    limit = 1e-12 if precision == "float64" else 2e-5
    for name, wanted in (alone.values() | {"losses": alone.totals().step_losses}).items():
        found = cluster.found[0][f"{case}/{name}"]
        assert np.abs(found - wanted).max() < limit * np.abs(wanted).max(), name


def test_running_statistics_are_the_mean_of_the_workers(cluster: Cluster) -> None:
    contexts = ",".join(map(str, range(cluster.workers)))
    # A context normalises its own share, as a worker does.
    alone = harness.stepped(harness.engine_of(harness.NORMALISED, f"cpu:{contexts}", "float64"))
    for name, wanted in alone.values().items():
        found = cluster.found[0][f"batch normalisation/{name}"]
        assert np.abs(found - wanted).max() < 1e-6 * np.abs(wanted).max(), name  # MXNet's statistics are float32


def test_no_two_workers_draw_the_same_dropout(cluster: Cluster) -> None:
    alone = harness.stepped_alike(harness.engine_of(harness.THINNED, "cpu", "float64")).values()["head.weight"]
    difference = np.abs(cluster.found[0]["dropout/head.weight"] - alone).max() / np.abs(alone).max()
    assert difference > 0.01 if cluster.workers > 1 else difference == 0


def test_a_run_has_the_losses_and_counts_of_one_worker(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    alone = train(open_run(recipe, {}, tmp_path / "run")).metrics
    for told in cluster.told:
        found = told["trained"]["metrics"]
        for key in ("train_rank1", "train_rank5", "validation_rank1", "validation_rank5", "step"):
            assert found[key] == alone[key]
        for key in ("train_loss", "validation_loss"):
            assert found[key] == pytest.approx(alone[key], rel=1e-14)


def test_a_search_of_the_rate_and_a_benchmark_are_those_of_all_workers(cluster: Cluster, recipe: Path) -> None:
    alone = find_rate(load_recipe(recipe), 1e-4, 1.0, 20, lambda *_: None)
    assert alone is not None
    first, *others = cluster.told
    np.testing.assert_allclose(first["searched"], alone.losses, rtol=1e-12)
    assert first["measured"] == [cluster.workers, 120]
    assert {(told["searched"], told["measured"]) for told in others} <= {(None, None)}


def test_every_record_is_scored_once(cluster: Cluster) -> None:
    alone = evaluate(cluster.folder / "run", "latest")
    for told in cluster.told:
        scored = told["scored"]
        assert (scored["images"], scored["processes"]) == (300, cluster.workers)
        assert (scored["rank1_hits"], scored["rank5_hits"]) == (alone.rank1_hits, alone.rank5_hits)
        assert scored["loss"] == pytest.approx(alone.loss, rel=1e-12)


def test_a_worker_that_is_killed_ends_all_within_seconds_and_is_named(
    free_port: Callable[[], int], tmp_path: Path
) -> None:
    codes, lines, seconds = run_cluster(free_port(), 2, 1, "die", tmp_path)
    assert sorted(codes) == [-9, 6, 6, 6]
    assert seconds < 10
    for code, said in zip(codes, lines, strict=True):
        if code == 6:
            (error,) = [line for line in said.splitlines() if line.startswith("error")]
            assert error.startswith("error: worker 1 (127.0.0.1, process ")
            assert error.endswith(") is gone; start all again; training goes on with --resume latest")


@pytest.mark.parametrize("contexts", ["cpu:0", "cpu:0,1", "cpu:0,1,2,3"])
def test_any_number_of_contexts_trains_as_one(contexts: str) -> None:
    make: Callable[..., Any] = harness.engine_of
    one, several = (harness.stepped(make(harness.PLAIN, devices, "float64")) for devices in ("cpu", contexts))
    for name, wanted in one.values().items():
        assert np.abs(several.values()[name] - wanted).max() < 1e-12 * np.abs(wanted).max()
