"""A node of an ONNX graph on its way to become layers, and what flows between nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.graph import InputScale, scaled
from imagenet_pipeline.interchange.layer_graph import Flow, LayerGraph, SizeUnfit, TwoScales
from imagenet_pipeline.interchange.onnx_file import Tensors
from imagenet_pipeline.interchange.params import AnyArray
from imagenet_pipeline.interchange.symbol import Attributes
from imagenet_pipeline.networks.layers import Constant, Greyscale, Layer, Transpose
from imagenet_pipeline.networks.shapes import Shape

BATCH = 3 * 2**28
"""Stands in computed shapes for the number of images: no axis is as long, and float32 holds it exactly."""
_WEIGHT_ENDINGS = (".weight", "_weight", ".gamma", "_gamma", ".kernel", "_kernel", ".scale", "_scale")


@dataclass(frozen=True)
class Image:
    """The image after the arithmetic done to it first; [height, width, channels] if `is_last`."""

    scale: InputScale
    is_last: bool


@dataclass(frozen=True)
class Erf:
    """factor * (plus + erf(x / sqrt 2)), times x itself with `times_x`: a GELU on its way."""

    flow: Flow
    plus: float = 0.0
    factor: float = 1.0
    times_x: bool = False


@dataclass(frozen=True)
class Products:
    """factor * queries keys of [heads, tokens, length] and [heads, length, tokens], with `shares` their softmax over
    the keys: an attention on its way.
    """

    queries: Flow
    keys: Flow
    factor: float = 1.0
    shares: bool = False


Value = Flow | Image | Erf | Products | AnyArray


@dataclass
class Conversion:
    """Layers made so far, and what the names of the graph stand for; `batch` is the declared number of images.

    With `split` the arithmetic that a graph does to its input first is kept apart, as `scale`. `readers` are the nodes
    that read a name; those in `absorbed` have become part of an earlier layer.
    """

    path: Path
    graph: LayerGraph
    channels: int
    batch: int | None
    opset: int
    split: bool
    readers: Mapping[str, list[Any]]
    tensors: Tensors
    initializers: Mapping[str, Any]
    stored: int = 0
    """Numbers of the initializers read so far."""
    values: dict[str, Value] = field(default_factory=dict)
    scale: InputScale | None = None
    absorbed: dict[int, str] = field(default_factory=dict)
    turned: dict[str, tuple[Flow, Shape]] = field(default_factory=dict)
    """The input of Transposes and how they order it, by the name of their layer."""
    divided: dict[str, tuple[Flow, float]] = field(default_factory=dict)
    """Dividends of divisions by a number, by the name of the layer that does it."""
    _grey: Flow | None = None

    def value(self, name: str) -> Value | None:
        """The value that a name of the graph stands for, None for what comes later."""
        if name not in self.values and name in self.initializers:
            array = self.tensors.array(self.initializers[name], name)
            self.stored += array.size
            self.values[name] = array
        return self.values.get(name)

    def flow(self, value: Value) -> Flow | None:
        """A value made of the image, as a flow; None for a constant."""
        if isinstance(value, Image):
            return self._image_flow(value)
        return value if isinstance(value, Flow) else None

    def _image_flow(self, image: Image) -> Flow:
        if self.scale not in (None, image.scale):
            raise TwoScales
        self.scale = image.scale
        flow = self.graph.image
        if self.channels != flow.shape[0]:
            self._grey = self._grey or self.graph.add("greyscale", Greyscale(), (flow,))
            flow = self._grey
        return self.transposed("channels_last", flow, (1, 2, 0), self.path) if image.is_last else flow

    def transposed(self, name: str, flow: Flow, axes: Shape, where: object) -> Flow:
        """The axes in another order; two Transposes in sequence are one, or none."""
        if flow.name in self.turned:
            flow, earlier = self.turned[flow.name]
            axes = tuple(earlier[axis] for axis in axes)
        if axes == tuple(range(len(axes))):
            return flow
        made = self.graph.add(name, Transpose(axes), (flow,), where=where)
        self.turned[made.name] = flow, axes
        return made


@dataclass(frozen=True)
class Operator:
    """A node with the values it reads, None for those that are left out, and its attributes."""

    conversion: Conversion
    node: Any
    inputs: tuple[Value | None, ...]
    attributes: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{self.conversion.path}: {self.node.op_type[:80]} {(self.node.name or self.node.output[0])[:80]!r}"

    @property
    def opset(self) -> int:
        return self.conversion.opset

    def has(self, which: int) -> bool:
        """True where the node reads so many inputs, and this is among them."""
        return which < len(self.inputs) and self.inputs[which] is not None

    def flow(self, which: int = 0) -> Flow:
        """An input that is made of the image."""
        value = self.inputs[which] if self.has(which) else None
        flow = None if value is None else self.conversion.flow(value)
        if isinstance(value, Erf):
            raise self.bad("reads erf(x), which our layers know as a part of GELU alone")
        if isinstance(value, Products):
            raise self.bad("reads the product of two arrays, which our layers know as a part of attention alone")
        if flow is None:
            raise self.bad(f"its input {which} is not made of the image")
        return flow

    def image(self) -> Flow:
        """The first input, [channels, height, width]."""
        flow = self.flow()
        if len(flow.shape) != 3:
            raise self.unfit("needs an image", found=flow.shape)
        return flow

    def array(self, which: int, what: str) -> AnyArray:
        """An input that is a constant. Raises BadInput where it is computed from the image, or left out."""
        value = self.inputs[which] if self.has(which) else None
        if not isinstance(value, np.ndarray):
            raise self.bad(f"its {what} is computed from the image, or missing")
        return value

    def stored(self, which: int, what: str) -> tuple[str, AnyArray]:
        """A parameter: what the file calls it, and its values."""
        return self.node.input[which], self.array(which, what)

    def numbers(self, which: int, what: str) -> list[int]:
        """An input of whole numbers."""
        array = self.array(which, what)
        if array.dtype.kind not in "iu" or array.ndim > 1 or array.size > 64:
            raise self.bad(f"its {what} are no whole numbers", found=f"{array.dtype} {array.shape}")
        return [int(number) for number in np.atleast_1d(array)]

    def number(self, which: int, what: str) -> float:
        """An input of a single number, infinities allowed."""
        array = self.array(which, what)
        if array.size != 1 or array.dtype.kind not in "fiu" or np.isnan(array).any():
            raise self.bad(f"its {what} is no number", found=f"{array.dtype} {array.shape}")
        return float(array.reshape(()))

    def integer(self, name: str, default: int) -> int:
        """An attribute, a whole number."""
        return int(self._attribute(name, int, default))

    def real(self, name: str, default: float) -> float:
        """An attribute, a finite number."""
        value = float(self._attribute(name, (int, float), default))
        if not np.isfinite(value):
            raise self.bad(f"invalid attribute {name!r}", expected="a finite number", found=value)
        return value

    def word(self, name: str, default: str) -> str:
        """An attribute, a word."""
        value = self._attribute(name, (bytes, str), default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def integers(self, name: str) -> list[int] | None:
        """An attribute, whole numbers; None where it is not there."""
        value = self._attribute(name, list, None)
        if value is not None and (len(value) > 64 or not all(isinstance(number, int) for number in value)):
            raise self.bad(f"invalid attribute {name!r}", expected="whole numbers", found=repr(value)[:80])
        return value  # type: ignore[no-any-return]

    def pair(self, name: str, default: tuple[int, int], least: int = 1) -> tuple[int, int]:
        """An attribute, (height, width)."""
        found = self.integers(name)
        if found is None:
            return default
        if len(found) != 2 or min(found) < least:
            raise self.bad(f"invalid attribute {name!r}", f"(height, width) of at least {least}", found[:8])
        return found[0], found[1]

    def listed(self, name: str, which: int) -> list[int] | None:
        """Whole numbers that older sets of operators have as an attribute, newer ones as an input."""
        return self.numbers(which, name) if self.has(which) else self.integers(name)

    def _attribute(self, name: str, kind: Any, default: Any) -> Any:
        value = self.attributes.get(name, default)
        if value is not default and not isinstance(value, kind):
            raise self.bad(f"invalid attribute {name!r}", found=repr(value)[:80])
        return value

    def axis(self, number: int, axes: int) -> int:
        """Our number of an ONNX axis, of an array with so many axes beside that of the batch."""
        place = number + axes + 1 if number < 0 else number
        if place == 0:
            raise self.bad("works along the batch: it mixes images", found=f"axis {number}")
        if not 0 < place <= axes:
            raise self.unfit("works along an axis that is not there", found=f"axis {number}")
        return place - 1

    def name(self, which: int = 1) -> str:
        """The layer's name: that of its weights without their ending, or else the node's."""
        stored = self.node.input[which] if which < len(self.node.input) else ""
        ending = next((ending for ending in _WEIGHT_ENDINGS if stored.endswith(ending)), "")
        plain = stored.removesuffix(ending) if ending else self.node.name or self.node.op_type.lower()
        return plain.strip("/.:_").replace("::", "_") or "layer"

    def add(
        self, layer: Layer, *inputs: Flow, suffix: str = "", arrays: Mapping[str, tuple[str, AnyArray]] | None = None
    ) -> Flow:
        """Add a layer, named after the node."""
        name = f"{self.name()}_{suffix}" if suffix else self.name()
        return self.conversion.graph.add(name, layer, inputs, arrays, self.where)

    def constant(self, which: int, axes: int) -> Flow:
        """A constant input as a flow of so many axes beside that of the batch."""
        array = self.array(which, "operand")
        if array.dtype.kind not in "fiu":
            raise self.bad("computes with a constant that is no number", found=array.dtype)
        per_image = self.per_image(array, axes)
        arrays = {"value": (self.node.input[which], per_image.astype(np.float64))}
        name = self.node.input[which].strip("/.:_") or "constant"
        return self.conversion.graph.add(name, Constant(per_image.shape), (), arrays, self.where)

    def per_image(self, array: AnyArray, axes: int) -> AnyArray:
        """An array as broadcasting sees it, with so many axes. Raises BadInput where images would differ by it."""
        if self.opset < 7 and "axis" in self.attributes:
            behind = axes + 1 - self.integer("axis", 0) - array.ndim
            array = array.reshape(*array.shape, *(1,) * max(behind, 0))
        if array.ndim > axes:
            if array.ndim > axes + 1 or array.shape[0] != 1:
                raise self.bad("computes with a constant that has numbers for each image", found=array.shape)
            array = array[0]
        return array.reshape(*(1,) * (axes - array.ndim), *array.shape)

    def rescaled(self) -> Image | None:
        """The image with one more step of arithmetic done to it; None for one that has to become a layer."""
        conversion, op = self.conversion, _SCALING.get(self.node.op_type)
        if not conversion.split or op is None or len(self.inputs) != 2:
            return None
        image, other = self.inputs
        if op in ("elemwise_add", "elemwise_mul") and isinstance(other, Image):
            image, other = other, image
        if not isinstance(image, Image) or not isinstance(other, np.ndarray):
            return None
        if other.size > 1 and (other.ndim < 3) != (image.is_last and other.ndim == 1):
            return None
        if image.is_last and other.ndim > 2:
            other = np.moveaxis(other, -1, -3)
        try:
            scale = scaled(image.scale, op, Attributes({}, self.where), [other], self.where)
        except BadInput:
            return None
        return None if scale is None else Image(scale, image.is_last)

    def bad(self, what: str, expected: object = None, found: object = None, advice: str | None = None) -> BadInput:
        """The error that this node causes."""
        return BadInput(what, where=self.where, expected=expected, found=found, advice=advice)

    def unfit(self, what: str, expected: object = None, found: object = None) -> SizeUnfit:
        """The error that this node causes for images of this size, if not for all."""
        return SizeUnfit(what, where=self.where, expected=expected, found=found)


_SCALING = {"Add": "elemwise_add", "Sub": "elemwise_sub", "Mul": "elemwise_mul", "Div": "elemwise_div"}

Rule = Callable[[Operator], Value | tuple[Value, ...]]
