"""Exported ONNX graphs, run by ONNX Runtime and OpenCV, give our engines' logits."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.interchange import onnx_export
from imagenet_pipeline.interchange.onnx_export import export_onnx
from imagenet_pipeline.networks.layers import Flatten, Sequential, stack
from imagenet_pipeline.networks.shapes import parameters

NORMALISATION = ((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
LIMIT = 1e-5


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_every_network_gives_the_engines_logits(samples: Mapping[str, Any], tmp_path: Path) -> None:
    for name, sample in samples.items():
        for raw in (False, True) if name in ("every_layer", "resnet18") else (False,):
            normalisation = None if raw else NORMALISATION
            (path,) = export_onnx(sample.network, sample.values, sample.input_shape, tmp_path / name, normalisation)
            runtime, pixels = session(path), sample.pixels(raw)
            for batch in (1, 3):
                found = runtime.run(["logits"], {"images": pixels[:batch]})[0]
                assert found.shape == (batch, 5)
                assert sample.difference(found) <= LIMIT, (name, raw, batch, sample.difference(found))
            path.unlink()


def test_opencv_reads_it_too(samples: Mapping[str, Any], tmp_path: Path) -> None:
    sample = samples["resnet18"]
    (path,) = export_onnx(sample.network, sample.values, sample.input_shape, tmp_path / "net", NORMALISATION)
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(sample.pixels(False)[:1])
    assert sample.difference(network.forward()) <= LIMIT


@pytest.fixture
def model(samples: Mapping[str, Any], tmp_path: Path) -> Any:
    sample = samples["every_layer"]
    notes = {"classes": '["a", "é"]', "network": "every"}
    (path,) = export_onnx(sample.network, sample.values, sample.input_shape, tmp_path / "net", NORMALISATION, notes)
    return onnx.load(path)


def test_initializers_are_our_parameters(model: Any, samples: Mapping[str, Any]) -> None:
    sample = samples["every_layer"]
    found = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    declared = parameters(sample.network, sample.input_shape)
    assert set(found) - set(declared) == {"normalisation.mean", "normalisation.std", "both.pads"}
    for name in declared:
        np.testing.assert_array_equal(found[name].ravel(), sample.values[name].ravel())
    assert found["prelu.slope"].shape == (6, 1, 1)


def test_the_model_says_what_it_is(model: Any) -> None:
    assert {one.key: one.value for one in model.metadata_props} == {"classes": '["a", "é"]', "network": "every"}
    assert "RGB, 0..255" in model.doc_string
    (images,), (logits,) = model.graph.input, model.graph.output
    sizes = [axis.dim_param or axis.dim_value for axis in images.type.tensor_type.shape.dim]
    assert (images.name, sizes) == ("images", ["n", 3, 19, 19])
    assert [axis.dim_param or axis.dim_value for axis in logits.type.tensor_type.shape.dim] == ["n", 5]
    assert (model.opset_import[0].version, model.ir_version, len(model.opset_import)) == (13, 7, 1)


def test_equal_networks_give_equal_bytes(samples: Mapping[str, Any], tmp_path: Path) -> None:
    sample = samples["every_layer"]
    contents = [
        export_onnx(sample.network, sample.values, sample.input_shape, folder / "net", None)[0].read_bytes()
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert contents[0] == contents[1]


def test_auxiliary_classifiers_stay_behind(samples: Mapping[str, Any], tmp_path: Path) -> None:
    sample = samples["googlenet"]
    assert any(name.startswith("auxiliary") for name in sample.values)
    (path,) = export_onnx(sample.network, sample.values, sample.input_shape, tmp_path / "net", None)
    assert "auxiliary" not in str([one.name for one in onnx.load(path).graph.initializer])


@pytest.mark.parametrize("network", [Sequential(()), stack(flatten=Flatten())])
def test_a_network_of_nothing(network: Sequential, tmp_path: Path) -> None:
    (path,) = export_onnx(network, {}, (3, 2, 2), tmp_path / "net", None)
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    np.testing.assert_array_equal(session(path).run(None, {"images": x})[0].ravel(), x.ravel())


def test_values_of_another_network_are_refused(samples: Mapping[str, Any], tmp_path: Path) -> None:
    sample = dataclasses.replace(samples["every_layer"], values={})
    with pytest.raises(BadInput, match=r"conv\.weight missing"):
        export_onnx(sample.network, sample.values, sample.input_shape, tmp_path / "net", None)
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_it_says_what_to_install(
    samples: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    sample = samples["every_layer"]
    with pytest.raises(BadRecipe, match=r"; pip install 'imagenet-pipeline\[onnx\]'"):
        export_onnx(sample.network, sample.values, sample.input_shape, tmp_path / "net", None)


def test_too_many_bytes_are_refused(
    samples: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "LARGEST_BYTES", 1000)
    sample = samples["every_layer"]
    with pytest.raises(BadRecipe, match=r"too large for an ONNX file; expected at most 1,000 bytes"):
        export_onnx(sample.network, sample.values, sample.input_shape, tmp_path / "net", None)
