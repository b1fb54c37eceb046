"""Stochastic gradient descent with momentum, as written in `engines/__init__.py`, on MXNet arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values, check_fits
from imagenet_pipeline.engines.gluon_import import mx


class MomentumRule:
    """The written rule of `engines/__init__.py`, in terms of the last displacement u = -r * v.

    u' = m * (r / r_last) * u - r * G is the same rule, and a form MXNet's fused update computes in one pass.
    The rate of the last step is kept beside u, so nothing is lost when the rate changes or a run restarts.
    """

    _ARRAYS_A_CALL = 45  # the fused kernel takes at most 60

    def __init__(self, recipe: OptimizerRecipe, parameters: dict[str, Any], contexts: list[Any]) -> None:
        self._recipe = recipe
        self._parameters = parameters
        self._last_rate: float | None = None
        self._displacements = {
            name: [mx.nd.zeros_like(parameter.data(context)) for context in contexts]
            for name, parameter in parameters.items()
        }

    def update(self, rate: float, batch_size: int) -> None:
        """Apply the gradients, summed over `batch_size` images, at this learning rate."""
        momentum = self._recipe.momentum * (rate / self._last_rate if self._last_rate else 1.0)
        rescale = 1.0 / batch_size
        triples = [
            (weight, gradient, displacement)
            for name, parameter in self._parameters.items()
            for weight, gradient, displacement in zip(
                parameter.list_data(), parameter.list_grad(), self._displacements[name], strict=True
            )
        ]
        if self._recipe.nesterov or triples[0][0].dtype != np.float32:
            for triple in triples:
                self._update_one(*triple, rate, momentum, rescale)
        else:
            for group in self._groups(triples):
                self._update_fused(group, rate, momentum, rescale)
        self._last_rate = rate

    def state(self) -> dict[str, Array]:
        """The displacements and the rate they were made with; empty before the first update."""
        if self._last_rate is None:
            return {}
        state = {f"displacement/{name}": copies[0].asnumpy() for name, copies in self._displacements.items()}
        return {**state, "learning_rate": np.array([self._last_rate], np.float64)}

    def set_state(self, state: Values) -> None:
        """Go on from a state. Raises BadInput where it belongs to another network."""
        if not state:
            return
        shapes = {f"displacement/{name}": parameter.shape for name, parameter in self._parameters.items()}
        check_fits({**shapes, "learning_rate": (1,)}, state, "optimizer state")
        for name, copies in self._displacements.items():
            for copy in copies:
                copy[:] = mx.nd.array(state[f"displacement/{name}"], dtype=copy.dtype)
        self._last_rate = float(state["learning_rate"][0])

    def _groups(self, triples: list[tuple[Any, Any, Any]]) -> Iterator[list[tuple[Any, Any, Any]]]:
        by_context: dict[str, list[tuple[Any, Any, Any]]] = {}
        for triple in triples:
            by_context.setdefault(str(triple[0].context), []).append(triple)
        for group in by_context.values():
            for first in range(0, len(group), self._ARRAYS_A_CALL):
                yield group[first : first + self._ARRAYS_A_CALL]

    def _update_fused(self, group: list[tuple[Any, Any, Any]], rate: float, momentum: float, rescale: float) -> None:
        mx.nd.multi_sgd_mom_update(
            *[array for triple in group for array in triple],
            out=[weight for weight, _, _ in group],
            num_weights=len(group),
            lrs=[rate] * len(group),
            wds=[self._recipe.weight_decay] * len(group),
            momentum=momentum,
            rescale_grad=rescale,
        )

    def _update_one(
        self, weight: Any, gradient: Any, displacement: Any, rate: float, momentum: float, rescale: float
    ) -> None:
        push = (gradient * rescale + weight * self._recipe.weight_decay) * -rate
        displacement[:] = displacement * momentum + push
        weight[:] = weight + (displacement * self._recipe.momentum + push if self._recipe.nesterov else displacement)
