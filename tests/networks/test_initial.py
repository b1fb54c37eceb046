"""Initial values: their distributions, MXNet's own initializers, and that only seed and name count."""

import math

import numpy as np
import pytest

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import KINDS, initial_values
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Constant,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Flatten,
    Graph,
    InstanceNorm,
    LayerNorm,
    Residual,
    stack,
)

SHAPE = (64, 6, 6)
# A grouped convolution's weights are (96, 32, 3, 3): fan-in 288, and a fan-out of 864 to MXNet.
NETWORK = stack(conv=Conv(96, 3, groups=2), flatten=Flatten(), dense=Dense(200))
FANS = {"conv.weight": (288, 864), "dense.weight": (1536, 200)}


def drawn(kind, seed=0, network=NETWORK):
    return initial_values(network, SHAPE, kind, seed)


def variance(kind, fan_in, fan_out):
    mean = (fan_in + fan_out) / 2
    return {"xavier": 1 / mean, "msra": 2 / (1 + 0.25**2) / mean, "he": 2 / fan_in, "lecun": 1 / fan_in,
            "gaussian": 1}[kind]  # fmt: skip


@pytest.mark.parametrize("name", FANS)
@pytest.mark.parametrize("kind", ["xavier", "msra", "he", "lecun", "gaussian"])
def test_weights_have_mean_zero_and_the_variance_of_their_definition(kind, name):
    values = drawn(kind)[name]
    deviation = math.sqrt(variance(kind, *FANS[name]))
    assert values.dtype == np.float32
    assert abs(values.mean()) < 5 * deviation / math.sqrt(values.size)
    assert values.std() == pytest.approx(deviation, rel=0.02)


def test_a_truncated_normal_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for values in drawn("truncated_normal").values():
        if values.ndim > 1:
            assert np.abs(values).max() <= 0.04
            sample = values.ravel()[:20_000].astype(np.float64) / 0.02
            assert stats.kstest(sample, stats.truncnorm(-2, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize(("kind", "initializer"), [("xavier", "Xavier"), ("msra", "MSRAPrelu")])
@pytest.mark.parametrize("name", FANS)
def test_xavier_and_msra_are_distributed_as_mxnets(kind, initializer, name, mx):
    ours = np.sort(drawn(kind)[name].ravel())
    mx.random.seed(1)
    array = mx.nd.zeros(drawn(kind)[name].shape)
    getattr(mx.initializer, initializer)()(mx.initializer.InitDesc(name), array)
    theirs = np.sort(array.asnumpy().ravel())
    # Two-sample Kolmogorov-Smirnov distance; 1.95 is its critical value at a level of 0.1 percent.
    merged = np.concatenate([ours, theirs])
    distance = (
        np.abs(np.searchsorted(ours, merged, "right") - np.searchsorted(theirs, merged, "right")).max() / ours.size
    )
    assert distance < 1.95 * math.sqrt(2 / ours.size)
    if kind == "xavier":
        assert ours[-1] == pytest.approx(theirs[-1], rel=0.001)


def test_sparse_units_read_fifteen_inputs():
    network = stack(conv=Conv(8, 3), few=Conv(40, 1), flatten=Flatten(), dense=Dense(2000))
    values = initial_values(network, (1, 5, 5), "sparse", 3)
    for name, inputs in {"conv.weight": 9, "few.weight": 8, "dense.weight": 15}.items():
        rows = values[name].reshape(len(values[name]), -1)
        assert (np.count_nonzero(rows, axis=1) == inputs).all()
    weights = values["dense.weight"][values["dense.weight"] != 0]
    assert abs(weights.mean()) < 0.03
    assert weights.std() == pytest.approx(1, rel=0.02)
    # Every input is somebody's.
    assert (np.count_nonzero(values["dense.weight"], axis=0) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_values_depend_on_seed_and_name_alone(kind):
    alone = drawn(kind, network=stack(flatten=Flatten(), extra=Dense(96 * 16), dense=Dense(200)))
    among = drawn(kind)
    assert np.array_equal(alone["dense.weight"], among["dense.weight"])
    assert not np.array_equal(drawn(kind, seed=1)["dense.weight"], among["dense.weight"])
    twins = initial_values(stack(one=Conv(64, 1), two=Conv(64, 1)), SHAPE, kind, 0)
    assert not np.array_equal(twins["one.weight"], twins["two.weight"])


def test_what_is_not_drawn_starts_plain():
    network = stack(conv=Conv(4, 3), norm=BatchNorm(), prelu=Activation("prelu", slope=0.1))
    values = initial_values(network, SHAPE, "he", 0)
    del values["conv.weight"]
    plain = {name: set(array.tolist()) for name, array in values.items()}
    assert plain == {
        "conv.bias": {0.0},
        "norm.weight": {1.0},
        "norm.bias": {0.0},
        "norm.running_mean": {0.0},
        "norm.running_var": {1.0},
        "prelu.slope": {float(np.float32(0.1))},
    }


def test_the_values_of_a_seed_never_change():
    values = initial_values(catalog.build("lenet", 10), (1, 28, 28), "xavier", 42)
    assert values["conv1.weight"].ravel()[:2].tolist() == [-0.03665609285235405, -0.06965459883213043]


def test_biases_start_where_they_are_told_and_nothing_else_changes():
    network = stack(**dict(NETWORK.items), norm=BatchNorm(), prelu=Activation("prelu"))
    before, after = drawn("he", network=network), initial_values(network, SHAPE, "he", 0, bias=0.1)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {"conv.bias", "dense.bias"}
    assert {float(value) for name in changed for value in after[name]} == {float(np.float32(0.1))}


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(
        BadRecipe, match=r"xavier \| msra \| he \| lecun \| sparse \| gaussian \| truncated_normal; found glorot"
    ):
        drawn("glorot")


def test_the_last_scale_of_every_residual_body_starts_at_zero():
    """So that a unit begins as its shortcut, and nothing else is another than without."""
    unit = stack(conv=Conv(6, 1), norm=BatchNorm())
    network = stack(
        norm=BatchNorm(),
        one=Residual(stack(norm=BatchNorm(), last=unit), shortcut=stack(norm=BatchNorm())),
        two=stack(within=Residual(unit), relu=Activation("relu")),
        fixed=Residual(stack(norm=BatchNorm(scale=False))),
        v2=Residual(stack(norm=BatchNorm(), conv=Conv(6, 1))),
    )
    shape = (6, 4, 4)
    values, plain = (initial_values(network, shape, "he", 0, zero) for zero in (True, False))
    assert list(values) == list(plain)
    changed = {name for name in values if not np.array_equal(values[name], plain[name])}
    assert changed == {"one.last.norm.weight", "two.within.norm.weight"}
    assert not any(values[name].any() for name in changed)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 8), ("resnet50", 16), ("resnet50_d", 16)])
def test_published_residual_networks_have_one_zero_scale_a_unit(name, count):
    values = initial_values(catalog.build(name, 10), (3, 64, 64), "he", 0, zero_last_scale=True)
    zeros = [one for one in values if one.endswith(".weight") and not values[one].any()]
    assert len(zeros) == count
    assert all(".unit" in one and "shortcut" not in one for one in zeros)


@pytest.mark.parametrize("name", ["lenet", "vgg16", "resnet18_v2"])
def test_zero_last_scale_is_refused_where_it_has_no_effect(name):
    with pytest.raises(BadRecipe, match=r"initial\.zero_last_scale: no residual body"):
        initial_values(catalog.build(name, 10), (3, 64, 64), "he", 0, zero_last_scale=True)


@pytest.mark.parametrize(("name", "equal"), [("lenet", False), ("resnet18_v2", False), ("resnet18", True)])
def test_automatic_zero_scales_are_where_they_can_be(name, equal):
    network = catalog.build(name, 10)
    plain, found = (initial_values(network, (3, 64, 64), "he", 0, zero_last_scale=wish) for wish in (equal, "auto"))
    assert all(np.array_equal(plain[parameter], found[parameter]) for parameter in plain)


def test_a_transposed_convolution_is_drawn_as_the_convolution_of_its_channels_and_turned():
    for groups in (1, 2):
        turned = stack(layer=ConvTranspose(96, 3, groups=groups), flatten=Flatten())
        plain = stack(layer=Conv(96, 3, groups=groups))
        for kind in KINDS:
            found, wanted = (drawn(kind, network=network)["layer.weight"] for network in (turned, plain))
            assert found.shape == (64, 96 // groups, 3, 3)
            for group in range(groups):
                inputs, outputs = 64 // groups, 96 // groups
                part = found[inputs * group : inputs * (group + 1)].swapaxes(0, 1)
                np.testing.assert_array_equal(part, wanted[outputs * group : outputs * (group + 1)])


def test_norms_start_at_one_and_zero_and_a_constant_at_zero():
    items = (("instance", InstanceNorm()), ("layer", LayerNorm()), ("number", Constant((64, 1, 1))))
    links = (("",), ("instance",), (), ("layer", "number"))
    values = drawn("he", network=stack(graph=Graph((*items, ("end", Elementwise("add"))), links)))
    assert {name.removeprefix("graph."): (value.shape, set(value.ravel())) for name, value in values.items()} == {
        "instance.weight": ((64,), {1}), "instance.bias": ((64,), {0}), "layer.weight": ((6,), {1}),
        "layer.bias": ((6,), {0}), "number.value": ((64, 1, 1), {0}),
    }  # fmt: skip
