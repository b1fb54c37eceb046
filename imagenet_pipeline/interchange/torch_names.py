"""The names that torchvision and timm give the parameters of networks of ours.

A layer's name there is made of its path here by the substitutions of its family, one after the other; a number behind ~
is one that they count from 0. Numbers that count everything in a torchvision `features`, activations and pooling too,
are counted in our network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from imagenet_pipeline.engines import Array
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Sequential, parts, walk
from imagenet_pipeline.networks.shapes import Shape

Rules = tuple[tuple[str, str], ...]
"""Regular expressions, and what takes the place of what they find."""

_UNITS = (r"^stage(\d)\.unit(\d+)\.", r"layer\1.~\2.")
RESNET: Rules = (
    (r"^stem\.conv$", "conv1"), (r"^stem\.norm$", "bn1"), _UNITS,
    (r"\.shortcut\.conv$", ".downsample.0"), (r"\.shortcut\.norm$", ".downsample.1"),
    (r"\.norm(\d)$", r".bn\1"), ("^classifier$", "fc"),
    (r"\.excitation\.reduce$", ".se.fc1"), (r"\.excitation\.expand$", ".se.fc2"),
)  # fmt: skip
"""torchvision's and timm's, ResNeXts and excited ones too."""
RESNET_D: Rules = (
    (r"^stem\.conv1$", "conv1.0"), (r"^stem\.norm1$", "conv1.1"), (r"^stem\.conv2$", "conv1.3"),
    (r"^stem\.norm2$", "conv1.4"), (r"^stem\.conv3$", "conv1.6"), (r"^stem\.norm3$", "bn1"),
    (r"\.shortcut\.conv$", ".downsample.1"), (r"\.shortcut\.norm$", ".downsample.2"), *RESNET,
)  # fmt: skip
"""timm's: the deep stem stands in a row, and the shortcut's average has a place of its own."""
DENSENET: Rules = (
    (r"^stem\.(conv|norm)$", r"features.\g<1>0"), (r"^transition", "features.transition"),
    (r"^norm$", "features.norm5"),
    (r"^block(\d)\.unit(\d+)\.new\.", r"features.denseblock\1.denselayer\2."),
)  # fmt: skip
GOOGLENET: Rules = (
    (r"^conv2\.", "conv3."), (r"^reduce2\.", "conv2."), (r"\.norm$", ".bn"),
    (r"\.branch3\.", ".branch2."), (r"\.branch5\.", ".branch3."), (r"\.branch_pool\.project\.", ".branch4.1."),
    (r"(\.branch\d)\.reduce\.", r"\1.0."), (r"(\.branch\d)\.expand\.", r"\1.1."),
    (r"^auxiliary4a\.", "aux1."), (r"^auxiliary4d\.", "aux2."), (r"^(aux\d)\.reduce\.", r"\1.conv."),
    (r"^(aux\d)\.dense$", r"\1.fc1"), (r"^(aux\d)\.classifier$", r"\1.fc2"), (r"^classifier$", "fc"),
)  # fmt: skip
INCEPTION: Rules = (
    (r"^conv1\.", "Conv2d_1a_3x3."), (r"^conv2\.", "Conv2d_2a_3x3."), (r"^conv3\.", "Conv2d_2b_3x3."),
    (r"^conv4\.", "Conv2d_3b_1x1."), (r"^conv5\.", "Conv2d_4a_3x3."), (r"^mixed", "Mixed_"),
    (r"^(Mixed_7a)\.branch7\.unit", r"\1.branch7x7x3_"), (r"\.branch1\.", ".branch1x1."),
    (r"\.branch(\d)twice\.unit", r".branch\1x\1dbl_"), (r"\.branch3twice\.split", ".branch3x3dbl_3"),
    (r"\.branch3\.split", ".branch3x3_2"), (r"\.row\.", "a."), (r"\.column\.", "b."),
    (r"\.branch(\d)\.unit", r".branch\1x\1_"), (r"\.branch3\.", ".branch3x3."), (r"\.project\.", "."),
    (r"^auxiliary\.reduce\.", "AuxLogits.conv0."), (r"^auxiliary\.conv\.", "AuxLogits.conv1."),
    (r"^auxiliary\.classifier$", "AuxLogits.fc"), (r"^classifier$", "fc"), (r"\.norm$", ".bn"),
)  # fmt: skip
SQUEEZENET: Rules = (
    (r"\.expand\.one\.conv$", ".expand1x1"), (r"\.expand\.three\.conv$", ".expand3x3"),
    (r"^classifier$", "classifier.1"),
)  # fmt: skip
ALEXNET: Rules = ((r"^dense6$", "classifier.1"), (r"^dense7$", "classifier.4"), (r"^classifier$", "classifier.6"))
VGG: Rules = ((r"^dense1$", "classifier.0"), (r"^dense2$", "classifier.3"), (r"^classifier$", "classifier.6"))

_CONV_NORM: Rules = ((r"\.conv$", ".0"), (r"\.norm$", ".1"))
MOBILENET_V1: Rules = (
    (r"^stem\.conv$", "conv_stem"), (r"^stem\.norm$", "bn1"), (r"^stage(\d)\.unit(\d)\.", r"blocks.~\1.~\2."),
    (r"\.depthwise\.conv$", ".conv_dw"), (r"\.depthwise\.norm$", ".bn1"),
    (r"\.pointwise\.conv$", ".conv_pw"), (r"\.pointwise\.norm$", ".bn2"),
)  # fmt: skip
"""timm's."""
MOBILENET_V2: Rules = (
    (r"^stem\.", "features.0."), (r"^head\.", "features.18."), (r"^unit(\d+)\.", r"features.\1.conv."),
    (r"^(features\.1\.conv)\.depthwise\.", r"\1.0."), (r"^(features\.1\.conv)\.project\.conv$", r"\1.1"),
    (r"^(features\.1\.conv)\.project\.norm$", r"\1.2"), (r"\.expand\.", ".0."), (r"\.depthwise\.", ".1."),
    (r"\.project\.conv$", ".2"), (r"\.project\.norm$", ".3"), ("^classifier$", "classifier.1"), *_CONV_NORM,
)  # fmt: skip
MOBILENET_V3: Rules = (
    (r"^unit(\d+)\.", r"features.\1."), (r"^stage(\d)\.unit(\d+)\.", r"features.\1.~\2."),
    (r"\.reduce$", ".fc1"), (r"\.expand$", ".fc2"), *_CONV_NORM,
)  # fmt: skip
"""EfficientNet's too."""
CONVNEXT: Rules = (
    (r"^stem\.conv$", "features.0.0"), (r"^stem\.norm$", "features.0.1"),
    *((rf"^stage{number}\.unit(\d+)\.", rf"features.{2 * number - 1}.~\1.") for number in range(1, 5)),
    *((rf"^halving{number}\.", f"features.{2 * number - 2}.") for number in range(2, 5)),
    ("^norm$", "classifier.0"), ("^classifier$", "classifier.2"), (r"^(features\.\d)\.norm$", r"\1.0"),
    (r"\.conv$", ".1"), (r"\.depthwise$", ".block.0"), (r"\.norm$", ".block.2"), (r"\.dense1$", ".block.3"),
    (r"\.dense2$", ".block.5"), (r"\.scale$", ".layer_scale"),
)  # fmt: skip
VIT: Rules = (
    (r"^patches\.conv$", "patch_embed.proj"), (r"^tokens\.token$", "cls_token"), (r"^tokens\.positions$", "pos_embed"),
    (r"^block(\d+)\.", r"blocks.~\1."), (r"\.attention\.norm$", ".norm1"), (r"\.attention\.inputs$", ".attn.qkv"),
    (r"\.attention\.outputs$", ".attn.proj"), (r"\.mlp\.norm$", ".norm2"), (r"\.dense(\d)$", r".fc\1"),
    ("^classifier$", "head"),
)  # fmt: skip

IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 of 255: mean and std of nearly all of torchvision's and timm's."""
HALF = (127.5,) * 3, (127.5,) * 3
"""To -1..1, as the authors of Inception fed theirs. torchvision's GoogLeNet and Inception-v3, whose weights come from
there, are given ImageNet's mean and std and undo them inside (`transform_input`): ((v - m) / s) * s / 0.5 +
(m - 0.5) / 0.5 is (v - 0.5) / 0.5."""


@dataclass(frozen=True)
class Naming:
    """The names of a family in `zoo`, and what its weights there were trained and measured with."""

    zoo: str
    rules: Rules
    counted: bool = False
    """Its `features`, or the layers of its inverted residuals, have numbers for names."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    crop_fraction: float = 224 / 256
    also_spelled: tuple[tuple[str, str], ...] = field(default=())
    """Earlier spellings in their files, as substitutions to the one of today."""
    bare: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Arrays with no "weight" or the like behind their names, and the axes of length 1 before and behind ours."""


_OLD_DENSENET = ((r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),)
"""torchvision's files of 2017, whose names have a dot more than today's modules."""
NAMINGS: dict[str, Naming] = {
    "alexnet_one_tower": Naming("torchvision", ALEXNET, counted=True),
    **dict.fromkeys(
        [f"vgg{depth}{norm}" for norm in ("", "_bn") for depth in (11, 13, 16, 19)],
        Naming("torchvision", VGG, counted=True),
    ),
    **dict.fromkeys([f"resnet{depth}" for depth in (18, 34, 50, 101, 152)], Naming("torchvision", RESNET)),
    **dict.fromkeys([f"resnet{depth}_d" for depth in (18, 26, 34, 50, 101, 152)], Naming("timm", RESNET_D)),
    **dict.fromkeys(
        ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"],
        Naming("torchvision", RESNET),
    ),
    "resnext50_32x4d_d": Naming("timm", RESNET_D),
    **dict.fromkeys(["se_resnet50", "se_resnet101", "se_resnext50_32x4d"], Naming("timm", RESNET)),
    **dict.fromkeys(["squeezenet1_0", "squeezenet1_1"], Naming("torchvision", SQUEEZENET, counted=True)),
    **dict.fromkeys(
        [f"densenet{depth}" for depth in (121, 161, 169, 201)],
        Naming("torchvision", DENSENET, also_spelled=_OLD_DENSENET),
    ),
    "mobilenet_v1": Naming("timm", MOBILENET_V1, normalisation=HALF),
    "mobilenet_v2": Naming("torchvision", MOBILENET_V2),
    **dict.fromkeys(
        ["mobilenet_v3_large", "mobilenet_v3_small"],
        Naming(
            "torchvision", (("^dense$", "classifier.0"), ("^classifier$", "classifier.3"), *MOBILENET_V3), counted=True
        ),
    ),
    "efficientnet_b0": Naming("torchvision", (("^classifier$", "classifier.1"), *MOBILENET_V3), counted=True),
    "convnext_tiny": Naming("torchvision", CONVNEXT, crop_fraction=224 / 236, bare={"layer_scale": (0, 2)}),
    "vit_small_patch16_224": Naming(
        "timm", VIT, normalisation=HALF, crop_fraction=0.9, bare={"cls_token": (1, 0), "pos_embed": (1, 0)}
    ),
    "googlenet_bn": Naming("torchvision", GOOGLENET, normalisation=HALF),
    "inception_v3": Naming("torchvision", INCEPTION, normalisation=HALF, crop_fraction=299 / 342),
}
"""The networks of the catalogue whose weights in these zoos are known by their names."""


def their_names(network: str, parameters: Iterable[str]) -> dict[str, str]:
    """The name in its zoo of each of our names of parameters of `network`, which is one of `NAMINGS`."""
    naming = NAMINGS[network]
    numbers = dict(_numbers(catalog.entry(network).build(2))) if naming.counted else {}
    return {name: _translated(name, naming, numbers) for name in parameters}


def their_shape(network: str, name: str, shape: Shape) -> Shape:
    """The shape that the array `name` of theirs has where ours has `shape`."""
    before, behind = NAMINGS[network].bare.get(name.rpartition(".")[2], (0, 0))
    return (1,) * before + shape + (1,) * behind


def in_our_shape(network: str, name: str, array: Array) -> Array:
    """The array `name` of theirs without the axes of length 1 that ours does not have; as it is where it has others."""
    before, behind = NAMINGS[network].bare.get(name.rpartition(".")[2], (0, 0))
    inner = array.shape[before : array.ndim - behind]
    return array.reshape(inner) if array.shape == (1,) * before + inner + (1,) * behind else array


def _translated(name: str, naming: Naming, numbers: dict[str, str]) -> str:
    path, _, role = name.rpartition(".")
    item = next((place for place in numbers if path == place or path.startswith(f"{place}.")), None)
    if item is not None:
        path = numbers[item] + path.removeprefix(item)
    for pattern, instead in naming.rules:
        path = re.sub(pattern, instead, path)
    path = re.sub(r"~(\d+)", lambda found: str(int(found[1]) - 1), path)
    return path if path.rpartition(".")[2] in naming.bare else f"{path}.{role}"


def _numbers(network: Sequential) -> Iterator[tuple[str, str]]:
    """The layers up to the last map as torchvision's `features` counts them: a VGG block's one by one.

    Those of an inverted residual are counted in it, and come first.
    """
    for path, layer in walk(network):
        names = [name for name, _ in parts(layer)]
        if "depthwise" in names and "project" in names:
            yield from ((f"{path}.{name}", f"{path}.block.{number}") for number, name in enumerate(names))
    places: list[str] = []
    for name, item in network.items:
        if name.startswith(("flatten", "dropout", "classifier")):
            break
        if isinstance(item, Sequential) and name.startswith("block"):
            places += [f"{name}.{inner}" for inner, _ in item.items]
        else:
            places.append(name)
    yield from ((place, f"features.{number}") for number, place in enumerate(places))


def spelled_today(network: str, names: Iterable[str]) -> dict[str, str]:
    """Today's spelling of each of the names of a file of `network`."""
    return {name: _respelled(name, NAMINGS[network].also_spelled) for name in names}


def _respelled(name: str, substitutions: Rules) -> str:
    for pattern, instead in substitutions:
        name = re.sub(pattern, instead, name)
    return name
