"""Our networks against the model zoos of MXNet and GluonCV, in float64: the same values must give the same logits.

A difference is relative to the largest logit.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

pytest.importorskip("imagenet_pipeline.engines.gluon.runtime")

from imagenet_pipeline.engines.gluon import zoo as gluon_zoo
from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.engines.zoos import ZooNetwork
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import without_taps

CLASSES = 10
LIMIT = 1e-9

# (ours, the zoo's, pixels). The zoos' SqueezeNets, DenseNets, Inception and GoogLeNet end in pooling of fixed size.
MXNETS = [
    ("alexnet_one_tower", "alexnet", 63),
    ("vgg11", "vgg11", 32),
    ("vgg11_bn", "vgg11_bn", 32),
    ("vgg16", "vgg16", 32),
    ("vgg16_bn", "vgg16_bn", 32),
    ("inception_v3", "inception_v3", 299),
    ("resnet18", "resnet18_v1", 33),
    ("resnet34", "resnet34_v1", 33),
    ("resnet50_v1", "resnet50_v1", 33),
    ("resnet18_v2", "resnet18_v2", 33),
    ("resnet50_v2", "resnet50_v2", 33),
    ("squeezenet1_0", "squeezenet1_0", 215),
    ("squeezenet1_1", "squeezenet1_1", 215),
    ("densenet121", "densenet121", 221),
]
GLUONCVS = [
    ("googlenet_bn", "googlenet", 224),
    ("resnet18", "resnet18_v1b", 33),
    ("resnet50", "resnet50_v1b", 33),
    ("resnet50_d", "resnet50_v1d", 33),
]


def fill(zoo: Any, values: dict[str, Any]) -> None:
    """Both list their parameters in the order of the layers. Biases that only the zoo has become 0."""
    ours = list(values.items())
    for name, parameter in zoo.collect_params().items():
        if name.endswith("bias") and not ours[0][0].endswith("bias"):
            value = np.zeros(parameter.shape)
        else:
            value = ours.pop(0)[1]
        parameter.set_data(mx.nd.array(value, dtype="float64"))
    assert not ours


@pytest.fixture
def compare(random_values: Any, photos: Any, engine_of: Any, normalised: Any) -> Callable[[str, Any, int], None]:
    """`compare("resnet18", zoo, size)`: the network of the catalogue and the zoo's give the same logits."""

    def check(ours: str, zoo: Any, size: int) -> None:
        network, images = without_taps(catalog.build(ours, CLASSES)), photos(1, size)
        values = random_values(network, size)
        if ours.endswith("_v2"):
            values["input.bias"][:] = 0  # the zoo's is fixed
        found = engine_of("gluon", network, size, values).logits(images)
        batch = mx.nd.array(normalised(images), dtype="float64")
        zoo.cast("float64")
        zoo.initialize()
        zoo(batch)  # its layers learn their shapes
        fill(zoo, values)
        wanted = zoo(batch).asnumpy()
        assert found.dtype == wanted.dtype == np.float64
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= LIMIT * np.abs(wanted).max()

    return check


@pytest.mark.parametrize(("ours", "theirs", "size"), MXNETS)
def test_logits_equal_those_of_mxnets_model_zoo(ours: str, theirs: str, size: int, compare: Any) -> None:
    compare(ours, getattr(mx.gluon.model_zoo.vision, theirs)(classes=CLASSES), size)


@pytest.mark.skipif(find_spec("gluoncv") is None, reason="GluonCV is not installed")
@pytest.mark.parametrize(("ours", "theirs", "size"), GLUONCVS)
def test_logits_equal_those_of_gluoncvs_model_zoo(ours: str, theirs: str, size: int, compare: Any) -> None:
    compare(ours, gluon_zoo.build(ZooNetwork("gluoncv", theirs, CLASSES), (3, size, size)).block, size)
