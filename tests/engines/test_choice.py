"""Which engine "auto" is: by what is installed, the devices, the network and the launcher; a run keeps its own."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imagenet_pipeline import engines
from imagenet_pipeline.config import Recipe, load_recipe
from imagenet_pipeline.engines import FRAMEWORKS, choose_engine, is_installed
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.evaluation.evaluate import open_checkpoint
from imagenet_pipeline.training.engine_setup import scoring_engine, with_engine
from imagenet_pipeline.training.restart import engine_of_last_start

BOTH = ("gluon", "pytorch")


@pytest.mark.parametrize(
    ("installed", "devices", "network", "with_gpus", "chosen"),
    [
        (BOTH, "auto", "lenet", BOTH, "gluon"),
        (BOTH, "cpu:0,1", "lenet", (), "gluon"),
        (BOTH, "gpu:0", "lenet", BOTH, "gluon"),
        (BOTH, "gpu:0,1", "lenet", ("pytorch",), "pytorch"),
        (BOTH, "gpu", "lenet", (), "gluon"),
        (("gluon",), "gpu", "lenet", (), "gluon"),
        (("pytorch",), "auto", "lenet", (), "pytorch"),
        (BOTH, "auto", "timm:resnet18", (), "pytorch"),
        (("pytorch",), "auto", "gluoncv:resnet18_v1", (), "gluon"),
    ],
)
def test_the_choice(
    installed: tuple[str, ...], devices: str, network: str, with_gpus: tuple[str, ...], chosen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(engines, "is_installed", installed.__contains__)
    monkeypatch.setattr(engines, "gpus_seen", with_gpus.count)
    assert choose_engine(devices, network) == chosen


def test_torchrun_starts_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "is_installed", BOTH.__contains__)
    for word in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(word, "1")
    assert choose_engine("cpu") == "pytorch"


def test_without_an_engine_both_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in FRAMEWORKS.values():
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadRecipe) as caught:
        choose_engine("auto")
    assert str(caught.value) == (
        "no engine is installed; expected MXNet or PyTorch; "
        "pip install 'imagenet-pipeline[gluon]' or 'imagenet-pipeline[pytorch]'"
    )


def test_no_framework_is_imported_to_choose() -> None:
    program = (
        "import sys\nfrom imagenet_pipeline.engines import choose_engine\nchoose_engine('cpu')\n"
        "print({'mxnet', 'torch'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert result.stdout == "set()\n"


def test_a_run_keeps_the_engine_it_began_with() -> None:
    recipe = Recipe(network="lenet", records="", devices="cpu")
    begun = {"event": "start", "engine": "pytorch"}
    assert engine_of_last_start([begun, {"event": "epoch", "epoch": 1}]) == "pytorch"
    assert engine_of_last_start([{"event": "import"}]) is None
    assert with_engine(recipe, "pytorch").engine == "pytorch"
    given = recipe.model_copy(update={"engine": "gluon"})
    assert with_engine(given, "pytorch").engine == "gluon"
    assert with_engine(recipe).engine == with_engine(recipe, "another").engine == choose_engine("cpu")


def test_a_run_of_an_engine_that_is_not_here_is_scored_on_the_other(
    drawn_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = drawn_run("cat", "dog", engine="gluon")
    monkeypatch.setitem(sys.modules, "mxnet", None)
    assert not is_installed("gluon")
    recipe, checkpoint = open_checkpoint(run, "best", {})
    assert load_recipe(run / "recipe.toml").engine == "gluon"
    with caplog.at_level(logging.INFO):
        assert scoring_engine(recipe, checkpoint.state) == "pytorch"
    assert caplog.messages == ["trained on gluon, which is not installed here: pytorch takes its place"]
    given, _ = open_checkpoint(run, "best", {"engine": "gluon"})
    assert scoring_engine(given, checkpoint.state) == "gluon"
