"""What we export comes back in, layer by layer, and computes the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Blueprint, create_engine
from imagenet_pipeline.interchange.frozen import Imported
from imagenet_pipeline.interchange.mxnet_import import import_mxnet
from imagenet_pipeline.interchange.network_symbol import export_mxnet
from imagenet_pipeline.interchange.onnx_export import export_onnx
from imagenet_pipeline.interchange.onnx_import import import_onnx

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
    graphs = [name for name in samples if name.startswith(("graph", "drawn", "every"))]
    # A symbol is compared with every network of the catalogue, which takes a second or two.
    for name in graphs if through is through_onnx or LONG else graphs[:4]:
        sample = samples[name]
        imported = through(sample, tmp_path / "net", NORMALISATION)
        assert imported.normalisation == NORMALISATION, name
        assert imported.layers is not None, name
        recipe = Recipe(network="", records="", devices="cpu", precision="float32")
        engine = create_engine("auto", Blueprint(imported.layers, sample.size, *NORMALISATION, recipe), imported.values)
        assert sample.difference(engine.logits(sample.images)) <= 1e-5, name
