"""What MXNet gets wrong unless it is told otherwise; what both engines share is in test_layer_gradients.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.engines import Engine
from imagenet_pipeline.networks.layers import Conv, Dense, Flatten, Pool, stack


@pytest.mark.gluon
def test_maxima_are_remembered_in_float32(
    make_engine: Callable[..., Engine], make_batch: Callable[..., tuple[Any, Any]]
) -> None:
    """oneDNN's float32 pooling forgets in scoring where they were."""
    network = stack(
        conv=Conv(16, 3, pad=1), pool=Pool("max", 2, stride=2), last=Conv(16, 3), flatten=Flatten(), dense=Dense(7)
    )
    images, classes = make_batch(2)
    half, whole = (
        make_engine(network, precision=precision).layer_gradients(images, "conv", classes)[1]
        for precision in ("float32", "float64")
    )
    assert (half.dtype, whole.dtype) == (np.float32, np.float64)
    assert np.abs(half - whole).max() <= 1e-5 * np.abs(whole).max()
    assert np.count_nonzero(whole) == whole.size // 4
