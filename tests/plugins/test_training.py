"""A network and an optimizer of other packages in one run, through the public calls alone, on both engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import imagenet_pipeline as ip
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.optimizers import OPTIMIZERS
from imagenet_pipeline.records.image import encode_jpeg
from imagenet_pipeline.registry import Registry
from imagenet_pipeline.training.checkpoint import load_checkpoint

HERE = Path(__file__).parent
KEYS: dict[str, Any] = {
    "epochs": 2, "batch_size": 6, "devices": "cpu", "precision": "float64",
    "options": {
        "input.size": 16, "augmentation.crop": "centre", "augmentation.flip": 0.0, "loader.threads": 0,
        "optimizer.learning_rate": 1e-4,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_NETWORKS", Registry("network", "networks", catalog._SHIPPED))
    monkeypatch.setattr(OPTIMIZERS, "_items", dict(OPTIMIZERS._items))
    monkeypatch.syspath_prepend(HERE)
    from mobilenet import mobilenet
    from signum import SIGNUM

    ip.register_network("mobilenet", mobilenet, input_size=224)
    ip.register_optimizer("signum", SIGNUM)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reddish and bluish noise: 24 train and 6 val images."""
    folder = tmp_path_factory.mktemp("plugins")
    random = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(15):
            pixels = random.integers(0, 100, (20, 20, 3), np.uint8)
            pixels[..., channel] += 100
            (folder / "photos" / name / f"{number}.jpg").write_bytes(encode_jpeg(pixels, 95))
    ip.build("folder", root=folder / "photos", out=folder / "data", val_fraction=0.2, test_fraction=0, resize=0)
    return folder / "data"


def trained(data: Path, run: Path, engine: str, **more: Any) -> tuple[Any, Any]:
    keys = {**KEYS, **more, "options": {**KEYS["options"], "optimizer.name": "signum"}}
    recipe = data.parent / "recipe.toml"
    recipe.write_text(f'network = "mobilenet"\nrecords = "{data}"\n')
    result = ip.train(recipe, run=run, engine=engine, **keys)
    assert result.finished
    return result, load_checkpoint(run / "checkpoints" / "latest").weights


@pytest.mark.gluon
def test_a_run_with_both_is_alike_on_both_engines_and_goes_on(data: Path, tmp_path: Path) -> None:
    """Losses are near, not equal: Signum takes the sign of gradients that are 0 but for rounding."""
    gluon, _ = trained(data, tmp_path / "gluon", "gluon", epochs=1)
    unbroken, whole = trained(data, tmp_path / "unbroken", "pytorch")
    trained(data, tmp_path / "resumed", "pytorch", epochs=1)
    _, resumed = trained(data, tmp_path / "resumed", "pytorch", resume="latest")
    assert all(np.array_equal(resumed[name], values) for name, values in whole.items())
    assert gluon.history[0]["train_loss"] == pytest.approx(unbroken.history[0]["train_loss"], rel=0.02)
