"""Networks of other zoos by name, as far as no library is needed."""

from __future__ import annotations

import pytest

from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Blueprint, create_engine
from imagenet_pipeline.engines.zoos import ZooNetwork, network_of, not_installed, unknown
from imagenet_pipeline.errors import BadRecipe


@pytest.mark.parametrize(("library", "engine"), [("gluoncv", "gluon"), ("timm", "pytorch")])
def test_a_name_with_a_library_is_that_zoos_network(library: str, engine: str) -> None:
    network = network_of(f"{library}:resnet18", 10)
    assert network == ZooNetwork(library, "resnet18", 10)
    assert (str(network), network.engine) == (f"{library}:resnet18", engine)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:", ":resnet18", "Timm:resnet18"])
def test_another_library_is_refused(name: str) -> None:
    with pytest.raises(BadRecipe, match="not the name of a zoo's network; expected gluoncv:NAME or timm:NAME"):
        network_of(name, 10)


def test_a_zoos_network_needs_a_class_too() -> None:
    with pytest.raises(BadRecipe, match="at least one class"):
        network_of("timm:resnet18", 0)


@pytest.mark.parametrize(("library", "wrong", "right"), [("timm", "gluon", "pytorch"), ("gluoncv", "pytorch", "gluon")])
def test_the_engine_it_needs_is_named(library: str, wrong: str, right: str) -> None:
    blueprint = Blueprint(ZooNetwork(library, "x", 2), 8, (0.0,), (1.0,), Recipe(network="", records=""))
    with pytest.raises(BadRecipe, match=f"{library}:x runs on the {right} engine alone; take engine={right}"):
        create_engine(wrong, blueprint, None)


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    network = ZooNetwork("timm", "ResNet_18", 2)
    assert "did you mean timm:resnet18?" in str(unknown(network, ["resnet18", "vgg"]))
    assert "imagenet-pipeline networks timm: lists all 1" in str(unknown(network, ["qqq"]))


def test_a_missing_library_comes_with_the_command_that_installs_it() -> None:
    assert str(not_installed("timm", ["timm"])).endswith("; bash scripts/install_zoo.sh timm")
    assert str(not_installed("gluoncv", ["gluoncv", "tqdm"])).endswith("; bash scripts/install_zoo.sh gluoncv")
