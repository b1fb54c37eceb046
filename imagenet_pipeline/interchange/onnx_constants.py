"""Nodes of an ONNX graph that read constants alone, or only the shape of an array: worked out, in bounds.

PyTorch writes shapes as such chains: Shape, Gather, Unsqueeze, Concat, and a Reshape that reads them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from imagenet_pipeline.interchange.onnx_file import import_onnx_package
from imagenet_pipeline.interchange.onnx_node import BATCH, Conversion, Operator
from imagenet_pipeline.interchange.params import AnyArray

LEAST_BUDGET, MOST_COPIES = 2**22, 4
"""Numbers that all constants may work out to: of a small file, and for each that the file holds."""
_SAME_SIZE = (
    "Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Flatten", "Neg", "Abs", "Sqrt", "Exp", "Log",
    "Reciprocal", "Floor", "Ceil", "Round", "Not", "Sign", "Sigmoid", "Tanh", "Erf", "Relu", "Slice", "Split", "Clip",
    "ReduceProd", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "CastLike", "NonZero", "DequantizeLinear",
)  # fmt: skip
_BROADCAST = (
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "Equal", "Less", "Greater", "LessOrEqual",
    "GreaterOrEqual", "And", "Or", "Where",
)  # fmt: skip
FOLDED = (*_SAME_SIZE, *_BROADCAST, "Concat", "Gather", "ConstantOfShape", "Expand", "Tile", "Range", "Shape", "Size")


class Folder:
    """Works out constants; all together may have a few times the numbers of the file's own."""

    def __init__(self, conversion: Conversion) -> None:
        self._conversion = conversion
        self._made = 0

    def constant(self, operator: Operator) -> AnyArray:
        """The value of a Constant node."""
        attributes = operator.attributes
        name, value = next(iter(attributes.items()), ("nothing", None))
        match name:
            case "value":
                return self._conversion.tensors.array(value, operator.node.output[0])
            case "value_float" | "value_floats":
                return np.array(value, np.float32)
            case "value_int" | "value_ints":
                return np.array(value, np.int64)
        raise operator.bad("a constant of a kind that no classifier needs", found=name[:80])

    def shape(self, operator: Operator) -> AnyArray | None:
        """The value of a Shape or Size node of an array made of the image; None for another node, or a constant."""
        if operator.node.op_type not in ("Shape", "Size") or isinstance(operator.inputs[0], np.ndarray):
            return None
        lengths = (BATCH, *operator.flow().shape)
        if operator.node.op_type == "Size":
            return np.array(math.prod(lengths), np.int64)
        begin, end = operator.integer("start", 0), operator.integer("end", len(lengths))
        return np.array(lengths[begin:end], np.int64)

    def folded(self, operator: Operator) -> tuple[AnyArray, ...] | None:
        """The constant output of a node; None where it reads something made of the image, or is not one to work out."""
        arrays = [value for value in operator.inputs if value is not None]
        if operator.node.op_type not in FOLDED or not all(isinstance(array, np.ndarray) for array in arrays):
            return None
        if operator.node.op_type == "Expand":
            repeated = _for_each_image(operator)
            if repeated is not None:
                return (repeated,)
        size = _size(operator, [array for array in arrays if isinstance(array, np.ndarray)])
        most = max(LEAST_BUDGET, MOST_COPIES * self._conversion.stored)
        if self._made + size > most:
            expected = f"at most {most:,} numbers in all"
            raise operator.bad("its constants are larger than the file's", expected=expected, found=f"{size:,} more")
        self._made += size
        return self._evaluated(operator)

    def _evaluated(self, operator: Operator) -> tuple[AnyArray, ...]:
        onnx = import_onnx_package()
        from onnx.reference import ReferenceEvaluator

        node = operator.node
        names = [name for name in dict.fromkeys(node.input) if name]
        described = [onnx.helper.make_empty_tensor_value_info(name) for name in names]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "constant", described, outputs)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", operator.opset)])
        feeds = {name: value for name, value in zip(node.input, operator.inputs, strict=True) if name}
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(model).run(None, feeds)
        except Exception as error:  # the package raises whatever its NumPy code does
            reason = ascii(str(error))[1:-1].partition("\\n")[0][:160]
            raise operator.bad(f"its constants cannot be worked out ({reason})") from None
        return tuple(np.asarray(result) for result in results)


def _for_each_image(operator: Operator) -> AnyArray | None:
    """A constant repeated for all images of a batch, as a single one; None for another Expand."""
    array, lengths = operator.array(0, "constant"), operator.numbers(1, "shape")
    if lengths[:1] != [BATCH] or BATCH in lengths[1:] or math.prod(lengths[1:]) > LEAST_BUDGET:
        return None
    try:
        return np.broadcast_to(array, np.broadcast_shapes(array.shape, (1, *lengths[1:])))
    except ValueError:
        raise operator.bad("its constants do not go together", found=f"{array.shape}, {lengths[1:]}") from None


def _size(operator: Operator, arrays: Sequence[AnyArray]) -> int:
    """Numbers that the node gives, at most. Raises BadInput where its inputs do not go together."""
    try:
        match operator.node.op_type:
            case "ConstantOfShape":
                return math.prod(int(length) for length in arrays[0].ravel())
            case "Expand":
                lengths = [int(length) for length in arrays[1].ravel()]
                return max(math.prod(lengths), 1) * max(arrays[0].size, 1)
            case "Tile":
                return arrays[0].size * math.prod(int(count) for count in arrays[1].ravel())
            case "Range":
                start, limit, delta = (float(array.reshape(())) for array in arrays)
                return max(0, math.ceil((limit - start) / delta))
            case "Gather":
                axis = operator.integer("axis", 0)
                return arrays[1].size * (arrays[0].size // max(arrays[0].shape[axis], 1))
            case "Concat":
                return sum(array.size for array in arrays)
            case op if op in _BROADCAST:
                return math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    except (ValueError, IndexError, ZeroDivisionError, TypeError, OverflowError):
        raise operator.bad("its constants do not go together", found=[array.shape for array in arrays]) from None
    return max((array.size for array in arrays), default=1)
