"""picture network, filters, activations and grad-cam from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenet_pipeline.config import InputRecipe, Recipe, recipe_text
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.training.checkpoint import State, save_checkpoint

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lenet of three classes that nobody trained, and two photos in its folder."""
    place, ids = tmp_path_factory.mktemp("run"), ("n1", "n2", "n3")
    recipe = Recipe(network="lenet", records="nowhere", devices="cpu", input=InputRecipe(size=28))
    (place / "recipe.toml").write_text(recipe_text(recipe))
    values = initial_values(catalog.entry("lenet").build(3), (3, 28, 28), "he", 1)
    state = State(
        1, 1, "lenet", 28, ids, ("tench", "church", "ship"), "wnid", (120.0,) * 3, (60.0,) * 3, "", "gluon", {}
    )
    save_checkpoint(place, state, values, {})
    random = np.random.default_rng(0)
    for name in ("a.png", "b=c.png"):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(place / name)
    return place


def test_a_network_as_dot(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("picture", "network", "alexnet", "--out", tmp_path / "a.dot", "--classes", 10)
    assert code == 0
    assert out.splitlines()[0].startswith("alexnet, 3x227x227: 56,9")
    code, out, _ = call(
        "picture", "network", "alexnet", "--out", tmp_path / "a.dot", "--input", 160, "--full", "--json"
    )
    assert (code, json.loads(out)["input_shape"]) == (0, [3, 160, 160])
    assert call("picture", "network", "alexnet", "--out", tmp_path / "a.txt")[0] == 2


def test_filters(call: Call, run: Path, tmp_path: Path) -> None:
    code, out, _ = call("picture", "filters", run, "--out", tmp_path / "f.png")
    assert (code, out.splitlines()[0]) == (0, "lenet, epoch-0001: 20 of the 20 filters of conv1")
    code, out, _ = call("picture", "filters", run, "--out", tmp_path / "f.png", "--layer", "conv2", "--json")
    assert (code, json.loads(out)["shape"]) == (0, [50, 20, 5, 5])
    code, _, err = call("picture", "filters", run, "--out", tmp_path / "f.png", "--layer", "relu1")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.gluon
def test_activations(call: Call, run: Path, tmp_path: Path) -> None:
    words = ["activations", run, run / "a.png", "--out", tmp_path / "a.png"]
    code, out, _ = call("picture", *words, "--layer", "conv1", "--channels", 3)
    assert (code, out.splitlines()[0]) == (0, "lenet, epoch-0001: 3 of the 20 channels of conv1")
    code, out, _ = call("picture", *words, "--layer", "dense1", "engine=gluon", "--json")
    assert (code, json.loads(out)["drawn"]) == (0, 500)
    code, _, err = call(
        "picture", "activations", run, run / "recipe.toml", "--out", tmp_path / "a.png", "--layer", "conv1"
    )
    assert (code, err.count("\n")) == (3, 1)


def test_grad_cam(call: Call, run: Path, tmp_path: Path) -> None:
    words = ["grad-cam", run, run / "a.png", run / "b=c.png", "--out", tmp_path / "g.png"]
    code, out, _ = call("picture", *words, "precision=float64", "--class", "church", "--json")
    answer = json.loads(out)
    assert (code, answer["layer"], answer["precision"]) == (0, "pool2", "float64")
    assert [(Path(one["image"]).name, one["class_id"]) for one in answer["images"]] == [
        ("a.png", "n2"),
        ("b=c.png", "n2"),
    ]
    code, out, _ = call("picture", *words)
    assert (code, len(out.splitlines())) == (0, 5)
    code, _, err = call("picture", *words, "--class", "cat")
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = call("picture", "grad-cam", run, "devices=cpu", "--out", tmp_path / "g.png")
    assert code == 2
    assert "no photo is named" in err


@pytest.mark.parametrize("verb", ["network", "filters", "activations", "grad-cam"])
def test_every_verb_has_help_with_an_example(call: Call, verb: str) -> None:
    code, out, _ = call("picture", verb, "--help")
    assert code == 0
    assert f"imagenet-pipeline picture {verb} " in out
