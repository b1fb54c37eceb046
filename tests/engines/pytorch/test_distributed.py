"""Several processes do what one does: gradients, statistics, counts, and how they part."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.engines.pytorch import distributed as ranks_of_pytorch
from imagenet_pipeline.errors import WorkerLost
from imagenet_pipeline.record_builders import digits
from imagenet_pipeline.records.build import BuildOptions, build

Arrays = dict[str, Any]
Found = Callable[[str, int], list[Arrays]]
SCENARIOS = [
    "plain:1,2,4", "accumulated:1,2", "sharpened:1,2", "frozen:1,2", "normalised:1,2",
    "synchronised:1,2,3", "slender:1,2", "compressed:2", "dropping:2", "summed:3", "differing:3",
    "scoring:1,2,3", "measured:1,2", "lost:3",
]  # fmt: skip


def run_scenarios(folder: Path, records: Path, scenarios: list[str], warnings: str = "error") -> None:
    program = Path(__file__).with_name("rank_processes.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK_RECORDS": str(records)}
    command = [sys.executable, "-W", warnings, str(program), str(folder), *scenarios]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=600)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    build(digits.plan(folder), folder, BuildOptions(resize=0, workers=1))
    return folder


@pytest.fixture(scope="module")
def found(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """`found(scenario, ranks)`: what each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    run_scenarios(folder, records, SCENARIOS)

    def read(scenario: str, ranks: int) -> list[Arrays]:
        files = [folder / f"{scenario}-{ranks}-{rank}.npz" for rank in range(ranks)]
        return [dict(np.load(file)) for file in files if file.exists()]

    return read


@pytest.mark.parametrize(
    ("scenario", "ranks"),
    [
        ("plain", 2),
        ("plain", 4),
        ("accumulated", 2),
        ("sharpened", 2),
        ("frozen", 2),
        ("synchronised", 2),
        ("synchronised", 3),
    ],
)
def test_ranks_step_as_one_process_does(found: Found, scenario: str, ranks: int) -> None:
    """In float64, so that what is left is the order of additions: taps, accumulation, clipping, frozen layers.

    And normalisation over all ranks, whose running statistics are those of the whole batch, too.
    """
    (alone,), together = found(scenario, 1), found(scenario, ranks)
    assert len(together) == ranks
    for one in together:
        assert one.keys() == alone.keys()
        for name, value in alone.items():
            np.testing.assert_allclose(one[name], value, rtol=1e-12, atol=1e-14, err_msg=name)
            np.testing.assert_array_equal(one[name], together[0][name])  # ranks stay equal to the last bit


def test_gradients_lie_as_the_weights_do(found: Found) -> None:
    """Where strides differ PyTorch warns, which is an error here, and copies each gradient once more."""
    (alone,), ranks = found("slender", 1), found("slender", 2)
    names = [name for name in alone if name.startswith("strides/")]
    assert {"strides/point.weight", "strides/depth.weight", "strides/grey.weight"} < set(names)
    for one in ranks:
        for name in names:
            np.testing.assert_array_equal(*one[name], err_msg=name)
        np.testing.assert_allclose(one["losses"], alone["losses"], rtol=1e-5)


def test_compressed_gradients_are_rounded_and_the_same_on_all_ranks(found: Found) -> None:
    """Two roundings to 8 bits, and the sum's: a step is a hundredth off at most, and a little off for sure."""
    (exact,), (first, second) = found("plain", 1), found("compressed", 2)
    for name in (name for name in exact if name != "losses"):
        np.testing.assert_array_equal(first[name], second[name])
        off = np.linalg.norm(first[name] - exact[name]) / np.linalg.norm(exact[name] - first[f"before/{name}"])
        assert 1e-6 < off < 0.02, name


def test_running_statistics_are_the_mean_over_ranks(found: Found) -> None:
    (alone,), ranks = found("normalised", 1), found("normalised", 2)
    own = [one["own"] for one in ranks]
    assert not np.array_equal(*own)
    for one in ranks:
        np.testing.assert_allclose(one["norm.running_mean"], np.mean(own, 0), rtol=1e-15)
        # Shares have as many images, so the mean of means is the batch's (a variance has none such).
        np.testing.assert_allclose(one["norm.running_mean"], alone["norm.running_mean"], rtol=1e-12)
        np.testing.assert_allclose(one["average/norm.running_mean"], alone["average/norm.running_mean"], rtol=1e-12)
        np.testing.assert_array_equal(one["again/norm.running_mean"], one["norm.running_mean"])
        np.testing.assert_array_equal(one["norm.running_var"], ranks[0]["norm.running_var"])


def test_each_rank_drops_other_units(found: Found) -> None:
    first, second = found("dropping", 2)
    assert first["loss"] != second["loss"]


def test_sums_are_exact_and_the_same_everywhere(found: Found) -> None:
    ranks = found("summed", 3)
    assert [one["ranks"].tolist() for one in ranks] == [[0, 3], [1, 3], [2, 3]]
    wanted = np.sum([one["numbers"] for one in ranks], 0)
    for one in ranks:
        np.testing.assert_array_equal(one["sums"][[0, 2]], wanted[[0, 2]])
        assert one["sums"][1] == ranks[0]["sums"][1] == pytest.approx(wanted[1])


def test_ranks_that_start_from_different_weights_all_say_so(found: Found) -> None:
    errors = [str(one["error"]) for one in found("differing", 3)]
    assert len(errors) == 3
    assert {error.partition(";")[0] for error in errors} == {
        "rank 2 of 3: the weights to start from differ from those of rank 0"
    }


def test_a_search_of_the_rate_goes_as_that_of_one_process(found: Found) -> None:
    (alone,), (first, second) = found("measured", 1), found("measured", 2)
    assert len(alone["losses"]) > 5
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-12)
    assert first["suggestion"] == alone["suggestion"]
    assert second["said"].tolist() == [True, True]


def test_a_benchmark_is_that_of_all_processes(found: Found) -> None:
    assert found("measured", 1)[0]["speed"].tolist() == [1, 60]
    assert found("measured", 2)[0]["speed"].tolist() == [2, 60]


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_record_is_scored_once(found: Found, ranks: int) -> None:
    (alone,), together = found("scoring", 1), found("scoring", ranks)
    assert alone["counts"][0] == 300
    seen = np.concatenate([one["records"] for one in together])
    assert sorted(seen.tolist()) == sorted(alone["records"].tolist())
    for one in together:
        assert one["counts"].tolist() == alone["counts"].tolist()
        assert one["loss"] == pytest.approx(alone["loss"], rel=1e-12)


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_has_the_outcome_of_every_record(found: Found, ranks: int) -> None:
    (alone,), together = found("scoring", 1), found("scoring", ranks)
    names = [name for name in alone if name.startswith("outcomes/")]
    assert len(names) == 5
    right = alone["outcomes/top"] == alone["outcomes/labels"][:, None]
    assert [300, right[:, 0].sum(), right.any(axis=1).sum()] == alone["counts"].tolist()
    for one in together:
        for name in names:
            if alone[name].dtype == np.int64:
                np.testing.assert_array_equal(one[name], alone[name])
            np.testing.assert_allclose(one[name], alone[name], rtol=1e-12)
            np.testing.assert_array_equal(one[name], together[0][name])


def test_the_others_notice_at_once_when_a_rank_is_killed(found: Found) -> None:
    ranks = found("lost", 3)
    assert len(ranks) == 2
    for number, one in enumerate(ranks):
        assert one["seconds"] < 10
        assert len(one["said"]) == 2
        assert all(line.startswith(f"rank {number} has lost another rank") for line in one["said"])


def test_nothing_is_exchanged_once_a_rank_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gloo waits, once in some hundred times, for as long as its patience lasts in what follows a failed exchange."""
    monkeypatch.setattr(ranks_of_pytorch, "_lost", threading.Event())
    calls = []

    @ranks_of_pytorch.naming_lost_ranks
    def exchange(message: str) -> None:
        calls.append(message)
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="an error of its own"):
        exchange("an error of its own")
    for message in ("gloo: connection closed by peer", "never said"):
        with pytest.raises(WorkerLost, match="rank 0 has lost another rank"):
            exchange(message)
    assert calls == ["an error of its own", "gloo: connection closed by peer"]


@pytest.mark.skipif(not os.environ.get("IMAGENET_PIPELINE_LONG"), reason="compiles: IMAGENET_PIPELINE_LONG=1 runs it")
def test_compiled_ranks_step_as_one_process_does(records: Path, tmp_path: Path) -> None:
    # PyTorch's compiler imports what warns of PyTorch's own age.
    run_scenarios(tmp_path, records, ["plain:1", "compiled:2"], warnings="ignore::DeprecationWarning")
    rank = np.load(tmp_path / "compiled-2-1.npz")
    assert rank["losses"] == pytest.approx(np.load(tmp_path / "plain-1-0.npz")["losses"][:3], rel=1e-9)
