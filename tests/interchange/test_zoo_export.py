"""The files of a zoo's network; `tests/zoos` has the libraries and loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from imagenet_pipeline.engines.pytorch import zoo as pytorch_zoo
from imagenet_pipeline.engines.zoos import ZooNetwork
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.interchange.zoo_export import export_zoo

NETWORK = ZooNetwork("timm", "nfnet_f0", 5)


@pytest.fixture(autouse=True)
def without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch_zoo, "options", lambda network, input_shape: {"num_classes": network.classes})


def export(out: Path, values: dict[str, Any]) -> Path:
    return export_zoo(NETWORK, values, (3, 8, 8), out, None, "pytorch")[0]


def test_a_number_without_axes_keeps_its_shape(tmp_path: Path) -> None:
    assert load_file(export(tmp_path / "net", {"gain": np.array(0.5, np.float32)}))["gain"].shape == ()


@pytest.mark.parametrize("name", ["timm", "torch", "json", "a-b"])
def test_a_name_python_cannot_import_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="not the name of a Python module"):
        export(tmp_path / name, {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_finite_float32_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the weights gain hold numbers that are not finite in float32"):
        export(tmp_path / "net", {"gain": np.array(1e300)})
