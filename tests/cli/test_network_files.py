"""A network of no catalogue, from its import on: moved, trained on, fine-tuned, exported and looked into."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.interchange.frozen import Imported
from imagenet_pipeline.networks.graph import arrange
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Elementwise,
    Flatten,
    Graph,
    Join,
    Layer,
    Pool,
)
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.training.checkpoint import find_checkpoint, load_checkpoint
from imagenet_pipeline.training.imported import make_run, numbered_classes

Call = Callable[..., tuple[int, str, str]]
ITEMS: dict[str, tuple[Layer, tuple[str, ...]]] = {
    "conv1": (Conv(8, 5, 2), ("",)),
    "norm1": (BatchNorm(), ("conv1",)),
    "a": (Conv(8, 3, pad=1), ("norm1",)),
    "b": (Activation("relu"), ("a",)),
    "plus": (Elementwise("add"), ("b", "norm1")),
    "both": (Join(), ("plus", "a")),
    "pool": (Pool("max", 2, 2), ("both",)),
    "flat": (Flatten(), ("pool",)),
}
LINKS = (*(links for _, links in ITEMS.values()), ("flat",))


def imported(classes: int) -> Imported:
    """A network that adds and joins, as an importer gives it."""
    items = (*((name, layer) for name, (layer, _) in ITEMS.items()), ("scores", Dense(classes)))
    network = arrange(Graph(items, LINKS))
    values = initial_values(network, (3, 28, 28), "he", 5)
    return Imported("strange", classes, 28, values, None, layers=network, crop_fraction=1.0)


def answer(told: tuple[int, str, str]) -> dict[str, Any]:
    code, out, error = told
    assert code == 0, error
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    """The run of an imported network, moved after it was made."""
    data = read_data_set(world / "digits")
    make_run(world / "made", imported(10), data.classes, (data.mean, data.std), data, {"files": {}})
    return Path(shutil.move(world / "made", world / "elsewhere"))


def test_the_run_keeps_the_network_in_itself_and_in_each_checkpoint(run: Path, call: Call) -> None:
    assert 'network = "network.json"' in (run / "recipe.toml").read_text()
    assert "crop_fraction = 1.0" in (run / "recipe.toml").read_text()
    checkpoint = load_checkpoint(find_checkpoint(run, "latest"))
    assert checkpoint.state.network == str(checkpoint.folder / "network.json")
    assert checkpoint.state.network_name == "strange"
    assert (run / "network.json").read_bytes() == (checkpoint.folder / "network.json").read_bytes()
    table = answer(call("networks", run / "network.json", "--json"))
    assert (table["name"], table["classes"], table["input_shape"]) == ("strange", 10, [3, 28, 28])
    assert table["parameters"] == 8 * 75 + 8 + 16 + 8 * 72 + 8 + 10 * 16 * 36 + 10


def test_a_checkpoint_whose_network_was_changed_is_damaged(run: Path, tmp_path: Path, call: Call) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy", symlinks=True))
    file = find_checkpoint(copy, "latest") / "network.json"
    file.write_text(file.read_text().replace('"relu"', '"tanh"'))
    code, _, error = call("evaluate", copy)
    assert code == 4
    assert "network.json: the file has changed since it was written" in error
    file.unlink()
    assert call("evaluate", copy)[0] == 4


def test_it_is_scored_resumed_and_looked_into(run: Path, world: Path, tmp_path: Path, call: Call) -> None:
    first = answer(call("evaluate", run, "--json"))
    assert (first["network"], first["images"]) == ("strange", 300)
    code, _, error = call(
        "train", run, "--resume", "latest", "epochs=1", "loader.threads=0", "optimizer.learning_rate=0.03"
    )
    assert code == 0, error
    after = load_checkpoint(find_checkpoint(run, "1"))
    assert after.state.network_name == "strange"
    assert answer(call("evaluate", run, "--json"))["rank1"] > first["rank1"]
    told = answer(call("features", run, "--layer", "flat", "--out", tmp_path / "f.npz", "--json"))
    assert (told["network"], told["shape"]) == ("strange", [576])
    photo = tmp_path / "photo.png"
    import cv2

    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    assert call("predict", run, photo)[0] == 0
    told = answer(call("picture", "grad-cam", run, photo, "--out", tmp_path / "cam.png", "--json"))
    assert told["network"] == "strange"


def test_its_diagram_and_its_exports(run: Path, tmp_path: Path, call: Call) -> None:
    for what in (run, run / "network.json"):
        assert answer(call("picture", "network", what, "--out", tmp_path / "n.dot", "--json"))["network"] == "strange"
    for form in ("mxnet", "onnx", "pytorch"):
        assert answer(call("export", run, "--format", form, "--out", tmp_path / form, "--json"))["network"] == "strange"


def test_it_is_fine_tuned_for_other_classes(world: Path, tmp_path: Path, call: Call) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    make_run(run, imported(7), numbered_classes(7), ((0.0,) * 3, (255.0,) * 3), None, {"files": {}})
    recipe = (world / "recipe.toml").read_text().replace('"lenet"', '"network.json"')
    (tmp_path / "recipe.toml").write_text(recipe)
    shutil.copy(run / "network.json", tmp_path)
    given = (f"initial.weights={run}", "transfer.frozen.conv1=1", "epochs=1")
    code, _, error = call("train", tmp_path / "recipe.toml", "--run", other, *given)
    assert code == 3
    assert "trained for another number of classes; expected 10; found 7; initial.new_head=true" in error
    code, _, error = call("train", tmp_path / "recipe.toml", "--run", other, *given, "initial.new_head=true")
    assert code == 0, error
    begun, tuned = (load_checkpoint(find_checkpoint(folder, "latest")).weights for folder in (run, other))
    assert (begun["conv1.weight"] == tuned["conv1.weight"]).all()
    assert (len(begun["scores.weight"]), len(tuned["scores.weight"])) == (7, 10)
    (tmp_path / "network.json").unlink()  # the run has its own
    assert call("train", other, "--resume", "latest", "epochs=2")[0] == 0
    assert answer(call("networks", other / "network.json", "--json"))["classes"] == 10


def test_a_resumed_run_takes_no_other_network(run: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "other.json"
    file.write_text((run / "network.json").read_text().replace('"relu"', '"tanh"'))
    code, _, error = call("train", run, "--resume", "latest", f"network={file}", "epochs=9")
    assert code == 3
    assert "the checkpoint is of another network" in error
    code, _, error = call("train", run, "--resume", "latest", "network=lenet", "epochs=9")
    assert code == 2
    assert "'network' cannot change within a run" in error


def test_a_network_of_the_catalogue_is_written_changed_and_trained(world: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "mine.json"
    told = answer(call("networks", "lenet", "--classes", 10, "--out", file, "--json"))
    assert told == {"file": str(file), "network": "lenet", "classes": 10, "input_size": 28}
    file.write_text(
        file.read_text().replace('"channels": 20', '"channels": 6').replace('"name": "lenet"', '"name": "s"')
    )
    override = (f"network={file}", "epochs=1", "engine=pytorch")
    code, _, error = call("train", world / "recipe.toml", "--run", tmp_path / "run", *override)
    assert code == 0, error
    file.unlink()
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    code, _, error = call("train", world / "recipe.toml", "--run", moved, "--resume", "latest", "epochs=2")
    assert code == 0, error
    assert "6, 3, 5, 5" in str(load_checkpoint(find_checkpoint(Path(moved), "2")).weights["conv1.weight"].shape)
    code, _, error = call("networks", file)
    assert code == 3
    assert f"{file}: cannot be read" in error
