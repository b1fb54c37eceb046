"""Networks of other people's zoos, known here by name alone: "gluoncv:resnet50_v1d", "timm:convnext_tiny".

What such a network is made of only its library knows, and each library belongs to one engine.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass

from imagenet_pipeline.errors import BadRecipe

ENGINES = {"gluoncv": "gluon", "timm": "pytorch"}
"""Library to the engine that runs it."""


@dataclass(frozen=True)
class ZooNetwork:
    """The network `name` of `library`, with `classes` outputs."""

    library: str
    name: str
    classes: int

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"

    @property
    def engine(self) -> str:
        """The engine it runs on."""
        return ENGINES[self.library]


def is_zoo_name(name: str) -> bool:
    """Whether `name` has the form LIBRARY:NAME."""
    return ":" in name


def zoo_network(name: str, classes: int) -> ZooNetwork:
    """The network that LIBRARY:NAME stands for. Raises BadRecipe for another library; NAME is not looked up."""
    library, _, inner = name.partition(":")
    if library not in ENGINES or not inner:
        raise BadRecipe("not a zoo's network", where=f"network {name!r}", expected="gluoncv:NAME or timm:NAME")
    return ZooNetwork(library, inner, classes)


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
