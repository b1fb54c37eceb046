"""torchvision's and timm's weights in our networks: the very names, and equal logits in float64.

They need torchvision and timm, and that one release of torch: `scripts/test.sh --long` runs them in an environment of
their own. `TABLE=1` prints the table.
"""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.interchange.frozen import Imported
from imagenet_pipeline.interchange.torch_import import import_torch
from imagenet_pipeline.interchange.torch_names import NAMINGS
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import without_taps

pytest.importorskip("imagenet_pipeline.engines.pytorch.runtime")

from imagenet_pipeline.engines.pytorch import network as modules
from imagenet_pipeline.engines.pytorch.runtime import torch

pytestmark = pytest.mark.skipif(
    find_spec("torchvision") is None or find_spec("timm") is None, reason="bash scripts/install_zoo.sh timm"
)

LISTS = Path(__file__).parent.parent / "interchange" / "torch_names.txt"
CLASSES = 7
THEIRS = {
    "alexnet_one_tower": "alexnet", "googlenet_bn": "googlenet", "resnext50_32x4d_d": "resnext50d_32x4d",
    "mobilenet_v1": "mobilenetv1_100", "se_resnet50": "seresnet50", "se_resnet101": "seresnet101",
    "se_resnext50_32x4d": "seresnext50_32x4d",
    **{f"resnet{depth}_d": f"resnet{depth}d" for depth in (18, 26, 34, 50, 101, 152)},
}  # fmt: skip
MEAN, STD = (np.reshape(numbers, (3, 1, 1)) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
TOLERANCE = 1e-9


def built(name: str, classes: int = CLASSES) -> Any:
    """Their module with drawn weights, no running statistic or scale left as it begins."""
    import timm
    import torchvision

    torch.manual_seed(3)
    if NAMINGS[name].zoo == "timm":
        module = timm.create_model(THEIRS.get(name, name), num_classes=classes)
    else:
        more = {"googlenet_bn": {"transform_input": True}, "inception_v3": {"transform_input": True}}.get(name, {})
        if more:
            more |= {"init_weights": False, "aux_logits": True}
        module = torchvision.models.get_model(THEIRS.get(name, name), num_classes=classes, **more)
    for key, tensor in module.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif key.endswith(("bias", "running_mean")):
            tensor.normal_(0, 0.1)
        elif tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    return module.eval()


def fed(imported: Imported) -> Any:
    """Mean and std of a network's input, [3, 1, 1] each."""
    assert imported.normalisation is not None
    return (np.reshape(numbers, (3, 1, 1)) for numbers in imported.normalisation)


def ours(imported: Imported, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The logits of the imported network, with its own mean and std, in float64."""
    tensors = {name: torch.tensor(value).double() for name, value in imported.values.items()}
    network = without_taps(catalog.entry(imported.network).build(imported.classes))
    module = modules.build(network, tensors).eval()
    mean, std = fed(imported)
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = module(torch.from_numpy((pixels - mean) / std))[0].numpy()
    return logits


@pytest.mark.parametrize("name", NAMINGS)
def test_logits_are_theirs(tmp_path: Path, name: str) -> None:
    module = built(name)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    imported = import_torch(tmp_path / "w.pth")
    assert (imported.network, imported.classes) == (name, CLASSES)
    size = imported.input_size
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, size, size)).astype(np.float64)
    # timm's are fed with what is stated; torchvision's turn ImageNet's mean and std to others inside, where they do.
    mean, std = (255 * MEAN, 255 * STD) if NAMINGS[name].zoo == "torchvision" else fed(imported)
    with torch.no_grad():
        theirs = module.double()(torch.from_numpy((pixels - mean) / std)).numpy()
    difference = np.abs(ours(imported, pixels) - theirs).max() / np.abs(theirs).max()
    if "TABLE" in os.environ:
        sys.stderr.write(f"| {name} | {len(imported.values)} | {difference:.1e} |\n")
    assert difference < TOLERANCE
    assert np.ptp(theirs) > 1e-3


@pytest.mark.parametrize("name", NAMINGS)
def test_the_lists_of_the_other_tests_are_these(name: str) -> None:
    """What the fast tests take for their names is made of their modules here."""
    with torch.device("meta"):
        state = built(name, 1000).state_dict()
    lines = [f"{key} {tuple(tensor.shape)}\n" for key, tensor in state.items() if not key.endswith("tracked")]
    digest = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()[:16]
    assert f"{name} {len(lines)} {digest}" in LISTS.read_text().splitlines()


def test_files_of_timms_own_come_with_what_timm_states(tmp_path: Path) -> None:
    """timm saves safetensors and config.json side by side."""
    import timm

    module = timm.create_model("resnet34", num_classes=CLASSES)
    timm.models.save_for_hf(module, tmp_path, model_config={}, safe_serialization=True)
    imported = import_torch(tmp_path / "model.safetensors")
    assert imported.normalisation_from == str(tmp_path / "config.json")
    assert imported.crop_fraction == timm.models.get_pretrained_cfg("resnet34").crop_pct
