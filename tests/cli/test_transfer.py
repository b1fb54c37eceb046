"""The verbs of transfer learning on trained digits: features, probe, ensembles, and a run that starts from another."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

Call = Callable[..., tuple[int, str, str]]


def answer(told: tuple[int, str, str]) -> dict[str, Any]:
    code, out, _ = told
    assert code == 0
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


def test_features_then_a_probe(world: Path, call: Call) -> None:
    file = world / "f.npz"
    told = answer(call("features", world / "run", "--layer", "classifier", "--out", file, "engine=pytorch", "--json"))
    assert told["images"] == {"train": 1197, "val": 300, "test": 300}
    assert (told["engine"], told["bytes"]) == ("pytorch", file.stat().st_size)
    found = answer(call("probe", file, "--json", "--out", world / "w.npz"))
    alone = answer(call("evaluate", world / "run", "--json"))
    assert found["splits"]["test"]["rank1"] > alone["rank1"]
    assert (found["features"], found["about"]["layer"]) == (10, "classifier")
    code, out, _ = call("probe", file, "--kind", "svm")
    assert code == 0
    assert "svm, C = " in out
    assert "of 300)" in out


def test_several_runs_are_scored_together_and_each_beside(world: Path, call: Call) -> None:
    again = shutil.copytree(world / "run", world / "again", symlinks=True)
    together = answer(call("evaluate", world / "run", again, "devices=cpu", "--json"))
    alone = answer(call("evaluate", world / "run", "--json"))
    assert together["rank1_hits"] == alone["rank1_hits"]
    assert [member["rank1"] for member in together["members"]] == [alone["rank1"]] * 2
    assert re.fullmatch(r"report-test-with-again-[0-9a-f]{6}\.html", Path(together["report"]).name)
    # The same one twice is one.
    assert answer(call("evaluate", world / "run", world / "run", "--json"))["checkpoint"] == alone["checkpoint"]
    code, out, _ = call("evaluate", world / "run", again)
    assert code == 0
    assert all(out.count(f"{run} ") == 1 and "epoch-000" in out for run in (world / "run", again))
    assert "2 runs together: 300 test images" in out


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_a_head_is_trained_alone_and_then_everything(
    engine: str, world: Path, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    run = world / f"tuned-{engine}"
    words = [
        f"initial.weights={world / 'run'}", "initial.new_head=true", f"engine={engine}", "epochs=2",
        "transfer.frozen.conv1=1", "transfer.frozen.conv2=2", "transfer.rates.classifier=2.0",
    ]  # fmt: skip
    with caplog.at_level(logging.INFO, "imagenet_pipeline"):
        code, _, _ = call("train", world / "recipe.toml", *words, "--run", run)
    assert code == 0
    assert "conv2: frozen for the first 2 epochs" in caplog.text
    assert "after 1 epoch: conv1 thawed; conv2 still frozen" in caplog.text
    first, one, two = (
        load((folder / "weights.safetensors").read_bytes())
        for folder in (
            world / "run" / "checkpoints" / "best", run / "checkpoints/epoch-0001", run / "checkpoints/epoch-0002",
        )
    )  # fmt: skip
    moved = {name: (np.any(one[name] != first[name]), np.any(two[name] != one[name])) for name in first}
    assert moved["conv1.weight"] == (False, True)
    assert moved["conv2.weight"] == moved["conv2.bias"] == (False, False)
    assert moved["classifier.weight"] == (True, True)
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert events[0]["initial_weights"]["new_layers"] == ["classifier"]
    assert events[0]["frozen"] == ["conv1", "conv2"]
    (thaw,) = [event for event in events if event["event"] == "thaw"]
    assert (thaw["epoch"], thaw["thawed"], thaw["frozen"]) == (1, ["conv1"], ["conv2"])


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["features", "{run}", "--layer", "conv3", "--out", "{place}/x"], 2, "did you mean conv"),
        (["features", "{place}/nowhere", "--layer", "conv1", "--out", "{place}/x"], 2, "nowhere"),
        (["features", "{run}", "--layer", "conv1", "--out", "{place}/x", "--splits", "all"], 2, "no split 'all'"),
        (["probe", "{place}/nowhere.npz"], 3, "cannot be read"),
        (["probe", "{place}/recipe.toml"], 3, "not a file of features"),
        (["probe", "{place}/recipe.toml", "--kind", "tree"], 2, "logistic or svm"),
        (["evaluate", "epochs=3"], 2, "no run is named"),
        (["evaluate", "{run}", "{place}/nowhere"], 2, "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    words: list[str], code: int, says: str, world: Path, call: Call
) -> None:
    found, out, err = call(*[word.format(run=world / "run", place=world) for word in words])
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
