"""Networks by name."""

import pytest

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Conv, Dense
from imagenet_pipeline.networks.shapes import describe


@pytest.mark.parametrize("name", catalog.names())
def test_every_network_ends_in_as_many_classes_as_asked(name):
    network, size = catalog.build(name, 7), catalog.entry(name).input_size
    assert describe(network, (3, size, size))[-1].output_shape == (7,)
    assert any(item in (("classifier", Dense(7)), ("classifier", Conv(7, 1))) for item in network.items)


@pytest.mark.parametrize(("name", "nearest"), [("resent50", "resnet50"), ("AlexNet", "alexnet"), ("lenet5", "lenet")])
def test_a_misspelt_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(BadRecipe, match=f"no network is called '{name}'; did you mean {nearest}"):
        catalog.build(name, 10)


def test_a_name_near_none_is_told_where_all_are():
    with pytest.raises(BadRecipe, match="imagenet-pipeline networks lists them"):
        catalog.entry("zzz")


def test_a_network_without_classes_is_refused():
    with pytest.raises(BadRecipe, match="at least one class"):
        catalog.build("lenet", 0)


def test_a_zoo_without_its_colon() -> None:
    with pytest.raises(BadRecipe, match="did you mean timm:NAME"):
        catalog.entry("timm")
