"""Counts against published ones, and the shape arithmetic against counting windows."""

import math
import timeit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import (
    Activation,
    Attention,
    BatchNorm,
    BlurPool,
    Concat,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    LocalResponseNorm,
    Pool,
    Reshape,
    Residual,
    Scale,
    Sequential,
    stack,
    without_taps,
)
from imagenet_pipeline.networks.shapes import (
    describe,
    multiply_adds,
    output_shape,
    parameter_count,
    parameters,
)


def described(name, size=None, classes=1000):
    size = size or catalog.entry(name).input_size
    return describe(catalog.build(name, classes), (3, size, size))


@pytest.mark.parametrize("name", ["alexnet", "alexnet_book"])
def test_alexnet_shrinks_the_image_as_the_paper_says(name):
    sides = [report.output_shape[-1] for report in described(name) if isinstance(report.layer, Conv | Pool)]
    assert list(dict.fromkeys(sides)) == [55, 27, 13, 6]


@pytest.mark.parametrize("name", catalog.names())
def test_names_are_unique_and_shapes_follow_one_another(name):
    reports = described(name)
    listed = [parameter.name for report in reports for parameter in report.parameters]
    assert len(set(listed)) == len(listed) == len(parameters(catalog.build(name, 1000), reports[0].input_shape))
    assert all(item.name.startswith(report.path + ".") for report in reports for item in report.parameters)
    assert reports[-1].output_shape == (1000,)


def test_what_leaves_a_network_that_ends_in_branches_is_all_of_them():
    branches = Concat((("one", Conv(2, 1)), ("three", Conv(5, 3, pad=1))))
    assert output_shape(stack(stem=Conv(3, 1), mixed=branches), (3, 6, 6)) == (7, 6, 6)
    assert output_shape(stack(unit=Residual(stack(c=Conv(4, 1)), stack(d=Conv(4, 1)))), (3, 6, 6)) == (4, 6, 6)
    assert output_shape(stack(), (3, 6, 6)) == (3, 6, 6)
    with pytest.raises(BadRecipe, match="too small"):
        output_shape(stack(conv=Conv(2, 7)), (3, 6, 6))


def test_names_stay_what_checkpoints_have():
    names = list(parameters(catalog.build("resnet18", 1000), (3, 224, 224)))
    assert len(names) == 20 + 20 * 4 + 2
    assert names[:6] == [
        "stem.conv.weight",
        "stem.norm.weight",
        "stem.norm.bias",
        "stem.norm.running_mean",
        "stem.norm.running_var",
        "stage1.unit1.conv1.weight",
    ]
    assert names[-3:] == ["stage4.unit2.norm2.running_var", "classifier.weight", "classifier.bias"]
    assert {"stage2.unit1.conv1.weight", "stage2.unit1.shortcut.conv.weight"} <= set(names)


def test_only_what_is_trained_counts():
    network = stack(norm=BatchNorm(scale=False), prelu=Activation("prelu"), relu=Activation("relu"))
    assert parameter_count(describe(network, (6, 4, 4))) == 12
    trained = {name: item.trainable for name, item in parameters(network, (6, 4, 4)).items()}
    assert trained == {
        "norm.weight": False,
        "norm.bias": True,
        "norm.running_mean": False,
        "norm.running_var": False,
        "prelu.slope": True,
    }


def count_windows(length, size, stride, pad, ceil):
    """Place windows one by one on the padded line; a partial one must still begin inside it."""
    padded = length + 2 * pad
    starts = range(0, padded, stride)
    whole = [start for start in starts if start + size <= padded]
    reached = whole[-1] + size if whole else 0
    return len(whole) + (1 if ceil and whole and reached < padded else 0)


axes = st.tuples(
    st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 4)
)  # length, size, stride, pad


@given(axes, axes, st.integers(1, 3), st.integers(1, 4))
def test_a_convolution_has_one_output_per_window(height, width, groups, per_group):
    channels = groups * per_group
    (h, kernel_h, stride_h, pad_h), (w, kernel_w, stride_w, pad_w) = height, width
    layer = Conv(2 * groups, (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), groups)
    expected = (count_windows(*height, ceil=False), count_windows(*width, ceil=False))
    assume(min(expected) > 0)
    (report,) = describe(stack(conv=layer), (channels, h, w))
    assert report.output_shape == (2 * groups, *expected)
    # Every output pixel of every channel reads its group's part of a window.
    assert report.multiply_adds == math.prod(report.output_shape) * per_group * kernel_h * kernel_w
    assert report.parameter_count == 2 * groups * (per_group * kernel_h * kernel_w + 1)


@given(axes, st.booleans(), st.sampled_from(["max", "average"]))
def test_pooling_has_one_output_per_window(axis, ceil, kind):
    length, size, stride, pad = axis
    assume(2 * pad <= size and not (ceil and pad + stride > size))
    expected = count_windows(length, size, stride, pad, ceil)
    assume(expected > 0)
    (report,) = describe(stack(pool=Pool(kind, size, stride, pad, ceil)), (5, length, length))
    assert report.output_shape == (5, expected, expected)
    assert (report.parameter_count, report.multiply_adds) == (0, 0)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 8))
def test_the_other_layers_have_the_shapes_they_promise(channels, height, width, units):
    same = stack(norm=BatchNorm(), relu=Activation("relu"), drop=Dropout(0.5), response=LocalResponseNorm(size=3))
    shape = (channels, height, width)
    assert {report.output_shape for report in describe(same, shape)} == {shape}
    head = describe(stack(flatten=Flatten(), dense=Dense(units, bias=False)), shape)
    assert [report.output_shape for report in head] == [(math.prod(shape),), (units,)]
    assert multiply_adds(head) == parameter_count(head) == math.prod(shape) * units
    assert describe(stack(pool=GlobalAveragePool()), shape)[0].output_shape == (channels, 1, 1)


@given(length=st.integers(1, 30), size=st.integers(2, 6), stride=st.integers(1, 4))
def test_a_blur_leaves_every_stride_th_pixel(length, size, stride):
    assume(length > size // 2)
    assert output_shape(stack(blur=BlurPool(size, (stride, 1))), (2, length, 9)) == (
        2,
        len(range(0, length, stride)),
        9,
    )


def test_a_blur_of_an_image_too_small_to_be_mirrored_says_how_large_it_must_be():
    with pytest.raises(BadRecipe, match=r"layer blur: an input of 3x3 is too small.*at least 4x4"):
        describe(stack(pool=Pool("max", 3, 1), blur=BlurPool(3)), (3, 3, 3))


def test_attention_counts_its_two_products_and_needs_three_widths_of_whole_heads():
    tokens = stack(rows=Reshape((5, 24)), attention=Attention(4), scale=Scale(0.1))
    *_, attention, scale = describe(tokens, (3, 8, 5))
    assert (attention.output_shape, attention.multiply_adds, attention.parameters) == ((5, 8), 2 * 5 * 5 * 8, ())
    assert [(one.name, one.shape, one.role) for one in scale.parameters] == [("scale.weight", (8,), "scale")]
    for heads, shape in ((3, (5, 24)), (1, (5, 4, 6)), (1, (6, 20))):
        with pytest.raises(BadRecipe, match=r"layer attention: .*side by side"):
            describe(stack(rows=Reshape(shape), attention=Attention(heads)), (3, 8, 5))


def test_branches_are_joined_along_the_channels():
    branches = Concat((("narrow", Conv(4, 1)), ("wide", stack(conv=Conv(6, 3, pad=1)))))
    reports = describe(stack(squeeze=Conv(2, 1), expand=branches, last=Conv(1, 1)), (3, 8, 8))
    assert [report.path for report in reports] == ["squeeze", "expand.narrow", "expand.wide.conv", "last"]
    assert reports[-1].input_shape == (10, 8, 8)


# Those of alexnet_one_tower, vgg and densenet are torchvision's min_size too; of SqueezeNet it takes 21 and 17, as
# PyTorch pools two pixels by a window of three, which MXNet refuses.
SMALLEST = {
    "lenet": 16,
    "minivggnet": 4,
    "minigooglenet": 7,
    "emotion_vggnet": 8,
    "alexnet": 67,
    "alexnet_one_tower": 63,
    "alexnet_book": 67,
    "vgg11": 32,
    "vgg16_book": 32,
    "googlenet": 79,
    "googlenet_bn": 79,
    "inception_v3": 299,
    "squeezenet1_0": 29,
    "squeezenet1_1": 25,
    "squeezenet_book": 29,
    "densenet121": 29,
}


@pytest.mark.parametrize(("name", "smallest"), SMALLEST.items())
def test_the_smallest_size_named_is_true(name, smallest):
    network = catalog.build(name, 10)
    with pytest.raises(BadRecipe, match=rf"layer [\w.]+: .*1x1 .*at least {smallest}x{smallest}"):
        describe(network, (3, 1, 1))
    assert not fits(network, smallest - 1)
    assert fits(network, smallest)


@pytest.mark.parametrize("name", ["shallownet", "googlenet_book", "resnet18"])
def test_a_network_of_padded_windows_takes_any_size(name):
    assert fits(catalog.build(name, 10), 1)


def test_without_its_head_inception_v3_takes_what_torchvisions_takes():
    network = without_taps(catalog.build("inception_v3", 10))
    assert fits(network, 75)
    assert not fits(network, 74)


def test_a_small_input_is_explained():
    with pytest.raises(BadRecipe) as caught:
        describe(catalog.build("alexnet", 10), (3, 62, 62))
    assert str(caught.value).startswith(
        "layer pool5: an input of 62x62 is too small: 2x2 reach its windows of 3x3; expected an input of at least 67x67"
    )


def test_a_network_nothing_fits_is_refused_without_a_size():
    # The pooling leaves 4x4 of any image, so no input helps the convolution.
    network = stack(pool=GlobalAveragePool(), conv=Conv(1, 5))
    with pytest.raises(BadRecipe, match="too small") as caught:
        describe(network, (3, 9, 9))
    assert "expected" not in str(caught.value)


def fits(network: Sequential, size: int) -> bool:
    try:
        describe(network, (3, size, size))
    except BadRecipe:
        return False
    return True


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (stack(dense=Dense(3)), "layer dense: the layer needs a vector; put a Flatten before it"),
        (stack(flatten=Flatten(), conv=Conv(3, 1)), "layer conv: the layer needs an image"),
        (stack(conv=Conv(4, 1, groups=2)), "layer conv: 2 groups do not divide the channels"),
        (stack(unit=Residual(stack(conv=Conv(4, 1)))), "unit: the shortcut does not fit the body"),
        (stack(fork=Concat((("a", Conv(1, 1)), ("a", Conv(1, 1))))), "two layers have the same path"),
        (stack(fork=Concat((("a", Conv(1, 1)), ("b", Conv(1, 3))))), "fork: branches of unequal size"),
    ],
)
def test_a_miswired_network_is_refused_by_layer(network, words):
    with pytest.raises(BadRecipe, match=words):
        describe(network, (3, 8, 8))


@pytest.mark.parametrize("shape", [(3, 0, 0), (3, 8), (0, 8, 8)])
def test_what_is_no_image_shape_is_refused(shape):
    with pytest.raises(BadRecipe, match="not an image shape"):
        describe(catalog.build("lenet", 10), shape)


def test_describing_takes_milliseconds():
    network = catalog.build("resnet50", 1000)
    assert min(timeit.repeat(lambda: describe(network, (3, 224, 224)), number=1, repeat=3)) < 0.1


def test_positions_trained_for_another_size_say_so():
    with pytest.raises(BadRecipe, match=r"layer tokens\.sum: .* fit images of one size alone: set input\.size"):
        describe(catalog.build("vit_small_patch16_224", 5), (3, 64, 64))
