"""The written update rules on MXNet's arrays, a call a context; MXNet's fused kernel for plain momentum in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.gluon.runtime import mx
from imagenet_pipeline.engines.optimizer_state import OptimizerState, ParameterGroup
from imagenet_pipeline.optimizers import clip_factor, limited_norm, not_zero, with_l1, within_share

Moving = tuple[str, Any, Any, list[Any]]
"""A parameter's name, its weight, gradient and slots on one context."""


class Optimizer:
    """An optimizer of Gluon parameters, each with a copy on every context.

    MXNet's fused sgd is the written rule in terms of the last displacement u = -r v:
    u' = m (r' / r) u - r' G. The rate r of the last step is kept beside u, so nothing is lost when the rate changes
    or a run restarts. It knows a single rate, so where layers have their own, or stay, the written rule steps.
    Without `groups` every parameter is in the recipe's own group (`optimizer_state.parameter_groups`).
    """

    _ARRAYS_A_CALL = 45  # the fused kernel takes at most 60

    def __init__(
        self,
        recipe: OptimizerRecipe,
        parameters: dict[str, Any],
        contexts: list[Any],
        groups: Mapping[str, ParameterGroup] | None = None,
    ) -> None:
        self._recipe = recipe
        self._parameters = parameters
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        self._state = OptimizerState(recipe, shapes, groups)
        self._last_rate = 1.0
        is_float32 = all(np.dtype(parameter.dtype) == np.float32 for parameter in parameters.values())
        at_one_rate = all(group.rate == 1 and not group.frozen for group in self._state.groups.values())
        written = recipe.nesterov or recipe.l1 or recipe.clip_share or recipe.lookahead_steps
        self._fused = recipe.name == "sgd" and is_float32 and at_one_rate and not written
        self._slot_names = ("displacement",) if self._fused else self._state.rule.slots
        self._slots = {
            name: [[mx.nd.zeros_like(parameter.data(context)) for _ in self._slot_names] for context in contexts]
            for name, parameter in parameters.items()
        }
        self._contexts = range(len(contexts))
        self._calls: list[Callable[[float, float, int], None]] = []
        self._climb: Callable[[float], None] | None = None

    def update(self, rate: float, batch_size: int) -> None:
        """Apply the gradients, summed over `batch_size` images, at this learning rate."""
        self._state.count()
        self._calls = self._calls or list(self._calls_of_a_step())
        for call in self._calls:
            call(rate, 1.0 / batch_size, self._state.steps)

    @contextmanager
    def uphill(self, radius: float) -> Iterator[None]:
        """Context in which weights are w + radius g / |g| (Foret et al. 2021, equation 2); then w, to the last bit."""
        moving = [self._parameters[name] for name in self._state.moving]
        arrays = [[parameter.list_data() for parameter in moving], [parameter.list_grad() for parameter in moving]]
        kept = [[weight.copy() for weight in weights] for weights in arrays[0]]
        items = [
            [[weights[index], gradients[index]] for weights, gradients in zip(*arrays, strict=True)]
            for index in self._contexts
        ]
        self._climb = self._climb or _in_one_call(_climbed, items, [None] * len(moving))
        self._climb(radius)
        try:
            yield
        finally:
            for weights, copies in zip(arrays[0], kept, strict=True):
                for weight, copy in zip(weights, copies, strict=True):
                    copy.copyto(weight)

    def state(self) -> dict[str, Array]:
        """The optimizer state by name (`OptimizerState.arrays`; the fused sgd's: `displacement/PARAMETER` and the
        `learning_rate` [1] they were made with); empty before the first update."""
        if not self._state.steps:
            return {}
        arrays = {
            f"{slot}/{name}": copies[0][index].asnumpy()
            for index, slot in enumerate(self._slot_names)
            for name, copies in self._slots.items()
        }
        if self._fused:
            return {**arrays, "learning_rate": np.array([self._last_rate], np.float64)}
        return self._state.arrays(arrays)

    def set_state(self, state: Values) -> None:
        """Go on from a state. Raises BadRecipe or BadInput where it is another optimizer's or network's."""
        if not state:
            return
        arrays = self._state.read(state)
        self._calls = []
        if self._fused:
            self._last_rate, arrays = _displacements(state, arrays)
        for index, slot in enumerate(self._slot_names):
            for name, copies in self._slots.items():
                for slots in copies:
                    slots[index][:] = mx.nd.array(arrays[f"{slot}/{name}"], dtype=slots[index].dtype)

    def _calls_of_a_step(self) -> Iterator[Callable[[float, float, int], None]]:
        """Work of a step, in order: given the learning rate, a factor of the gradients and the number of the step."""
        moving = [(self._parameters[name], self._slots[name]) for name in self._state.moving]
        weights = [[parameter.list_data()[index] for parameter, _ in moving] for index in self._contexts]
        gradients = [[parameter.list_grad()[index] for parameter, _ in moving] for index in self._contexts]
        slots = [[copies[index] for _, copies in moving] for index in self._contexts]
        if not self._fused:
            copies = zip(weights, slots, gradients, strict=True)
            items = [[[w, *s, g] for w, s, g in zip(*context, strict=True)] for context in copies]
            yield _in_one_call(self._written, items, self._kinds())
            return
        if self._recipe.clip_norm:
            items = [[[gradient] for gradient in context] for context in gradients]
            yield _in_one_call(self._clipped, items, [None] * len(moving))
        yield functools.partial(self._update_fused, list(self._groups()))
        if self._recipe.max_norm:
            rows = [place for place, name in enumerate(self._state.moving) if self._state.has_rows(name)]
            items = [[[context[place]] for place in rows] for context in weights]
            yield _in_one_call(self._limited, items, [weight.ndim for (weight,) in items[0]])

    def _kinds(self) -> list[Hashable]:
        """Key, for each parameter, of the numbers of its step; none for a rule that may look at shapes as well."""
        if not self._state.rule.on_lists:
            return []
        groups = ((name, self._state.groups[name]) for name in self._state.moving)
        return [
            (len(self._parameters[name].shape), group.rate, group.decays, group.as_vector, self._state.taken(name))
            for name, group in groups
        ]

    def _written(
        self, indexes: list[int], items: list[list[Any]], rate: float, rescale: float, steps: int
    ) -> list[list[Any]]:
        """New [weight, *slots] of these of the moving parameters, given [weight, *slots, gradient] of each."""
        gradients = [[gradient] for *_, gradient in items]
        if self._recipe.clip_norm:
            gradients = self._clipped(indexes, gradients, rate, rescale, steps)
        moved = []
        for index, (weight, *slots, _), (gradient,) in zip(indexes, items, gradients, strict=True):
            step = self._state.step(self._state.moving[index], rate, steps)
            gradient = gradient * rescale
            if self._recipe.clip_share and not step.is_head:
                gradient = within_share(weight, gradient, self._recipe.clip_share, step.as_vector)
            gradient = with_l1(weight, gradient, step.recipe.l1)
            new, changed = self._state.rule.update(weight, gradient, tuple(slots), step)
            if self._recipe.max_norm and not step.as_vector:
                new = limited_norm(new, self._recipe.max_norm)
            moved.append([new, *changed])
        return moved

    def _clipped(
        self, indexes: list[int], items: list[list[Any]], rate: float, rescale: float, steps: int
    ) -> list[list[Any]]:
        """Gradients scaled down. Every context has the same gradients, and takes their norm for itself."""
        length = _length_of_all(items) * rescale
        factor = clip_factor(length, self._recipe.clip_norm)
        return [[gradient * factor.reshape((1,) * gradient.ndim)] for (gradient,) in items]

    def _limited(self, indexes: list[int], items: list[list[Any]], *numbers: float) -> list[list[Any]]:
        return [[limited_norm(weight, self._recipe.max_norm)] for (weight,) in items]

    def _update_fused(self, groups: list[list[Moving]], rate: float, rescale: float, steps: int) -> None:
        for group in groups:
            self._update_group(group, rate, rescale)
        self._last_rate = rate

    def _groups(self) -> Iterator[list[Moving]]:
        """Arrays of the same device and length, which the fused kernel walks side by side.

        It looks at every array of a call for each number of the longest: with VGG-16's in a single call it took 1.5 s.
        """
        alike: dict[tuple[str, int], list[Moving]] = {}
        for name in self._state.moving:
            parameter = self._parameters[name]
            for copies in zip(parameter.list_data(), parameter.list_grad(), self._slots[name], strict=True):
                alike.setdefault((str(copies[0].context), copies[0].size), []).append((name, *copies))
        for group in alike.values():
            for first in range(0, len(group), self._ARRAYS_A_CALL):
                yield group[first : first + self._ARRAYS_A_CALL]

    def _update_group(self, group: list[Moving], rate: float, rescale: float) -> None:
        mx.nd.multi_sgd_mom_update(
            *[array for _, weight, gradient, slots in group for array in (weight, gradient, *slots)],
            out=[weight for _, weight, _, _ in group],
            num_weights=len(group),
            lrs=[rate] * len(group),
            wds=[self._state.step(name, rate).recipe.weight_decay for name, *_ in group],
            momentum=self._recipe.momentum * rate / self._last_rate if self._last_rate else self._recipe.momentum,
            rescale_grad=rescale,
        )


def _displacements(state: Values, velocities: dict[str, Array]) -> tuple[float, dict[str, Array]]:
    if "learning_rate" in state:
        return float(state["learning_rate"][0]), {key: np.asarray(value) for key, value in state.items()}
    return 1.0, {key.replace("velocity/", "displacement/", 1): -value for key, value in velocities.items()}


class Approach:
    """Move means by a share of the way to their arrays (`engines.ema.Averages`), a call a context."""

    def __init__(self) -> None:
        self._means: list[Any] = []
        self._calls: list[Callable[[float], None]] = []

    def __call__(self, means: list[Any], arrays: list[Any], share: float) -> list[Any]:
        """The means themselves, moved."""
        if len(means) != len(self._means) or any(mean is not old for mean, old in zip(means, self._means, strict=True)):
            self._means, self._calls = means, list(_approaches(means, arrays))
        for call in self._calls:
            call(share)
        return means


def _climbed(indexes: list[int], items: list[list[Any]], radius: float) -> list[list[Any]]:
    """Weights moved along their gradients, all together by the radius."""
    factor = radius / not_zero(_length_of_all([[gradient] for _, gradient in items]))
    return [[weight + gradient * factor.reshape((1,) * gradient.ndim)] for weight, gradient in items]


def _length_of_all(items: list[list[Any]]) -> Any:
    from imagenet_pipeline.engines.gluon.tracing import add_up

    return add_up([(gradient * gradient).sum() for (gradient,) in items]).sqrt()


def _in_one_call(
    function: Callable[..., list[list[Any]]], items: list[list[list[Any]]], kinds: list[Hashable]
) -> Callable[..., None]:
    # Imported where it is needed: plain momentum does without.
    from imagenet_pipeline.engines.gluon.tracing import InOneCall

    return InOneCall(function, items, kinds)


def _approaches(means: list[Any], arrays: list[Any]) -> Iterator[Callable[[float], None]]:
    on_contexts: dict[str, list[list[Any]]] = {}
    for mean, array in zip(means, arrays, strict=True):
        on_contexts.setdefault(str(mean.context), []).append([mean, array])
    for items in on_contexts.values():
        yield _in_one_call(_approached, [items], [None] * len(items))


def _approached(indexes: list[int], items: list[list[Any]], share: float) -> list[list[Any]]:
    return [[mean + share * (array - mean)] for mean, array in items]
