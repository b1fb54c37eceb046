"""The vocabulary: what may be said, and that it stays small."""

import dataclasses
import inspect
from pathlib import Path
from typing import get_args

import pytest

from imagenet_pipeline.networks import layers
from imagenet_pipeline.networks.layers import Conv, Layer, Pool, Sequential, pair, stack


def test_sizes_are_numbers_or_pairs():
    assert pair(3) == (3, 3)
    assert pair((2, 5)) == (2, 5)


def test_stack_keeps_the_order_of_its_keywords():
    network = stack(second=Conv(1, 1), first=Conv(2, 1))
    assert [name for name, _ in network.items] == ["second", "first"]


def test_descriptions_are_values():
    assert stack(conv=Conv(1, 3)) == stack(conv=Conv(1, 3))
    assert hash(stack(conv=Conv(1, 3))) == hash(stack(conv=Conv(1, 3)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Conv(1, 3).channels = 2


@pytest.mark.parametrize("names", [("conv", "conv"), ("a.b",), ("",)])
def test_names_that_would_collide_in_a_checkpoint_are_refused(names):
    with pytest.raises(ValueError, match="different plain words"):
        Sequential(tuple((name, Conv(1, 1)) for name in names))


@pytest.mark.parametrize(
    "fields", [{"size": 3, "stride": 2, "pad": 2}, {"size": 3, "stride": 3, "pad": 1, "ceil": True}]
)
def test_pools_on_which_engines_differ_are_refused(fields):
    with pytest.raises(ValueError, match="pad"):
        Pool("max", **fields)


def test_the_vocabulary_stays_small():
    # Beyond what classifiers are made of, a network belongs into an engine's own file instead.
    assert len(get_args(Layer)) <= 34
    assert len(Path(inspect.getfile(layers)).read_text().splitlines()) <= 450
