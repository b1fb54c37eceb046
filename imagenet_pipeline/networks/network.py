"""Whole networks: what training and engines ask of one, described in our layers or another library's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from imagenet_pipeline.networks.initial import Values, initial_values
from imagenet_pipeline.networks.layers import Sequential
from imagenet_pipeline.networks.shapes import Shape, parameters


class Network(Protocol):
    """A network with its number of classes settled. Inputs are [channels, height, width]."""

    @property
    def engine(self) -> str | None:
        """The one engine that runs it; None: each of them."""

    def shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """The shape of every parameter and running statistic, by name, in order of computation.

        Raises BadRecipe where the network cannot take the input or its library is missing.
        """

    def initial_values(
        self, input_shape: Shape, kind: str, seed: int, zero_last_scale: bool
    ) -> dict[str, Values] | None:
        """The values training begins with, float32 by name; None where its engine draws them as it builds it.

        Raises BadRecipe as `shapes` does, and for a `kind` or `zero_last_scale` it does not have.
        """


@dataclass(frozen=True)
class LayeredNetwork(Sequential):
    """A network described in our layers."""

    def shapes(self, input_shape: Shape) -> dict[str, Shape]:
        return {name: parameter.shape for name, parameter in parameters(self, input_shape).items()}

    def initial_values(
        self, input_shape: Shape, kind: str, seed: int, zero_last_scale: bool
    ) -> dict[str, Values] | None:
        return initial_values(self, input_shape, kind, seed, zero_last_scale)
