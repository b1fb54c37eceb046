"""Exported PyTorch modules, in a Python that has torch and safetensors alone, give our engines' logits."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from imagenet_pipeline import __version__
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.torch_export import TAKEN_BY_TORCH, export_pytorch
from imagenet_pipeline.interchange.weights import read_weights, starting_values
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Concat, Conv, Layer, Residual, Sequential, Tap, stack, without_taps
from imagenet_pipeline.networks.shapes import parameters

NORMALISATION = ((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
LIMIT = 1e-5

ALONE = """
import sys
from pathlib import Path

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
sys.modules["imagenet_pipeline"] = sys.modules["mxnet"] = None

import importlib
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
for file in sorted(folder.glob("*.py")):
    network = importlib.import_module(file.stem).load()
    pixels = load_file(folder / "pixels" / f"{file.stem}.safetensors")["pixels"]
    with torch.no_grad():
        answer = {"one": network(pixels[:1]), "three": network(pixels)}
    state = {name: array for name, array in network.state_dict().items()}
    save_file({**answer, **{f"state.{name}": array.contiguous() for name, array in state.items()}},
              folder / "answers" / f"{file.stem}.safetensors")
"""


@pytest.fixture(scope="module")
def exported(samples: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every sample's export, and in answers/ what a Python with torch alone makes of its pixels."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "answers").mkdir()
    (folder / "pixels").mkdir()
    for name, sample in samples.items():
        for raw in (False, True) if name in ("every_layer", "resnet18") else (False,):
            out = folder / (f"{name}_raw" if raw else name)
            export_pytorch(sample.network, sample.values, sample.input_shape, out, None if raw else NORMALISATION)
            pixels = np.ascontiguousarray(sample.pixels(raw))
            save_file({"pixels": pixels}, folder / "pixels" / f"{out.name}.safetensors")
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", ALONE, str(folder)],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_network_gives_the_engines_logits(exported: Path, samples: Mapping[str, Any]) -> None:
    for name, sample in samples.items():
        for file in (exported / "answers").glob(f"{name}*.safetensors"):
            answer = load_file(file)
            if file.stem.removesuffix("_raw") == name:
                assert sample.difference(answer["one"]) <= LIMIT, (file.stem, sample.difference(answer["one"]))
                assert sample.difference(answer["three"]) <= LIMIT, (file.stem, sample.difference(answer["three"]))


def test_the_state_has_our_parameters_names_and_values(exported: Path, samples: Mapping[str, Any]) -> None:
    for name, sample in samples.items():
        answer = load_file(exported / "answers" / f"{name}.safetensors")
        state = {key.removeprefix("state."): value for key, value in answer.items() if key.startswith("state.")}
        wanted = set(parameters(without_taps(sample.network), sample.input_shape))
        assert {key for key in state if not key.endswith(".num_batches_tracked")} == wanted
        assert set(load_file(exported / f"{name}.safetensors")) == wanted
        for key in wanted:
            np.testing.assert_array_equal(state[key], sample.values[key])


def test_a_state_saved_by_torch_is_a_start_for_training(
    exported: Path, samples: Mapping[str, Any], tmp_path: Path
) -> None:
    sample = samples["resnet18"]
    module = runpy.run_path(str(exported / "resnet18.py"))["load"](exported / "resnet18.safetensors")
    with torch.no_grad():
        module.classifier.bias += 1
    save_file({name: array.numpy() for name, array in module.state_dict().items()}, tmp_path / "w")
    found = starting_values(
        tmp_path / "w", read_weights(tmp_path / "w"), sample.network, sample.input_shape, sample.values
    )
    np.testing.assert_array_equal(found["classifier.bias"], sample.values["classifier.bias"] + 1)


def test_recurring_units_are_written_once(exported: Path) -> None:
    text = (exported / "resnet18.py").read_text()
    assert "def residual1():\n    # stage1.unit1, stage1.unit2\n" in text
    assert text.count("Conv2d(64, 64, 3") == 2
    assert "class Concat" not in text
    assert "class Normalise" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", ["every_layer", "graph_layers", "layers_of_today"])
def test_the_text_is_as_it_was(name: str, exported: Path) -> None:
    golden = Path(__file__).with_name(f"{name}.txt").read_text().replace("VERSION", __version__)
    assert (exported / f"{name}.py").read_text() == golden


def test_training_again_moves_statistics_at_our_pace(exported: Path) -> None:
    module = runpy.run_path(str(exported / "every_layer.py"))["network"]()
    assert module.norm.momentum == pytest.approx(0.3)
    assert module.norm.eps == 1e-2


def test_training_again_leaves_a_frozen_normalisation_alone(exported: Path, samples: Mapping[str, Any]) -> None:
    module = runpy.run_path(str(exported / "graph_layers.py"))["load"](exported / "graph_layers.safetensors").train()
    before = {name: array.clone() for name, array in module.state_dict().items()}
    found = module(torch.tensor(samples["graph_layers"].pixels(False)))
    assert samples["graph_layers"].difference(found.detach().numpy()) <= LIMIT
    assert all(torch.equal(array, before[name]) for name, array in module.state_dict().items())


@pytest.mark.parametrize("name", ["resnet-18", "18", "class", "torch", "json"])
def test_a_name_python_cannot_import_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="not the name of a Python module"):
        export_pytorch(stack(), {}, (3, 4, 4), tmp_path / name, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["class", 'x=print("!")', "normalise", "type", "_modules"])
def test_a_layer_python_cannot_name_is_refused(name: str, tmp_path: Path) -> None:
    network = stack(join=Concat(((name, Sequential(())),))) if name != "normalise" else stack(normalise=Conv(1, 1))
    values = {"normalise.weight": np.ones((1, 3, 1, 1)), "normalise.bias": np.ones(1)} if name == "normalise" else {}
    with pytest.raises(BadRecipe, match="cannot name a layer"):
        export_pytorch(network, values, (3, 4, 4), tmp_path / "net", NORMALISATION)


def names_in(layer: Layer) -> set[str]:
    match layer:
        case Sequential(items) | Concat(items):
            return {name for name, _ in items}.union(*(names_in(item) for _, item in items))
        case Residual(body, shortcut):
            return names_in(body) | (names_in(shortcut) if shortcut else set())
        case Tap(head):
            return names_in(head)
        case _:
            return set()


def test_no_layer_of_the_catalogue_has_a_name_that_torch_uses_itself() -> None:
    taken = set(dir(torch.nn.Sequential())) | {"normalise", "shortcut"}
    assert {name for name in taken if name[0] != "_"} <= TAKEN_BY_TORCH | {"normalise", "shortcut"}
    for name in catalog.names():
        assert not names_in(catalog.entry(name).build(5)) & taken, name
