"""Model zoos of both engines: their classifiers, and the parameters of one. The library must be installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagenet_pipeline.engines import Array, not_importable
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.shapes import Shape
from imagenet_pipeline.networks.zoo import ENGINES, ZooNetwork


@dataclass(frozen=True)
class ZooTable:
    """A zoo's network: the shape of every parameter and running statistic, and how many numbers are trained."""

    name: str
    engine: str
    input_shape: Shape
    classes: int
    parameters: int
    shapes: dict[str, Shape]


def zoo_names(library: str) -> list[str]:
    """The classifiers of "gluoncv" or "timm". Raises BadRecipe for another library, or one that is not installed."""
    if library not in ENGINES:
        raise BadRecipe("no such zoo", where=f"network '{library}:'", expected=" or ".join(ENGINES))
    return [f"{library}:{name}" for name in _module(library).names()]


def zoo_table(network: ZooNetwork, input_shape: Shape) -> ZooTable:
    """Build a network to see its parameters. Raises BadRecipe where it cannot be built here."""
    shapes, trained = _module(network.library).shapes(network, input_shape)
    return ZooTable(str(network), network.engine, input_shape, network.classes, trained, shapes)


def zoo_values(network: ZooNetwork, input_shape: Shape, seed: int) -> dict[str, Array]:
    """The initial values its library draws for a network, by name. Raises BadRecipe where it cannot be built here."""
    values: dict[str, Array] = _module(network.library).drawn(network, input_shape, seed)
    return values


def _module(library: str) -> Any:
    try:
        if library == "gluoncv":
            from imagenet_pipeline.engines.gluon import zoo as gluon_zoo

            return gluon_zoo
        from imagenet_pipeline.engines.pytorch import zoo as pytorch_zoo
    except (ImportError, OSError) as error:
        raise not_importable(ENGINES[library], error) from error
    return pytorch_zoo
