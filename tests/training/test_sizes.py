"""Sizes of training images: from the first to the last in a straight line, and only where the network takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.config import InputRecipe, Recipe, load_recipe
from imagenet_pipeline.engines.zoos import ZooNetwork
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.training.data import MULTIPLE, require_sizes, training_size


def test_sizes_of_ffcvs_recipe() -> None:
    """FFCV's rn50 configs for 16 epochs: 160 to 192 pixels between the epochs 5 and 13 (np.round(exact / 32) * 32)."""
    recipe = InputRecipe(size=192, start_size=160, grow_epochs=(5, 13), evaluation_size=256)
    assert [training_size(recipe, epoch) for epoch in range(16)] == [160] * 9 + [192] * 7


def test_steps_on_the_way() -> None:
    recipe = InputRecipe(size=224, start_size=96, grow_epochs=(1, 9))
    assert [training_size(recipe, epoch) for epoch in range(11)] == [96, 96, *[128] * 3, 160, *[192] * 3, 224, 224]


def test_without_growth_it_is_the_size() -> None:
    assert training_size(InputRecipe(size=100), 7) == 100


@given(size=st.integers(1, 600), start=st.integers(1, 600), first=st.integers(0, 50), length=st.integers(0, 50))
def test_sizes_rise_from_the_first_to_the_last(size: int, start: int, first: int, length: int) -> None:
    last = max(first + length, 1)
    recipe = InputRecipe(size=max(size, start), start_size=start, grow_epochs=(first, last))
    sizes = [training_size(recipe, epoch) for epoch in range(last + 2)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == sizes[last] == recipe.size
    if last > first:
        assert set(sizes[: first + 1]) == {start}
    assert all(one % MULTIPLE == 0 or one in (start, recipe.size) for one in sizes)


def recipe_of(network: str, **keys: Any) -> Recipe:
    return Recipe(network=network, records="x", input=InputRecipe(**keys))


@pytest.mark.parametrize(
    ("network", "keys", "message"),
    [
        ("resnet18", {"size": 64, "start_size": 32, "grow_epochs": (0, 2), "evaluation_size": 96}, None),
        ("vgg11", {"size": 64}, None),
        ("vgg11", {"size": 64, "evaluation_size": 64}, None),
        (
            "vgg11",
            {"size": 64, "evaluation_size": 96},
            "'input.evaluation_size': the dense layers of vgg11 fix its input",
        ),
        (
            "lenet",
            {"size": 28, "start_size": 24, "grow_epochs": (0, 2)},
            r"'input.start_size': .* of lenet fix its input",
        ),
        ("alexnet", {"size": 227, "start_size": 16, "grow_epochs": (0, 2)}, "an input of 16x16 is too small"),
    ],
)
def test_networks_that_take_one_size_alone(network: str, keys: dict[str, Any], message: str | None) -> None:
    recipe, built = recipe_of(network, **keys), catalog.build(network, 10)
    if message is None:
        require_sizes(recipe, built)
        return
    with pytest.raises(BadRecipe, match=message):
        require_sizes(recipe, built)


def test_a_zoos_network_is_asked_for_its_parameters_at_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def shapes(network: ZooNetwork, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        positions = input_shape[1] // 16 if network.name == "positions" else 1
        return {"embedding": (positions, 8)}

    monkeypatch.setattr(ZooNetwork, "shapes", shapes)
    require_sizes(recipe_of("timm:any", size=64, evaluation_size=96), ZooNetwork("timm", "any", 10))
    with pytest.raises(BadRecipe, match=r"'input\.evaluation_size'"):
        require_sizes(recipe_of("timm:any", size=64, evaluation_size=96), ZooNetwork("timm", "positions", 10))


def test_a_run_of_such_a_network_is_not_begun(recipe: Path, tmp_path: Path) -> None:
    from imagenet_pipeline.training.resume import open_run

    assert load_recipe(recipe).network == "lenet"
    with pytest.raises(BadRecipe, match="dense layers of lenet fix its input"):
        open_run(recipe, {"input.evaluation_size": 32}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
