"""Parameters and multiply-adds of every network against figures others have published."""

import math

import pytest

from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Activation, BatchNorm, Conv, Dense, Tap
from imagenet_pipeline.networks.shapes import LayerReport, describe, multiply_adds, parameter_count

TORCHVISION = "torchvision 0.20, weights metadata: num_params, _ops"
IMGCLSMOB = "github.com/osmr/imgclsmob, pytorch/README.md"
COOKBOOK = "HPE Deep Learning Cookbook (github.com/HewlettPackard/dlcookbook-dlbs), models"
SZE = "Sze et al., Efficient Processing of Deep Neural Networks (2017), table II"

# 1000 classes, the network's own input: trained numbers without auxiliary heads; who says so.
PARAMETERS = {
    "alexnet": (60_965_224, COOKBOOK),
    "alexnet_one_tower": (61_100_840, TORCHVISION),
    "vgg11": (132_863_336, TORCHVISION),
    "vgg13": (133_047_848, TORCHVISION),
    "vgg16": (138_357_544, TORCHVISION),
    "vgg19": (143_667_240, TORCHVISION),
    "vgg11_bn": (132_868_840, TORCHVISION),
    "vgg13_bn": (133_053_736, TORCHVISION),
    "vgg16_bn": (138_365_992, TORCHVISION),
    "vgg19_bn": (143_678_248, TORCHVISION),
    "googlenet": (6_998_552, COOKBOOK),
    "googlenet_bn": (6_624_904, TORCHVISION),
    "inception_v3": (23_834_568, IMGCLSMOB),
    "resnet18": (11_689_512, TORCHVISION),
    "resnet34": (21_797_672, TORCHVISION),
    "resnet50": (25_557_032, TORCHVISION),
    "resnet101": (44_549_160, TORCHVISION),
    "resnet152": (60_192_808, TORCHVISION),
    "resnet50_d": (25_576_264, "timm, resnet50d: num_params"),
    "resnext50_32x4d": (25_028_904, TORCHVISION),
    "resnext101_32x8d": (88_791_336, TORCHVISION),
    "resnext101_64x4d": (83_455_272, TORCHVISION),
    "wide_resnet50_2": (68_883_240, TORCHVISION),
    "wide_resnet101_2": (126_886_696, TORCHVISION),
    "mobilenet_v1": (4_231_976, "Keras' MobileNet, https://keras.io/api/applications/mobilenet: trained"),
    "mobilenet_v2": (3_504_872, TORCHVISION),
    "mobilenet_v3_large": (5_483_032, TORCHVISION),
    "mobilenet_v3_small": (2_542_856, TORCHVISION),
    "efficientnet_b0": (5_288_548, TORCHVISION),
    "convnext_tiny": (28_589_128, TORCHVISION),
    "se_resnet50": (28_088_024, "timm, seresnet50: parameters of the module"),
    "vit_small_patch16_224": (22_050_664, "timm, vit_small_patch16_224: parameters of the module"),
    "squeezenet1_0": (1_248_424, TORCHVISION),
    "squeezenet1_1": (1_235_496, TORCHVISION),
    "densenet121": (7_978_856, TORCHVISION),
    "densenet161": (28_681_000, TORCHVISION),
    "densenet169": (14_149_480, TORCHVISION),
    "densenet201": (20_013_928, TORCHVISION),
}

# Multiply-adds, in thousand millions.
COSTS = {
    "alexnet": (0.724, SZE),
    "alexnet_one_tower": (0.714, TORCHVISION),
    "vgg11": (7.609, TORCHVISION),
    "vgg13": (11.308, TORCHVISION),
    "vgg16": (15.470, TORCHVISION),
    "vgg19": (19.632, TORCHVISION),
    "vgg16_bn": (15.470, TORCHVISION),
    "googlenet_bn": (1.498, TORCHVISION),
    "inception_v3": (5.713, TORCHVISION),
    "resnet18": (1.814, TORCHVISION),
    "resnet34": (3.664, TORCHVISION),
    "resnet50": (4.089, TORCHVISION),
    "resnet101": (7.801, TORCHVISION),
    "resnet152": (11.514, TORCHVISION),
    "resnext50_32x4d": (4.230, TORCHVISION),
    "resnext101_32x8d": (16.414, TORCHVISION),
    "resnext101_64x4d": (15.460, TORCHVISION),
    "wide_resnet50_2": (11.398, TORCHVISION),
    "wide_resnet101_2": (22.753, TORCHVISION),
    "mobilenet_v1": (0.569, "Howard et al. 2017, table 4: 569 million"),
    "mobilenet_v2": (0.301, TORCHVISION),
    "mobilenet_v3_large": (0.217, TORCHVISION),
    "mobilenet_v3_small": (0.057, TORCHVISION),
    "efficientnet_b0": (0.386, TORCHVISION),
    "convnext_tiny": (4.456, TORCHVISION),
    "squeezenet1_0": (0.819, TORCHVISION),
    "squeezenet1_1": (0.349, TORCHVISION),
    "densenet121": (2.834, TORCHVISION),
    "densenet161": (7.728, TORCHVISION),
    "densenet169": (3.360, TORCHVISION),
    "densenet201": (4.291, TORCHVISION),
}

# MXNet's model zoo: all numbers stored, running statistics and fixed scales too (table "# Parameters" of
# mxnet.gluon.model_zoo's documentation, 1.4 to 1.9), and multiplications, those of normalisations included
# (github.com/hey-yahei/OpSummary.MXNet, README, "Result"). The 1x1 convolutions of its v1 bottlenecks have
# biases, ours none: the differences.
MXNET = {
    "resnet50_v1": (25_629_032 - 18_880, 3_868_559_384),
    "resnet101_v1": (44_695_144 - 40_640, 7_585_898_520),
    "resnet152_v1": (60_404_072 - 59_840, 11_304_441_880),
    "resnet18_v2": (11_695_796, 1_816_731_672),
    "resnet34_v2": (21_811_380, 3_667_674_136),
    "resnet50_v2": (25_595_060, 4_099_143_192),
    "resnet50_book": (25_595_060, 4_099_143_192),
    "resnet101_v2": (44_639_412, 7_816_482_328),
    "resnet152_v2": (60_329_140, 11_535_025_688),
}

# timm: param_count and infer_gmacs, in millions and thousand millions (github.com/huggingface/pytorch-image-models,
# results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv at aa4b5850).
TIMM = {
    "resnet18_d": (11.71, 2.06),
    "resnet26_d": (16.01, 2.60),
    "resnet34_d": (21.82, 3.91),
    "resnet50_d": (25.58, 4.35),
    "resnet101_d": (44.57, 8.08),
    "resnet152_d": (60.21, 11.80),
    "resnext50_32x4d_d": (25.05, 4.50),
    "se_resnet50": (28.09, 4.11),
    "se_resnet101": (49.33, 7.84),
    "se_resnext50_32x4d": (27.56, 4.26),
    "vit_small_patch16_224": (22.05, 4.61),
}

# Networks for small images, at the input and classes of the source.
SMALL = {
    # Han et al., "Learning both Weights and Connections" (2015), table 1: 431K for Caffe's on MNIST.
    ("lenet", (1, 28, 28), 10): 431_080,
    # Keras' summary of the book's: 1,656,250 in all, of which 1,652,826 trained (towardsdatascience.com, "Model
    # Sub-Classing and Custom Training Loop from Scratch in TensorFlow 2"). Zhang et al. 2017, table 1, count
    # 1,649,402: the normalisations' 2 x 1,712 left out.
    ("minigooglenet", (3, 32, 32), 10): 1_652_826,
}


def described(name: str) -> tuple[LayerReport, ...]:
    size = catalog.entry(name).input_size
    return describe(catalog.build(name, 1000), (3, size, size))


def channels_after(reports: tuple[LayerReport, ...], kind: type) -> int:
    return sum(report.output_shape[0] for report in reports if isinstance(report.layer, kind))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name):
    assert parameter_count(described(name)) == PARAMETERS[name][0], PARAMETERS[name][1]


@pytest.mark.parametrize("name", COSTS)
def test_multiply_adds_are_the_published_ones(name):
    found, (published, source) = multiply_adds(described(name)) / 1e9, COSTS[name]
    assert found == pytest.approx(published, rel=0.001, abs=0.0005), source  # published to three decimals


@pytest.mark.parametrize("name", MXNET)
def test_counts_are_those_of_mxnets_model_zoo(name):
    stored, multiplications = MXNET[name]
    every = (parameter for report in described(name) for parameter in report.parameters)
    assert sum(math.prod(parameter.shape) for parameter in every) == stored
    assert multiply_adds(described(name)) == pytest.approx(multiplications, rel=0.004)


@pytest.mark.parametrize("name", TIMM)
def test_counts_are_those_of_timm(name):
    millions, thousand_millions = TIMM[name]
    assert round(parameter_count(described(name)) / 1e6, 2) == millions
    assert multiply_adds(described(name)) / 1e9 == pytest.approx(thousand_millions, rel=0.0075)


@pytest.mark.parametrize(("name", "shape", "classes"), SMALL)
def test_small_networks_have_the_published_parameters(name, shape, classes):
    assert parameter_count(describe(catalog.build(name, classes), shape)) == SMALL[name, shape, classes]


@pytest.mark.parametrize(
    ("name", "with_heads"),
    [
        ("googlenet", 13_378_280),  # as re-implementations of the paper count it; the heads by hand below
        ("googlenet_bn", 13_004_888),  # torchvision's model with aux_logits, as many have counted it
        ("inception_v3", 27_161_264),  # torchvision's num_params, which counts the head
    ],
)
def test_auxiliary_heads_have_the_published_parameters(name, with_heads):
    assert sum(report.parameter_count for report in described(name)) == with_heads


def test_googlenets_heads_by_hand():
    by_hand = [128 * (channels + 1) + 1024 * (16 * 128 + 1) + 1000 * (1024 + 1) for channels in (512, 528)]
    heads = [name for name, item in catalog.build("googlenet", 1000).items if isinstance(item, Tap)]
    counted = [
        sum(report.parameter_count for report in described("googlenet") if report.path.startswith(f"{head}."))
        for head in heads
    ]
    assert counted == by_hand


def test_googlenets_modules_cost_what_the_paper_says():
    # Table 1, column "ops", in millions. 5a is left out: the paper's 54 would need wider branches than the
    # table's own, which cost 51 (and its 34 for the first convolution are 118).
    paper = {"3a": 128, "3b": 304, "4a": 73, "4b": 88, "4c": 100, "4d": 119, "4e": 170, "5b": 71}
    for module, millions in paper.items():
        inside = tuple(one for one in described("googlenet") if one.path.startswith(f"inception{module}."))
        assert multiply_adds(inside) / 1e6 == pytest.approx(millions, rel=0.01)


def test_the_books_alexnet_is_the_ungrouped_one_and_its_normalisations():
    # 62,378,344: imgclsmob and the HPE cookbook, the network of 2012 without groups.
    reports = described("alexnet_book")
    assert parameter_count(reports) == 62_378_344 + 2 * channels_after(reports, BatchNorm)


def test_the_books_squeezenet_has_the_parameters_of_the_papers():
    assert parameter_count(described("squeezenet_book")) == PARAMETERS["squeezenet1_0"][0]


def test_the_books_vgg16_is_vgg16_its_slopes_and_its_normalisations():
    reports = described("vgg16_book")
    extra = 2 * channels_after(reports, BatchNorm) + channels_after(reports, Activation)
    assert parameter_count(reports) == PARAMETERS["vgg16"][0] + extra == 138_394_792
    assert multiply_adds(reports) == multiply_adds(described("vgg16"))


def test_the_books_googlenet_is_googlenet_and_its_normalisations():
    reports = described("googlenet_book")
    assert parameter_count(reports) == PARAMETERS["googlenet"][0] + 2 * channels_after(reports, BatchNorm)
    assert channels_after(reports, BatchNorm) == channels_after(reports, Conv)
    assert multiply_adds(reports) == multiply_adds(described("googlenet"))


def test_resnext26_is_timms_seresnext26d_without_its_excitations():
    # 16,809,512: parameters of timm's module. Each excitation has two 1x1 convolutions with biases.
    excitations = sum(
        2 * (2 * channels * (channels // 16) + channels // 16 + channels) for channels in (256, 512, 1024, 2048)
    )
    reports = described("resnext26_32x4d_d")
    assert parameter_count(reports) == 16_809_512 - excitations
    assert multiply_adds(reports) / 1e9 == pytest.approx(2.73, rel=0.0075)


def test_the_courses_networks_by_hand():
    # Own: nobody published these. Every normalisation has two numbers a channel.
    shallow = describe(catalog.build("shallownet", 10), (3, 32, 32))
    assert parameter_count(shallow) == 32 * (27 + 1) + 10 * (32 * 32 * 32 + 1)
    mini = describe(catalog.build("minivggnet", 10), (3, 32, 32))
    convolutions = 32 * (27 + 3) + 32 * (288 + 3) + 64 * (288 + 3) + 64 * (576 + 3)
    assert parameter_count(mini) == convolutions + 512 * (8 * 8 * 64 + 3) + 10 * (512 + 1)
    for colours in (1, 3):
        emotion = describe(catalog.build("emotion_vggnet", 6), (colours, 48, 48))
        inputs = (colours, 32, 32, 64, 64, 128)
        widths = (32, 32, 64, 64, 128, 128)
        convolutions = sum(width * (9 * before + 3) for before, width in zip(inputs, widths, strict=True))
        dense = 64 * (6 * 6 * 128 + 3) + 64 * (64 + 3) + 6 * (64 + 1)
        assert parameter_count(emotion) == convolutions + dense == 587_110 + (colours == 3) * 32 * 9 * 2
        assert emotion[-1].layer == Dense(6)


def test_every_network_has_a_count_from_elsewhere_or_by_hand():
    by_hand = {
        "alexnet_book",
        "vgg16_book",
        "googlenet_book",
        "squeezenet_book",
        "shallownet",
        "minivggnet",
        "emotion_vggnet",
        "resnext26_32x4d_d",
    }
    published = {*PARAMETERS, *MXNET, *TIMM, *(name for name, _, _ in SMALL)}
    assert set(catalog.names()) == published | by_hand
