"""Every kind of layer survives int8, near to what it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.int8 import quantise
from imagenet_pipeline.interchange.onnx_export import export_onnx
from imagenet_pipeline.interchange.onnx_runtime import OnnxScorer, pixels_of
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Conv, Dense, Flatten, Pad, Pool, stack

NORMALISATION = ((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
LIMIT = 0.1  # of the largest logit; values drawn at random spread more than trained ones


def test_every_layer_is_quantised_or_left_alone(samples: Mapping[str, Any], tmp_path: Path) -> None:
    for name in ("every_layer", "graph_layers", "resnet18", "squeezenet1_1", "drawn0", "drawn3", "drawn7"):
        sample = samples[name]
        (path,) = export_onnx(sample.network, sample.values, sample.input_shape, tmp_path / name, NORMALISATION)
        quantise(path, iter([sample.pixels(False)[:2], sample.pixels(False)[2:]]))
        assert 0 < sample.difference(OnnxScorer(path).logits(sample.images)) < LIMIT, name
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(operators.domain, operators.version) for operators in model.opset_import] == [("", 13)], name
    assert [file.suffix for file in tmp_path.iterdir()] == [".onnx"] * 7


def test_batch_normalisations_go_into_their_convolutions(samples: Mapping[str, Any], tmp_path: Path) -> None:
    sample = samples["resnet18"]
    (path,) = export_onnx(sample.network, sample.values, sample.input_shape, tmp_path / "net", NORMALISATION)
    assert "BatchNormalization" in {node.op_type for node in onnx.load(path).graph.node}
    quantise(path, iter([sample.pixels(False)]))
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}


def test_margins_without_a_bottom_spoil_no_scale(tmp_path: Path) -> None:
    margin = Pad(0, 1, 0, 1, value=float(np.finfo(np.float32).min))
    network = stack(conv=Conv(8, 3), pad=margin, pool=Pool("max", 3, 2), flat=Flatten(), dense=Dense(5))
    values = initial_values(network, (3, 12, 12), "he", seed=0)
    (path,) = export_onnx(network, values, (3, 12, 12), tmp_path / "net", None)
    images = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), dtype=np.uint8)
    before = OnnxScorer(path).logits(images)
    quantise(path, iter([pixels_of(images, None)]))
    assert np.abs(OnnxScorer(path).logits(images) - before).max() < LIMIT * np.abs(before).max()


def test_nothing_to_calibrate_on_is_one_line(samples: Mapping[str, Any], tmp_path: Path) -> None:
    sample = samples["graph_layers"]
    (path,) = export_onnx(sample.network, sample.values, sample.input_shape, tmp_path / "net", NORMALISATION)
    content = path.read_bytes()
    with pytest.raises(BadRecipe, match=r"--int8: ONNX Runtime cannot quantise this network \(") as caught:
        quantise(path, iter([]))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content
