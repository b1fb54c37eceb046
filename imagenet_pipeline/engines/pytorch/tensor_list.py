"""Lists of tensors that compute as an array does, so that the written update rules run on all parameters at once.

An operation of a list is one call of `torch._foreach_*`: on a GPU a few kernels for all its tensors, where one tensor
after the other would be hundreds. What differs between the tensors of a list, their learning rate or weight decay, is a
number for each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from operator import mul
from typing import Any

from imagenet_pipeline.engines.pytorch.runtime import torch
from imagenet_pipeline.optimizers import Step, excess, over_share


class TensorList:
    """Tensors of any shapes, the same type and device. An operand is another list, `Numbers`, a number, a tensor with
    no dimension, or one with a number for each tensor of the list.

    The product with a number waits for the sum it may be part of, which is then one operation and needs no memory of
    its own. So a rule must not change a list in place between its product and the use of that.
    """

    def __init__(self, tensors: Sequence[Any], factor: float | None = None) -> None:
        self._tensors, self._factor = tensors, factor

    @property
    def tensors(self) -> Sequence[Any]:
        """The tensors, multiplied by what waited."""
        if self._factor is not None:
            self._tensors, self._factor = torch._foreach_mul(self._tensors, self._factor), None
        return self._tensors

    def __add__(self, other: Any) -> TensorList:
        if not isinstance(other, TensorList):
            return TensorList(torch._foreach_add(self.tensors, _operand(other)))
        if self._factor is not None and other._factor is None:
            return other + self
        return TensorList(torch._foreach_add(self.tensors, other._tensors, alpha=other._alpha))

    def __iadd__(self, other: Any) -> TensorList:
        # A product that waited becomes tensors of its own here, as the sum would.
        if isinstance(other, TensorList) and self._factor is not None and other._factor is None:
            return other + self
        if isinstance(other, TensorList):
            torch._foreach_add_(self.tensors, other._tensors, alpha=other._alpha)
        else:
            torch._foreach_add_(self.tensors, _operand(other))
        return self

    def __sub__(self, other: TensorList) -> TensorList:
        return self + -1.0 * other

    def __mul__(self, other: Any) -> TensorList:
        if isinstance(other, int | float):
            return TensorList(self._tensors, self._alpha * other)
        return TensorList(torch._foreach_mul(self.tensors, _operand(other)))

    __radd__, __rmul__ = __add__, __mul__

    def __imul__(self, other: Any) -> TensorList:
        torch._foreach_mul_(self.tensors, _operand(other))
        return self

    def __truediv__(self, other: Any) -> TensorList:
        return TensorList(torch._foreach_div(self.tensors, _operand(other)))

    def __itruediv__(self, other: Any) -> TensorList:
        torch._foreach_div_(self.tensors, _operand(other))
        return self

    @property
    def _alpha(self) -> float:
        return 1.0 if self._factor is None else self._factor

    def sqrt(self) -> TensorList:
        """Square root of every number."""
        return TensorList(torch._foreach_sqrt(self.tensors))

    def sign(self) -> TensorList:
        """Sign of every number."""
        return TensorList(torch._foreach_sign(self.tensors))

    def maximum(self, other: TensorList) -> TensorList:
        """The larger of every two numbers."""
        return TensorList(torch._foreach_maximum(self.tensors, other.tensors))

    def length(self) -> Any:
        """The norm of each tensor, float64 [tensors]: in float32 a CPU is 6e-6 short on a weight of 512 x 4608."""
        return torch.stack(torch._foreach_norm(self.tensors, dtype=torch.float64))


@dataclass(frozen=True)
class Numbers:
    """A number for each tensor of a list, on the host."""

    values: tuple[float, ...]

    def __bool__(self) -> bool:
        return any(self.values)

    def __neg__(self) -> Numbers:
        return Numbers(tuple(-value for value in self.values))

    def __rsub__(self, other: float) -> Numbers:
        return Numbers(tuple(other - value for value in self.values))

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, TensorList):
            return other * self
        if isinstance(other, torch.Tensor):
            return _on_device(self.values, other.dtype, other.device) * other
        others = other.values if isinstance(other, Numbers) else repeat(other)
        return Numbers(tuple(map(mul, self.values, others)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class ListStep(Step):
    """A step of the tensors of a list that have not all taken as many."""

    counts: tuple[int, ...] = ()

    def of_count(self, number: Callable[[int], float]) -> Numbers:
        """A number for each tensor."""
        known = {count: number(count) for count in set(self.counts)}
        return Numbers(tuple(known[count] for count in self.counts))


def joint_step(steps: Sequence[Step]) -> Step:
    """The step of a list, given those of its tensors, whose rates, counts, weight decays and l1 may differ."""
    first = steps[0]
    decays = {key: _alike([getattr(step.recipe, key) for step in steps]) for key in ("weight_decay", "l1")}
    differing = {key: value for key, value in decays.items() if isinstance(value, Numbers)}
    recipe = first.recipe.model_copy(update=differing) if differing else first.recipe
    rate, counts = _alike([step.rate for step in steps]), tuple(step.count for step in steps)
    if len(set(counts)) == 1:
        return replace(first, rate=rate, recipe=recipe)
    return ListStep(rate, first.count, recipe, counts=counts)


class Rows:
    """`limited_norm` and `within_share` of many weights at once.

    Rows are measured in a copy of them all, in a block for each power of 2: those shorter end in zeros. An array of one
    dimension is a single row. The weights are kept, and must stay where they are in memory.
    """

    def __init__(self, weights: Sequence[Any]) -> None:
        self._weights = [weight.detach() for weight in weights]
        by_size: dict[int, list[int]] = {}
        for place, weight in enumerate(self._weights):
            by_size.setdefault(2 ** (weight.numel() // _rows(weight) - 1).bit_length(), []).append(place)
        lengths = weights[0].new_empty(sum(map(_rows, self._weights)))
        self._lengths, self._factors, first = lengths, torch.empty_like(lengths), 0
        self._copies, self._divisors = [*self._weights], [*self._weights]
        self._blocks = []
        for size, places in by_size.items():
            counts = [_rows(self._weights[place]) for place in places]
            block = lengths.new_zeros((sum(counts), size))
            self._blocks.append((block, lengths[first : first + len(block)]))
            for place, rows in zip(places, block.split(counts), strict=True):
                weight = self._weights[place]
                self._copies[place] = _beginnings_of(rows, weight)
                each = (-1, *(1,) * (weight.ndim - 1)) if weight.ndim else ()
                self._divisors[place] = self._factors[first : first + len(rows)].view(each)
                first += len(rows)

    def limit(self, length: float, overflow: Any | None) -> None:
        """Scale down the rows of the weights that are longer, unless there was an overflow."""
        self._factors.copy_(excess(self._measured(self._weights), length))
        if overflow is None:
            torch._foreach_div_(self._weights, self._divisors)
        else:
            copy_unless(overflow, self._weights, torch._foreach_div(self._weights, self._divisors))

    def clipped(self, gradients: Sequence[Any], share: float) -> Sequence[Any]:
        """The gradients, their rows scaled down to this share of those of the weights."""
        lengths = self._measured(self._weights).clone()
        self._factors.copy_(over_share(self._measured(gradients), lengths, share))
        divided: Sequence[Any] = torch._foreach_div(gradients, self._divisors)
        return divided

    def _measured(self, tensors: Sequence[Any]) -> Any:
        """The norms of the rows of these, in the order of the blocks."""
        torch._foreach_copy_(self._copies, tensors)
        for block, lengths in self._blocks:
            torch.linalg.vector_norm(block, dim=1, out=lengths)
        return self._lengths


def copy_unless(overflow: Any, targets: Sequence[Any], values: Sequence[Any]) -> None:
    """Copy the values to the targets, laid out alike in memory, unless the float32 on the device is 1.

    Of the kernels for lists the optimizers' alone ask the device whether to do anything. Here it is SGD's, which at its
    first step takes the gradients for the momentum, and at a rate of 0 leaves the weights, for which the values stand.
    """
    numbers = {"weight_decay": 0.0, "momentum": 1.0, "lr": 0.0, "dampening": 0.0}
    flags = {"nesterov": False, "maximize": False, "is_first_step": True}
    torch._fused_sgd_(values, values, targets, **numbers, **flags, grad_scale=None, found_inf=overflow)


def _operand(other: Any) -> Any:
    if isinstance(other, TensorList):
        return other.tensors
    if isinstance(other, Numbers):
        return other.values
    return other.unbind() if isinstance(other, torch.Tensor) and other.ndim else other


@functools.lru_cache(maxsize=8)
def _on_device(values: tuple[float, ...], dtype: Any, device: Any) -> Any:
    # A copy waits for the device: those of weight decays are made once.
    return torch.tensor(values, dtype=dtype, device=device)


def _alike(values: Sequence[float]) -> float | Numbers:
    return values[0] if len(set(values)) == 1 else Numbers(tuple(values))


def _rows(weight: Any) -> int:
    return len(weight) if weight.ndim > 1 else 1


def _beginnings_of(rows: Any, weight: Any) -> Any:
    if weight.ndim < 2:
        return rows[0, : weight.numel()].view(weight.shape)
    # The order within a row does not matter for its length, but the weight's own is copied fastest.
    size = weight[0].numel()
    if weight.stride(0) == size:
        return rows.as_strided(weight.shape, (rows.stride(0), *weight.stride()[1:]))
    return rows[:, :size].unflatten(1, weight.shape[1:])
