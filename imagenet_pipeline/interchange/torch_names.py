"""The names that torchvision and timm give the parameters of networks of ours.

A layer's name there is made of its path here by the substitutions of its family, one after the other. Numbers that
count everything in a torchvision `features`, activations and pooling too, are counted in our network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import Sequential

Rules = tuple[tuple[str, str], ...]
"""Regular expressions, and what takes the place of what they find."""

_UNITS = (r"^stage(\d)\.unit(\d+)\.", r"layer\1.\2.")
RESNET: Rules = (
    (r"^stem\.conv$", "conv1"), (r"^stem\.norm$", "bn1"), _UNITS,
    (r"\.shortcut\.conv$", ".downsample.0"), (r"\.shortcut\.norm$", ".downsample.1"),
    (r"\.norm(\d)$", r".bn\1"), ("^classifier$", "fc"),
)  # fmt: skip
"""torchvision's and timm's. Their units are counted from 0 (`_counted_from_0`)."""
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
    """Its `features` have numbers for names."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    crop_fraction: float = 224 / 256
    also_spelled: tuple[tuple[str, str], ...] = field(default=())
    """Earlier spellings in their files, as substitutions to the one of today."""


_OLD_DENSENET = ((r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),)
"""torchvision's files of 2017, whose names have a dot more than today's modules."""
NAMINGS: dict[str, Naming] = {
    "alexnet_one_tower": Naming("torchvision", ALEXNET, counted=True),
    **dict.fromkeys(
        [f"vgg{depth}{norm}" for norm in ("", "_bn") for depth in (11, 13, 16, 19)],
        Naming("torchvision", VGG, counted=True),
    ),
    **dict.fromkeys([f"resnet{depth}" for depth in (18, 34, 50, 101, 152)], Naming("torchvision", RESNET)),
    **dict.fromkeys([f"resnet{depth}_d" for depth in (18, 34, 50, 101, 152)], Naming("timm", RESNET_D)),
    **dict.fromkeys(["squeezenet1_0", "squeezenet1_1"], Naming("torchvision", SQUEEZENET, counted=True)),
    **dict.fromkeys(
        [f"densenet{depth}" for depth in (121, 161, 169, 201)],
        Naming("torchvision", DENSENET, also_spelled=_OLD_DENSENET),
    ),
    "googlenet_bn": Naming("torchvision", GOOGLENET, normalisation=HALF),
    "inception_v3": Naming("torchvision", INCEPTION, normalisation=HALF, crop_fraction=299 / 342),
}
"""The networks of the catalogue whose weights in these zoos are known by their names."""


def their_names(network: str, parameters: Iterable[str]) -> dict[str, str]:
    """The name in its zoo of each of our names of parameters of `network`, which is one of `NAMINGS`."""
    naming = NAMINGS[network]
    numbers = dict(_numbers(catalog.entry(network).build(2))) if naming.counted else {}
    return {name: _translated(name, naming.rules, numbers) for name in parameters}


def _translated(name: str, rules: Rules, numbers: dict[str, str]) -> str:
    path, _, role = name.rpartition(".")
    item = next((place for place in numbers if path == place or path.startswith(f"{place}.")), None)
    if item is not None:
        path = numbers[item] + path.removeprefix(item)
    for pattern, instead in rules:
        path = re.sub(pattern, instead, path)
    return f"{_counted_from_0(path)}.{role}"


def _counted_from_0(path: str) -> str:
    return re.sub(r"^(layer\d\.)(\d+)\.", lambda found: f"{found[1]}{int(found[2]) - 1}.", path)


def _numbers(network: Sequential) -> Iterator[tuple[str, str]]:
    """The layers up to the last map as torchvision's `features` counts them: a VGG block's one by one."""
    places: list[str] = []
    for name, item in network.items:
        if name.startswith(("flatten", "dropout", "classifier")):
            break
        if isinstance(item, Sequential) and name.startswith("block"):
            places += [f"{name}.{inner}" for inner, _ in item.items]
        else:
            places.append(name)
    return ((place, f"features.{number}") for number, place in enumerate(places))


def spelled_today(network: str, names: Iterable[str]) -> dict[str, str]:
    """Today's spelling of each of the names of a file of `network`."""
    return {name: _respelled(name, NAMINGS[network].also_spelled) for name in names}


def _respelled(name: str, substitutions: Rules) -> str:
    for pattern, instead in substitutions:
        name = re.sub(pattern, instead, name)
    return name
