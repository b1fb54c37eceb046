"""GluonCV's networks by name: trained, taken up again, scored, exported and started from a file like our own."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("imagenet_pipeline.engines.gluon.runtime")

from imagenet_pipeline.engines.gluon import zoo as gluon_zoo
from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.engines.zoos import ZooNetwork
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.evaluate import evaluate
from imagenet_pipeline.interchange.params import write_params
from imagenet_pipeline.interchange.script_recipe import recipe_of_command
from imagenet_pipeline.interchange.zoo_export import export_zoo
from imagenet_pipeline.networks.summary import network_table
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run
from imagenet_pipeline.training.schedule import learning_rate

pytestmark = pytest.mark.skipif(find_spec("gluoncv") is None, reason="bash scripts/install_zoo.sh gluoncv")

NETWORK = "gluoncv:cifar_resnet20_v1"
SHAPE = (3, 32, 32)
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


def test_a_run_taken_up_again_ends_in_equal_bytes(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(NETWORK, "gluon")
    whole = trained(recipe, tmp_path / "whole")
    trained(recipe, tmp_path / "parts", epochs=1)
    parts = trained(recipe, tmp_path / "parts", "latest", epochs=2)
    assert as_bytes(whole.values()) == as_bytes(parts.values())
    assert as_bytes(whole.optimizer_state()) == as_bytes(parts.optimizer_state())
    result = evaluate(tmp_path / "whole", "latest", "test", 1, None, {})
    assert (result.network, result.images) == (NETWORK, 3)
    assert np.isfinite(result.loss)


def test_the_seed_alone_decides_the_initial_values(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(NETWORK, "gluon")
    first = as_bytes(started(recipe, tmp_path / "first"))
    mx.random.seed(5)
    assert as_bytes(started(recipe, tmp_path / "two", devices="cpu:0,1")) == first
    assert as_bytes(started(recipe, tmp_path / "other", seed=7)) != first


def test_names_are_those_of_gluons_own_files(tmp_path: Path) -> None:
    built = gluon_zoo.build(ZooNetwork("gluoncv", "resnet18_v1b", 5), SHAPE)
    values = gluon_zoo.draw(built, 3)
    built.block.save_parameters(str(tmp_path / "theirs.params"))
    assert set(mx.nd.load(str(tmp_path / "theirs.params"))) == set(values)
    assert sum(values[name].size for name in values if "running" not in name) == 11_689_512 - 995 * 513


def test_weights_of_a_file_are_where_training_starts(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(NETWORK, "gluon")
    values, file = started(recipe, tmp_path / "drawn", seed=7), tmp_path / "start.params"
    write_params(file, values)
    assert as_bytes(started(recipe, tmp_path / "started", initial__weights=str(file))) == as_bytes(values)
    wide = np.ones((10, values["output.weight"].shape[1]), np.float32)
    write_params(file, {**values, "output.weight": wide, "output.bias": np.zeros(10, np.float32)})
    with pytest.raises(BadInput, match=r"another number of classes; expected 3; found 10; initial\.new_head=true"):
        started(recipe, tmp_path / "refused", initial__weights=str(file))
    start = {"initial__weights": str(file), "initial__new_head": True, "seed": 5}
    own, found = started(recipe, tmp_path / "own", seed=5), started(recipe, tmp_path / "new head", **start)
    head = ("output.weight", "output.bias")
    assert as_bytes(found) == as_bytes({name: (own if name in head else values)[name] for name in values})


@pytest.mark.parametrize("normalisation", [None, ((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))])
def test_stock_mxnet_loads_the_export(tmp_path: Path, normalisation: Any) -> None:
    network = ZooNetwork("gluoncv", "resnet18_v1b", 5)
    built = gluon_zoo.build(network, SHAPE)
    values = gluon_zoo.draw(built, 3)
    symbol, params = export_zoo(network, values, SHAPE, tmp_path / "net", normalisation, "mxnet")
    pixels = np.random.default_rng(1).integers(0, 256, (4, *SHAPE)).astype(np.float32)
    mean, std = (np.reshape(numbers, (-1, 1, 1)) for numbers in normalisation or ((0,) * 3, (1,) * 3))
    wanted = built.block(mx.nd.array((pixels - mean) / std)).asnumpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Cannot decide type")
        loaded = mx.gluon.SymbolBlock.imports(str(symbol), ["data"], str(params))
    np.testing.assert_allclose(loaded(mx.nd.array(pixels)).asnumpy(), wanted, rtol=1e-5, atol=1e-5)
    graph, *values_of = mx.model.load_checkpoint(str(tmp_path / "net"), 0)
    module = mx.mod.Module(graph, label_names=None)
    module.bind([("data", pixels.shape)], for_training=False)
    module.set_params(*values_of)
    module.forward(mx.io.DataBatch([mx.nd.array(pixels)]))
    np.testing.assert_allclose(module.get_outputs()[0].asnumpy(), wanted, rtol=1e-5, atol=1e-5)


def test_a_form_of_the_other_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="gluoncv:alexnet cannot be written as onnx; expected mxnet; found onnx"):
        export_zoo(ZooNetwork("gluoncv", "alexnet", 5), {}, SHAPE, tmp_path / "net", None, "onnx")


def test_the_wrong_engine_is_named(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"engine = 'pytorch': gluoncv:.* runs on the gluon engine alone.*engine=gluon"):
        open_run(make_recipe(NETWORK, "pytorch"), {}, tmp_path / "run")
    trained(make_recipe(NETWORK, "gluon"), tmp_path / "begun", epochs=1)
    with pytest.raises(BadRecipe, match="runs on the gluon engine alone"):
        open_run(make_recipe(NETWORK, "pytorch"), {}, tmp_path / "begun", "latest")


@pytest.mark.parametrize(
    ("name", "classes", "size", "message"),
    [
        ("resnet18v1b", 5, 64, r"no classifier called 'resnet18v1b'; did you mean gluoncv:resnet18_v1b or "),
        ("ssd_512_resnet50_v1_voc", 5, 64, "no classifier called"),
        ("qqqq", 5, 64, "networks gluoncv: lists all 12"),
        (
            "alexnet",
            5,
            32,
            r"alexnet cannot be built for 5 classes and an input of \(3, 32, 32\) \(kernel size \(3\) exc",
        ),
        ("hrnet_w18_small_v1_c", 5, 64, r"no classifier of 5 classes; expected .*\(n, 5\); found \(n, 1000\)"),
        ("resnet50_v1b_gn", 5, 64, "cannot be built"),
    ],
)
def test_a_network_that_cannot_be_had_is_refused_in_one_line(name: str, classes: int, size: int, message: str) -> None:
    with pytest.raises(BadRecipe, match=message) as caught:
        gluon_zoo.build(ZooNetwork("gluoncv", name, classes), (3, size, size))
    assert "\n" not in str(caught.value)


def test_pytorch_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """GluonCV cannot be imported beside PyTorch 2; hiding it leaves no trace."""
    torch = pytest.importorskip("torch")
    for name in [name for name in sys.modules if name.partition(".")[0] == "gluoncv"]:
        monkeypatch.delitem(sys.modules, name)
    assert "resnet50_v1d" in gluon_zoo.names()
    assert sys.modules["torch"] is torch


def test_a_library_that_is_not_there_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gluon_zoo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadRecipe, match=r"gluoncv is not installed .*; bash scripts/install_zoo\.sh gluoncv"):
        gluon_zoo.names()


@pytest.mark.parametrize("name", ["resnet18_v1", "resnet50_v1d", "squeezenet1.1", "densenet121"])
def test_networks_that_a_command_line_is_given_for_have_as_many_parameters(name: str) -> None:
    ours = recipe_of_command(f"python train_imagenet.py --model {name}").recipe.network
    trained_numbers = gluon_zoo.shapes(ZooNetwork("gluoncv", name, 10), (3, 224, 224))[1]
    assert network_table(ours, 10, 224).parameters == trained_numbers


@pytest.mark.parametrize("mode", ["step", "poly", "cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_a_command_line_s_rate_is_gluoncv_s(mode: str, warmup: int) -> None:
    gluon_zoo.names()  # imports GluonCV quietly
    from gluoncv.utils.lr_scheduler import LRScheduler, LRSequential

    epochs, steps, rate = 10, 50, 0.4
    flags = f"--lr {rate} --lr-mode {mode} --num-epochs {epochs} --warmup-epochs {warmup} --lr-decay-epoch 4,7"
    recipe = recipe_of_command(f"python train_imagenet.py --model resnet18_v1 {flags}").recipe
    # As the script builds it.
    theirs = LRSequential(
        [
            LRScheduler("linear", base_lr=0, target_lr=rate, nepochs=warmup, iters_per_epoch=steps),
            LRScheduler(
                mode, base_lr=rate, target_lr=0, nepochs=epochs - warmup, iters_per_epoch=steps,
                step_epoch=[4 - warmup, 7 - warmup], step_factor=0.1, power=2,
            ),
        ]
    )  # fmt: skip
    for step in range(epochs * steps):
        # Theirs ends a step earlier, and rises from 0, ours from the first step on.
        assert learning_rate(recipe, step, steps) == pytest.approx(theirs(step), abs=rate / steps)
