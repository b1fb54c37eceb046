"""TorchScript and torch.export's files, read by torch alone, give our engines' logits for any number of images."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.interchange.torch_export import export_torch_program, export_torchscript
from imagenet_pipeline.networks.layers import Dense, Flatten, Graph, Scalar, stack
from imagenet_pipeline.networks.shapes import parameters

NORMALISATION = ((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
LIMIT = 1e-5
LONG = os.environ.get("IMAGENET_PIPELINE_LONG") == "1"
WRITERS: dict[str, Callable[..., list[Path]]] = {".pt": export_torchscript, ".pt2": export_torch_program}
# torch has given TorchScript up, and says so at every call.
pytestmark = [pytest.mark.pytorch, pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")]


def loaded(path: Path) -> Any:
    return torch.jit.load(path) if path.suffix == ".pt" else torch.export.load(path).module()


@pytest.mark.parametrize("ending", WRITERS)
def test_programs_give_the_engines_logits(ending: str, samples: Mapping[str, Any], tmp_path: Path) -> None:
    # A second or more a network is torch.export's pace.
    names = [name for name in samples if name.startswith(("drawn", "every"))] if ending == ".pt" or LONG else []
    for name in ("graph_layers", *names):
        sample = samples[name]
        for raw in (False, True) if name == "every_layer" else (False,):
            normalisation = None if raw else NORMALISATION
            (path,) = WRITERS[ending](sample.network, sample.values, sample.input_shape, tmp_path / name, normalisation)
            assert path == tmp_path / f"{name}{ending}"
            program, pixels = loaded(path), torch.tensor(sample.pixels(raw))
            with torch.no_grad():
                for count in (1, 3):
                    found = program(pixels[:count]).numpy()
                    assert found.shape == (count, 5)
                    assert sample.difference(found) <= LIMIT, (name, raw, count, sample.difference(found))
            state = program.state_dict()
            for parameter in parameters(sample.network, sample.input_shape):
                np.testing.assert_array_equal(state[parameter].numpy(), sample.values[parameter])


def test_a_name_that_torch_export_has_itself_is_refused(tmp_path: Path) -> None:
    network = stack(graph=Graph((("dense", Dense(2)), ("more", Scalar("add", 1.0))), (("",), ("dense",))))
    network = stack(flatten=Flatten(), graph=dict(network.items)["graph"])
    values = {"graph.dense.weight": np.ones((2, 12)), "graph.dense.bias": np.ones(2)}
    with pytest.raises(BadRecipe, match=r"--format torch-export: PyTorch .* cannot write this network so") as caught:
        export_torch_program(network, values, (3, 2, 2), tmp_path / "net", None)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", WRITERS)
def test_without_torch_it_says_what_to_install(
    ending: str, samples: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "imagenet_pipeline.engines.pytorch.programs", raising=False)
    monkeypatch.setitem(sys.modules, "imagenet_pipeline.engines.pytorch.runtime", None)
    monkeypatch.delattr(sys.modules["imagenet_pipeline.engines.pytorch"], "programs", raising=False)
    sample = samples["every_layer"]
    with pytest.raises(BadRecipe, match=r"written by PyTorch.*; pip install 'imagenet-pipeline\[pytorch\]'"):
        WRITERS[ending](sample.network, sample.values, sample.input_shape, tmp_path / "net", None)
