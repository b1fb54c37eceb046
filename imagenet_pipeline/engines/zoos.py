"""Networks of other libraries, "gluoncv:resnet50_v1d" or "timm:convnext_tiny", each run by the engine of its library.

What such a network is made of its library alone knows: it is imported when it is asked, not before.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.catalog import ZOOS, LayeredNetwork, is_zoo_name
from imagenet_pipeline.networks.initial import Values, ZeroScale
from imagenet_pipeline.networks.shapes import Shape


@dataclass(frozen=True)
class ZooNetwork:
    """The network `name` of `library`, with `classes` outputs. See `networks.catalog.Network`."""

    library: str
    name: str
    classes: int

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"

    @property
    def engine(self) -> str:
        """The engine of its library."""
        return ZOOS[self.library]

    def table(self, input_shape: Shape) -> ZooTable:
        """Its parameters, seen by building it. Raises BadRecipe where it cannot be built here."""
        shapes, trained = _wing(self.library).shapes(self, input_shape)
        return ZooTable(str(self), self.engine, input_shape, self.classes, trained, shapes)

    def shapes(self, input_shape: Shape) -> dict[str, Shape]:
        return self.table(input_shape).shapes

    def initial_values(
        self, input_shape: Shape, kind: str, seed: int, zero_last_scale: ZeroScale, bias: float = 0.0
    ) -> dict[str, Values] | None:
        if zero_last_scale is True or bias:
            what = "a zoo's network draws its own values"
            raise BadRecipe(what, where=f"initial.{'bias' if bias else 'zero_last_scale'}", found=str(self))
        return None

    def drawn(self, input_shape: Shape, seed: int) -> dict[str, Values]:
        """The initial values its library draws, by name. Raises BadRecipe where it cannot be built here."""
        values: dict[str, Values] = _wing(self.library).drawn(self, input_shape, seed)
        return values


@dataclass(frozen=True)
class ZooTable:
    """A zoo's network: the shape of every parameter and running statistic, and how many numbers are trained."""

    name: str
    engine: str
    input_shape: Shape
    classes: int
    parameters: int
    shapes: dict[str, Shape]


def network_of(name: str, classes: int) -> LayeredNetwork | ZooNetwork:
    """The network `name` with `classes` outputs: of the catalogue, or LIBRARY:NAME of a zoo.

    Raises BadRecipe for no classes, an unknown name or another library; a zoo's names are looked up where its network
    is built.
    """
    if not is_zoo_name(name):
        return catalog.build(name, classes)
    catalog.require_classes(name, classes)
    return zoo_network(name, classes)


def zoo_network(name: str, classes: int) -> ZooNetwork:
    """The network that LIBRARY:NAME stands for. Raises BadRecipe for another library; NAME is not looked up."""
    library, _, inner = name.partition(":")
    if library not in ZOOS or not inner:
        raise BadRecipe(
            "not the name of a zoo's network", where=f"network {name!r}", expected="gluoncv:NAME or timm:NAME"
        )
    return ZooNetwork(library, inner, classes)


def own_symbol(name: str, classes: int) -> tuple[str, dict[str, str]]:
    """`engines.gluon.zoo.own_symbol`. Raises BadRecipe as that, and where MXNet is missing."""
    found: tuple[str, dict[str, str]] = _wing("gluoncv").own_symbol(name, classes)
    return found


def zoo_symbol(name: str, classes: int, input_shape: Shape) -> tuple[str, dict[str, str]]:
    """`engines.gluon.zoo.symbol` of gluoncv:NAME. Raises BadRecipe as that, and where MXNet is missing."""
    found: tuple[str, dict[str, str]] = _wing("gluoncv").symbol(zoo_network(name, classes), input_shape)
    return found


def zoo_names(library: str) -> list[str]:
    """The classifiers of "gluoncv" or "timm". Raises BadRecipe for another library, or a missing library."""
    if library not in ZOOS:
        raise BadRecipe("unknown zoo", where=f"network '{library}:'", expected=" or ".join(ZOOS))
    return [f"{library}:{name}" for name in _wing(library).names()]


def unknown(network: ZooNetwork, known: Collection[str]) -> BadRecipe:
    """The error for a name its library does not have, with the nearest names."""
    near = difflib.get_close_matches(network.name.lower(), known, n=3, cutoff=0.5)
    listing = f"imagenet-pipeline networks {network.library}: lists all {len(known)}"
    return BadRecipe(
        f"{network.library} has no classifier called {network.name!r}",
        where="network",
        advice=f"did you mean {' or '.join(f'{network.library}:{name}' for name in near)}?" if near else listing,
    )


def not_installed(library: str, missing: Collection[str]) -> BadRecipe:
    """The error for a zoo that is not on this machine, with the command that puts it there."""
    what = f"the zoo {library} is not installed (no module named {', '.join(missing)})"
    # Not by pip: it would put a second OpenCV over the cv2 that is here, or a torchvision of another torch.
    return BadRecipe(what, advice=f"bash scripts/install_zoo.sh {library}")


def _wing(library: str) -> Any:
    """The zoo of an engine's wing. Raises BadRecipe where the engine's framework cannot be imported."""
    try:
        if library == "gluoncv":
            from imagenet_pipeline.engines.gluon import zoo as gluon_zoo

            return gluon_zoo
        from imagenet_pipeline.engines.pytorch import zoo as pytorch_zoo
    except (ImportError, OSError) as error:
        from imagenet_pipeline.engines import not_importable

        raise not_importable(ZOOS[library], error, alone=True) from error
    return pytorch_zoo
