"""What engines share: totals that add up, and one-line errors for engines that are not there."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import NO_TOTALS, Blueprint, Totals, create_engine
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import Dense, Flatten, stack

BLUEPRINT = Blueprint(stack(f=Flatten(), d=Dense(2)), 4, (0.0,) * 3, (1.0,) * 3, OptimizerRecipe(), "cpu")

counts = st.integers(1, 10**6).flatmap(
    lambda images: st.builds(
        Totals,
        st.just(images),
        st.integers(0, images),
        st.integers(0, images),
        st.lists(st.floats(0, 1e6), min_size=1, max_size=5).map(np.array),
    )
)


@given(counts, counts)
def test_totals_add_up(first: Totals, second: Totals) -> None:
    total = NO_TOTALS + first + second
    assert total.images == first.images + second.images
    assert total.rank1 == 100 * (first.rank1_hits + second.rank1_hits) / total.images
    assert total.rank5 == 100 * (first.rank5_hits + second.rank5_hits) / total.images
    assert total.loss == pytest.approx((first.loss * first.images + second.loss * second.images) / total.images)


def test_the_input_shape_is_channels_height_width() -> None:
    assert BLUEPRINT.input_shape == (3, 4, 4)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(BadRecipe, match=r"engine = 'caffe'.*expected 'gluon'"):
        create_engine("caffe", BLUEPRINT, {})


def test_a_framework_that_is_not_installed_is_one_line_of_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("imagenet_pipeline.engines.gluon")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "mxnet", None)
    with pytest.raises(BadRecipe, match=r"not installed .*pip install 'imagenet-pipeline\[gluon\]'"):
        create_engine("gluon", BLUEPRINT, {})
