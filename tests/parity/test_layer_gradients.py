"""The gradients of a class's score by layers all over networks: the two engines agree.

In float64, relative to the largest of each array; measured within 5e-15.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Sequential

pytestmark = pytest.mark.gluon

LIMIT = 1e-9
CLASSES = np.array([0, 3])


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("alexnet", 67, ("conv1", "pool5")),
        ("vgg11", 32, ("block3.conv1", "block5")),
        ("googlenet", 80, ("inception3a", "inception4d.branch3.reduce", "inception5b.branch_pool.pool")),
        ("resnet18", 48, ("stem.conv", "stage2.unit1.conv1", "stage2.unit1.shortcut", "stage4")),
        ("squeezenet1_1", 48, ("fire5.squeeze", "fire9", "classifier")),
        ("emotion_vggnet", 48, ("block1.elu1", "block3")),
        ("densenet121", 32, ("block2.unit3", "block2.unit2.new.norm1")),
    ],
)
def test_both_engines_give_the_same_gradients(
    name: str, size: int, layers: tuple[str, ...], random_values: Any, photos: Any, engine_of: Any
) -> None:
    network = catalog.build(name, 5)
    assert isinstance(network, Sequential)
    values, images = random_values(network, size), photos(len(CLASSES), size)
    first, second = (engine_of(engine, network, size, values) for engine in ("gluon", "pytorch"))
    for layer in layers:
        pairs = zip(
            first.layer_gradients(images, layer, CLASSES), second.layer_gradients(images, layer, CLASSES), strict=True
        )
        for one, other in pairs:
            assert np.abs(one).max() > 0
            assert np.abs(one - other).max() <= LIMIT * np.abs(one).max(), layer
