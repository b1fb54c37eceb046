"""timm's networks by name: trained, taken up again, scored, exported and started from a file like our own.

They need torchvision, and that one release of torch: `scripts/test.sh --long` runs them in an environment of their own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Blueprint, create_engine
from imagenet_pipeline.engines.pytorch import zoo as pytorch_zoo
from imagenet_pipeline.engines.pytorch.runtime import torch
from imagenet_pipeline.engines.zoos import ZooNetwork
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.averaging import average
from imagenet_pipeline.evaluation.evaluate import evaluate
from imagenet_pipeline.interchange.zoo_export import export_zoo
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run

pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="bash scripts/install_zoo.sh timm")

# Its stochastic depth and batch normalisation make two steps depend on everything there is to restore.
NETWORK, SMALL = "timm:test_efficientnet", ZooNetwork("timm", "test_efficientnet", 5)
SHAPE = (3, 32, 32)
FEED = ((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
MakeRecipe = Callable[..., Path]


def trained(recipe: Path, folder: Path, resume: str | None = None, **overrides: Any) -> Any:
    run = open_run(recipe, overrides, folder, resume)
    train(run)
    return run.engine


def started(recipe: Path, folder: Path, **overrides: Any) -> dict[str, Any]:
    run = open_run(recipe, {key.replace("__", "."): value for key, value in overrides.items()}, folder)
    run.resources.close()
    values: dict[str, Any] = run.engine.values()
    return values


def as_bytes(arrays: dict[str, Any]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def drawn(network: ZooNetwork, seed: int = 3) -> tuple[Any, dict[str, Any]]:
    module = pytorch_zoo.build(network, SHAPE, seed)
    return module, {name: tensor.detach().numpy() for name, tensor in pytorch_zoo.tensors(module).items()}


@pytest.mark.parametrize("network", [NETWORK, "timm:test_vit"])
def test_a_run_taken_up_again_ends_in_equal_bytes(make_recipe: MakeRecipe, tmp_path: Path, network: str) -> None:
    recipe = make_recipe(network, "pytorch")
    whole = trained(recipe, tmp_path / "whole")
    trained(recipe, tmp_path / "parts", epochs=1)
    torch.manual_seed(99)
    parts = trained(recipe, tmp_path / "parts", "latest", epochs=2)
    assert as_bytes(whole.values()) == as_bytes(parts.values())
    assert as_bytes(whole.optimizer_state()) == as_bytes(parts.optimizer_state())
    result = evaluate(tmp_path / "whole", "latest", "test", 1, None, {})
    assert (result.network, result.images) == (network, 3)
    assert np.isfinite(result.loss)


def test_the_mean_of_epochs_is_numpy_s(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Of a network without batch normalisation, whose statistics would have to be known."""
    trained(make_recipe("timm:test_vit", "pytorch"), tmp_path / "run")
    average([tmp_path / "run"], tmp_path / "mean", last=2)
    first, second, mean = (
        load_file(tmp_path / run / "checkpoints" / epoch / "weights.safetensors")
        for run, epoch in (("run", "epoch-0001"), ("run", "epoch-0002"), ("mean", "latest"))
    )
    assert all(np.allclose(value, (first[name] + second[name]) / 2, atol=1e-7) for name, value in mean.items())
    assert evaluate(tmp_path / "mean", "latest", "test", 1, None, {}).images == 3


def test_the_first_step_keeps_statistics_too() -> None:
    """The network is asked for scores while it is built; that must not leave it scoring."""
    blueprint = Blueprint(SMALL, 32, *FEED, Recipe(network="", records="", devices="cpu", precision="float32"))
    engine = create_engine("pytorch", blueprint, None)
    assert not engine.values()["bn1.running_mean"].any()
    engine.train_batch(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8), np.arange(4), 0.01, seed=0)
    assert engine.values()["bn1.running_mean"].any()


def test_the_seed_alone_decides_the_initial_values(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(NETWORK, "pytorch")
    first = as_bytes(started(recipe, tmp_path / "first"))
    torch.manual_seed(5)
    assert as_bytes(started(recipe, tmp_path / "again")) == first
    assert as_bytes(started(recipe, tmp_path / "other", seed=7)) != first


def test_weights_of_a_file_are_where_training_starts(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(NETWORK, "pytorch")
    values, file = started(recipe, tmp_path / "drawn", seed=7), tmp_path / "start.safetensors"
    save_file(values, file)
    assert as_bytes(started(recipe, tmp_path / "started", initial__weights=str(file))) == as_bytes(values)
    wide = np.ones((10, values["classifier.weight"].shape[1]), np.float32)
    save_file({**values, "classifier.weight": wide, "classifier.bias": np.zeros(10, np.float32)}, file)
    with pytest.raises(BadInput, match=r"another number of classes; expected 3; found 10; initial\.new_head=true"):
        started(recipe, tmp_path / "refused", initial__weights=str(file))
    start = {"initial__weights": str(file), "initial__new_head": True, "seed": 5}
    own, found = started(recipe, tmp_path / "own", seed=5), started(recipe, tmp_path / "new head", **start)
    head = ("classifier.weight", "classifier.bias")
    assert as_bytes(found) == as_bytes({name: (own if name in head else values)[name] for name in values})


@pytest.mark.parametrize("feed", [None, FEED])
def test_plain_timm_loads_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feed: Any) -> None:
    import timm
    from safetensors.torch import load_file

    module, values = drawn(SMALL)
    module.eval()
    weights, _ = export_zoo(SMALL, values, SHAPE, tmp_path / f"net{feed is None}", feed, "pytorch")
    theirs = timm.create_model("test_efficientnet", num_classes=5)
    theirs.load_state_dict(load_file(weights))
    monkeypatch.syspath_prepend(tmp_path)
    ours = importlib.import_module(f"net{feed is None}").load()
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (4, *SHAPE)).astype(np.float32))
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in feed or ((0.0,) * 3, (1.0,) * 3))
    with torch.no_grad():
        wanted = module((pixels - mean) / std)
        torch.testing.assert_close(theirs.eval()((pixels - mean) / std), wanted)
        torch.testing.assert_close(ours(pixels), wanted)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_onnx_runtime_computes_the_export(tmp_path: Path, name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network = ZooNetwork("timm", name, 5)
    module, values = drawn(network)
    module.eval()
    (file,) = export_zoo(network, values, SHAPE, tmp_path / "net", FEED, "onnx")
    pixels = np.random.default_rng(1).integers(0, 256, (3, *SHAPE)).astype(np.float32)
    found = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"images": pixels})[0]
    mean, std = (np.reshape(numbers, (-1, 1, 1)) for numbers in FEED)
    with torch.no_grad():
        wanted = module(torch.from_numpy(((pixels - mean) / std).astype(np.float32))).numpy()
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("form", ["torchscript", "torch-export"])
def test_programs_compute_the_same(tmp_path: Path, form: str) -> None:
    module, values = drawn(SMALL)
    (file,) = export_zoo(SMALL, values, SHAPE, tmp_path / "net", FEED, form)
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, *SHAPE)).astype(np.float32))
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in FEED)
    program = torch.jit.load(file) if form == "torchscript" else torch.export.load(file).module()
    with torch.no_grad():
        torch.testing.assert_close(program(pixels), module.eval()((pixels - mean) / std))


def test_a_form_of_the_other_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"cannot be written as mxnet; expected pytorch or onnx or .*; found mxnet"):
        export_zoo(SMALL, {}, SHAPE, tmp_path / "net", None, "mxnet")


def test_the_wrong_engine_is_named(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"engine = 'gluon': timm:.* runs on the pytorch engine alone.*engine=pytorch"):
        open_run(make_recipe(NETWORK, "gluon"), {}, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet_18", 32, "no classifier called 'resnet_18'; did you mean timm:resnet18 or "),
        ("hf-hub:timm/resnet18.a1_in1k", 32, "no classifier called 'hf-hub:timm/resnet18.a1_in1k'"),
        ("qqqq", 32, "networks timm: lists all 1"),
        (
            "resnet18.nobody",
            32,
            r"cannot be built for 5 classes and an input of \(3, 32, 32\) \(Invalid pretrained tag",
        ),
        ("inception_v3", 32, r"inception_v3 cannot be built .* \(.*[Kk]ernel size"),
    ],
)
def test_a_network_that_cannot_be_had_is_refused_in_one_line(name: str, size: int, message: str) -> None:
    with pytest.raises(BadRecipe, match=message) as caught:
        pytorch_zoo.build(ZooNetwork("timm", name, 5), (3, size, size), 0)
    assert "\n" not in str(caught.value)
