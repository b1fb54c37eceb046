"""Networks of one's own in a recipe, from the file to the export: files in TOML, tables, short forms and options."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import load_recipe
from imagenet_pipeline.networks.layer_file import read_network
from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint

Call = Callable[..., tuple[int, str, str]]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "networks.md"
RECIPE = """
network = "mine.toml"
records = "{records}"
epochs = 2
batch_size = 10
devices = "cpu"
[input]
size = 28
[optimizer]
learning_rate = 0.005
[loader]
threads = 0
"""
FILE = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.M | re.S)[0]
"""The example that the documentation gives."""


def answer(told: tuple[int, str, str]) -> dict[str, Any]:
    code, out, error = told
    assert code == 0, error
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


@pytest.fixture
def recipe(photo_records: Path, tmp_path: Path) -> Path:
    """A recipe whose network is a file beside it; 30 images of 6 classes, 3 steps an epoch."""
    (tmp_path / "mine.toml").write_text(FILE)
    text = RECIPE.format(records=photo_records)
    (tmp_path / "recipe.toml").write_text(text)
    return tmp_path / "recipe.toml"


def weights(run: Path, epoch: str) -> Any:
    return load_checkpoint(find_checkpoint(run, epoch)).weights


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_a_file_with_options_is_trained_resumed_scored_drawn_and_exported(
    engine: str, recipe: Path, tmp_path: Path, call: Call
) -> None:
    run, options = tmp_path / "run", ("network_options.width=2", "network_options.dropout=0.1")
    given = ("--run", run, f"engine={engine}", *options)
    code, _, error = call("train", recipe, *given, "epochs=1", "network_options.activation=swish")
    assert code == 0, error
    assert weights(run, "1")["conv1.weight"].shape == (32, 3, 5, 5)
    kept = tomllib.loads((run / "recipe.toml").read_text())
    assert (kept["network"], kept["network_options"]["width"]) == ("network.json", 1.0)
    # The same words again; then, the file gone, none at all.
    code, _, error = call("train", recipe, *given, "epochs=2", "--resume", "latest")
    assert code == 0, error
    (tmp_path / "mine.toml").unlink()
    code, _, error = call("train", run, "--resume", "latest", "epochs=3")
    assert code == 0, error
    assert "conv1.weight" in weights(run, "3")
    network = read_network(run / "network.json")
    assert [type(layer).__name__ for _, layer in network.layers.items].count("Activation") == 2
    assert (network.classes, network.name) == (6, "mine (dropout 0.1, activation swish, width 2)")
    assert answer(call("evaluate", run, "--json"))["images"] == 12
    for form in ("mxnet", "onnx", "pytorch"):
        assert answer(call("export", run, "--format", form, "--out", tmp_path / form, "--json"))["files"]
    assert answer(call("picture", "network", run, "--out", tmp_path / "n.dot", "--json"))["classes"] == 6
    code, _, error = call("train", run, "--resume", "latest", "epochs=4", "network_options.width=2")
    assert (code, "the checkpoint is of another network" in error) == (3, True)


def test_a_table_and_a_file_and_a_short_form_are_the_same_network(recipe: Path, tmp_path: Path, call: Call) -> None:
    table = tomllib.loads(FILE)
    text = recipe.read_text().replace('network = "mine.toml"', "")
    lines = "\n".join(f"{key} = {value!r}" for key, value in table.items() if key != "layers")
    layers = FILE[FILE.index("layers") :]
    (tmp_path / "table.toml").write_text(f"{text}\n[network]\n{lines}\n{layers}")
    whole = load_recipe(tmp_path / "table.toml").whole_network
    assert load_recipe(load_recipe(tmp_path / "table.toml")).whole_network == whole
    told = [answer(call("networks", name, "--classes", 10, "--json")) for name in (whole, tmp_path / "mine.toml")]
    assert told[0]["layers"] == told[1]["layers"]
    code, _, error = call("train", tmp_path / "table.toml", "--run", tmp_path / "run", "epochs=1", "engine=pytorch")
    assert code == 0, error
    assert 'network = "network.json"' in (tmp_path / "run" / "recipe.toml").read_text()
    given = ("network=mlp:16", "network_options.dropout=0.2", "epochs=1", "engine=pytorch")
    code, _, error = call("train", recipe, "--run", tmp_path / "mlp", *given)
    assert code == 0, error
    assert "dropout1" in (tmp_path / "mlp" / "network.json").read_text()
    assert call("train", recipe, "--run", tmp_path / "mlp", "--resume", "latest", "epochs=2")[0] == 0


def test_a_head_of_one_s_own_is_trained_on_a_frozen_base(world: Path, tmp_path: Path, call: Call) -> None:
    head = 'base = "lenet"\nuntil = "pool2"\ninput_size = 28\nlayers = ["Flatten", {layer="Dense", units=6}, "Dense"]'
    (tmp_path / "head.toml").write_text(head)
    run = tmp_path / "run"
    given = (f"network={tmp_path / 'head.toml'}", f"initial.weights={world / 'run'}", "epochs=1", "engine=pytorch")
    frozen = ("transfer.frozen.conv1=9", "transfer.frozen.conv2=9")
    code, _, error = call("train", world / "recipe.toml", "--run", run, *given, *frozen)
    assert code == 3
    assert "the checkpoint is of another network" in error
    code, _, error = call("train", world / "recipe.toml", "--run", run, *given, *frozen, "initial.new_head=true")
    assert code == 0, error
    before, after = weights(world / "run", "best"), weights(run, "1")
    assert all(np.array_equal(before[name], after[name]) for name in after if name.startswith("conv"))
    assert after["dense1.weight"].shape == (6, 800)
    start = json.loads((run / "journal.jsonl").read_text().splitlines()[0])
    assert start["initial_weights"]["new_layers"] == ["dense1", "classifier"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["network=mlp:12,x"], 2, "expected widths of dense layers, as in mlp:512,512"),
        (["network=networks/mlp_124.toml"], 2, "no such network file; did you mean networks/mlp_1024.toml"),
        (["network=networks/mlp_1024"], 2, "no network is called .*; did you mean networks/mlp_1024.toml"),
        (['network={layers=["Flaten", "Dense"]}'], 2, "network: layer flaten1: 'layer' is wrong.*did you mean Flatten"),
        (["network={}"], 2, "network: 'layers' is wrong; expected a value"),
        (["network_options.dropout=1"], 2, "network_options.dropout"),
        (["network=lenet", "network_options.dropout=0.5"], 2, "the network has no Dropout"),
        (["network=lenet", "network_options.stem=cifar"], 2, "the network has no layer called stem"),
        (["epochs=2", "steps=10"], 2, "two lengths of the run; expected epochs or steps; found steps=10 epochs=2"),
        (["network=gluoncv:resnet18_v1b", "network_options.width=2"], 2, "no option can change them"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_no_run(
    words: list[str], code: int, said: str, recipe: Path, tmp_path: Path, call: Call
) -> None:
    told = call("train", recipe, "--run", tmp_path / "run", "engine=pytorch", *words)
    assert told[0] == code
    assert re.search(said, told[2]), told[2]
    assert told[2].count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_no_option_of_a_network_is_one_line(call: Call) -> None:
    code, _, error = call("networks", "lenet", "epochs=3")
    assert (code, error.count("\n")) == (2, 1)
    assert "no option of a network is called 'epochs'; expected dropout or " in error
    code, _, error = call("networks", "lenet", "network_options.droput=0.3")
    assert code == 2
    assert "did you mean dropout" in error
