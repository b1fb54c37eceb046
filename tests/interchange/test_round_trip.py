"""What we export comes back in, layer by layer, and computes the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Blueprint, create_engine
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.export import TrainedNetwork, export
from imagenet_pipeline.interchange.frozen import THE_GRAPH, Imported
from imagenet_pipeline.interchange.mxnet_import import import_mxnet
from imagenet_pipeline.interchange.network_symbol import export_mxnet
from imagenet_pipeline.interchange.onnx_export import export_onnx
from imagenet_pipeline.interchange.onnx_import import import_onnx
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layer_file import NetworkFile, network_text
from imagenet_pipeline.networks.layers import Activation, Conv, Dense, Flatten, GlobalAveragePool, Softmax, stack
from imagenet_pipeline.records.classes import ClassTable

LONG = os.environ.get("IMAGENET_PIPELINE_LONG") == "1"
NORMALISATION = ((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))


def through_mxnet(sample: Any, out: Path, normalisation: Any) -> Imported:
    files = export_mxnet(sample.network, sample.values, sample.input_shape, out, normalisation)
    return import_mxnet(*files, None, sample.size)


def through_onnx(sample: Any, out: Path, normalisation: Any) -> Imported:
    files = export_onnx(sample.network, sample.values, sample.input_shape, out, normalisation)
    return import_onnx(*files, None, sample.size)


@pytest.mark.parametrize("through", [through_mxnet, through_onnx])
def test_graphs_come_back(through: Callable[..., Imported], samples: Mapping[str, Any], tmp_path: Path) -> None:
    graphs = [name for name in samples if name.startswith(("graph", "drawn", "every", "layers"))]
    # A symbol is compared with every network of the catalogue, which takes a second or two.
    for name in graphs if through is through_onnx or LONG else graphs[:5]:
        if name == "layers_of_today" and through is through_mxnet:
            with pytest.raises(BadInput, match="layers have nothing like operator '_contrib_div_sqrt_dim'"):
                through(samples[name], tmp_path / "net", NORMALISATION)
            continue
        sample = samples[name]
        imported = through(sample, tmp_path / "net", NORMALISATION)
        assert imported.normalisation == NORMALISATION, name
        assert imported.layers is not None, name
        recipe = Recipe(network="", records="", devices="cpu", precision="float32")
        engine = create_engine("auto", Blueprint(imported.layers, sample.size, *NORMALISATION, recipe), imported.values)
        assert sample.difference(engine.logits(sample.images)) <= 1e-5, name


def test_a_softmax_that_is_a_layer_comes_back(tmp_path: Path) -> None:
    network = stack(flat=Flatten(), dense=Dense(5), softmax=Softmax())
    values = initial_values(network, (3, 6, 6), "he", seed=0)
    files = export_mxnet(network, values, (3, 6, 6), tmp_path / "net", NORMALISATION)
    onnx = export_onnx(network, values, (3, 6, 6), tmp_path / "net", NORMALISATION)
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    recipe = Recipe(network="", records="", devices="cpu", precision="float32")
    for imported in (import_mxnet(*files, None, 6), import_onnx(*onnx, None, 6)):
        assert imported.layers is not None
        engine = create_engine("auto", Blueprint(imported.layers, 6, *NORMALISATION, recipe), imported.values)
        assert np.allclose(engine.logits(images).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("raw", [False, True])
def test_the_card_beside_an_export_says_what_its_graph_does_not(raw: bool, tmp_path: Path) -> None:
    layers = stack(
        conv=Conv(4, 3), relu=Activation("relu"), pool=GlobalAveragePool(), flatten=Flatten(), classifier=Dense(2)
    )
    file, classes = tmp_path / "mine.json", ClassTable("folder", ("n1", "n2"), ("cat", "dog"))
    file.write_text(network_text(NetworkFile("mine", 28, layers)))
    values = initial_values(layers, (3, 28, 28), "he", 1)
    trained = TrainedNetwork(str(file), 28, classes, *NORMALISATION, 0.75, values, "", "run/checkpoints/1")
    export(trained, "mxnet", tmp_path / "net", raw)
    symbol, params = tmp_path / "net-symbol.json", tmp_path / "net-0000.params"
    imported = import_mxnet(symbol, params)
    assert (imported.input_size, imported.crop_fraction, imported.class_table) == (28, 0.75, classes)
    card = str(tmp_path / "net.mxnet.json")
    assert (imported.normalisation, imported.normalisation_from) == (NORMALISATION, card if raw else THE_GRAPH)
    assert card in imported.notes[-1]
    assert "assumed" not in " ".join(imported.notes)
    assert import_mxnet(symbol, params, input_size=32).input_size == 32
    symbol.write_text(symbol.read_text() + "\n")  # no longer the file of the card
    imported = import_mxnet(symbol, params)
    assert (imported.input_size, imported.crop_fraction, imported.class_table) == (224, None, None)
    assert "input of 224 pixels assumed" in imported.notes[-1]
