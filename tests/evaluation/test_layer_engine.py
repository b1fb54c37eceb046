"""A network up to a layer on an engine: its shape also where it ends in branches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.evaluation.evaluate import open_checkpoint
from imagenet_pipeline.evaluation.features import engine_until, own_network


@pytest.mark.parametrize(
    ("network", "layer", "shape"),
    [("minigooglenet", "inception2a", (64, 32, 32)), ("squeezenet1_1", "fire2", (128, 7, 7))],
)
def test_a_concatenation_s_shape_is_that_of_all_its_branches(
    make_run: Callable[..., Path], tmp_path: Path, network: str, layer: str, shape: tuple[int, int, int]
) -> None:
    recipe, checkpoint = open_checkpoint(make_run(tmp_path / "run", network, 32), "best", {})
    engine, found = engine_until(recipe, checkpoint, layer, "a test")
    assert checkpoint.state.input_shape == (3, 32, 32)
    assert found == shape
    assert engine.logits(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, *found)


def test_a_zoo_s_network_has_no_layers_here() -> None:
    with pytest.raises(BadRecipe, match="network timm:resnet18: the layers of a zoo's network are not known here"):
        own_network("timm:resnet18", 5)
