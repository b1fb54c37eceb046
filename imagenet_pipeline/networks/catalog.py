"""Networks by name: those shipped, those that other packages add, and those of one's own; what training asks of them.

A name that ends in .json or .toml is the path of a file (`layer_file.py`); `custom.py` reads the other forms.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Protocol

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.initial import Values, ZeroScale, initial_values
from imagenet_pipeline.networks.layers import Sequential, Size, pair
from imagenet_pipeline.networks.shapes import Shape, output_shape, parameters
from imagenet_pipeline.registry import Registry

Build = Callable[[int], Sequential]
"""Makes a network's layers, with as many outputs as there are classes."""
ZOOS = {"gluoncv": "gluon", "timm": "pytorch"}
"""Libraries with networks of their own, and the engine that runs them."""
FILE_NAME = "network.json"
"""A run's own copy of the file that its network is, and a checkpoint's."""
WITH_OPTIONS = re.compile(r"(.+)\?(\w+=[\w.+-]+(?:&\w+=[\w.+-]+)*)", re.DOTALL)
"""A network's name with a recipe's options behind it, "lenet?dropout=0.3&width=2"."""
INPUT_TRANSFORM = "input_transform"
"""The name of the layers that `input.transform` puts in front of a network."""
THRESHOLD = "?threshold="
"""Between a network's name and the threshold of its single output, "lenet?threshold=0.5"."""
INPUT_SIZE = 224
"""Side of the input that a registered network is designed for where it does not say, pixels."""


class Network(Protocol):
    """A network with its number of classes settled. Inputs are [channels, height, width]."""

    @property
    def engine(self) -> str | None:
        """The only engine that runs it; None: each of them."""

    def shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """The shape of every parameter and running statistic, by name, in order of computation.

        Raises BadRecipe where the network cannot take the input or its library is missing.
        """

    def initial_values(
        self, input_shape: Shape, kind: str, seed: int, zero_last_scale: ZeroScale, bias: float = 0.0
    ) -> dict[str, Values] | None:
        """The values training begins with, float32 by name; None where its engine draws them as it builds it.

        Raises BadRecipe as `shapes` does, and for a `kind`, `zero_last_scale` or `bias` it does not have.
        """


@dataclass(frozen=True)
class LayeredNetwork(Sequential):
    """A network described in our layers."""

    def shapes(self, input_shape: Shape) -> dict[str, Shape]:
        return {name: parameter.shape for name, parameter in parameters(self, input_shape).items()}

    def initial_values(
        self, input_shape: Shape, kind: str, seed: int, zero_last_scale: ZeroScale, bias: float = 0.0
    ) -> dict[str, Values] | None:
        return initial_values(self, input_shape, kind, seed, zero_last_scale, bias)


@dataclass(frozen=True)
class NetworkEntry:
    """A network on offer: `build(classes)` makes it, `input_size` pixels are what it was designed for.

    `classes` is its number of outputs where nobody asks for another.
    """

    name: str
    build: Build
    input_size: Size
    summary: str
    classes: int = 1000
    channels: int = 3


@dataclass(frozen=True)
class InFile:
    """The function `name` of a file in this folder, which is imported when a network is made by it."""

    file: str
    name: str

    def __call__(self, classes: int) -> Sequential:
        made: Sequential = getattr(import_module(f"{__package__}.{self.file}"), self.name)(classes)
        return made


_ROWS: tuple[tuple[str, str, int, str], ...] = (
    ("lenet", "lenet", 28, "two 5x5 convolutions and two dense layers (LeCun et al. 1998, ReLU)"),
    ("shallownet", "shallownet", 32, "one convolution and a classifier (the book's first)"),
    ("minivggnet", "minivggnet", 32, "two blocks of 3x3 convolutions (the book's)"),
    ("minigooglenet", "minigooglenet", 32, "small inception modules (Zhang et al. 2017, the book's)"),
    ("emotion_vggnet", "emotion_vggnet", 48, "three blocks of 3x3 convolutions, ELU (the book's)"),
    ("alexnet", "alexnet", 227, "the paper's: two groups, response norm (Krizhevsky et al. 2012)"),
    ("alexnet", "alexnet_one_tower", 224, "torchvision's: no groups, no response norm (2014)"),
    ("alexnet", "alexnet_book", 227, "the book's: ELU, batch normalisation, no groups"),
    ("vgg", "vgg11", 224, "3x3 convolutions in five blocks (Simonyan & Zisserman 2015)"),
    ("vgg", "vgg13", 224, "3x3 convolutions in five blocks (Simonyan & Zisserman 2015)"),
    ("vgg", "vgg16", 224, "3x3 convolutions in five blocks (Simonyan & Zisserman 2015)"),
    ("vgg", "vgg19", 224, "3x3 convolutions in five blocks (Simonyan & Zisserman 2015)"),
    ("vgg", "vgg11_bn", 224, "with batch normalisation"),
    ("vgg", "vgg13_bn", 224, "with batch normalisation"),
    ("vgg", "vgg16_bn", 224, "with batch normalisation"),
    ("vgg", "vgg19_bn", 224, "with batch normalisation"),
    ("vgg", "vgg16_book", 224, "the book's: PReLU, batch normalisation"),
    ("googlenet", "googlenet", 224, "inception modules, two auxiliary heads (Szegedy et al. 2015)"),
    ("googlenet", "googlenet_bn", 224, "torchvision's: batch normalisation, 3x3 for 5x5, two heads"),
    ("googlenet", "googlenet_book", 224, "the book's: batch normalisation, no heads"),
    ("inception", "inception_v3", 299, "factorised inception, one auxiliary head (Szegedy et al. 2016)"),
    ("resnet", "resnet18", 224, "residual network of basic blocks (He et al. 2015)"),
    ("resnet", "resnet34", 224, "residual network of basic blocks (He et al. 2015)"),
    ("resnet", "resnet50", 224, "bottleneck blocks, stride in the 3x3 (v1b)"),
    ("resnet", "resnet101", 224, "bottleneck blocks, stride in the 3x3 (v1b)"),
    ("resnet", "resnet152", 224, "bottleneck blocks, stride in the 3x3 (v1b)"),
    ("resnet", "resnet50_v1", 224, "the paper's bottlenecks, stride in the first 1x1"),
    ("resnet", "resnet101_v1", 224, "the paper's bottlenecks, stride in the first 1x1"),
    ("resnet", "resnet152_v1", 224, "the paper's bottlenecks, stride in the first 1x1"),
    ("resnet_v2", "resnet18_v2", 224, "pre-activation, basic blocks (He et al. 2016)"),
    ("resnet_v2", "resnet34_v2", 224, "pre-activation, basic blocks (He et al. 2016)"),
    ("resnet_v2", "resnet50_v2", 224, "pre-activation, bottleneck blocks (He et al. 2016)"),
    ("resnet_v2", "resnet101_v2", 224, "pre-activation, bottleneck blocks (He et al. 2016)"),
    ("resnet_v2", "resnet152_v2", 224, "pre-activation, bottleneck blocks (He et al. 2016)"),
    ("resnet_v2", "resnet50_book", 224, "the book's: resnet50_v2 with an epsilon of 2e-5"),
    ("resnet_d", "resnet18_d", 224, "deep stem, averaging shortcuts (He, T. et al. 2019)"),
    ("resnet_d", "resnet34_d", 224, "deep stem, averaging shortcuts (He, T. et al. 2019)"),
    ("resnet_d", "resnet26_d", 224, "deep stem, averaging shortcuts, eight bottlenecks (timm's resnet26d)"),
    ("resnet_d", "resnet50_d", 224, "deep stem, averaging shortcuts (He, T. et al. 2019)"),
    ("resnet_d", "resnet101_d", 224, "deep stem, averaging shortcuts (He, T. et al. 2019)"),
    ("resnet_d", "resnet152_d", 224, "deep stem, averaging shortcuts (He, T. et al. 2019)"),
    ("resnext", "resnext50_32x4d", 224, "bottlenecks in 32 groups (Xie et al. 2017)"),
    ("resnext", "resnext101_32x8d", 224, "bottlenecks in 32 groups (Xie et al. 2017)"),
    ("resnext", "resnext101_64x4d", 224, "bottlenecks in 64 groups (Xie et al. 2017)"),
    ("resnext", "resnext26_32x4d_d", 224, "with resnet_d's stem and shortcuts, eight bottlenecks"),
    ("resnext", "resnext50_32x4d_d", 224, "with resnet_d's stem and shortcuts (fast.ai's xresnext50)"),
    ("resnext", "wide_resnet50_2", 224, "bottlenecks twice as wide inside (Zagoruyko & Komodakis 2016)"),
    ("resnext", "wide_resnet101_2", 224, "bottlenecks twice as wide inside (Zagoruyko & Komodakis 2016)"),
    ("se_resnet", "se_resnet50", 224, "squeeze-and-excitation in each bottleneck (Hu et al. 2018)"),
    ("se_resnet", "se_resnet101", 224, "squeeze-and-excitation in each bottleneck (Hu et al. 2018)"),
    ("se_resnet", "se_resnext50_32x4d", 224, "squeeze-and-excitation in each grouped bottleneck"),
    ("squeezenet", "squeezenet1_0", 224, "the paper's: eight fire modules (Iandola et al. 2016)"),
    ("squeezenet", "squeezenet1_1", 224, "as accurate, 2.4 times cheaper (Iandola et al. 2016)"),
    ("squeezenet", "squeezenet_book", 227, "the book's: squeezenet1_0 with ELU"),
    ("densenet", "densenet121", 224, "dense blocks, growth 32 (Huang et al. 2017)"),
    ("densenet", "densenet161", 224, "dense blocks, growth 48 (Huang et al. 2017)"),
    ("densenet", "densenet169", 224, "dense blocks, growth 32 (Huang et al. 2017)"),
    ("densenet", "densenet201", 224, "dense blocks, growth 32 (Huang et al. 2017)"),
    ("mobilenet", "mobilenet_v1", 224, "depthwise convolutions, ReLU6 as its authors' code (Howard et al. 2017)"),
    ("mobilenet", "mobilenet_v2", 224, "torchvision's: inverted residuals (Sandler et al. 2018)"),
    ("mobilenet_v3", "mobilenet_v3_large", 224, "torchvision's: some excited, hard swish (Howard et al. 2019)"),
    ("mobilenet_v3", "mobilenet_v3_small", 224, "torchvision's: some excited, hard swish (Howard et al. 2019)"),
    ("efficientnet", "efficientnet_b0", 224, "torchvision's: excited inverted residuals, swish (Tan & Le 2019)"),
    ("convnext", "convnext_tiny", 224, "units of a depthwise 7x7 and two dense layers (Liu et al. 2022)"),
    ("vit", "vit_small_patch16_224", 224, "attention between patches of 16x16 (Dosovitskiy et al. 2021)"),
)
"""File in this folder, function in it and name of the network, input size, summary."""
_SHIPPED = {name: NetworkEntry(name, InFile(file, name), size, summary) for file, name, size, summary in _ROWS}
_NETWORKS: Registry[NetworkEntry | Build] = Registry("network", "networks", _SHIPPED)


def register_network(name: str, build: Build, input_size: int = INPUT_SIZE, summary: str = "") -> None:
    """Add a network of your own: `build(classes)` gives its layers, a `stack(...)` that ends in `classes` outputs.

    From then on recipes, exports, diagrams and the list of networks know its name, in this process. So that every
    process does, the command line's too, a package offers `build` as an entry point of the group
    "imagenet_pipeline.networks", or a `NetworkEntry` where the input is not of 224 pixels; the entry point's name
    is the network's. `summary` is its line in the list, or else the first of the function's docstring.
    The same name again replaces the network. Raises BadRecipe for a name that is shipped, a zoo's or no plain word, and
    where `build` gives something else than layers, or not an output for each class.
    """
    if not re.fullmatch(r"[\w.-]+", name) or name.lower() in ZOOS or is_custom(name):
        what, expected = "cannot register a network under this name", "letters, digits, '_', '-' and '.', no zoo's name"
        raise BadRecipe(what, where=repr(name), expected=expected)
    _NETWORKS.register(name, _checked(name, NetworkEntry(name, build, input_size, summary or _first_line(build))))


def names() -> tuple[str, ...]:
    """The names of all networks: those shipped, smaller families first, then those of others."""
    return _NETWORKS.names()


def entry(name: str) -> NetworkEntry:
    """The network called `name`, or the one of one's own that `name` stands for; its entry has that one's name.

    Raises BadRecipe with the nearest names if there is none, and for an entry point that offers none; both errors as
    `custom.custom_network` does.
    """
    if is_custom(name):
        from imagenet_pipeline.networks.custom import custom_network

        own = custom_network(name)
        return NetworkEntry(own.name, own.build, own.input_size, own.summary, own.classes, own.channels)
    if name.lower() in ZOOS:
        advice = f"did you mean {name.lower()}:NAME?"
        raise BadRecipe(f"no network is called {name!r}", where="network", advice=advice)
    if name.startswith("networks/") or os.path.isfile(f"{name}.toml"):
        raise BadRecipe(f"no network is called {name!r}", where="network", advice=f"did you mean {name}.toml?")
    found = _NETWORKS.get(name, "network", "imagenet-pipeline networks lists them")
    return _SHIPPED.get(name) or _checked(name, found)


def build(name: str, classes: int) -> LayeredNetwork:
    """The network `name` with `classes` outputs. Raises BadRecipe for no classes, and as `entry` does."""
    require_classes(name, classes)
    return LayeredNetwork(entry(name).build(classes).items)


def require_classes(name: str, classes: int) -> None:
    """Raise BadRecipe for a number of classes that no network can have."""
    if classes < 1:
        raise BadRecipe("a network needs at least one class", where=f"network {name}", found=classes)


def is_zoo_name(name: str) -> bool:
    """True for a name of the form LIBRARY:NAME, a network of another library's."""
    return ":" in name and not is_custom(name)


def is_file_name(name: str) -> bool:
    """True for the path of a network's file."""
    return name.endswith((".json", ".toml"))


def is_custom(name: str) -> bool:
    """True for a network of one's own: a file, a table of layers, `mlp:...`, or any network with options.

    A run keeps its layers as a file, FILE_NAME, and goes by that.
    """
    return is_file_name(name) or name.startswith(("mlp:", "{")) or WITH_OPTIONS.fullmatch(name) is not None


def with_threshold(name: str, threshold: float) -> str:
    """The whole name of the network with a single output for two classes (`custom.py`). BadRecipe for a zoo's."""
    if is_zoo_name(name):
        what = "the layers of a zoo's network are not known here, so that it has an output for each class"
        advice = "loss.kind=cross_entropy, of two classes the same loss"
        raise BadRecipe(what, where="loss.kind = 'binary_cross_entropy'", found=f"network {name}", advice=advice)
    words = f"{THRESHOLD}{threshold!r}"
    return name if name.endswith(words) else name + words


def without_threshold(name: str) -> str:
    """The name of the network with an output for each class."""
    return name.partition(THRESHOLD)[0]


def title(name: str) -> str:
    """The name to show people: what a network's file says, or `name` itself. Raises BadInput as `entry` does."""
    return entry(name).name if is_custom(name) else name


def file_copy(name: str, classes: int) -> str:
    """The text of a run's own copy of a custom network, with `classes` outputs. Raises as `build` does."""
    from imagenet_pipeline.networks.layer_file import NetworkFile, network_text

    file = entry(name)
    return network_text(NetworkFile(file.name, file.input_size, file.build(classes), channels=file.channels))


def is_same(name: str, other: str, classes: int) -> bool:
    """Tell whether two names mean the same network of `classes` outputs; custom ones are compared by their layers."""
    if name == other or is_zoo_name(name) or is_zoo_name(other) or not (is_custom(name) or is_custom(other)):
        return name == other
    return build(name, classes) == build(other, classes)


def _checked(name: str, offered: NetworkEntry | Build) -> NetworkEntry:
    """The entry of what another package offers as the network `name`."""
    if not isinstance(offered, NetworkEntry):
        offered = NetworkEntry(name, offered, INPUT_SIZE, _first_line(offered))
    try:
        made = offered.build(1000) if callable(offered.build) else offered.build
    except Exception as error:
        what = f"the function fails for 1000 classes ({type(error).__name__}: {error})"
        raise BadRecipe(what, where=f"network {name!r}") from error
    if not isinstance(made, Sequential):
        what, expected = (
            "the function does not return layers",
            "a function of the number of classes that gives a stack(...)",
        )
        raise BadRecipe(what, where=f"network {name!r}", expected=expected, found=type(made).__name__)
    outputs = _outputs(made, (offered.channels, *pair(offered.input_size)))
    if outputs not in (None, (1000,)):
        what = "it does not end in an output for each class"
        raise BadRecipe(what, where=f"network {name!r}", expected=(1000,), found=outputs)
    return replace(offered, name=name)


def _outputs(network: Sequential, input_shape: Shape) -> Shape | None:
    """The output shape; None where the layers do not take this input, of which a run that asks for it is told."""
    try:
        return output_shape(network, input_shape)
    except BadRecipe:
        return None


def _first_line(build: Build) -> str:
    return (build.__doc__ or "").strip().partition("\n")[0]
