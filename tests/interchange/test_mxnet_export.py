"""What we export, in stock MXNet's hands."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("imagenet_pipeline.engines.gluon.runtime")

from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.interchange.network_symbol import export_mxnet, symbol_names, symbol_of
from imagenet_pipeline.interchange.params import read_params
from imagenet_pipeline.interchange.weights import read_weights, starting_values
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Activation, Dense, Flatten, stack

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
FAMILIES = (
    "every_layer", "alexnet", "vgg11", "googlenet", "resnet18", "resnet18_v2", "squeezenet1_1", "densenet121",
)  # fmt: skip


def symbol_block(prefix: Path, pixels: Any) -> Any:
    with warnings.catch_warnings():
        # Stock MXNet warns of every symbol whose input has no type, its own too.
        warnings.filterwarnings("ignore", "Cannot decide type")
        files = [str(prefix) + "-symbol.json", str(prefix) + "-0000.params"]
        block = mx.gluon.SymbolBlock.imports(files[0], ["data"], files[1])
    return block(mx.nd.array(pixels)).asnumpy()


def module(prefix: Path, pixels: Any) -> tuple[Any, list[str]]:
    symbol, arguments, statistics = mx.model.load_checkpoint(str(prefix), 0)
    bound = mx.mod.Module(symbol, label_names=None)
    bound.bind([("data", pixels.shape)], for_training=False)
    bound.set_params(arguments, statistics)
    bound.forward(mx.io.DataBatch([mx.nd.array(pixels)]), is_train=False)
    return bound.get_outputs()[0].asnumpy(), symbol.list_outputs()


@pytest.mark.parametrize("normalised", [True, False], ids=["normalisation inside", "raw"])
@pytest.mark.parametrize("name", FAMILIES)
def test_stock_mxnet_gives_our_logits(name: str, normalised: bool, samples: dict[str, Any], tmp_path: Path) -> None:
    sample = samples[name]
    normalisation = (MEAN, STD) if normalised else None
    export_mxnet(sample.network, sample.values, sample.input_shape, tmp_path / "net", normalisation)
    pixels = sample.pixels(normalised=not normalised)
    assert sample.difference(symbol_block(tmp_path / "net", pixels)) < 1e-5
    logits, outputs = module(tmp_path / "net", pixels)
    assert sample.difference(logits) < 1e-5
    assert [output.endswith("_output") for output in outputs] == [True]


def test_stock_mxnet_gives_our_logits_of_graphs(
    samples: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What oneDNN fuses in a graph that branches is wrong, or ends MXNet 1.9.1.
    monkeypatch.setenv("MXNET_SUBGRAPH_BACKEND", "NONE")
    graphs = [name for name in samples if name.startswith(("graph", "drawn", "layers"))]
    assert len(graphs) > 8
    for name in graphs:
        sample = samples[name]
        export_mxnet(sample.network, sample.values, sample.input_shape, tmp_path / "net", (MEAN, STD))
        pixels = sample.pixels(normalised=False)
        assert sample.difference(symbol_block(tmp_path / "net", pixels)) < 1e-5, name
        assert sample.difference(module(tmp_path / "net", pixels)[0]) < 1e-5, name


def test_a_constant_comes_back_in_its_own_shape(samples: dict[str, Any], tmp_path: Path) -> None:
    sample = samples["graph_layers"]
    _, params = export_mxnet(sample.network, sample.values, sample.input_shape, tmp_path / "net", None)
    arrays = read_weights(params)
    assert arrays["arg:block_colour_value"].shape == (1, 4, 1, 1)
    found = starting_values(params, arrays, sample.network, sample.input_shape, {})
    for name, value in sample.values.items():
        np.testing.assert_array_equal(found[name], value)


def test_names_are_ours_with_mxnet_s_endings(samples: dict[str, Any], tmp_path: Path) -> None:
    sample = samples["resnet18"]
    paths = export_mxnet(sample.network, sample.values, sample.input_shape, tmp_path / "a" / "net", (MEAN, STD))
    assert paths == [tmp_path / "a" / "net-symbol.json", tmp_path / "a" / "net-0000.params"]
    arrays = read_params(paths[1])
    assert {"arg:stage2_unit1_conv1_weight", "arg:stage2_unit1_norm1_gamma", "arg:classifier_bias"} <= set(arrays)
    assert {"aux:stage2_unit1_norm1_moving_mean", "aux:stage2_unit1_norm1_moving_var"} <= set(arrays)
    assert arrays["arg:normalisation_mean"].ravel().tolist() == list(MEAN)
    symbol = json.loads(paths[0].read_text())
    assert symbol["attrs"] == {"mxnet_version": ["int", 10901]}
    assert mx.sym.load(str(paths[0])).list_arguments()[0] == "data"


def test_mxnet_s_training_leaves_the_normalisation_alone(samples: dict[str, Any], tmp_path: Path) -> None:
    sample = samples["squeezenet1_1"]
    export_mxnet(sample.network, sample.values, sample.input_shape, tmp_path / "net", (MEAN, STD))
    symbol, arguments, statistics = mx.model.load_checkpoint(str(tmp_path / "net"), 0)
    trained = mx.mod.Module(mx.sym.SoftmaxOutput(symbol, name="softmax"))
    pixels = mx.nd.array(sample.pixels(normalised=False))
    trained.bind([("data", pixels.shape)], [("softmax_label", (len(pixels.asnumpy()),))])
    trained.set_params(arguments, statistics)
    trained.init_optimizer(optimizer="sgd", optimizer_params={"learning_rate": 0.1, "wd": 0.1})
    trained.forward_backward(mx.io.DataBatch([pixels], [mx.nd.zeros(len(sample.images))]))
    trained.update()
    after = trained.get_params()[0]
    assert after["normalisation_mean"].asnumpy().ravel().tolist() == list(MEAN)
    assert after["normalisation_std"].asnumpy().ravel().tolist() == list(STD)
    assert np.abs(after["stem_conv_weight" if "stem_conv_weight" in after else "conv1_weight"].asnumpy()).sum() > 0


@pytest.mark.parametrize("name", catalog.names())
def test_every_network_of_the_catalogue_can_be_written(name: str) -> None:
    entry = catalog.entry(name)
    network, shape = entry.build(10), (3, entry.input_size, entry.input_size)
    variables = {node.name for node in symbol_of(network, shape, (MEAN, STD)).nodes if node.op == "null"}
    names = [word.partition(":")[2] for word in symbol_names(network, shape).values()]
    assert variables == {*names, "data", "normalisation_mean", "normalisation_std"}
    assert len(set(names)) == len(names)


def test_two_layers_of_one_mxnet_name_are_refused() -> None:
    network = stack(a_b=Activation("relu"), a=stack(b=Activation("relu")), flatten=Flatten(), dense=Dense(2))
    with pytest.raises(BadRecipe, match="two layers would be called the same in MXNet; found a_b"):
        symbol_of(network, (3, 4, 4))


def test_missing_values_are_named_and_nothing_is_written(samples: dict[str, Any], tmp_path: Path) -> None:
    sample = samples["resnet18"]
    values = {name: value for name, value in sample.values.items() if name != "classifier.bias"}
    with pytest.raises(BadInput, match=r"classifier\.bias missing"):
        export_mxnet(sample.network, values, sample.input_shape, tmp_path / "net", None)
    assert list(tmp_path.iterdir()) == []
