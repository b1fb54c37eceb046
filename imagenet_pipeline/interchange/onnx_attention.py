"""Attention as ONNX spells it: softmax(factor * queries keys) values, over nodes that are one layer of ours."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from imagenet_pipeline.interchange.layer_graph import Flow
from imagenet_pipeline.interchange.onnx_layer_operators import product
from imagenet_pipeline.interchange.onnx_node import Operator, Products, Rule, Value
from imagenet_pipeline.interchange.onnx_operators import ARRAY_RULES, shaped
from imagenet_pipeline.networks.layers import Attention, Join, Scalar


def matrix_product(operator: Operator) -> Value:
    """MatMul: a dense layer, or a product of an attention, for every head."""
    first, second = operator.inputs[:2]
    if isinstance(first, Products):
        return _attended(operator, first)
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray) or second is None:
        return product(operator)
    queries, keys = operator.flow(), operator.flow(1)
    if len(queries.shape) != 3 or len(keys.shape) != 3 or keys.shape != (queries.shape[0], *queries.shape[:0:-1]):
        found = f"{queries.shape} by {keys.shape}"
        raise operator.bad("multiplies arrays otherwise than self-attention does", found=found)
    return Products(queries, keys)


def _attended(operator: Operator, products: Products) -> Flow:
    """Queries, keys and values side by side for our layer, and its output apart again by heads."""
    values = operator.flow(1)
    heads, tokens, length = products.queries.shape
    if not products.shares or values.shape != products.queries.shape:
        raise operator.bad("not the softmax of products times values of their length", found=values.shape)
    queries, factor = products.queries, products.factor * math.sqrt(length)
    if not math.isclose(factor, 1, rel_tol=1e-5):
        queries = operator.add(Scalar("multiply", factor), queries, suffix="factor")
    parts = [
        shaped(operator, _turned(operator, flow, axes, name), (tokens, heads * length), f"{name}_joined")
        for name, flow, axes in (
            ("queries", queries, (1, 0, 2)), ("keys", products.keys, (2, 0, 1)), ("values", values, (1, 0, 2)),
        )
    ]  # fmt: skip
    means = operator.add(Attention(heads), operator.add(Join(1), *parts, suffix="together"))
    return _turned(operator, shaped(operator, means, (tokens, heads, length), "apart"), (1, 0, 2), "heads")


def _turned(operator: Operator, flow: Flow, axes: tuple[int, int, int], suffix: str) -> Flow:
    return operator.conversion.transposed(f"{operator.name()}_{suffix}", flow, axes, operator.where)


def _on_products(rule: Rule) -> Callable[[Operator], Value | tuple[Value, ...]]:
    """The rule of Mul, Div or Softmax, which may also be a step of an attention."""

    def followed(operator: Operator) -> Value | tuple[Value, ...]:
        products = next((value for value in operator.inputs if isinstance(value, Products)), None)
        if products is None:
            return rule(operator)
        op, is_first = operator.node.op_type, operator.inputs[0] is products
        if products.shares or not (op == "Mul" or is_first):
            raise operator.bad("computes with products of queries and keys otherwise than attention does")
        queries, keys, factor = products.queries, products.keys, products.factor
        if op == "Softmax":
            if operator.integer("axis", -1 if operator.opset >= 13 else 1) not in (-1, 3):
                raise operator.bad("the softmax of an attention is over the keys", expected="axis -1")
            return Products(queries, keys, factor, shares=True)
        number = operator.number(1 if is_first else 0, "factor")
        return Products(queries, keys, factor * number if op == "Mul" else factor / (number or math.inf))

    return followed


ATTENTION_RULES: dict[str, Rule] = {
    "MatMul": matrix_product,
    **{name: _on_products(ARRAY_RULES[name]) for name in ("Mul", "Div", "Softmax")},
}
