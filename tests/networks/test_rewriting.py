"""Options of a network: each changes what it says and nothing else, in networks of the catalogue and in any tree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.config.recipe import NetworkOptions
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    BlurPool,
    Clip,
    Concat,
    Conv,
    Dense,
    Dropout,
    Elementwise,
    Flatten,
    GlobalAveragePool,
    Graph,
    Pool,
    Reshape,
    Residual,
    Tap,
    Transpose,
    stack,
    walk,
)
from imagenet_pipeline.networks.rewriting import rewritten
from imagenet_pipeline.networks.shapes import describe, output_shape, parameter_count
from imagenet_pipeline.networks.squeeze_excitation import squeeze_excitation

RELU, NORM = Activation("relu"), BatchNorm(momentum=0.5)


def changed(network, **options):
    return rewritten(network, NetworkOptions(**options), "mine", (3, 32, 32))


def names(network):
    return [name for name, _ in network.items]


def test_every_dropout_has_the_rate_wherever_it_stands():
    inner = stack(conv=Conv(4, 1), drop=Dropout(0.5))
    network = stack(
        drop=Dropout(0.1), unit=Residual(inner, stack(drop=Dropout(0.2))),
        both=Concat((("a", inner), ("b", Conv(4, 1)))),
        graph=Graph((("a", inner),), (("",),)), aux=Tap(stack(flat=Flatten(), drop=Dropout(0.7), d=Dense(3)), 0.3),
        flat=Flatten(), d=Dense(3),
    )  # fmt: skip
    made = changed(network, dropout=0.25)
    rates = [layer.rate for _, layer in walk(made) if isinstance(layer, Dropout)]
    assert rates == [0.25] * 6
    assert [path for path, _ in walk(made)] == [path for path, _ in walk(network)]


def test_every_activation_has_the_kind_but_arithmetic_and_gates():
    inner = stack(conv=Conv(4, 1), bent=RELU, end=Activation("sigmoid"))
    gate = Graph((("gate", inner), ("bent", RELU), ("x", Elementwise("multiply")), ("y", Activation("sigmoid"))),
                 (("",), ("",), ("bent", "gate"), ("x",)))  # fmt: skip
    made = changed(stack(a=RELU, b=Activation("square"), c=Activation("elu", 0.3), d=gate), activation="elu")
    assert made.items[:3] == (("a", Activation("elu", 1.0)), ("b", Activation("square")), ("c", Activation("elu", 0.3)))
    elu = Activation("elu", 1.0)
    wanted = stack(conv=Conv(4, 1), bent=elu, end=Activation("sigmoid"))
    assert dict(dict(made.items)["d"].items) == {
        "gate": wanted, "bent": elu, "x": Elementwise("multiply"), "y": elu
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "place", "after"),
    [
        ("conv1 relu1 pool", "before", "conv1 norm1 relu1 pool"),
        ("conv1 relu1 pool", "after", "conv1 relu1 norm1 pool"),
        ("conv1 norm1 relu1 conv2 norm2", "after", "conv1 relu1 norm1 conv2 norm2"),
        ("conv1 relu1 norm1 pool relu2", "before", "conv1 norm1 relu1 pool relu2"),
        ("norm1 relu1 conv1 relu2", "before", "norm1 relu1 conv1 norm2 relu2"),
        ("conv1 norm1 relu1", "before", "conv1 norm1 relu1"),
        ("conv1 norm1 relu1 pool", "first", "input_norm conv1 norm1 relu1 pool"),
        ("norm1 conv1", "first", "norm1 conv1"),
        ("conv1 norm1 relu1 conv2 relu2 norm2", "none", "conv1 relu1 conv2 relu2"),
    ],
)
def test_normalisation_stands_where_it_is_asked_for(before, place, after):
    kinds = {"conv": Conv(4, 1, bias=False), "relu": RELU, "norm": NORM, "pool": Pool("max", 2, 2)}
    network = stack(**{name: kinds[name.rstrip("0123456789")] for name in before.split()})
    made = changed(network, normalisation=place)
    assert names(made) == after.split()
    kept = dict(network.items)
    assert all(layer in (kept.get(name), BatchNorm()) or place == "none" for name, layer in made.items)
    if place == "none":
        assert [layer.bias for _, layer in made.items if isinstance(layer, Conv)] == [True, False]


def test_a_bias_takes_the_place_of_a_norm_in_a_graph_too():
    graph = Graph((("conv", Conv(4, 1, bias=False)), ("norm", NORM), ("sum", Elementwise("add"))),
                  (("",), ("conv",), ("norm", "conv")))  # fmt: skip
    made = changed(stack(graph=graph), normalisation="none")
    assert dict(dict(made.items)["graph"].items)["conv"] == Conv(4, 1)
    assert output_shape(made, (3, 8, 8)) == output_shape(stack(graph=graph), (3, 8, 8))


def test_the_zoo_s_vgg_is_the_paper_s_with_normalisation_before():
    ours = changed(catalog.entry("vgg11").build(10), normalisation="before")
    zoo = catalog.entry("vgg11_bn").build(10)
    assert [item for item in ours.items if item[0].startswith("block")] == [
        item for item in zoo.items if item[0].startswith("block")
    ]


@pytest.mark.parametrize(
    "name", ["lenet", "resnet18", "resnet50_d", "googlenet", "densenet121", "squeezenet1_1", "alexnet"]
)
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wider_network_keeps_its_form_and_its_classes(name, factor):
    size = catalog.entry(name).input_size
    network, wide = (catalog.build(which, 7) for which in (name, f"{name}?width={factor}"))
    assert [path for path, _ in walk(wide)] == [path for path, _ in walk(network)]
    assert output_shape(wide, (3, size, size)) == (7,)
    few, many = (parameter_count(describe(layers, (3, size, size))) for layers in (network, wide))
    assert many / few == pytest.approx(factor**2, rel=0.2)


def test_a_deeper_network_repeats_what_has_an_activation():
    network = stack(
        conv1=Conv(4, (3, 5), stride=2), norm1=NORM, relu1=RELU, pool=Pool("max", 2, 2), even=Conv(4, 2), relu2=RELU,
        unit=Residual(stack(conv1=Conv(4, 3, pad=1), relu1=RELU, conv2=Conv(4, 3, pad=1))), flat=Flatten(),
        fc=Dense(6), relu3=RELU, drop=Dropout(0.5), scores=Dense(5), relu4=RELU,
    )  # fmt: skip
    made = changed(network, depth=3)
    wanted = """conv1 norm1 relu1 conv1_2 norm1_2 relu1_2 conv1_3 norm1_3 relu1_3 pool even relu2 unit flat
        fc relu3 drop fc_2 relu3_2 drop_2 fc_3 relu3_3 drop_3 scores relu4"""
    assert " ".join(names(made)) == " ".join(wanted.split())
    assert dict(made.items)["conv1_2"] == Conv(4, (3, 5), pad=(1, 2))
    assert names(dict(made.items)["unit"].body) == [
        "conv1",
        "relu1",
        "conv1_2",
        "relu1_2",
        "conv1_3",
        "relu1_3",
        "conv2",
    ]
    assert output_shape(made, (3, 16, 16)) == output_shape(network, (3, 16, 16))
    assert [path for path, _ in walk(network)] == [path for path, _ in walk(made) if "_" not in path]
    assert catalog.build("squeezenet1_1?depth=2", 7) is not None


def test_a_depthwise_convolution_stays_one():
    network = stack(a=Conv(8, 1), b=Conv(8, 3, groups=8), c=Conv(6, 1, groups=2))
    made = dict(changed(network, width=1.5).items)
    assert (made["b"], made["c"]) == (Conv(12, 3, groups=12), Conv(8, 1, groups=2))


@pytest.mark.parametrize("name", ["resnext50_32x4d", "se_resnext50_32x4d", "alexnet"])
@pytest.mark.parametrize("factor", [0.1, 0.37, 0.9, 1.1])
def test_what_enters_a_grouped_convolution_divides_by_its_groups(name, factor):
    size = catalog.entry(name).input_size
    made = describe(catalog.build(f"{name}?width={factor}", 7), (3, size, size))
    grouped = [report for report in made if isinstance(report.layer, Conv) and report.layer.groups > 1]
    assert len(grouped) == (3 if name == "alexnet" else 16)
    assert not any(shape[0] % report.layer.groups for report in grouped for shape in report.input_shapes)
    assert made[-1].output_shape == (7,)


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 11_173_962), ("resnet34", 21_282_122), ("resnet50", 23_520_842), ("densenet121", 6_956_298 + 128)],
)
def test_cifar_s_stem_gives_the_counts_known_for_cifar_10(name, count):
    """Those of github.com/kuangliu/pytorch-cifar, whose DenseNet has no normalisation in the stem."""
    network = catalog.build(f"{name}?stem=cifar", 10)
    assert parameter_count(describe(network, (3, 32, 32))) == count
    stem = dict(network.items)["stem"]
    assert not any(isinstance(layer, Pool) for _, layer in stem.items)
    assert output_shape(stem, (3, 32, 32)) == (64, 32, 32)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dropout": 0.5}, "no Dropout, whose rate"),
        ({"activation": "elu"}, "no activation"),
        ({"normalisation": "after"}, "no activation behind"),
        ({"depth": 2}, "no Conv or Dense with an activation"),
        ({"stem": "cifar"}, "no layer called stem"),
    ],
)
def test_an_option_without_effect_is_refused(options, text):
    with pytest.raises(BadRecipe, match=f"network_options.*the network has {text}.*network mine"):
        changed(stack(flat=Flatten(), d=Dense(3)), **options)


@given(st.lists(st.sampled_from(["before", "after", "none"]), min_size=1, max_size=4))
def test_the_last_place_asked_for_counts_and_moving_twice_is_moving_once(places):
    network = catalog.entry("minivggnet").build(5)
    for place in (*places, places[-1]):
        before, network = network, changed(network, normalisation=place)
    assert network == before


def residuals(network):
    return {path: layer for path, layer in walk(network) if isinstance(layer, Residual)}


def test_every_body_that_makes_an_image_ends_in_a_squeeze_excitation_of_its_channels():
    tokens = stack(reshape=Reshape((4, -1)), back=Transpose((1, 0)), again=Reshape((4, 32, 32)))
    own = Residual(stack(se=squeeze_excitation(4, 2)))
    vectors = Residual(stack(dense=Dense(4)))
    network = stack(conv=Conv(4, 1), a=Residual(stack(conv=Conv(4, 1), norm=NORM), stack(conv=Conv(4, 1))), b=own,
                    c=Residual(tokens), pool=GlobalAveragePool(), flat=Flatten(), d=vectors)  # fmt: skip
    made = dict(changed(network, squeeze_excitation=2).items)
    assert made["a"].body.items == (*network.items[1][1].body.items, ("squeeze_excitation", squeeze_excitation(4, 2)))
    assert made["a"].shortcut == network.items[1][1].shortcut
    assert (made["b"], made["d"]) == (own, vectors)
    assert made["c"].body.items[-1][0] == "squeeze_excitation"


def test_relu6_is_an_activation():
    network = catalog.build("mobilenet_v2", 5)
    swish = changed(network, activation="swish")
    assert [path for path, _ in walk(swish)] == [path for path, _ in walk(network)]
    assert sum(layer == Activation("swish") for _, layer in walk(swish)) == 35
    assert not any(isinstance(layer, Clip) for _, layer in walk(swish))
    assert names(dict(changed(network, normalisation="after").items)["stem"]) == ["conv", "active", "norm"]
    assert names(dict(changed(network, depth=2).items)["stem"])[-3:] == ["conv_2", "norm_2", "active_2"]
    arithmetic = stack(conv=Conv(4, 1), active=RELU, clip=Clip(0, 255))
    assert changed(arithmetic, activation="swish").items[-1] == ("clip", Clip(0, 255))


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("se_resnet50", {"squeeze_excitation": 4}, "the network has a gate of its own in each residual body"),
        ("vit_small_patch16_224", {"width": 0.5}, "the network has trained constants"),
        ("vit_small_patch16_224", {"activation": "prelu"}, "its channels along the last axis in block1.mlp.active"),
        ("convnext_tiny", {"activation": "prelu"}, "its channels along the last axis in stage1.unit1.active"),
        ("vit_small_patch16_224", {"normalisation": "after"}, "no activation behind a Conv, or a Dense of vectors"),
        ("convnext_tiny", {"normalisation": "before"}, "no activation behind a Conv, or a Dense of vectors"),
    ],
)
def test_networks_that_an_option_would_leave_as_they_are_or_tear_are_refused(name, options, what):
    with pytest.raises(BadRecipe, match=what):
        changed(catalog.build(name, 5), **options)


def test_normalisation_stands_behind_channels_alone():
    """Not where a Dense along the last axis has put them last; the first axis is theirs again behind a Transpose."""
    network = stack(
        conv=Conv(4, 1), relu1=RELU, pixels=Transpose((1, 2, 0)), dense=Dense(6, last_axis=True), relu2=RELU,
        image=Transpose((2, 0, 1)), relu3=RELU, flatten=Flatten(), fc=Dense(5), relu4=RELU,
    )  # fmt: skip
    added = [name for name in names(changed(network, normalisation="before")) if name not in names(network)]
    assert added == ["norm1", "norm4"]
    with pytest.raises(BadRecipe, match="in relu2"):
        changed(network, activation="prelu")
    turned = stack(**{name: layer for name, layer in network.items if name != "relu2"})
    assert dict(changed(turned, activation="prelu").items)["relu3"].kind == "prelu"


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0", "resnet18"])
def test_stochastic_depth_0_leaves_out_nothing_and_own_what_the_network_does(name):
    network, without = catalog.build(name, 5), catalog.build(f"{name}?stochastic_depth=0", 5)
    assert not any(layer.drop_rate for layer in residuals(without).values())
    assert any(layer.drop_rate for layer in residuals(network).values()) == (name != "resnet18")
    assert changed(network) == network


def test_the_last_normalisation_before_a_squeeze_excitation_may_start_at_0():
    network = changed(catalog.build("resnet18", 5), squeeze_excitation=16)
    values = initial_values(network, (3, 64, 64), "he", 0, zero_last_scale=True)
    assert not values["stage1.unit1.norm2.weight"].any()
    assert values["stage1.unit1.norm1.weight"].all()


def test_rates_of_stochastic_depth_rise_linearly():
    made = residuals(changed(catalog.build("resnet18", 5), stochastic_depth=0.4))
    assert [layer.drop_rate for layer in made.values()] == pytest.approx([0.05 * number for number in range(1, 9)])
    assert list(made)[-1] == "stage4.unit2"
    nested = stack(outer=Residual(stack(inner=Residual(stack(conv=Conv(3, 1))))))
    assert [layer.drop_rate for layer in residuals(changed(nested, stochastic_depth=0.4)).values()] == [0.2, 0.4]


@pytest.mark.parametrize(
    ("before", "blur", "after"),
    [
        ("conv norm relu pool", "max", "conv/2 norm relu pool.max pool.blur/2"),
        ("conv conv2 norm relu pool", "all", "conv/2 conv2 norm relu conv2_blur/2 pool.max pool.blur/2"),
        ("conv point norm", "all", "conv/2 point_blur/2 point norm"),
    ],
)
def test_blurs_stand_where_pixels_are_left_out(before, blur, after):
    known = {"conv": Conv(4, 3, 2, 1), "conv2": Conv(4, 3, 2, 1), "point": Conv(4, 1, 2), "norm": NORM, "relu": RELU,
             "pool": Pool("max", 3, 2, 1)}  # fmt: skip
    network = stack(**{name: known[name] for name in before.split()})
    made = changed(network, blur_pool=blur)
    strides = [(path, getattr(layer, "stride", 1)) for path, layer in walk(made) if not hasattr(layer, "items")]
    assert " ".join(path + (f"/{stride}" if stride > 1 else "") for path, stride in strides) == after


@pytest.mark.parametrize("name", ["resnet18", "resnet50_d", "resnet18_v2", "densenet121", "squeezenet1_1", "googlenet"])
@pytest.mark.parametrize("blur", ["max", "all"])
@pytest.mark.parametrize("size", [96, 97])
def test_a_blurred_network_has_the_shapes_it_had(name, blur, size):
    network = catalog.build(name, 5)
    made = changed(network, blur_pool=blur)
    before, after = (describe(blurred, (3, size, size)) for blurred in (network, made))
    assert any(isinstance(report.layer, BlurPool) for report in after)
    assert [report.parameters for report in after if report.parameters] == [
        report.parameters for report in before if report.parameters
    ]
    assert after[-1].output_shape == before[-1].output_shape
