"""What every export starts from."""

from __future__ import annotations

import numpy as np
import pytest

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.frozen import freeze
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import Conv, Dense, Flatten, GlobalAveragePool, Pool, Tap, stack

NETWORK = stack(
    conv=Conv(4, 3),
    auxiliary=Tap(stack(pool=Pool("average", 9, 1), flatten=Flatten(), dense=Dense(2)), 0.3),
    pool=GlobalAveragePool(),
    flatten=Flatten(),
    classifier=Dense(2),
)


def test_an_input_too_small_for_auxiliary_classifiers_alone_will_do() -> None:
    values = initial_values(NETWORK, (3, 16, 16), "msra", 1)
    frozen = freeze(NETWORK, values, (3, 8, 8))
    assert list(frozen.values) == ["conv.weight", "conv.bias", "classifier.weight", "classifier.bias"]
    assert frozen.output_shape == (2,)


@pytest.mark.parametrize("number", [np.nan, 1e300])
def test_what_is_no_finite_float32_is_refused(number: float) -> None:
    values = {name: array.astype(np.float64) for name, array in initial_values(NETWORK, (3, 16, 16), "msra", 1).items()}
    values["conv.bias"][1] = number
    with pytest.raises(BadInput, match=r"the weights conv\.bias hold numbers that are not finite in float32"):
        freeze(NETWORK, values, (3, 16, 16))
