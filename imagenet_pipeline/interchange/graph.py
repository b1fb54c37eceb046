"""Graphs of steps in our layers' terms, so that two networks can be compared whoever wrote them.

`graph_operators.py` makes the steps out of MXNet's operators. The normalisation that a graph does to its input before
the first layer, (x - mean) / std per channel, is kept apart as its `InputScale`. `paired_variables` pairs the variables
of two graphs, walking them side by side, or names the first step in which they differ.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.frozen import Normalisation
from imagenet_pipeline.interchange.params import AnyArray
from imagenet_pipeline.interchange.symbol import Attributes
from imagenet_pipeline.networks.shapes import Role, Shape

Variables = tuple[tuple[Role, str], ...]
"""The parameters of a step: their role and their names in the graph."""
COLOURS = 3
IN_ANY_ORDER = ("sum", "product")
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class GraphStep:
    """One layer; step 0 is the image. `key` is a digest of it and of all before it, names left out."""

    kind: str
    settings: Mapping[str, Any]
    inputs: tuple[int, ...]
    variables: Variables
    shape: Shape
    name: str
    key: bytes


@dataclass(frozen=True)
class Graph:
    """Steps in order of computation; `root` gives the scores.

    `scale` is what the graph does to its input first. `fixed` names the scales of batch normalisations that
    MXNet takes as 1, whatever its file says (fix_gamma); `folded` the bias that each mean has to swallow.
    """

    steps: tuple[GraphStep, ...]
    root: int
    scale: InputScale
    fixed: frozenset[str]
    folded: Mapping[str, str]


@dataclass(frozen=True)
class Folding:
    """Layers to take as part of their neighbours.

    `norm`: a batch normalisation of the image as the image's scale; `bias`: the bias in front of a batch normalisation
    as part of the mean of that normalisation.
    """

    norm: bool = False
    bias: bool = False


@dataclass(frozen=True)
class Flow:
    """The output of a node: the result of a step, as an array of `shape`, flattened perhaps."""

    step: int
    shape: Shape


class Steps:
    """Steps being put together, for images of the same shape."""

    def __init__(self, image: Shape) -> None:
        self.image = image
        self.scale: InputScale | None = None
        self.fixed: set[str] = set()
        self.folded: dict[str, str] = {}
        self.all: list[GraphStep] = []
        self.append("image", {}, (), image, "data")

    def append(
        self,
        kind: str,
        settings: Mapping[str, Any],
        inputs: tuple[Flow, ...],
        shape: Shape,
        name: str,
        variables: Variables = (),
    ) -> Flow:
        """Add a step. Raises BadInput where its result is larger than any memory."""
        if math.prod(shape) > LARGEST:
            raise BadInput("its output is larger than any memory", where=repr(name), found=shape)
        keys = [self.all[flow.step].key for flow in inputs]
        if kind in IN_ANY_ORDER:
            keys.sort()
        content = repr((kind, sorted(settings.items()), [shape for shape in (shape,) if kind == "image"], keys))
        key = hashlib.blake2b(content.encode(), digest_size=16).digest()
        indices = tuple(flow.step for flow in inputs)
        self.all.append(GraphStep(kind, settings, indices, variables, shape, name, key))
        return Flow(len(self.all) - 1, shape)

    def image_flow(self, scale: InputScale) -> Flow:
        """The image, scaled. Raises BadInput where it was used with another scale before."""
        if self.scale not in (None, scale):
            raise BadInput("the input is used both normalised and not")
        self.scale = scale
        return Flow(0, self.image)

    def unbiased(self, flow: Flow, mean: str) -> Flow:
        """The layer before a batch normalisation without its bias, which the variable `mean` is to swallow."""
        step = self.all[flow.step]
        if not step.settings.get("bias", False):
            return flow
        self.folded[mean] = step.variables[1][1]
        inputs = tuple(Flow(index, self.all[index].shape) for index in step.inputs)
        settings = {**step.settings, "bias": False}
        return self.append(step.kind, settings, inputs, flow.shape, step.name, step.variables[:1])

    def settled(self, flow: Flow, name: str) -> Flow:
        """A flattened map as a step of its own, unless flattening left a number a channel."""
        before = self.all[flow.step].shape
        if len(flow.shape) == len(before) or math.prod(before[1:]) == 1:
            return flow
        return self.append("flatten", {}, (Flow(flow.step, before),), flow.shape, name)

    def graph(self, end: Flow) -> Graph:
        """The finished graph."""
        scale = self.scale or InputScale.none(self.image[0])
        return Graph(tuple(self.all), end.step, scale, frozenset(self.fixed), self.folded)


_SHIFTS = {
    "_minus_scalar": -1, "_plus_scalar": 1, "_MinusScalar": -1, "_PlusScalar": 1, "_minus": -1, "_Minus": -1,
    "elemwise_sub": -1, "broadcast_sub": -1, "broadcast_minus": -1, "_plus": 1, "_Plus": 1, "elemwise_add": 1,
    "broadcast_add": 1, "broadcast_plus": 1,
}  # fmt: skip
_FACTORS = {
    "_mul_scalar": 1, "_div_scalar": -1, "_MulScalar": 1, "_DivScalar": -1, "_mul": 1, "_Mul": 1, "elemwise_mul": 1,
    "broadcast_mul": 1, "_div": -1, "_Div": -1, "elemwise_div": -1, "broadcast_div": -1,
}  # fmt: skip
SMALLEST_DEVIATION = 1e-6
"""For an input in 0..255: float32 can divide by it and go on computing with the result."""
LARGEST_NUMBER = 1e30


@dataclass(frozen=True)
class InputScale:
    """(x - mean) / std, a number a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def none(cls, channels: int) -> InputScale:
        """The scale of an input used as it comes."""
        return cls((0.0,) * channels, (1.0,) * channels)

    @property
    def normalisation(self) -> Normalisation | None:
        """Mean and std of R, G and B, a single number being that of each; None where they change nothing."""
        if not any(self.mean) and set(self.std) == {1.0}:
            return None
        times = COLOURS if len(self.mean) == 1 else 1
        return self.mean * times, self.std * times


def scaled(
    before: InputScale, op: str, attributes: Attributes, others: Sequence[AnyArray | None], where: str
) -> InputScale | None:
    """The scale after an operator, or None where the operator is something else.

    `others` are the values of the operator's further inputs. Raises BadInput where it is no number a channel
    or makes no usable scale.
    """
    if op not in _SHIFTS and op not in _FACTORS:
        return None
    if others and (len(others) > 1 or others[0] is None):
        return None
    numbers = _per_channel(attributes.real("scalar") if not others else others[0], len(before.mean), where)
    with np.errstate(all="ignore"):
        if op in _SHIFTS:
            mean = np.array(before.mean) - _SHIFTS[op] * numbers * np.array(before.std)
            return _usable(mean, np.array(before.std), where)
        return _usable(np.array(before.mean), np.array(before.std) * numbers ** -_FACTORS[op], where)


def scaled_by_norm(
    before: InputScale, attributes: Attributes, others: Sequence[AnyArray | None], where: str
) -> InputScale:
    """The scale after a batch normalisation with these gamma, beta, mean and variance. Raises BadInput."""
    if len(others) != 4 or any(array is None for array in others):
        raise BadInput("a batch normalisation of the input lacks some of its four parameters", where=where)
    gamma, beta, mean, variance = (_per_channel(array, len(before.mean), where) for array in others)
    if attributes.flag("fix_gamma", True):
        gamma = np.ones_like(gamma)
    with np.errstate(all="ignore"):
        deviation = np.sqrt(variance + attributes.real("eps", 1e-3)) / gamma
        shift = mean - beta * deviation
        return _usable(before.mean + shift * before.std, before.std * deviation, where)


def is_usable(mean: Sequence[float], std: Sequence[float]) -> bool:
    """True where float32 can subtract the mean and divide by the deviation."""
    return all(abs(number) <= LARGEST_NUMBER for number in (*mean, *std)) and min(std) >= SMALLEST_DEVIATION


def require_usable(mean: tuple[float, ...], std: tuple[float, ...], where: object) -> Normalisation:
    """Mean and std as they are. Raises BadInput where float32 cannot compute with them."""
    if not is_usable(mean, std):
        raise BadInput("its mean and std are unusable in float32", where=where, found=f"mean {mean}, std {std}")
    return mean, std


def _per_channel(value: AnyArray | float | None, channels: int, where: str) -> AnyArray:
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "fiu" or numbers.size not in (1, channels) or numbers.ndim > 4:
        expected = f"1 or {channels} numbers"
        raise BadInput("the input's scale is not one number per channel", where=where, expected=expected,
                       found=numbers.shape)  # fmt: skip
    if numbers.size > 1 and numbers.shape[-3:] not in ((channels, 1, 1), (channels,)):
        raise BadInput("the input's scale lies along another axis than the channels", where=where, found=numbers.shape)
    return np.broadcast_to(numbers.astype(np.float64).ravel(), (channels,))


def _usable(mean: AnyArray, std: AnyArray, where: str) -> InputScale:
    scale = InputScale(tuple(map(float, mean)), tuple(map(float, std)))
    if not is_usable(scale.mean, scale.std):
        raise BadInput(
            "the input's scale is unusable in float32", where=where, found=f"mean {scale.mean}, std {scale.std}"
        )
    return scale


Pair = tuple[int, int]


class Different(Exception):
    """The graphs do not compute the same; the text names the first step, as they compute, that the second does else.

    `equal` is the number of its steps before that one.
    """

    def __init__(self, text: str, equal: int = 0) -> None:
        super().__init__(text)
        self.equal = equal


def paired_variables(ours: Graph, theirs: Graph, name: str) -> dict[str, str]:
    """The name in `theirs` of each variable of `ours`, the network `name`. Raises Different."""
    names: dict[str, str] = {}
    seen: dict[int, int] = {}
    _require_equal(ours, theirs, name)
    waiting: list[Pair] = [(ours.root, theirs.root)]
    while waiting:
        first, second = waiting.pop()
        if seen.get(first) == second:
            continue
        step, other = ours.steps[first], theirs.steps[second]
        if seen.setdefault(first, second) != second:
            two = f"{other.name[:80]} and {theirs.steps[seen[first]].name[:80]}"
            raise Different(f"your {two} are two layers, {name}'s {step.name} is one", len(theirs.steps))
        names |= {own: their for (_, own), (_, their) in zip(step.variables, other.variables, strict=True)}
        waiting += _paired_inputs(ours, theirs, (first, second))
    return names


def require_equal_start(ours: Graph, theirs: Graph, name: str) -> None:
    """Raise Different where a step of the second graph is none of the first, which is the network `name`."""
    own_keys, their_keys = ({step.key for step in graph.steps} for graph in (ours, theirs))
    for equal, other in enumerate(theirs.steps):
        if other.key not in own_keys:
            open_ones = [step for step in ours.steps if step.key not in their_keys]
            raise Different(_difference(other, _counterpart(ours, theirs, other, open_ones), name), equal)


def _require_equal(ours: Graph, theirs: Graph, name: str) -> None:
    if ours.steps[ours.root].key != theirs.steps[theirs.root].key:
        require_equal_start(ours, theirs, name)
        last, own = theirs.steps[theirs.root].name[:80], _named(ours.steps[ours.root])
        raise Different(f"your graph ends with {last}, {name} with {own}", len(theirs.steps))


def _counterpart(ours: Graph, theirs: Graph, other: GraphStep, open_ones: list[GraphStep]) -> GraphStep | None:
    """The step of ours that reads what the other one reads: of its kind, if there is such."""
    read = {theirs.steps[index].key for index in other.inputs}
    near = [step for step in open_ones if any(ours.steps[index].key in read for index in step.inputs)]
    return next((step for step in near if step.kind == other.kind), next(iter(near or open_ones), None))


def _paired_inputs(ours: Graph, theirs: Graph, pair: Pair) -> Iterator[Pair]:
    """Inputs that belong together: in order, but those of a sum or product, which may stand in any, by digests."""
    first, second = ours.steps[pair[0]].inputs, theirs.steps[pair[1]].inputs
    if ours.steps[pair[0]].kind not in IN_ANY_ORDER:
        yield from zip(first, second, strict=True)
        return
    left = list(second)
    for index in first:
        equal = next(other for other in left if theirs.steps[other].key == ours.steps[index].key)
        left.remove(equal)
        yield index, equal


_COUNTED = {"channels": "filters", "units": "units", "groups": "groups"}


def _difference(other: GraphStep, step: GraphStep | None, name: str) -> str:
    """Their step and ours in words: "your conv0 has 10 filters, lenet's 20"."""
    if step is None:
        return f"your graph goes on with {_named(other)}, where {name} ends"
    if step.kind != other.kind or len(step.inputs) != len(other.inputs):
        return f"your {_named(other)}, where {name} has {_named(step)}"
    words = [
        f"{_setting(key, other.settings.get(key))}, {name}'s {_plain(value)}"
        for key, value in step.settings.items()
        if other.settings.get(key) != value
    ]
    if not words:
        return f"your {other.name[:80]} reads something else than {name}'s {step.name}"
    return f"your {other.name[:80]} has {'; '.join(words)}"


def _setting(key: str, value: object) -> str:
    return f"{_plain(value)} {_COUNTED[key]}" if key in _COUNTED else f"{key} {_plain(value)}"


def _named(step: GraphStep) -> str:
    article = "an" if step.kind[0] in "aeiou" else "a"
    inputs = f" of {len(step.inputs)}" if len(step.inputs) > 1 else ""
    return f"{step.name[:80]}, {article} {step.kind}{inputs}" if step.inputs else "the image"


def _plain(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
