"""Half precision, PyTorch's alone; what both engines share is in test_layer_gradients.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.engines import Engine
from imagenet_pipeline.networks.layers import Activation, Conv, Dense, Flatten, stack

SMOOTH = stack(conv=Conv(6, 3, pad=1), tanh=Activation("tanh"), last=Conv(8, 3), flatten=Flatten(), classifier=Dense(7))


def test_in_bfloat16_what_is_read_is_float32(
    make_engine: Callable[..., Engine], make_batch: Callable[..., tuple[Any, Any]]
) -> None:
    pytest.importorskip("torch")
    images, classes = make_batch(2)
    coarse, fine = (
        make_engine(SMOOTH, engine="pytorch", precision=precision).layer_gradients(images, "conv", classes)
        for precision in ("bfloat16", "float32")
    )
    for one, other in zip(coarse, fine, strict=True):
        assert one.dtype == np.float32
        assert 0 < np.abs(one - other).max() <= 0.05 * np.abs(other).max()
